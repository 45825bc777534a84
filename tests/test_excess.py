"""The excess loss at many points: equal to the risk's, however the points are evaluated."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from small_networks import (
    Branching,
    Captured,
    InPlace,
    batch_normed,
    draw,
    make,
    mlp,
    points_about,
)
from torch import nn
from torch.nn import functional

from landscape.criteria import CrossEntropy
from landscape.errors import NotFiniteError, TaskError, TerminatedError, UsageError
from landscape.operators import curvature
from landscape.volume.excess import ExcessLoss

KINDS = ("task", "behaviour", "relabelled")


def assigned(risk, points):
    """Excess losses by assigning the points to the model's parameters."""
    anchor = risk.space.vector()
    base = 0.0 if risk.loss_kind == "behaviour" else risk.loss()
    values = []
    for point in points:
        risk.space.assign(point)
        values.append(risk.loss() - base)
    risk.space.assign(anchor)
    return torch.tensor(values, dtype=torch.float64)


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_equals_the_risk_s_differences(name, loss, dtype):
    risk = networks.risk(name, dtype=dtype, loss=loss)
    points = points_about(risk)
    expected = assigned(risk, points)
    assert expected.abs().min() > 1e-4
    tolerance = 20 * torch.finfo(dtype).eps
    for chunk in (None, 1, 4):
        excess = ExcessLoss(risk, chunk=chunk)
        values = excess(points)
        assert (values.dtype, values.shape) == (torch.float64, (6,))
        assert (values - expected).abs().max() < tolerance
        assert excess.fallback is None
        assert abs(excess.require_zero_at_anchor()) < tolerance


@pytest.mark.parametrize("loss", KINDS)
def test_unequal_micro_batches_weigh_by_their_examples(loss):
    name = "digits-mlp"
    whole = networks.risk(name, batch=200, loss=loss)
    points = points_about(whole)
    expected = ExcessLoss(whole)(points)
    for batch in (None, 7, 100):
        risk = networks.risk(name, batch=batch, loss=loss)
        assert risk.n_batches > 1
        assert (ExcessLoss(risk)(points) - expected).abs().max() < 1e-14


def test_tokens_without_targets_do_not_count():
    targets = torch.randint(3, (6, 4), generator=torch.Generator().manual_seed(3))
    targets[0, 1:] = targets[3] = -100
    risk = make(mlp, draw(6, 4, 5), targets, batch_size=1, loss="behaviour")
    points = points_about(risk)
    excess = ExcessLoss(risk)
    assert (excess(points) - assigned(risk, points)).abs().max() < 1e-14
    assert excess.fallback is None


def test_second_order_is_the_ggn():
    risk = networks.risk("digits-mlp", loss="behaviour")
    ggn = curvature("ggn", risk)
    v = draw(risk.n, seed=5)
    steps = torch.tensor([1e-3, 1e-4, 2e-4], dtype=torch.float64)
    expected = steps.square() / 2 * float(v @ ggn.matvec(v))
    excess = ExcessLoss(risk)
    both = (excess(risk.space.vector() + s * steps[:, None] * v) for s in (1, -1))
    # Odd terms cancel in the mean over the two signs.
    ratio = sum(both) / 2 / expected
    assert (ratio - 1).abs().max() < 1e-4
    assert abs(ratio[1] - 1) < 1e-6


def test_chunks_change_nothing():
    risk = networks.risk("modular-addition", loss="behaviour")
    points = points_about(risk, 9)
    expected = ExcessLoss(risk, chunk=9)(points)
    for chunk in (1, 2, 4, 64):
        excess = ExcessLoss(risk, chunk=chunk)
        assert (excess(points) - expected).abs().max() < 1e-15
        assert excess.chunk == chunk
        apart = torch.cat([excess(part) for part in torch.split(points, 2)])
        assert (apart - expected).abs().max() < 1e-15


