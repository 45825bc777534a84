"""Checkpoints: what loads, and which weights are taken."""

import copy
import hashlib

import pytest
import torch
from checkpoint_files import FORMATS, assert_same, make_model, refusal, save
from safetensors.torch import save_file
from torch import nn

from landscape.checkpoint import load_into, read_checkpoint
from landscape.summary import summarise


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
