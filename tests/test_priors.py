"""Priors: densities against closed forms and integrals, and what the command line's words mean."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, special, stats
from torch import nn

from landscape.errors import CheckpointError, NotFiniteError, TaskError, UsageError
from landscape.initialisation import initial_moments
from landscape.params import ParameterSpace
from landscape.prior_options import resolve_mean, resolve_prior, resolve_sigma
from landscape.priors import GaussianPrior, UniformPrior, prior_table
from landscape.rng import stream
from landscape.task import Task


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def samples(prior, count):
    generator = stream(0, "test")
    return torch.stack([prior.sample(generator) for _ in range(count)])


MEAN, SCALE = vector(0.5, -1.0, 2.0), vector(0.1, 1.0, 3.0)
GAUSSIAN = GaussianPrior(mean=MEAN, scale=SCALE)
BOX = UniformPrior(mean=MEAN, half_width=1.5)
BALL = UniformPrior(mean=MEAN, half_width=1.5, shape="ball")
PRIORS = {"gaussian": GAUSSIAN, "box": BOX, "ball": BALL}


# Laws --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_whitening_is_undone(name):
    prior = PRIORS[name]
    for w in (draw(3), draw(5, 3), draw(3).float()):
        z = prior.whiten(w)
        assert z.dtype == torch.float64
        assert (z - (w.double() - prior.mean) / prior.scale).abs().max() == 0
        assert (prior.unwhiten(z) - w).abs().max() < 1e-15


def test_gaussian_density_is_scipy_s():
    w = draw(7, 3)
    law = stats.multivariate_normal(MEAN.numpy(), (SCALE**2).diag().numpy())
    expected = torch.from_numpy(law.logpdf(w.numpy()))
    assert (GAUSSIAN.log_density(w) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert float(GAUSSIAN.log_density(w[2])) == pytest.approx(float(expected[2]), rel=1e-14)


def test_gaussian_density_in_many_dimensions():
    n = 100_000
    prior = GaussianPrior(mean=torch.zeros(n), scale=torch.full((n,), 0.01, dtype=torch.float64))
    expected = -n / 2 * math.log(2 * math.pi) - n * math.log(0.01)
    assert float(prior.log_density(prior.mean)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", ["box", "ball"])
def test_densities_integrate_to_one(shape):
    mean = vector(0.3, -0.2)
    uniform = UniformPrior(mean=mean, half_width=0.7, shape=shape)
    grid = torch.linspace(-0.7, 0.7, 1402, dtype=torch.float64)[:-1] + 0.0005
    cell = 1.4 / 1401
    points = torch.cartesian_prod(grid, grid) + mean
    total = float(uniform.log_density(points).exp().sum()) * cell**2
    assert total == pytest.approx(1, abs=2e-3 if shape == "ball" else 1e-9)
    gaussian = GaussianPrior(mean=mean[:1], scale=vector(0.4))
    value, _ = integrate.quad(lambda x: float(gaussian.log_density(vector(x)).exp()), -5, 5)
    assert value == pytest.approx(1, abs=1e-8)


def test_volumes_of_the_box_and_the_ball():
    assert float(BOX.log_density(MEAN)) == pytest.approx(-3 * math.log(3.0), rel=1e-14)
    assert float(BALL.log_density(MEAN)) == pytest.approx(-math.log(4 / 3 * math.pi * 1.5**3))
    n = 1000
    ball = UniformPrior(mean=torch.zeros(n), half_width=0.2, shape="ball")
    expected = n / 2 * math.log(math.pi) - special.gammaln(n / 2 + 1) + n * math.log(0.2)
    assert float(ball.log_density(ball.mean)) == pytest.approx(-expected, rel=1e-13)


def test_uniform_support():
    edge, out = MEAN + vector(1.5, 0.0, 0.0), MEAN + vector(1.4, 1.4, 1.4)
    assert BOX.contains(torch.stack([MEAN, edge, out, edge + 0.01])).tolist() == [1, 1, 1, 0]
    assert BALL.contains(torch.stack([MEAN, edge, out])).tolist() == [1, 1, 0]
    assert float(BALL.log_density(out)) == -math.inf
    BALL.require_inside(edge)
    with pytest.raises(UsageError, match=r"--half-width 1.5; expected a half-width above 2\.425"):
        BALL.require_inside(out)


@pytest.mark.parametrize("prior", [BOX, BALL], ids=["box", "ball"])
def test_rays_end_on_the_boundary(prior):
    inner = prior.unwhiten(0.5 * nn.functional.normalize(draw(3, seed=2), dim=0))
    directions = nn.functional.normalize(draw(200, 3, seed=3), dim=1)
    directions[0], directions[1] = vector(0.0, 0.0, 1.0), vector(0.0, -1.0, 0.0)
    for w in (inner, MEAN, MEAN + vector(1.5, 0.0, 0.0) * (1 - 1e-13)):
        radius = prior.exit_radius(w, directions)
        assert (prior.size(w + radius[:, None] * directions) - 1).abs().max() < 1e-12
        assert (radius >= 0).all()
    assert prior.exit_radius(MEAN, directions[:2]).tolist() == [1.5, 1.5]
    with pytest.raises(UsageError, match="outside"):
        prior.exit_radius(MEAN + 9, directions)


@pytest.mark.parametrize("name", PRIORS)
def test_samples_have_the_law_s_moments(name):
    prior = PRIORS[name]
    count = 4000
    z = prior.whiten(samples(prior, count))
    # Variance of a whitened coordinate, and of its square.
    variance = {"gaussian": 1.0, "box": 1 / 3, "ball": 1 / 5}[name]
    fourth = {"gaussian": 3.0, "box": 1 / 5, "ball": 3 / 35}[name]
    assert (z.mean(0).abs() < 4.5 * (variance / count) ** 0.5).all()
    error = ((fourth - variance**2) / count) ** 0.5
    assert ((z.square().mean(0) - variance).abs() < 4.5 * error).all()
    product = (z[:, 0] * z[:, 1]).mean()
    assert abs(product) < 4.5 * (variance**2 / count) ** 0.5
    if name != "gaussian":
        assert prior.contains(prior.unwhiten(z * (1 - 1e-15))).all()


def test_samples_follow_their_generator():
    for prior in PRIORS.values():
        before = torch.random.get_rng_state()
        one, same = (prior.sample(stream(3, "a")) for _ in range(2))
        assert torch.equal(one, same)
        assert not torch.equal(one, prior.sample(stream(4, "a")))
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianPrior(mean=MEAN, scale=SCALE * 0), "--sigma"),
        (lambda: GaussianPrior(mean=MEAN, scale=-SCALE), "--sigma"),
        (lambda: GaussianPrior(mean=MEAN, scale=SCALE * math.nan), "--sigma"),
        (lambda: GaussianPrior(mean=MEAN, scale=SCALE * math.inf), "--sigma"),
        (lambda: GaussianPrior(mean=MEAN * math.nan, scale=SCALE), "--mean"),
        (lambda: GaussianPrior(mean=MEAN, scale=SCALE[:2]), "--sigma"),
        (lambda: GaussianPrior(mean=MEAN[None], scale=SCALE), "--mean"),
        (lambda: UniformPrior(mean=MEAN, half_width=0.0), "--half-width 0"),
        (lambda: UniformPrior(mean=MEAN, half_width=-1.0), "--half-width -1"),
        (lambda: UniformPrior(mean=MEAN, half_width=math.inf), "--half-width inf"),
        (lambda: UniformPrior(mean=MEAN, half_width=math.nan), "--half-width nan"),
        (lambda: UniformPrior(mean=MEAN, half_width=1.0, shape="cube"), "--uniform 'cube'"),
    ],
)
def test_bad_priors(build, message):
    with pytest.raises(UsageError, match=message):
        build()


# Words of the command line -----------------------------------------------------------------------


class Net(nn.Module):
    """Tied weights, LayerNorm (no spread) and a zero bias."""

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.unembed.weight = self.embed.weight

    def forward(self, x):
        return self.unembed(torch.tanh(self.mix(self.norm(self.embed(x)))))


def make(model=None, params=(), **options):
    """A task whose weights are not initial ones, its space and its anchor."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Net() if model is None else model()
    data = (torch.arange(12) % 6, torch.arange(12) % 5)
    task = Task(model=model, data=data, criterion="cross_entropy", **options)
    space = ParameterSpace(model, params)
    anchor = 0.3 * draw(space.n) + 0.1
    space.assign(anchor)
    return {"space": space, "anchor": anchor, "task": task}


