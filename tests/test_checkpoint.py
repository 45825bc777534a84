"""Checkpoints: what loads, what is refused and how, and how weights reach a model."""

import contextlib
import copy
import hashlib
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from landscape.checkpoint import (
    Checkpoint,
    escape_name,
    expand_checkpoints,
    load_into,
    natural_key,
    read_checkpoint,
    summarise,
    training_step,
)
from landscape.errors import CheckpointError, LandscapeError, NotFiniteError, UsageError

FORMATS = ("safetensors", "torch-zip", "torch-legacy")


def make_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def save(path, value, form="torch-zip", **options):
    if form == "safetensors":
        save_file({k: v.contiguous().clone() for k, v in value.items()}, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "torch-zip", **options)
    return path


def in_memory(tensors, **fields):
    defaults = {
        "path": "memory",
        "format": "safetensors",
        "metadata": {},
        "sha256": "0" * 64,
        "step": None,
        "weights_key": None,
        "unsafe_pickle": False,
    }
    return Checkpoint(tensors=tensors, **(defaults | fields))


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "expected" in message
    assert message.isprintable(), "one line, nothing that a terminal would obey"
    return message


class Opens:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


class Runs:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


# Round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_round_trip_in_every_format(tmp_path, form):
    model = make_model()
    path = save(tmp_path / "step_000100.anything", model.state_dict(), form)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, model.state_dict())
    assert checkpoint.format == form
    assert checkpoint.path == str(path)
    assert checkpoint.step == 100
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.weights_key is None
    assert checkpoint.unsafe_pickle is False
    fresh = make_model()
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    load_into(fresh, checkpoint)
    assert_same(fresh.state_dict(), model.state_dict())


@pytest.mark.parametrize("form", FORMATS)
def test_the_ending_decides_nothing(tmp_path, form):
    state = {"w": torch.arange(3.0)}
    for ending in (".pt", ".safetensors", ".h5", ""):
        path = save(tmp_path / f"model{ending}", state, form)
        assert read_checkpoint(path).format == form
        assert_same(read_checkpoint(path).tensors, state)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (form, dtype)
        for form in FORMATS
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool)
    ]
    # The legacy format has no storage of 8-bit floats.
    + [(form, torch.float8_e4m3fn) for form in FORMATS if form != "torch-legacy"],
)
def test_dtypes_survive(tmp_path, form, dtype):
    state = {"w": torch.tensor([[1.0, 0.0, 1.5]]).to(dtype)}
    checkpoint = read_checkpoint(save(tmp_path / "c", state, form))
    assert checkpoint.tensors["w"].dtype == dtype
    assert torch.equal(checkpoint.tensors["w"].double(), state["w"].double())
    row = summarise(checkpoint).tensors[0]
    assert row.dtype == str(dtype).removeprefix("torch.")
    assert row.norm == pytest.approx(float(state["w"].double().norm()))


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize(
    ("nest", "key"),
    [
        (lambda s: s, None),
        (lambda s: {"state_dict": s, "epoch": 3}, "state_dict"),
        (lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, "model"),
        (lambda s: {"model_state_dict": s, "loss": torch.tensor(0.5)}, "model_state_dict"),
        (lambda s: {"checkpoint": {"model": s}}, "checkpoint.model"),
        (lambda s: {"model": {"state_dict": s}}, "model.state_dict"),
        (lambda s: {"state_dict": s, "ema": copy.deepcopy(s)}, "state_dict"),
        (lambda s: {"m": {"model": s}, "ema": {"model": s}, "ema_2": {"model": s}}, "m.model"),
    ],
)
def test_nestings(tmp_path, form, nest, key):
    state = make_model().state_dict()
    checkpoint = read_checkpoint(save(tmp_path / "c.pt", nest(state), form))
    assert_same(checkpoint.tensors, state)
    assert checkpoint.weights_key == key


def test_parameters_become_plain_tensors_and_views_are_kept(tmp_path):
    base = torch.arange(6.0)
    value = {"p": nn.Parameter(torch.ones(2)), "view": base[::2], "t": base.reshape(2, 3).T}
    tensors = read_checkpoint(save(tmp_path / "c.pt", value)).tensors
    assert type(tensors["p"]) is torch.Tensor
    assert not tensors["p"].requires_grad
    assert torch.equal(tensors["view"], base[::2])
    assert torch.equal(tensors["t"], base.reshape(2, 3).T)


def test_complex_conjugate_views_are_resolved(tmp_path):
    value = torch.tensor([1 + 2j, 3 - 1j])
    tensors = read_checkpoint(save(tmp_path / "c.pt", {"w": value.conj()})).tensors
    assert torch.equal(tensors["w"], value.conj().resolve_conj())


