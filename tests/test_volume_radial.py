"""The radial estimator against exact volumes: quadratic, non-quadratic, and misbehaving losses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tilt
import torch
from scipy import integrate, special, stats

from landscape.errors import UsageError
from landscape.volume.radial import RaySample, merge, radial_estimate, radial_rays
from landscape.volume.ray_priors import BallPrior, BoxPrior, NormalPrior
from landscape.volume.tilted import symmetric_law, tilted_law

F64 = torch.float64
SPECTRA = {
    "isotropic": lambda n: np.ones(n),
    "power law": lambda n: np.arange(1, n + 1.0) ** -1.5,
    "90% zero": lambda n: (np.arange(n) < max(1, n // 10)).astype(float),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Quadratic:
    """``Q = sum_i a_i (z_i - c_i)^2 / 2 + g_i (z_i - c_i)`` and its exact volume at a cutoff."""

    def __init__(self, values, anchor, *, cutoff=0.01, gradient=None):
        self.values, self.anchor = np.asarray(values, float), np.asarray(anchor, float)
        self.cutoff = cutoff
        self.gradient = np.zeros(len(self.values)) if gradient is None else gradient
        arguments = (cutoff, self.values, self.anchor, self.gradient)
        self.scale = tilt.saddle(*arguments)
        self.truth = tilt.log_volume(*arguments)
        self._a, self._g = torch.tensor(self.values), torch.tensor(self.gradient)
        self.z = torch.tensor(self.anchor)

    def __call__(self, points):
        y = points - self.z
        return (y.square() * self._a / 2 + y * self._g).sum(1)

    def tilted(self, *, seed=0, factor=1.0, d=None):
        """The tilted law; with d the top d curvatures and the mean of the others."""
        n, s = len(self.values), factor * self.scale
        d = n if d is None else d
        return tilted_law(
            self.z,
            torch.eye(n, dtype=F64)[:d],
            self._a[:d],
            bulk=float(self.values[d:].mean()) if d < n else 0.0,
            scale=s,
            gradient=self._g,
            seed=seed,
        )

    def symmetric(self, *, seed=0, preconditioned=False):
        eye = torch.eye(len(self.values), dtype=F64)
        return symmetric_law(self.z, *((eye, self._a) if preconditioned else ()), seed=seed)

    def estimate(self, law, *, rays=200, **options):
        return radial_estimate(
            radial_rays(
                self, law, NormalPrior(self.z), cutoff=self.cutoff, indices=range(rays), **options
            )
        )


def holds(estimate, truth):
    """The interval holds the truth, to rounding."""
    return estimate.lower - 1e-9 <= truth <= estimate.upper + 1e-9


def test_the_oracle_agrees_with_chi_square_laws():
    for n, cutoff in ((1, 1e-3), (2, 0.3), (10, 0.01), (100, 0.01), (1000, 150.0)):
        expected = stats.chi2.logcdf(2 * cutoff, n)
        assert tilt.log_volume(cutoff, np.ones(n), np.zeros(n)) == pytest.approx(expected, abs=1e-9)
    centre = np.array([0.7, -0.4, 1.1])
    expected = stats.ncx2.logcdf(0.6, 3, (centre**2).sum())
    assert tilt.log_volume(0.3, np.ones(3), centre) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 1000])
@pytest.mark.parametrize("name", list(SPECTRA))
@pytest.mark.parametrize("centred", [True, False])
def test_quadratics(n, name, centred):
    anchor = np.zeros(n) if centred else draw(n, seed=n).numpy()
    problem = Quadratic(SPECTRA[name](n), anchor)
    found = problem.estimate(problem.tilted())
    assert found.log_volume == pytest.approx(problem.truth, abs=0.2)
    assert found.ess > 200 / 5
    assert found.label == "estimate"
    assert found.lower - 0.2 < problem.truth < found.upper + 0.2
    assert not (found.n_not_finite + found.n_non_monotone + found.n_unconverged)
    assert found.n_evaluations < 13 * 200


def test_a_gradient_at_the_anchor():
    problem = Quadratic([4.0, 1.0, 0.2, 0.0], [1.0, -0.5, 0.3, 0.0], gradient=[0.05, 0, 0.02, 0])
    found = problem.estimate(problem.tilted(), rays=400)
    assert found.log_volume == pytest.approx(problem.truth, abs=3 * found.stderr + 0.01)
    assert found.stderr < 0.1
    assert not found.n_non_monotone


def test_symmetric_directions_do_as_published():
    """Fine for equal curvatures, far off for unequal ones, with an ESS near 1 that says so."""
    anchor = draw(100, seed=3).numpy()
    problem = Quadratic(np.ones(100), anchor)
    found = problem.estimate(problem.symmetric())
    assert holds(found, problem.truth)
    assert found.ess > 150
    problem = Quadratic(SPECTRA["90% zero"](100), anchor)
    for preconditioned in (False, True):
        found = problem.estimate(problem.symmetric(preconditioned=preconditioned))
        assert found.log_volume < problem.truth - 20
        assert found.ess < 4
        assert found.label == "lower bound"
        assert found.lower < problem.truth < found.upper


IMPERFECT = {
    "too little tilt": {"factor": 0.4},
    "too much tilt": {"factor": 2.0},
    "low rank": {"d": 4},
}


@pytest.mark.parametrize("name", list(IMPERFECT))
def test_intervals_cover_with_an_imperfect_law(name):
    problem = Quadratic(SPECTRA["power law"](12), draw(12, seed=1).numpy())
    found = [
        problem.estimate(problem.tilted(seed=seed, **IMPERFECT[name]), rays=100, scan=0)
        for seed in range(100)
    ]
    assert sum(holds(f, problem.truth) for f in found) >= 88
    check_unbiased_with_right_errors(found, problem.truth)


def check_unbiased_with_right_errors(found, truth):
    """The mean weight has no bias, and the error bar is the spread over seeds."""
    values = np.array([f.log_volume for f in found]) - truth
    ratio = np.exp(values)
    # Radii are inside points: low by 0.01 nats at most.
    slack = 3 * ratio.std() / math.sqrt(len(found))
    assert -slack - 0.01 < ratio.mean() - 1 < slack
    spread = values.std()
    assert 0.75 * spread < np.median([f.stderr for f in found]) < 1.35 * spread


def component(points):
    return (points[:, 0] * points[:, 1] - 1).square()


def star_part(cutoff):
    """``log`` of the mass that rays from (1, 1) see of |xy - 1| <= sqrt(cutoff), by quadrature."""
    root = math.sqrt(cutoff)
    angle = (np.arange(200_000) + 0.5) * 2 * math.pi / 200_000
    c, s = np.cos(angle), np.sin(angle)
    b, product = c + s, c * s
    radii = np.full_like(angle, np.inf)
    for level in (root, -root):  # r b + r^2 product = level.
        discriminant = b * b + 4 * product * level
        real = np.sqrt(np.maximum(discriminant, 0))
        for sign in (1, -1):
            with np.errstate(divide="ignore", invalid="ignore"):
                r = (-b + sign * real) / (2 * product)
            valid = (discriminant >= 0) & (r > 0)
            radii = np.where(valid, np.minimum(radii, r), radii)
    # The integral of r exp(-r^2/2 - b r) in closed form.
    end = np.minimum(radii, 40.0)
    first = np.sqrt(np.pi / 2) * np.exp(b * b / 2)
    first = first * (special.erf((end + b) / np.sqrt(2)) - special.erf(b / np.sqrt(2)))
    inner = 1 - np.exp(-end * end / 2 - b * end) - b * first
    return math.log(np.mean(inner) * math.exp(-1))


E = 0.04
CLOSED_FORMS = {
    "x^2": (1, lambda z: z[:, 0] ** 2, math.log(math.erf(E**0.5 / 2**0.5))),
    "x^4": (1, lambda z: z[:, 0] ** 4, math.log(math.erf(E**0.25 / 2**0.5))),
    "x^8": (1, lambda z: z[:, 0] ** 8, math.log(math.erf(E**0.125 / 2**0.5))),
    "x^2 y^2": (
        2,
        lambda z: (z[:, 0] * z[:, 1]).square(),
        math.log(2 / math.pi * integrate.quad(special.k0, 0, E**0.5)[0]),
    ),
    "(a b)^2": (
        4,
        lambda z: (z[:, 0] * z[:, 1] + z[:, 2] * z[:, 3]).square(),
        math.log(-math.expm1(-(E**0.5))),
    ),
    "|a|^2 |b|^2": (
        4,
        lambda z: z[:, :2].square().sum(1) * z[:, 2:].square().sum(1),
        math.log1p(-(E**0.5) * special.k1(E**0.5)),
    ),
}


def test_the_closed_form_of_the_design():
    value = 2 / math.pi * integrate.quad(special.k0, 0, 1e-4**0.5)[0]
    assert value == pytest.approx(0.0364220, abs=5e-8)


@pytest.mark.parametrize("name", list(CLOSED_FORMS))
def test_closed_forms_without_curvature(name):
    """Star-shaped about 0, where A = 0: no tilt exists, and symmetric directions are right."""
    n, excess, truth = CLOSED_FORMS[name]
    anchor = torch.zeros(n, dtype=F64)
    found = [
        radial_estimate(
            radial_rays(
                excess,
                symmetric_law(anchor, seed=seed),
                NormalPrior(anchor),
                cutoff=E,
                indices=range(100),
                scan=0,
            )
        )
        for seed in range(100)
    ]
    assert sum(holds(f, truth) for f in found) >= 88
    if n > 1:
        check_unbiased_with_right_errors(found, truth)
    else:
        assert max(abs(f.log_volume - truth) for f in found) < 0.01


def test_a_component_that_is_not_star_shaped_gives_its_star_part():
    """|xy - 1| <= sqrt(E) near (1, 1): a straight ray leaves it where the hyperbola bends away."""
    anchor = torch.ones(2, dtype=F64)
    rows = torch.full((1, 2), 0.5**0.5, dtype=F64)
    # E[Q] = E at the tilt of its own quadratic model, (y_1 + y_2)^2.
    scale = tilt.saddle(E, [4.0, 0.0], [2**0.5, 0.0])
    whole = math.log(integrate.quad(special.k0, 1 - E**0.5, 1 + E**0.5)[0] / (2 * math.pi))
    star = star_part(E)
    assert star < whole - 0.04
    found = []
    for seed in range(100):
        law = tilted_law(anchor, rows, torch.tensor([4.0]), scale=scale, seed=seed)
        rays = radial_rays(component, law, NormalPrior(anchor), cutoff=E, indices=range(100))
        found.append(radial_estimate(rays))
    assert sum(holds(f, star) for f in found) >= 88
    check_unbiased_with_right_errors(found, star)


def test_rays_are_the_unit_of_work_bit_for_bit():
    problem = Quadratic(SPECTRA["power law"](40), draw(40, seed=1).numpy())
    law, prior = problem.tilted(), NormalPrior(problem.z)

    def rays(indices, **options):
        return radial_rays(problem, law, prior, cutoff=0.01, indices=indices, **options)

    whole = rays(range(50))
    shards = [rays(range(start, 50, 3), batch=5) for start in range(3)]
    resumed = [rays([i], batch=1) for i in reversed(range(10))] + [rays(range(49, 9, -1), batch=7)]
    for parts in (shards, shards[::-1], resumed):
        joined = merge(parts)
        for field in dataclasses.fields(RaySample):
            expected, found = getattr(whole, field.name), getattr(joined, field.name)
            assert expected.tobytes() == found.tobytes(), field.name
            assert expected.dtype == found.dtype
        assert radial_estimate(joined) == radial_estimate(whole)
    with pytest.raises(UsageError, match="twice"):
        merge([whole, shards[0]])
    with pytest.raises(UsageError, match="twice"):
        rays([1, 1])
    with pytest.raises(UsageError, match="at least one"):
        merge([])
    with pytest.raises(UsageError, match="at least one"):
        rays([])


def test_one_cutoff_does_not_depend_on_the_others():
    anchor = draw(20, seed=1).numpy()
    alone = Quadratic(SPECTRA["power law"](20), anchor, cutoff=0.01)
    expected = alone.estimate(alone.tilted(), rays=20)
    for other in (0.1, 0.001):
        problem = Quadratic(SPECTRA["power law"](20), anchor, cutoff=other)
        problem.estimate(problem.tilted(), rays=20)
    assert alone.estimate(alone.tilted(), rays=20) == expected


def test_the_tolerance_bounds_the_error_of_the_radii():
    problem = Quadratic(np.ones(300), np.zeros(300))
    # Equal weights: radii are the only error, and the interval holds it.
    for tolerance in (1.0, 0.01, 1e-5):
        found = problem.estimate(problem.symmetric(), rays=20, tolerance=tolerance)
        assert problem.truth - tolerance < found.log_volume < problem.truth + 1e-9
        assert holds(found, problem.truth)
        assert found.upper - found.lower < 1.1 * tolerance + 1e-9


def test_a_tether_cuts_the_region():
    n = 3
    anchor = np.array([0.4, 0.1, -0.2])
    problem = Quadratic(np.ones(n), anchor, cutoff=0.9)
    for tether in (0.5, 1.0, 1.3):
        expected = stats.ncx2.logcdf(tether**2, n, (anchor**2).sum())
        found = problem.estimate(problem.symmetric(), rays=400, tether=tether)
        assert abs(found.log_volume - expected) < 4 * found.stderr + 0.01
        assert found.n_infinite == 400
    found = problem.estimate(problem.tilted(), rays=400, tether=5.0)
    assert abs(found.log_volume - problem.truth) < 4 * found.stderr + 0.01
    assert not found.n_infinite


def test_nothing_excluded_is_the_whole_prior():
    anchor = draw(30, seed=1)
    rows = torch.zeros(0, 30, dtype=F64)
    law = tilted_law(anchor, rows, torch.zeros(0), scale=0.0)
    rays = radial_rays(
        lambda z: 0 * z[:, 0], law, NormalPrior(anchor), cutoff=0.1, indices=range(30)
    )
    found = radial_estimate(rays)
    assert found.log_volume == pytest.approx(0, abs=1e-10)
    assert found.n_infinite == 30
    assert holds(found, 0.0)
    assert found.ess == pytest.approx(30)


def test_rays_that_meet_nan_or_re_enter_are_counted():
    anchor = torch.zeros(2, dtype=F64)
    law, prior = symmetric_law(anchor), NormalPrior(anchor)

    def estimate(excess):
        return radial_estimate(radial_rays(excess, law, prior, cutoff=0.5, indices=range(60)))

    def half(z):  # NaN beyond radius 0.7 on the right: the disc of radius 1 loses a half ring.
        r = z.norm(dim=1)
        return torch.where((z[:, 0] > 0) & (r > 0.7), math.nan, r**2 / 2)

    found = estimate(half)
    expected = (-math.expm1(-0.5) - math.expm1(-0.245)) / 2
    assert 10 < found.n_not_finite < 50
    assert found.log_volume == pytest.approx(math.log(expected), abs=4 * found.stderr)
    assert not found.n_non_monotone

    def ring(z):  # A ring that is outside, inside the disc: the star domain ends there.
        r = z.norm(dim=1)
        return torch.where((r > 0.45) & (r < 0.55), 1.0, r**2 / 2)

    found = estimate(ring)
    assert found.n_non_monotone == 60
    assert found.log_volume == pytest.approx(math.log(-math.expm1(-(0.45**2) / 2)), abs=0.01)

    found = estimate(lambda z: z[:, 0] * math.nan)
    assert found.log_volume == -math.inf
    assert (found.label, found.upper) == ("lower bound", math.inf)
    assert (found.n_not_finite, found.n_unconverged, found.ess) == (60, 60, 0)


@pytest.mark.parametrize("anchor", [[0.0, 0.0], [0.5, -0.2]])
def test_uniform_priors(anchor):
    anchor = torch.tensor(anchor, dtype=F64)
    law = symmetric_law(anchor)
    box, ball = BoxPrior(anchor, torch.tensor([1.0, 2.0])), BallPrior(anchor, 1.5)

    def estimate(prior, cutoff, rays=2000):
        rays = radial_rays(
            lambda z: (z - anchor).square().sum(1),
            law,
            prior,
            cutoff=cutoff,
            indices=range(rays),
            scan=0,
            batch=500,
        )
        return radial_estimate(rays)

    x, y = anchor.tolist()
    axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=F64)
    assert box.reach(axes) == pytest.approx([1 - x, 1 + x, 2 - y])
    assert ball.reach(axes[:1]) == pytest.approx([(1.5**2 - y**2) ** 0.5 - x])
    # A small disc, entirely within the support, and then the whole support.
    for prior, area in ((box, 8.0), (ball, math.pi * 1.5**2)):
        found = estimate(prior, 0.04, rays=30)
        assert holds(found, math.log(math.pi * 0.04 / area))
        assert not found.n_infinite
        found = estimate(prior, 100.0)
        assert found.log_volume == pytest.approx(0, abs=4 * found.stderr + 1e-9)
        assert found.n_infinite == 2000
    for outside in (lambda: BoxPrior(anchor + 1, 1.0), lambda: BallPrior(anchor + 3, 1.0)):
        with pytest.raises(UsageError, match="outside the uniform prior's"):
            outside()
    with pytest.raises(UsageError, match="expected \\(n,\\), finite"):
        NormalPrior(anchor * math.nan)
