"""The excess loss and its gradient at many points: as the model gives them, one at a time."""

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

from landscape.errors import TaskError, TerminatedError, UsageError
from landscape.volume.excess import ExcessLoss
from landscape.volume.excess_gradient import ExcessGradient

KINDS = ("task", "behaviour", "relabelled")


def assigned(risk, points):
    """Excess losses and gradients by assigning the points to the model's parameters."""
    anchor = risk.space.vector()
    base = 0.0 if risk.loss_kind == "behaviour" else risk.loss()
    losses, gradients = [], []
    for point in points:
        risk.space.assign(point)
        losses.append(risk.loss() - base)
        gradients.append(risk.gradient().double())
    risk.space.assign(anchor)
    return torch.tensor(losses, dtype=torch.float64), torch.stack(gradients)


def check(risk, points, *, chunk=None, tolerance=1e-13):
    """Equal to the model's own values, and to the excess loss."""
    losses, gradients = assigned(risk, points)
    gradient = ExcessGradient(ExcessLoss(risk, chunk=chunk))
    found, slopes = gradient(points)
    assert (found.dtype, found.shape) == (torch.float64, (len(points),))
    assert (slopes.dtype, slopes.shape) == (points.dtype, points.shape)
    size = max(1.0, float(gradients.abs().max()))
    assert (found - losses).abs().max() < tolerance
    assert (slopes - gradients).abs().max() < tolerance * size
    assert (found - ExcessLoss(risk, chunk=1)(points)).abs().max() < tolerance
    assert not found.requires_grad
    assert not slopes.requires_grad
    return gradient


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_equals_the_model_s_own(name, loss, dtype):
    """In unequal micro-batches, chunked and one by one."""
    risk = networks.risk(name, dtype=dtype, loss=loss)
    assert risk.n_batches == 2
    points = points_about(risk, 5)
    tolerance = 50 * torch.finfo(dtype).eps
    for chunk in (1, 2, 8):
        assert check(risk, points, chunk=chunk, tolerance=tolerance).fallback is None


def test_the_gradient_is_that_of_the_loss():
    risk = networks.risk("digits-mlp", loss="behaviour")
    points = points_about(risk, 3)
    gradient = ExcessGradient(ExcessLoss(risk))
    _, slopes = gradient(points)
    shift = 1e-5 * draw(3, risk.n, seed=8)
    change = (gradient(points + shift)[0] - gradient(points - shift)[0]) / 2
    assert torch.allclose(change, (slopes * shift).sum(1), rtol=1e-6)
    # At the anchor the divergence has none.
    loss, slope = gradient(risk.space.vector()[None])
    assert abs(float(loss)) < 1e-14
    assert slope.abs().max() < 1e-14


@pytest.mark.parametrize("loss", KINDS)
def test_unequal_micro_batches_weigh_by_their_examples(loss):
    whole = networks.risk("digits-mlp", batch=200, loss=loss)
    points = points_about(whole)
    expected = ExcessGradient(ExcessLoss(whole))(points)
    for batch in (None, 7, 100):
        risk = networks.risk("digits-mlp", batch=batch, loss=loss)
        found = ExcessGradient(ExcessLoss(risk))(points)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-13


def normed():
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def convolved():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(3, 5), nn.Linear(5, 3, bias=False)
        self.unembed.weight = self.embed.weight

    def forward(self, x):
        return self.unembed(torch.tanh(self.embed(x)))


class Unused(nn.Module):
    """A parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.linear, self.spare = nn.Linear(5, 3), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.linear(x)


class Bent(torch.autograd.Function):
    """Right values with a gradient that vmap takes by another rule than the model itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.batched = torch._C._functorch.maybe_current_level() is not None

    @staticmethod
    def backward(ctx, g):
        return 2 * g if ctx.batched else g