def test_the_chunk_fits_the_forward_pass():
    few = ExcessLoss(make(mlp, draw(24, 5)))
    many = ExcessLoss(make(mlp, draw(20_000, 5), torch.arange(20_000) % 3, batch_size=20_000))
    middle = ExcessLoss(make(mlp, draw(20_000, 5), torch.arange(20_000) % 3, batch_size=10_000))
    # The largest tensor has 6 columns.
    assert (few.chunk, middle.chunk, many.chunk) == (64, (8 << 20) // (10_000 * 48), 8)
    huge = ExcessLoss(make(mlp, draw(30_000, 5), torch.arange(30_000) % 3, batch_size=30_000))
    assert huge.chunk == 1
    assert huge.fallback is None


def test_points_of_any_float_type():
    risk = make(mlp, draw(24, 5), dtype=torch.float32, loss="behaviour")
    points = points_about(risk)
    excess = ExcessLoss(risk)
    assert torch.equal(excess(points), excess(points.float()))
    assert excess(points[:0]).shape == (0,)
    assert excess(points[::2]).shape == (3,)
    points.requires_grad_()
    assert not excess(points).requires_grad


@pytest.mark.parametrize("shape", [(63,), (2, 5), (1, 2, 57), ()])
def test_points_of_another_shape(shape):
    excess = ExcessLoss(make(mlp, draw(24, 5)))
    with pytest.raises(UsageError, match="57 selected parameters"):
        excess(torch.zeros(shape))


def test_chunks_are_positive():
    with pytest.raises(UsageError, match="chunk of 0"):
        ExcessLoss(make(mlp, draw(24, 5)), chunk=0)


# Selections, tied weights, buffers ---------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(3, 5), nn.Linear(5, 3, bias=False)
        self.mix = nn.Linear(5, 5)
        self.unembed.weight = self.embed.weight

    def forward(self, x):
        return self.unembed(torch.tanh(self.mix(self.embed(x))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class Square(torch.autograd.Function):
    """No rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        return x**2

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError


def plain(outputs, batch):
    return functional.cross_entropy(outputs, batch[1])


def by_value(outputs, batch):
    """A criterion that looks at its numbers."""
    return plain(outputs, batch) if float(outputs.detach().sum()) < 1e9 else outputs.sum()


PIECES = {
    "tied": (Tied, torch.arange(24) % 3, {}),
    "BatchNorm": (batch_normed, draw(24, 5), {}),
    "dropout": (lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), draw(24, 5), {}),
    "encoder": (Encoder, draw(24, 5, 6), {}),
    "custom criterion": (mlp, draw(24, 5), {"criterion": plain}),
    "squared error": (mlp, draw(24, 5), {"criterion": "mse", "targets": draw(24, 3, seed=4)}),
}
LOOPED = {
    "recurrent": (Recurrent, draw(24, 5, 4), {}),
    "control flow": (Branching, draw(24, 5), {}),
    "in place": (InPlace, draw(24, 5), {}),
    "no rule": (mlp, draw(24, 5), {"forward": lambda m, b: Square.apply(m(b[0]))}),
    "criterion by value": (mlp, draw(24, 5), {"criterion": by_value}),
    "captured": (mlp, draw(24, 5), {"forward": Captured()}),
}


@pytest.mark.parametrize("name", PIECES)
def test_models_that_are_evaluated_together(name):
    module, inputs, options = PIECES[name]
    risk = make(module, inputs, **options)
    points = points_about(risk)
    excess = ExcessLoss(risk)
    assert (excess(points) - assigned(risk, points)).abs().max() < 1e-14
    assert excess.fallback is None
    excess.require_zero_at_anchor()


@pytest.mark.parametrize("name", LOOPED)
def test_models_that_are_evaluated_one_by_one(name):
    module, inputs, options = LOOPED[name]
    risk = make(module, inputs, **options)
    points = points_about(risk)
    excess = ExcessLoss(risk)
    assert (excess(points) - assigned(risk, points)).abs().max() < 1e-14
    assert excess.fallback
    assert "\n" not in excess.fallback
    assert excess.require_zero_at_anchor() == 0
    # It is remembered: nothing else is tried again.
    counted = excess.n_forward
    excess(points)
    assert excess.n_forward == counted + len(points)


def test_fallback_says_why():
    risk = make(mlp, draw(24, 5), forward=Captured())
    excess = ExcessLoss(risk)
    excess(points_about(risk))
    assert "where the model itself gives" in excess.fallback
    risk = make(*LOOPED["control flow"][:2])
    excess = ExcessLoss(risk)
    excess(points_about(risk))
    assert excess.fallback.startswith("RuntimeError: vmap: It looks like you're")


@pytest.mark.parametrize("module", [mlp, InPlace], ids=["together", "one by one"])
@pytest.mark.parametrize("params", ["*bias", "*weight"])
def test_only_selected_parameters_vary(module, params):
    risk = make(module, draw(24, 5), params=(params,))
    before = {n: p.detach().clone() for n, p in risk.model.named_parameters()}
    assert 0 < risk.n < sum(p.numel() for p in before.values())
    points = points_about(risk)
    assert (ExcessLoss(risk)(points) - assigned(risk, points)).abs().max() < 1e-14
    assert all(torch.equal(p, before[n]) for n, p in risk.model.named_parameters())


# What stays as it was ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 64])
def test_the_model_is_left_as_it_was(chunk):
    risk = make(batch_normed, draw(24, 5), dtype=torch.float32, loss="behaviour")
    ggn = curvature("ggn", risk)
    v = draw(risk.n).float()
    before = ggn.matvec(v)  # Keeps graphs, which assignments in place would make invalid.
    state = {n: t.clone() for n, t in risk.model.state_dict().items()}
    places = [(id(p), p.data_ptr(), p._version) for p in risk.model.parameters()]
    generator = torch.random.get_rng_state()
    ExcessLoss(risk, chunk=chunk)(points_about(risk))
    assert [(id(p), p.data_ptr(), p._version) for p in risk.model.parameters()] == places
    assert all(torch.equal(t, state[n]) for n, t in risk.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(ggn.matvec(v), before)
    assert all(p.requires_grad and p.grad is None for p in risk.model.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, TerminatedError])
@pytest.mark.parametrize("chunk", [1, 64])
def test_the_model_gets_its_parameters_back_after_an_error(chunk, error):
    fails = False

    def forward(model, batch):
        if fails:
            raise error("stop")
        return model(batch[0])

    risk = make(mlp, draw(24, 5), forward=forward)
    before = risk.space.vector()
    places = [p.data_ptr() for p in risk.model.parameters()]
    excess = ExcessLoss(risk, chunk=chunk)
    fails = True
    with pytest.raises(TaskError if error is ValueError else error, match="stop"):
        excess(points_about(risk))
    assert torch.equal(risk.space.vector(), before)
    assert [p.data_ptr() for p in risk.model.parameters()] == places
    if error is not ValueError:
        assert excess.fallback is None


# Numbers that are not finite, counts, the anchor -------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 64])
def test_overflow_is_a_value(chunk):
    risk = make(mlp, draw(24, 5), draw(24, 3, seed=4), "mse")
    points = points_about(risk)
    points[1], points[2, 0], points[3] = 1e200, math.nan, math.inf
    excess = ExcessLoss(risk, chunk=chunk)
    values = excess(points)
    assert values[1] == math.inf
    assert values[2].isnan()
    assert not values[3].isfinite()
    assert values[[0, 4, 5]].isfinite().all()
    assert excess.fallback is None


def test_counts():
    risk = make(mlp, draw(24, 5), loss="behaviour")
    start = risk.n_forward
    excess = ExcessLoss(risk)
    assert excess.n_forward == 1
    points = points_about(risk)
    excess(points)
    assert excess.n_forward == 1 + 6 + 1  # One to check the first chunk.
    excess(points)
    assert excess.n_forward == 14
    assert risk.n_forward == start + 14
    alone = ExcessLoss(risk, chunk=1)
    alone(points)
    assert alone.n_forward == 7


class Offset(CrossEntropy):
    """A divergence that is not zero between equal outputs."""

    def divergence(self, outputs, anchor_outputs, batch):
        return super().divergence(outputs, anchor_outputs, batch) + 0.01


def test_the_anchor_s_excess_must_be_zero():
    risk = make(mlp, draw(24, 5), criterion=Offset(), loss="behaviour")
    excess = ExcessLoss(risk)
    assert excess.anchor_excess() == pytest.approx(0.01)
    with pytest.raises(TaskError, match=r"is 0\.01 \(behaviour loss\); expected 0"):
        excess.require_zero_at_anchor()
    assert excess.require_zero_at_anchor(0.02) == pytest.approx(0.01)


def test_an_anchor_without_a_finite_loss():
    inputs = draw(24, 5)
    inputs[3, 2] = math.nan
    excess = ExcessLoss(make(mlp, inputs))
    assert excess(points_about(excess.risk)).isnan().all()
    with pytest.raises(NotFiniteError, match="is nan; expected 0"):
        excess.require_zero_at_anchor()


def test_the_anchor_is_where_the_model_was():
    risk = make(mlp, draw(24, 5))
    excess = ExcessLoss(risk)
    points = points_about(risk)
    expected = excess(points)
    risk.space.assign(points[0])
    assert torch.equal(excess(points), expected)
    assert abs(excess.require_zero_at_anchor()) < 1e-14
