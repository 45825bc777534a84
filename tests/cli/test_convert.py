"""``landscape convert``: the same tensors, nothing run, nothing overwritten."""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import Runs, assert_same, make_model, save
from safetensors import safe_open
from torch import nn

from landscape.checkpoint import read_checkpoint


class Block(nn.Module):
    """Tied weights, a frozen one, two kinds of buffers, a module within a module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model()
        self.again = self.inner[0]
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_state_dict_and_what_is_noted(cli, tmp_path):
    state = make_model().state_dict()
    path = save(tmp_path / "run.pt", {"model": state, "step": 40, "lr": 0.1, "ema": state})
    out = tmp_path / "out.safetensors"
    done = cli("convert", path, out, "--json")
    assert (done.code, done.values["written"], done.values["left_out"]) == (0, True, [])
    assert_same(read_checkpoint(out).tensors, state)
    assert read_checkpoint(out).step == 40
    noted = metadata(out)
    assert noted["source"] == "run.pt"
    assert noted["source_sha256"] == read_checkpoint(path).sha256
    assert (noted["source_format"], noted["weights_key"]) == ("torch-zip", "model")
    assert (noted["step"], noted["lr"]) == ("40", "0.1")
    assert noted["converted_by"].startswith("landscape ")


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_module_that_was_pickled_whole(cli, tmp_path, wrap, protocol):
    model = Block()
    path = save(tmp_path / "m.pt", {"model": model} if wrap else model, pickle_protocol=protocol)
    out = tmp_path / "out.safetensors"
    assert cli("inspect", path).code == 3
    done = cli("convert", path, out)
    assert done.code == 0
    assert "left out and not run:" in done.err
    assert "torch.nn.modules.linear.Linear" in done.err
    assert "Block" in done.err
    assert_same(read_checkpoint(out).tensors, model.state_dict())


def test_weights_beside_code_are_taken_out_and_the_code_is_not_run(cli, tmp_path):
    marker = tmp_path / "marker"
    state = make_model().state_dict()
    value = {"state_dict": state, "hparams": argparse.Namespace(lr=0.1), "x": Runs(marker)}
    path = save(tmp_path / "l.ckpt", value)
    out = tmp_path / "out.safetensors"
    done = cli("convert", path, out)
    assert done.code == 0
    assert "argparse.Namespace, posix.system" in done.err
    assert not marker.exists()
    assert_same(read_checkpoint(out).tensors, state)


def test_what_is_no_plain_tensor_is_never_dropped_in_silence(cli, tmp_path):
    state = {"w": torch.ones(2), "packed": torch.eye(3).to_sparse(), "x": argparse.Namespace()}
    path = save(tmp_path / "s.pt", state)
    done = cli("convert", path, tmp_path / "out.safetensors")
    assert done.code == 3
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_types_shapes_and_views(cli, tmp_path, dtype):
    base = torch.arange(12).to(dtype)
    state = {
        "whole": base,
        "view": base[2:8:2],
        "turned": base.reshape(3, 4).T,
        "scalar": base[3],
        "empty": base[:0],
        "wide": base[:1].expand(5),
        "code": argparse.Namespace(),  # So that it is read with stand-ins.
    }
    out = tmp_path / "out.safetensors"
    assert cli("convert", save(tmp_path / "v.pt", state), out).code == 0
    del state["code"]
    assert_same(read_checkpoint(out).tensors, state)


@pytest.mark.parametrize("code", [False, True])
def test_storages_of_a_gpu(cli, tmp_path, code):
    state = make_model().state_dict()
    value = {"model": state, "x": argparse.Namespace()} if code else state
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path = tmp_path / "cuda.pt"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\3\0\0\0cpu" in data
                data = data.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:1")
            new.writestr(name, data)
    if not code:
        assert_same(read_checkpoint(path).tensors, state)
    assert cli("convert", path, tmp_path / "out.safetensors").code == 0
    assert_same(read_checkpoint(tmp_path / "out.safetensors").tensors, state)


def test_again_and_over(cli, tmp_path):
    one, two = ({"w": torch.full((2,), value)} for value in (1.0, 2.0))
    first, second = save(tmp_path / "a.pt", {"model": one, "ema": two}), tmp_path / "b.pt"
    save(second, two)
    out = tmp_path / "out.safetensors"
    assert cli("convert", first, out).code == 0
    before = out.read_bytes()
    done = cli("convert", first, out)
    assert (done.code, "nothing to do" in done.err) == (0, True)
    for arguments in ([second], [first, "--weights-key", "ema"]):
        done = cli("convert", *arguments[:1], out, *arguments[1:])
        assert done.code == 2
        assert "--overwrite" in done.err
        assert out.read_bytes() == before
    assert cli("convert", second, out, "--overwrite").code == 0
    assert_same(read_checkpoint(out).tensors, two)
    # A file that is no checkpoint is not replaced either.
    out.write_text("notes")
    assert cli("convert", second, out).code == 2
    assert out.read_text() == "notes"


def test_equal_sources_give_equal_files(cli, tmp_path):
    path = save(tmp_path / "a.pt", make_model().state_dict())
    for name in ("one", "two"):
        assert cli("convert", path, tmp_path / f"{name}.safetensors").code == 0
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_list_is_called_a_list(cli, tmp_path):
    path = save(tmp_path / "list.pt", [torch.ones(2)])
    for command in (("convert", path, tmp_path / "out.safetensors"), ("inspect", path)):
        done = cli(*command)
        assert done.code == 3
        assert "holds a list; expected a dict of tensors" in done.err