TOGETHER = {
    "layer norm": (normed, draw(24, 5), {}),
    "batch norm": (batch_normed, draw(24, 5), {}),
    "convolution": (convolved, draw(24, 1, 5, 5), {}),
    "dropout": (lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), draw(24, 5), {}),
    "tied": (Tied, torch.arange(24) % 3, {}),
    "unused": (Unused, draw(24, 5), {}),
    "squared error": (mlp, draw(24, 5), {"criterion": "mse", "targets": draw(24, 3, seed=4)}),
    "custom criterion": (
        mlp,
        draw(24, 5),
        {"criterion": lambda f, batch: functional.cross_entropy(f, batch[1])},
    ),
}
ALONE = {
    "control flow": (Branching, draw(24, 5), {}),
    "in place": (InPlace, draw(24, 5), {}),
    "captured": (mlp, draw(24, 5), {"forward": Captured()}),
    "another gradient": (mlp, draw(24, 5), {"forward": lambda m, b: Bent.apply(m(b[0]))}),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_models_that_are_evaluated_together(name):
    module, inputs, options = TOGETHER[name]
    risk = make(module, inputs, **options)
    assert check(risk, points_about(risk)).fallback is None


@pytest.mark.parametrize("name", ALONE)
def test_models_that_are_evaluated_one_by_one(name):
    module, inputs, options = ALONE[name]
    risk = make(module, inputs, **options)
    gradient = check(risk, points_about(risk))
    assert gradient.fallback
    assert "\n" not in gradient.fallback


def test_fallback_says_why_and_is_remembered():
    risk = make(*ALONE["captured"][:2], forward=Captured())
    gradient = ExcessGradient(ExcessLoss(risk))
    gradient(points_about(risk))
    assert gradient.fallback == "TaskError: vmap gives another gradient than the model itself"
    # What the loss alone found out counts too.
    module, inputs, _ = ALONE["control flow"]
    excess = ExcessLoss(make(module, inputs))
    excess(points_about(excess.risk))
    again = ExcessGradient(excess)
    assert again.fallback == excess.fallback
    assert again.fallback.startswith("RuntimeError: vmap: It looks like you're")

    def never(*args):
        raise AssertionError

    again._both = never
    again(points_about(excess.risk))


@pytest.mark.parametrize("chunk", [1, 64])
@pytest.mark.parametrize("params", ["*bias", "*weight"])
def test_only_selected_parameters_vary(params, chunk):
    risk = make(mlp, draw(24, 5), params=(params,))
    everything = make(mlp, draw(24, 5))
    assert 0 < risk.n < everything.n
    assert check(risk, points_about(risk), chunk=chunk).fallback is None


# What is kept, refused, counted -----------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 64])
def test_the_model_is_left_as_it_was(chunk):
    risk = make(batch_normed, draw(24, 5), loss="behaviour")
    state = {n: t.clone() for n, t in risk.model.state_dict().items()}
    places = [(id(p), p.data_ptr(), p._version) for p in risk.model.parameters()]
    generator = torch.random.get_rng_state()
    ExcessGradient(ExcessLoss(risk, chunk=chunk))(points_about(risk))
    assert [(id(p), p.data_ptr(), p._version) for p in risk.model.parameters()] == places
    assert all(torch.equal(t, state[n]) for n, t in risk.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(p.requires_grad and p.grad is None for p in risk.model.parameters())


@pytest.mark.parametrize("chunk", [1, 64])
def test_numbers_that_are_not_finite_are_values(chunk):
    risk = make(mlp, draw(24, 5), draw(24, 3, seed=4), "mse")
    points = points_about(risk)
    points[1], points[2, 0], points[3] = 1e200, math.nan, math.inf
    gradient = ExcessGradient(ExcessLoss(risk, chunk=chunk))
    losses, slopes = gradient(points)
    assert losses[1] == math.inf
    assert losses[2].isnan()
    assert not losses[3].isfinite()
    assert slopes[2].isnan().any()
    good = [0, 4, 5]
    expected = assigned(risk, points[good])
    assert (losses[good] - expected[0]).abs().max() < 1e-14
    assert (slopes[good] - expected[1]).abs().max() < 1e-14
    assert gradient.fallback is None


@pytest.mark.parametrize("chunk", [1, 64])
def test_a_first_point_that_is_not_finite_does_not_end_chunks(chunk):
    risk = make(mlp, draw(24, 5), draw(24, 3, seed=4), "mse")
    points = points_about(risk)
    points[0] = math.nan
    gradient = ExcessGradient(ExcessLoss(risk, chunk=chunk))
    losses, slopes = gradient(points)
    assert losses[0].isnan()
    assert losses[1:].isfinite().all()
    assert slopes[1:].isfinite().all()
    assert gradient.fallback is None


def test_points_of_any_float_type():
    risk = make(mlp, draw(24, 5), dtype=torch.float32, loss="behaviour")
    points = points_about(risk)
    gradient = ExcessGradient(ExcessLoss(risk))
    double, single = gradient(points), gradient(points.float())
    assert torch.equal(double[0], single[0])
    assert (double[1].dtype, single[1].dtype) == (torch.float64, torch.float32)
    assert torch.equal(double[1].float(), single[1])
    empty = gradient(points[:0])
    assert (empty[0].shape, empty[1].shape) == ((0,), (0, risk.n))


@pytest.mark.parametrize("shape", [(57,), (2, 5), (1, 2, 57), ()])
def test_points_of_another_shape(shape):
    gradient = ExcessGradient(ExcessLoss(make(mlp, draw(24, 5))))
    with pytest.raises(UsageError, match="57 selected parameters"):
        gradient(torch.zeros(shape))


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
    gradient = ExcessGradient(ExcessLoss(risk, chunk=chunk))
    fails = True
    with pytest.raises(TaskError if error is ValueError else error, match="stop"):
        gradient(points_about(risk))
    assert torch.equal(risk.space.vector(), before)
    if error is not ValueError:
        assert gradient.fallback is None


def test_a_gradient_is_counted_for_each_point():
    risk = make(mlp, draw(24, 5))
    start = risk.n_gradient
    gradient = ExcessGradient(ExcessLoss(risk))
    gradient(points_about(risk))
    gradient(points_about(risk, 3))
    assert gradient.n_gradients == 9
    assert risk.n_gradient == start + 9