def by_name(space, tensor):
    return dict(zip(space.names, space.split(tensor), strict=True))


def test_defaults_are_zero_and_one_rms():
    given = make()
    prior = resolve_prior(**given)
    assert isinstance(prior, GaussianPrior)
    rms = float(given["anchor"].square().mean().sqrt())
    assert (prior.mean == 0).all()
    assert prior.scale.tolist() == pytest.approx([rms] * given["space"].n, rel=1e-14)
    assert prior.n == given["space"].n == 48 + 16 + 64 + 8
    assert prior.notes == ()
    # The whitened anchor is as far from the mean as a typical draw.
    assert float(prior.whiten(given["anchor"]).square().sum()) == pytest.approx(prior.n)


@pytest.mark.parametrize("sigma", [0.25, "0.25", "2.5e-1"])
def test_sigma_is_a_number(sigma):
    prior = resolve_prior(**make(), sigma=sigma)
    assert set(prior.scale.tolist()) == {0.25}


def test_layer_rms_has_a_floor():
    given = make()
    space, anchor = given["space"], given["anchor"]
    by_name(space, anchor)["norm.bias"].zero_()
    prior = resolve_prior(**given, sigma="layer-rms")
    for name, part in by_name(space, anchor).items():
        expected = (anchor if name == "norm.bias" else part).square().mean().sqrt()
        scale = by_name(space, prior.scale)[name]
        assert scale.flatten().tolist() == pytest.approx([float(expected)] * part.numel())
    (note,) = prior.notes
    assert note.startswith("--sigma layer-rms: 1 tensor is zero")
    assert note.endswith("norm.bias")
    # Other tensors' values are not another selection's.
    part = make(params=("mix.*",))
    assert resolve_prior(**part, sigma="layer-rms").n == 72


