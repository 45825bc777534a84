"""Files that are no checkpoints, or hostile ones: refused with one message, running nothing."""

import argparse
import contextlib
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from checkpoint_files import (
    FORMATS,
    Calls,
    Opens,
    Runs,
    assert_same,
    make_model,
    refusal,
    save,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landscape.checkpoint import load_into, read_checkpoint
from landscape.errors import CheckpointError, LandscapeError, UsageError
from landscape.summary import summarise


def test_missing_file_is_wrong_usage(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path / "a" / "b", "nul\0byte", "x" * 5000):
        with pytest.raises(UsageError, match="does not exist"):
            read_checkpoint(path)


def test_a_folder_of_other_files(tmp_path):
    message = refusal(tmp_path)
    assert "is a directory without weights (in it: nothing)" in message
    (tmp_path / "config.json").touch()
    message = refusal(tmp_path)
    assert "(in it: config.json)" in message
    assert "expected a folder of one checkpoint (model.safetensors, pytorch_model.bin" in message
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=1-step=8.ckpt").touch()
    assert "Name a folder in it: checkpoints" in refusal(tmp_path)
    (tmp_path / "best.safetensors").touch()
    assert "Name a file in it: best.safetensors" in refusal(tmp_path)


def test_the_index_of_a_folder(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {}}')
    assert f"Name the folder that holds it: {tmp_path}" in refusal(path)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "empty"),
        (b"hello, this is text\n", "plain text"),
        ("größer 😀".encode(), "plain text"),
        (b"{", "plain text"),
        (b'{"weights": [1, 2, 3]}', "plain text"),
        (b"<!DOCTYPE html><html>not found</html>", "plain text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "looks like a result file"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"\x93NUMPY" + bytes(100), "NumPy"),
        (b"PK\x03\x04" + bytes(100), "damaged zip"),
        (b"\x80", "no known format"),
        (b"\x80\x02", "plain pickle"),
        (b"\xff" * 100, "no known format"),
        (bytes(257) + b"ustar" + bytes(500), "tar archive"),
        ((1000).to_bytes(8, "little") + b'{"w":', "truncated safetensors"),
        ((5).to_bytes(8, "little") + b'{"w":', "damaged"),
    ],
)
@pytest.mark.parametrize("unsafe", [False, True])
def test_foreign_files(tmp_path, content, seen, unsafe):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert seen in refusal(path, unsafe_pickle=unsafe)


def test_other_zip_files(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    assert "w.npy" in refusal(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    assert "empty zip" in refusal(tmp_path / "b.zip")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"s/{name}", b"\x80\x02}.")
    for unsafe in (False, True):
        assert "TorchScript" in refusal(tmp_path / "s.pt", unsafe_pickle=unsafe)


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_files(tmp_path, form):
    path = save(tmp_path / "c", make_model().state_dict(), form)
    content = path.read_bytes()
    for length in (9, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        message = refusal(path)
        assert "truncated" in message or "damaged" in message or "plain pickle" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")


def test_permission_error_is_one_message(tmp_path, monkeypatch):
    path = save(tmp_path / "c.pt", {"w": torch.ones(1)})

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(CheckpointError, match="cannot be read \\(Permission denied\\)"):
        read_checkpoint(path)


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("payload", "name"), [(Opens, "open"), (Runs, f"{os.system.__module__}.system")]
)
@pytest.mark.parametrize("nested", [False, True])
def test_malicious_pickles_never_run(tmp_path, form, protocol, payload, name, nested):
    marker = tmp_path / "marker"
    bad = payload(marker)
    value = {"model": {"w": torch.ones(1)}, "x": bad} if nested else bad
    path = save(tmp_path / "bad.pt", value, form, pickle_protocol=protocol)
    message = refusal(path)
    assert not marker.exists()
    assert name in message
    assert "Only --unsafe-pickle loads it" in message
    assert "convert" in message


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("unsafe", [False, True])
def test_plain_pickles_never_run(tmp_path, protocol, unsafe):
    marker = tmp_path / "marker"
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps(Runs(marker), protocol=protocol))
    message = refusal(path, unsafe_pickle=unsafe)
    assert not marker.exists()
    if protocol >= 2:
        assert f"{os.system.__module__}.system" in message