# Which weights ---------------------------------------------------------------------------------


def test_two_candidates_need_a_key(tmp_path):
    value = {"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.zeros(1)}}
    path = save(tmp_path / "c.pt", value)
    message = refusal(path)
    assert "--weights-key" in message
    assert "state_dict" in message
    assert "model" in message
    assert float(read_checkpoint(path, weights_key="model").tensors["w"]) == 1
    both = {"a": {"model": value["model"]}, "b": {"model": value["model"]}}
    nested = save(tmp_path / "n.pt", both)
    assert "a.model, b.model" in refusal(nested)


def test_averaged_weights_only_when_named(tmp_path):
    ema = {"w": torch.full((1,), 2.0)}
    path = save(tmp_path / "c.pt", {"model": {"w": torch.ones(1)}, "model_ema": ema})
    assert float(read_checkpoint(path).tensors["w"]) == 1
    named = read_checkpoint(path, weights_key="model_ema")
    assert float(named.tensors["w"]) == 2
    assert named.weights_key == "model_ema"
    only = save(tmp_path / "only.pt", {"ema": {"state_dict": ema}})
    assert "--weights-key ema.state_dict" in refusal(only)
    assert float(read_checkpoint(only, weights_key="ema.state_dict").tensors["w"]) == 2


def test_other_names_are_offered_not_guessed(tmp_path):
    path = save(tmp_path / "c.pt", {"net": {"w": torch.ones(1)}, "epoch": 3})
    message = refusal(path)
    assert "top-level keys: net, epoch" in message
    assert "--weights-key net" in message
    assert list(read_checkpoint(path, weights_key="net").tensors) == ["w"]


@pytest.mark.parametrize("form", FORMATS)
def test_weights_key_as_a_prefix_of_names(tmp_path, form):
    state = {"net.w": torch.ones(1), "head.w": torch.zeros(1)}
    path = save(tmp_path / "c", state, form)
    checkpoint = read_checkpoint(path, weights_key="net")
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.weights_key == "net"
    assert "absent" in refusal(path, weights_key="body")


def test_weights_key_with_dots_and_bad_keys(tmp_path):
    value = {"a": {"b.c": {"d": {"w": torch.ones(1)}}}, "t": torch.ones(1), "n": 3}
    path = save(tmp_path / "c.pt", value)
    assert list(read_checkpoint(path, weights_key="a.b.c.d").tensors) == ["w"]
    assert "absent" in refusal(path, weights_key="a.x")
    assert "a tensor" in refusal(path, weights_key="t")
    assert "a int" in refusal(path, weights_key="n")


def test_no_tensors(tmp_path):
    message = refusal(save(tmp_path / "a.pt", {"epoch": 3, "name\x1b[31m": "x"}))
    assert "top-level keys: epoch, name\\x1b[31m" in message
    assert "holds a list" in refusal(save(tmp_path / "b.pt", [torch.ones(1)]))
    assert "holds a Tensor" in refusal(save(tmp_path / "c.pt", torch.ones(1)))
    assert "none" in refusal(save(tmp_path / "d.pt", {}))
    save_file({}, tmp_path / "e.safetensors", metadata={"step": "3"})
    assert "no tensors" in refusal(tmp_path / "e.safetensors")


def test_non_tensor_values_in_the_state_dict(tmp_path):
    value = {"w": torch.ones(1), "note": "hi", "none": None, "l": [1], "d": {}, "k._extra_state": 4}
    checkpoint = read_checkpoint(save(tmp_path / "c.pt", value))
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.metadata["note"] == "hi"
    nested = {"w": torch.ones(1), "encoder": {"w": torch.ones(1)}}
    assert "encoder" in refusal(save(tmp_path / "n.pt", nested))
    assert "key 0 (int)" in refusal(save(tmp_path / "i.pt", {0: torch.ones(1)}))


def test_metadata(tmp_path):
    value = {
        "state_dict": {"w": torch.ones(1), "x": torch.ones(())},
        "global_step": 70,
        "epoch": 3,
        "loss": torch.tensor(0.5),
        "best": True,
        "note": "x" * 5000,
        "lists": [1],
        "rng": torch.zeros(5, dtype=torch.uint8),
    }
    checkpoint = read_checkpoint(save(tmp_path / "step_3.pt", value))
    assert checkpoint.step == 70
    metadata = dict(checkpoint.metadata)
    assert len(metadata.pop("note")) == 1000
    assert metadata == {"global_step": "70", "epoch": "3", "loss": "0.5", "best": "True"}
    path = tmp_path / "c.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"step": "12", "run": "a"})
    assert read_checkpoint(path).metadata == {"step": "12", "run": "a"}
    assert read_checkpoint(path).step == 12


@pytest.mark.parametrize(
    "name",
    [
        "module.a.w",
        "_orig_mod.a.w",
        "module._orig_mod.module.a.w",
        "a._orig_mod.w",
        "module.module.a.w",
    ],
)
def test_prefixes_are_stripped(tmp_path, name):
    assert list(read_checkpoint(save(tmp_path / "c.pt", {name: torch.ones(1)})).tensors) == ["a.w"]


def test_prefix_collision(tmp_path):
    value = {"module.w": torch.ones(1), "w": torch.ones(1)}
    message = refusal(save(tmp_path / "c.pt", value))
    assert "module.w, w" in message
    kept = {"a.module.w": torch.ones(1), "modules.w": torch.ones(1), "module": torch.ones(1)}
    assert_same(read_checkpoint(save(tmp_path / "k.pt", kept)).tensors, kept)


# Files that are no checkpoints -----------------------------------------------------------------


def test_missing_file_is_wrong_usage(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path / "a" / "b", "nul\0byte", "x" * 5000):
        with pytest.raises(UsageError, match="does not exist"):
            read_checkpoint(path)


def test_directory(tmp_path):
    (tmp_path / "model.safetensors").touch()
    message = refusal(tmp_path)
    assert "is a directory" in message
    assert "model.safetensors" in message
    (tmp_path / ".metadata").touch()
    assert "distributed checkpoint" in refusal(tmp_path)


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


# Hostile files ---------------------------------------------------------------------------------


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
    # The names come from the memo; then with an operation between that hides them from the scan.
    fetched = b"\x80\x04" + names + b"h\x00h\x01" + tail
    computed = b"\x80\x04" + names + b"h\x00h\x01N0" + tail
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
    import argparse

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


# Any damage ------------------------------------------------------------------------------------


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


# Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_000100.safetensors", 100),
        ("runs/step=100.ckpt", 100),
        ("checkpoint-100", 100),
        ("ckpt_100.pt", 100),
        ("iter100.pt", 100),
        ("iteration_100.pt", 100),
        ("epoch=3-step=100.ckpt", 100),
        ("step=100-epoch=3.ckpt", 100),
        ("global_step100.pt", 100),
        ("STEP_7.pt", 7),
        ("000250.pt", 250),
        ("0.pt", 0),
        ("checkpoint-100/model.safetensors", 100),
        ("checkpoint-100/step_7.pt", 7),
        ("step_100_ema.pt", 100),
        ("mnist-v2", None),
        ("mnist-v2.pt", None),
        ("epoch=3.ckpt", None),
        ("footstep3.pt", None),
        ("step_100k.pt", None),
        ("step_.pt", None),
        ("2024/model.pt", None),
        ("runs_step_3_of_4/model.pt", None),
        ("9" * 30 + ".pt", None),
        ("", None),
    ],
)
def test_training_step_from_the_name(name, step):
    assert training_step(name, {}) == step
    assert training_step(Path(name), {}) == step