def test_a_series_shares_its_first_prior():
    given = make()
    for sigma in ("rms", "layer-rms", "init"):
        values, _ = resolve_sigma(sigma, **given)
        first = resolve_prior(**given, sigma=sigma)
        later = resolve_prior(**{**given, "anchor": 5 * given["anchor"]}, sigma=values)
        assert torch.equal(first.scale, later.scale)


def test_initial_moments_are_those_of_the_layers():
    given = make()
    space = given["space"]
    found = initial_moments(given["task"], space, seed=0)
    mean = dict(zip(space.names, found.mean, strict=True))
    spread = dict(zip(space.names, found.spread, strict=True))
    # Linear layers, the tied one among them, draw from +-1/sqrt(fan_in).
    expected = {"mix.weight": (8 * 3) ** -0.5, "mix.bias": (8 * 3) ** -0.5}
    expected["embed.weight"] = (8 * 3) ** -0.5
    for name, sigma in expected.items():
        count = 32 * by_name(space, given["anchor"])[name].numel()
        assert abs(mean[name]) < 4.5 * sigma / count**0.5
        # A uniform law's variance has the relative error sqrt(4 / 5 count).
        assert spread[name] ** 2 == pytest.approx(sigma**2, rel=4.5 * (0.8 / count) ** 0.5)
    assert (mean["norm.weight"], mean["norm.bias"]) == (1, 0)
    assert (spread["norm.weight"], spread["norm.bias"]) == (0, 0)


def test_init_prior():
    given = make()
    space = given["space"]
    found = initial_moments(given["task"], space, seed=3)
    prior = resolve_prior(**given, mean="init", sigma="init", seed=3)
    scale, mean = by_name(space, prior.scale), by_name(space, prior.mean)
    for name, m, s in zip(space.names, found.mean, found.spread, strict=True):
        assert set(mean[name].flatten().tolist()) == {m}
        if s > 0:
            assert set(scale[name].flatten().tolist()) == {s}
    # Without spread: the others' root mean square, by coordinates.
    pairs = [(k, s) for k, s in zip(space.sizes, found.spread, strict=True) if s > 0]
    floor = (sum(k * s * s for k, s in pairs) / sum(k for k, _ in pairs)) ** 0.5
    assert scale["norm.weight"].tolist() == pytest.approx([floor] * 8, rel=1e-14)
    assert "2 tensors have no spread at initialisation" in prior.notes[0]
    assert prior.notes[0].endswith("norm.weight, norm.bias")


def test_one_tensor_without_a_spread_is_named_in_the_singular():
    given = make()
    space = given["space"]
    for name, rows in zip(space.names, space.split(given["anchor"]), strict=True):
        if name == "norm.bias":
            rows.zero_()
    prior = resolve_prior(**given, mean="zero", sigma="layer-rms", seed=3)
    assert "1 tensor is zero in the checkpoint and gets" in prior.notes[0]
    assert prior.notes[0].endswith(": norm.bias")