def test_malicious_pickle_behind_a_memo_and_a_computed_name(tmp_path):
    marker = tmp_path / "marker"
    names = b"\x8c\x05posix\x94\x8c\x06system\x9400"
    command = f"touch {marker}".encode()
    tail = b"\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    # The names come from the memo; then one is the result of a call, which no scan can know.
    fetched = b"\x80\x04" + names + b"h\x00h\x01" + tail
    computed = b"\x80\x04" + names + b"h\x00cbuiltins\nstr\nh\x01\x85R" + tail
    for pickled, seen in ((fetched, "posix.system"), (computed, "computed while loading")):
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/version", b"3\n")
        assert seen in refusal(tmp_path / "bad.pt")
        assert not marker.exists()


def test_names_from_a_hostile_pickle_are_escaped(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cevil\x1b[2J\x07\nname\n.")
        archive.writestr("a/version", b"3\n")
    assert "evil\\x1b[2J\\x07.name" in refusal(tmp_path / "bad.pt")


def test_unsafe_pickle_is_explicit_and_recorded(tmp_path, recwarn):
    marker = tmp_path / "marker"
    path = save(tmp_path / "bad.pt", {"model": {"w": torch.ones(1)}, "x": Runs(marker)})
    checkpoint = read_checkpoint(path, unsafe_pickle=True)
    assert marker.exists()
    assert checkpoint.unsafe_pickle is True
    assert any("--unsafe-pickle" in warning for warning in summarise(checkpoint).warnings)
    safe = save(tmp_path / "c.safetensors", {"w": torch.ones(1)}, "safetensors")
    assert read_checkpoint(safe, unsafe_pickle=True).unsafe_pickle is False
    assert not recwarn.list


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize("wrap", [False, True])
def test_whole_module_only_when_asked(tmp_path, form, wrap):
    model = make_model()
    path = save(tmp_path / "m.pt", {"model": model, "epoch": 2} if wrap else model, form)
    assert "torch.nn.modules.container.Sequential" in refusal(path)
    checkpoint = read_checkpoint(path, unsafe_pickle=True)
    assert_same(checkpoint.tensors, model.state_dict())
    assert checkpoint.weights_key == ("model" if wrap else None)


def test_stored_hyperparameters_are_named(tmp_path):

    value = {"state_dict": {"w": torch.ones(1)}, "hparams": argparse.Namespace(lr=0.1)}
    path = save(tmp_path / "l.ckpt", value)
    assert "argparse.Namespace" in refusal(path)
    assert list(read_checkpoint(path, unsafe_pickle=True).tensors) == ["w"]


@pytest.mark.parametrize("form", FORMATS[1:])
def test_failures_of_unsafe_loading_are_one_message(tmp_path, form):
    path = save(tmp_path / "a.pt", Calls(sys.exit, 3), form)
    assert "SystemExit" in refusal(path, unsafe_pickle=True)
    path = save(tmp_path / "b.pt", Calls(int, "x"), form)
    assert "ValueError" in refusal(path, unsafe_pickle=True)


def test_newer_pickle_protocol_is_explained(tmp_path):
    path = save(tmp_path / "c.pt", {"w": torch.ones(1)}, pickle_protocol=4)
    assert "protocol 4" in refusal(path)
    assert list(read_checkpoint(path, unsafe_pickle=True).tensors) == ["w"]


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize("unsafe", [False, True])
def test_stride_zero_bomb(tmp_path, form, unsafe):
    bomb = torch.zeros(1).expand(10**6, 10**6)
    path = save(tmp_path / "bomb.pt", {"model": {"w": bomb}}, form)
    assert path.stat().st_size < 3000
    assert "declares 4000000000000 bytes" in refusal(path, unsafe_pickle=unsafe)
    many = {f"w{i}": torch.zeros(1).expand(2**23) for i in range(8)}
    assert "declares" in refusal(save(tmp_path / "many.pt", many, form), unsafe_pickle=unsafe)
    beside = {"model": {"w": torch.ones(1)}, "loss": bomb}
    assert list(read_checkpoint(save(tmp_path / "b.pt", beside, form)).metadata) == []


def test_small_expanded_tensors_load(tmp_path):
    checkpoint = read_checkpoint(save(tmp_path / "c.pt", {"w": torch.ones(1).expand(1000)}))
    assert summarise(checkpoint).norm == pytest.approx(math.sqrt(1000))


@pytest.mark.parametrize("form", FORMATS[1:])
def test_declared_sizes_that_are_not_there(tmp_path, form):
    storage = torch.zeros(1)._typed_storage()
    for size in (10, 10**8, 10**12):
        call = Calls(
            torch._utils._rebuild_tensor_v2, storage, 0, (size,), (1,), False, OrderedDict()
        )
        refusal(save(tmp_path / "c.pt", {"w": call}, form))
    assert "declares" in refusal(
        save(tmp_path / "t.pt", {"w": Calls(torch.FloatTensor, 10**7)}, form)
    )
    path = save(tmp_path / "b.pt", {"w": torch.ones(1), "x": Calls(bytearray, 10**10)}, form)
    assert "builtins.bytearray" in refusal(path)


def test_zip_bomb(tmp_path):
    plain = save(tmp_path / "plain.pt", {"w": torch.zeros(2**20)})
    bomb = tmp_path / "bomb.pt"
    repack(plain, bomb)
    assert bomb.stat().st_size < 20_000
    for unsafe in (False, True):
        assert "zip bomb" in refusal(bomb, unsafe_pickle=unsafe)


def test_repacked_archive_with_ordinary_compression_loads(tmp_path):
    state = {"w": torch.randn(1000)}
    repack(save(tmp_path / "plain.pt", state), tmp_path / "packed.pt")
    assert_same(read_checkpoint(tmp_path / "packed.pt").tensors, state)


def repack(source, target):
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.mark.parametrize(
    ("tensor", "seen"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "meta"),
    ],
)
def test_tensors_that_are_not_plain(tmp_path, tensor, seen):
    message = refusal(save(tmp_path / "c.pt", {"layer.w": tensor}))
    assert seen in message
    assert "layer.w" in message


@pytest.mark.filterwarnings("ignore:.*quantized tensor:UserWarning")
def test_quantised_tensor_is_refused(tmp_path):
    tensor = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    message = refusal(save(tmp_path / "c.pt", {"layer.w": tensor}))
    assert "quantised" in message


class Tagged(torch.Tensor):
    pass


def test_tensor_subclass_is_refused(tmp_path):
    value = {"w": Calls(torch.Tensor.as_subclass, torch.ones(2), Tagged)}
    path = save(tmp_path / "c.pt", value)
    refusal(path)
    assert "Tagged" in refusal(path, unsafe_pickle=True)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    state = make_model().state_dict()
    contents = []
    for form in FORMATS:
        value = state if form == "safetensors" else {"state_dict": state, "step": 3}
        contents.append(save(folder / form, value, form).read_bytes())
    return folder / "damaged", contents


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    which=st.integers(0, 2),
    cut=st.none() | st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255), st.booleans()), max_size=4),
)
def test_damage_is_either_harmless_or_one_message(originals, which, cut, flips):
    path, contents = originals
    data = bytearray(contents[which])
    for place, mask, early in flips:
        # Half of the flips go to the structure at the start.
        span = min(len(data), 300) if early else len(data)
        data[int(place * (span - 1))] ^= mask
    if cut is not None:
        data = data[: int(cut * len(data))]
    path.write_bytes(data)
    with contextlib.suppress(LandscapeError):
        checkpoint = read_checkpoint(path)
        summarise(checkpoint)
        load_into(make_model(), checkpoint)