def test_training_step_from_the_metadata():
    assert training_step("step_3.pt", {"global_step": "12"}) == 12
    assert training_step("step_3.pt", {"step": "5", "global_step": "12"}) == 5
    assert training_step("step_3.pt", {"step": "5.0"}) == 5
    assert training_step("step_3.pt", {"step": "many", "epoch": "9"}) == 3
    assert training_step("x.pt", {"epoch": "9"}) is None


def test_natural_order():
    names = ["step_10", "step_9", "step_100", "a", "step_09", "10", "9", "step_9.pt"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["9", "10", "a", "step_09", "step_9", "step_9.pt", "step_10", "step_100"]
    assert natural_key("1" * 5000) > natural_key("2" * 4999)


def test_expand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s_10.pt", "s_9.pt", "s_[1].pt", "s_1.pt", "other"):
        Path(name).touch()
    assert expand_checkpoints(["s_?.pt"]) == [Path("s_1.pt"), Path("s_9.pt")]
    # A literal name wins over the pattern that it would be.
    assert expand_checkpoints(["s_[1].pt"]) == [Path("s_[1].pt")]
    assert expand_checkpoints(["s_[19].pt"]) == [Path("s_1.pt"), Path("s_9.pt")]
    found = expand_checkpoints(["s_10.pt", "s_*", str(tmp_path / "s_9.pt"), "./other", "other"])
    names = ["s_10.pt", "s_1.pt", "s_9.pt", "s_[1].pt", "other"]
    assert [path.name for path in found] == names
    for bad in (["none.pt"], ["none*"], ["other", "gone"], [""], ["a\0b*"], []):
        with pytest.raises(UsageError):
            expand_checkpoints(bad)


def test_expand_recursively(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.pt").touch()
    assert expand_checkpoints([str(tmp_path / "**" / "*.pt")]) == [tmp_path / "a" / "b" / "x.pt"]


def test_escape_name():
    assert escape_name("layer.0.weight ü [b]") == "layer.0.weight ü [b]"
    assert escape_name("a\x1b[31m\n\x00\x7f") == "a\\x1b[31m\\x0a\\x00\\x7f"
    assert escape_name("\u202e\u2028\ud800\U000e0001") == "\\u202e\\u2028\\ud800\\U000e0001"


# Into a model ----------------------------------------------------------------------------------


def test_mismatch_is_one_message():
    model = make_model()
    tensors = dict(model.state_dict())
    tensors["0.wieght"] = tensors.pop("0.weight")
    tensors["2.weight"] = torch.ones(2, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_into(model, in_memory(tensors))
    message = str(caught.value)
    assert "1 missing from the file: 0.weight (nearest: 0.wieght)" in message
    assert "1 not in the model: 0.wieght" in message
    assert "1 of another shape: 2.weight (file (2, 5), model (2, 4))" in message
    assert "--set" in message
    assert_same(model.state_dict(), before)


def test_long_mismatches_are_counted():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
    with pytest.raises(CheckpointError) as caught:
        load_into(model, in_memory({f"x{i}\n": torch.ones(1) for i in range(9)}))
    message = str(caught.value)
    assert "12 missing" in message
    assert "and 7 more" in message
    assert "9 not in the model: x0\\x0a" in message
    assert "and 4 more" in message
    assert len(message) < 800


def test_a_common_prefix_is_pointed_out(tmp_path):
    model = make_model()
    state = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    path = save(tmp_path / "l.ckpt", {"state_dict": state | {"metric.total": torch.ones(1)}})
    with pytest.raises(CheckpointError, match=r"--weights-key state_dict\.net"):
        load_into(model, read_checkpoint(path))
    load_into(model, read_checkpoint(path, weights_key="state_dict.net"))


def test_wrapped_models_match():
    inner = make_model()
    wrapped = nn.Module()
    wrapped.module = copy.deepcopy(inner)
    load_into(wrapped, in_memory(dict(inner.state_dict())))
    both = nn.Module()
    both.module = nn.Linear(2, 2)
    both.weight = nn.Parameter(torch.zeros(2, 2))
    tensors = {name: torch.ones_like(tensor) for name, tensor in both.state_dict().items()}
    load_into(both, in_memory(tensors))
    assert_same(both.state_dict(), tensors)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
def test_tied_weights(tmp_path, kept):
    value = torch.randn(4, 3)
    model = Tied()
    load_into(model, read_checkpoint(save(tmp_path / "c", {kept: value}, "safetensors")))
    assert torch.equal(model.embed.weight, value)
    assert model.head.weight is model.embed.weight
    load_into(model, in_memory({"embed.weight": value, "head.weight": value.clone()}))
    with pytest.raises(CheckpointError, match=r"unequal embed\.weight, head\.weight"):
        load_into(model, in_memory({"embed.weight": value, "head.weight": value + 1}))
    with pytest.raises(CheckpointError, match="2 missing"):
        load_into(model, in_memory({"other": value}))


def test_ties_in_a_torch_file_are_counted_once(tmp_path):
    model = Tied()
    summary = summarise(read_checkpoint(save(tmp_path / "c.pt", model.state_dict())))
    assert summary.n_parameters == 12
    assert summary.n_bytes == 48
    assert len(summary.tensors) == 2


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("target", [torch.float32, torch.float64])
def test_dtype_conversion_buffers_and_frozen_parameters(source, target):
    reference = make_model()
    tensors = {
        n: t.to(source) if t.is_floating_point() else t + 5
        for n, t in reference.state_dict().items()
    }
    model = make_model().to(target)
    model[0].weight.requires_grad_(False)
    for tensor in model.state_dict().values():
        tensor.zero_()
    load_into(model, in_memory(tensors))
    assert model[0].weight.dtype == target
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad
    assert torch.equal(model[0].weight, tensors["0.weight"].to(target))
    assert torch.equal(model[1].running_var, tensors["1.running_var"].to(target))
    assert int(model[1].num_batches_tracked) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weights(bad):
    model = make_model()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["0.weight"][0, 0] = bad
    tensors["1.running_mean"][1] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotFiniteError) as caught:
        load_into(model, in_memory(tensors))
    message = str(caught.value)
    assert caught.value.exit_code == 4
    kind = "1 NaN, 0 infinite" if math.isnan(bad) else "0 NaN, 1 infinite"
    assert f"0.weight ({kind} of 12)" in message
    assert "1.running_mean (1 NaN, 0 infinite of 4)" in message
    assert_same(model.state_dict(), before)


def test_overflow_in_conversion():
    model = nn.Linear(1, 1).half()
    tensors = {"weight": torch.full((1, 1), 1e6), "bias": torch.zeros(1)}
    with pytest.raises(NotFiniteError, match="after conversion to float16"):
        load_into(model, in_memory(tensors))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_kinds_of_numbers_must_agree(dtype):
    tensors = {"weight": torch.ones(1, 1).to(dtype), "bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="same kind of number"):
        load_into(nn.Linear(1, 1), in_memory(tensors))


def test_integers_must_fit():
    model = nn.Module()
    model.register_buffer("count", torch.zeros((), dtype=torch.int32))
    load_into(model, in_memory({"count": torch.tensor(7)}))
    assert int(model.count) == 7
    with pytest.raises(CheckpointError, match="out of range for the model's int32"):
        load_into(model, in_memory({"count": torch.tensor(2**40)}))


def test_complex_weights(tmp_path):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    value = torch.tensor([3 + 4j, 0], dtype=torch.complex64)
    checkpoint = read_checkpoint(save(tmp_path / "c.pt", {"w": value}))
    load_into(model, checkpoint)
    assert torch.equal(model.w.detach(), value.to(torch.complex128))
    assert summarise(checkpoint).norm == pytest.approx(5)
    value[0] = complex(math.nan, 1)
    with pytest.raises(NotFiniteError):
        load_into(model, in_memory({"w": value}))


def test_models_without_data_are_refused():
    tensors = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
    for model in (nn.Linear(1, 1, device="meta"), nn.LazyLinear(1)):
        with pytest.raises(CheckpointError, match="lazy or on the meta device"):
            load_into(model, in_memory(tensors))


class Refuses(nn.Linear):
    def _load_from_state_dict(self, *_args, **_options):
        raise KeyError("no")


def test_the_models_own_refusal_is_one_message():
    model = Refuses(1, 1)
    with pytest.raises(CheckpointError, match="KeyError"):
        load_into(model, in_memory(dict(model.state_dict())))


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"format": 2}

    def set_extra_state(self, state):
        raise AssertionError("dropped, so never set")


def test_extra_state_is_left_alone(tmp_path):
    model = Extra(1, 1)
    load_into(model, read_checkpoint(save(tmp_path / "c.pt", model.state_dict())))


# Looking inside --------------------------------------------------------------------------------


def test_summary(tmp_path):
    state = {
        "b.10": torch.tensor([3.0, 4.0]),
        "b.9": torch.tensor([[12.0]], dtype=torch.float64),
        "n": torch.tensor(7),
        "bad": torch.tensor([math.nan, math.inf, 1.0], dtype=torch.bfloat16),
        "none": torch.zeros(0, 2),
    }
    checkpoint = read_checkpoint(save(tmp_path / "step_5.pt", {"model": state, "epoch": 1}))
    summary = summarise(checkpoint)
    assert [row.name for row in summary.tensors] == ["b.9", "b.10", "bad", "n", "none"]
    rows = {row.name: row for row in summary.tensors}
    assert rows["b.10"].norm == 5
    assert rows["b.9"].shape == (1, 1)
    assert rows["n"].dtype == "int64"
    assert rows["n"].shape == ()
    assert (rows["bad"].nan, rows["bad"].inf, rows["bad"].size) == (1, 1, 3)
    assert (summary.nan, summary.inf) == (1, 1)
    assert summary.n_parameters == 6
    assert summary.n_bytes == 8 + 8 + 8 + 6
    assert summary.step == 5
    assert summary.sha256 == checkpoint.sha256
    assert summary.metadata == {"epoch": "1"}
    assert summary.weights_key == "model"
    assert len(summary.warnings) == 3
    del state["bad"]
    assert summarise(in_memory(state)).norm == 13


def test_norms_in_float64_over_many_elements():
    value = torch.full((5_000_000,), 1e-3)
    exact = float(np.float32(1e-3)) * math.sqrt(5e6)
    assert summarise(in_memory({"w": value})).norm == pytest.approx(exact, rel=1e-13)


def test_no_terminal_or_plotting_library_is_imported():
    code = (
        "import sys, landscape.checkpoint; "
        "print([m for m in ('typer', 'rich', 'h5py', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