def test_initial_draws_depend_on_the_seed_alone():
    given = make()
    again = {**given, "anchor": 2 * given["anchor"]}
    one = resolve_prior(**given, mean="init", sigma="init", seed=1)
    given["space"].assign(again["anchor"])
    given["task"].model.double()
    torch.rand(3)
    same = resolve_prior(**again, mean="init", sigma="init", seed=1)
    assert torch.equal(one.scale, same.scale)
    assert torch.equal(one.mean, same.mean)
    other = resolve_prior(**given, mean="init", sigma="init", seed=2)
    assert not torch.equal(one.scale, other.scale)


def test_a_task_initialises_itself():
    def initialise(model, generator):
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.5, 0.2, generator=generator)
        nn.init.constant_(model.norm.weight, 0.1)

    given = make(initialise=initialise)
    found = initial_moments(given["task"], given["space"], seed=0)
    names = given["space"].names
    assert found.spread[names.index("norm.weight")] == 0
    index = names.index("mix.weight")
    error = 0.2 / (32 * 64) ** 0.5
    assert abs(found.mean[index] - 0.5) < 4.5 * error
    assert abs(found.spread[index] - 0.2) < 4.5 * error / 2**0.5


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.linear(x) + self.shift


def test_parameters_that_nobody_draws_are_refused():
    given = make(Positions)
    with pytest.raises(TaskError, match="1 parameters undrawn: shift; expected"):
        resolve_prior(**given, sigma="init")
    # Left out of the selection, they do not matter.
    assert resolve_prior(**make(Positions, ("linear.*",)), sigma="init").n == 15


def test_errors_of_the_initialiser_are_the_task_s():
    def initialise(model, generator):
        raise ValueError("no such layer")

    given = make(initialise=initialise)
    before = given["space"].vector()
    with pytest.raises(TaskError, match="ValueError: no such layer; expected"):
        resolve_prior(**given, mean="init")
    assert torch.equal(given["space"].vector(), before)


