"""How weights reach a model, and what is said where they do not fit."""

import copy
import math

import pytest
import torch
from checkpoint_files import assert_same, in_memory, make_model, save
from torch import nn

from landscape.checkpoint import load_into, read_checkpoint
from landscape.errors import CheckpointError, NotFiniteError
from landscape.summary import summarise


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


@pytest.mark.parametrize("prefix", ["model", "net.encoder", "0"])
def test_a_prefix_of_all_names_is_dropped_or_added(prefix):
    inner = make_model()
    renamed = {f"{prefix}.{name}": tensor for name, tensor in inner.state_dict().items()}
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    load_into(fresh, in_memory(renamed))
    assert_same(fresh.state_dict(), inner.state_dict())
    outer: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for part in reversed(prefix.split(".")):
        outer = nn.ModuleDict({part: outer})
    load_into(outer, in_memory(dict(inner.state_dict())))
    assert_same(outer.state_dict(), renamed)


def test_a_prefix_is_left_alone_where_other_names_do_not_fit():
    tensors = {f"model.{name}": t for name, t in make_model().state_dict().items()}
    with pytest.raises(CheckpointError, match="1 not in the model"):
        load_into(
            make_model(), in_memory(dict(make_model().state_dict()) | {"extra": torch.ones(1)})
        )
    del tensors["model.0.bias"]
    with pytest.raises(CheckpointError, match=r"missing from the file: .*0\.bias"):
        load_into(make_model(), in_memory(tensors))