def test_nothing_of_the_caller_s_changes(tmp_path):
    given = make()
    model = given["task"].model.train()
    model.norm.eval()
    path = tmp_path / "step_0.pt"
    torch.save(model.state_dict(), path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.random.get_rng_state()
    resolve_prior(**given, mean="init", sigma="init")
    resolve_prior(**given, mean=path)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.unembed.weight is model.embed.weight
    assert model.embed.weight.dtype == torch.float32


def test_mean_words():
    given = make()
    anchor = resolve_mean("anchor", **given)
    assert torch.equal(anchor, given["anchor"])
    anchor.zero_()  # A copy.
    assert bool(given["anchor"].any())
    prior = resolve_prior(**given, mean="anchor")
    assert (prior.whiten(given["anchor"]) == 0).all()


@pytest.mark.parametrize("params", [(), ("mix.*", "embed.weight")])
def test_mean_of_a_checkpoint(tmp_path, params):
    given = make(params=params)
    other = make()["task"].model.double()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(math.pi)  # Not a float32.
    path = tmp_path / "other.pt"
    torch.save({"net": other.state_dict(), "ema": other.state_dict()}, path)
    mean = resolve_mean(path, **given, weights_key="net")
    assert torch.equal(mean, ParameterSpace(other, params).vector())
    assert torch.equal(resolve_prior(**given, mean=str(path), weights_key="net").mean, mean)


def test_mean_of_another_architecture(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(Positions().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"missing from the file: embed.weight.*linear"):
        resolve_prior(**make(), mean=path)
    with torch.random.fork_rng(devices=[]):
        net = Net()
        net.mix = nn.Linear(8, 9)
    torch.save(net.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"another shape: mix.weight \(file \(9, 8\)"):
        resolve_prior(**make(), mean=path)
    net.mix = nn.Linear(8, 8)
    net.mix.bias.data.fill_(math.nan)
    torch.save(net.state_dict(), path)
    with pytest.raises(NotFiniteError, match=r"mix\.bias"):
        resolve_prior(**make(), mean=path)


def test_uniform_priors():
    given = make()
    prior = resolve_prior("uniform", **given, half_width=3.0)
    assert (prior.shape, prior.half_width, prior.kind) == ("box", 3.0, "uniform")
    assert set(prior.scale.tolist()) == {3.0}
    ball = resolve_prior("uniform", **given, mean="anchor", uniform="ball", half_width=0.1)
    assert ball.contains(given["anchor"])
    with pytest.raises(UsageError, match="outside the uniform prior's ball"):
        resolve_prior("uniform", **given, uniform="ball", half_width=1.0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("laplace", {}, "--prior 'laplace'"),
        ("gaussian", {"sigma": 0.0}, "--sigma 0: expected"),
        ("gaussian", {"sigma": -1.0}, "--sigma -1: expected"),
        ("gaussian", {"sigma": math.nan}, "--sigma nan: expected"),
        ("gaussian", {"sigma": "inf"}, "--sigma inf: expected"),
        ("gaussian", {"sigma": "-0.1"}, r"--sigma -0\.1: expected"),
        ("gaussian", {"sigma": "layer"}, "--sigma 'layer': expected rms, init, layer-rms or"),
        ("gaussian", {"sigma": ""}, "--sigma '': expected"),
        ("gaussian", {"sigma": (0.1, 0.2)}, "--sigma: 2 numbers for 5 tensors"),
        ("gaussian", {"sigma": (0.1, 0.2, 0.0, 1.0, 1.0)}, "--sigma 0: expected"),
        ("gaussian", {"mean": "origin"}, "--mean 'origin': expected zero, anchor, init or"),
        ("gaussian", {"mean": ""}, "--mean ''"),
        ("gaussian", {"half_width": 1.0}, "--half-width 1.0 belongs to --prior uniform"),
        ("gaussian", {"uniform": "box"}, "--uniform box belongs to --prior uniform"),
        ("uniform", {}, "--half-width"),
        ("uniform", {"half_width": 1.0, "sigma": "rms"}, "--sigma rms belongs to --prior gauss"),
        ("uniform", {"half_width": 0.0}, "--half-width 0"),
        ("uniform", {"half_width": -2.0}, "--half-width -2"),
        ("uniform", {"half_width": math.nan}, "--half-width nan"),
        ("uniform", {"half_width": math.inf}, "--half-width inf"),
        ("uniform", {"half_width": 1.0, "uniform": "cube"}, "--uniform 'cube': expected box or"),
        ("uniform", {"half_width": 0.01}, "outside the uniform prior's box"),
        ("uniform", {"half_width": 1.0, "mean": "nowhere.pt"}, "--mean 'nowhere.pt'"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(UsageError, match=message):
        resolve_prior(kind, **make(), **options)


@pytest.mark.parametrize("sigma", ["rms", "layer-rms"])
def test_an_anchor_of_zeros_has_no_rms(sigma):
    given = make()
    with pytest.raises(UsageError, match=f"--sigma {sigma}: all selected parameters are zero"):
        resolve_prior(**{**given, "anchor": 0 * given["anchor"]}, sigma=sigma)


def test_initial_weights_without_spread():
    given = make(params=("norm.*",))
    with pytest.raises(UsageError, match="--sigma init: all selected parameters have no spread"):
        resolve_prior(**given, sigma="init")


def test_bad_anchors():
    given = make()
    with pytest.raises(NotFiniteError, match="anchor"):
        resolve_prior(**{**given, "anchor": given["anchor"] * math.nan})
    with pytest.raises(UsageError, match="136 selected parameters"):
        resolve_prior(**{**given, "anchor": given["anchor"][1:]})


def test_a_model_that_cannot_be_copied():
    given = make()
    given["task"].model.kept = given["task"].model.mix.weight * 2
    with pytest.raises(TaskError, match=r"cannot be copied.*--mean zero"):
        resolve_prior(**given, mean="init")


# The table ---------------------------------------------------------------------------------------


def test_table():
    given = make()
    space, anchor = given["space"], given["anchor"]
    prior = resolve_prior(**given, mean="init", sigma="layer-rms")
    table = prior_table(prior, space, anchor)
    assert table.names == space.names
    assert list(table.sizes) == space.sizes
    z = prior.whiten(anchor)
    assert sum(table.location) == pytest.approx(float(z @ z))
    for index, (mean, part) in enumerate(
        zip(space.split(prior.mean), space.split(anchor), strict=True)
    ):
        rms = float(part.square().mean().sqrt())
        assert table.anchor[index] == pytest.approx(rms)
        assert table.scale[index] == pytest.approx(rms)
        assert table.mean[index] == pytest.approx(abs(float(mean.flatten()[0])))
        expected = float((part - mean).square().sum()) / rms**2
        assert table.location[index] == pytest.approx(expected)
    # The density's price of each tensor's place.
    drop = prior.log_density(prior.mean) - prior.log_density(anchor)
    assert float(drop) == pytest.approx(sum(table.location) / 2)
