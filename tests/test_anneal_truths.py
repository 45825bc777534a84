"""Annealed volumes against exact ones: quadratics, flat minima, learning coefficients."""

import dataclasses
import math

import anneal
import numpy as np
import pytest
import torch
from annealers import CUTOFF, annealer, failed, ladder_volume

from landscape.volume.anneal import annealed
from landscape.volume.islands import local_learning
from landscape.volume.path import refined
from landscape.volume.pilot import Scout

# Quadratics -------------------------------------------------------------------------------------


class Tally:
    """What many seeds came to."""

    def __init__(self):
        self.held, self.above, self.converged, self.errors, self.gaps = [], [], [], [], []

    def add(self, found, truth, cutoff, *, n, radius=math.inf):
        volume = ladder_volume(found, cutoff, n=n, radius=radius)
        assert volume.label == "estimate"
        self.held.append(volume.lower <= truth <= volume.upper)
        self.above.append(float(found.annealing.markov[0]) > truth)
        self.converged.append(found.annealing.converged)
        self.errors.append(volume.stderr)
        self.gaps.append(volume.value - truth)
        # An upper bound at equilibrium, where these particles are.
        assert found.annealing.reverse[0] > truth

    def check(self, least, *, most=1):
        assert sum(self.held) >= least
        assert sum(self.above) <= most
        # Errors are no wider than they should be, and no narrower.
        spread = math.sqrt(np.mean(np.square(self.gaps)))
        assert 0.5 * spread < np.sqrt(np.mean(np.square(self.errors))) < 2.5 * spread


@pytest.mark.parametrize("part", [0.1, 0.4, 1.0])
def test_quadratics_of_ten_coordinates(part):
    problem, tally = anneal.Quadratic(10, part), Tally()
    truth = problem.log_volume(0.04)
    for seed in range(20):
        found = annealer(problem, seed=seed, starts=("ladder",)).measure()
        tally.add(found, truth, 0.04, n=10)
    tally.check(17)


def test_both_starts_of_a_quadratic():
    problem = anneal.Quadratic(100, 0.1)
    cutoffs = (0.3, 0.04)
    found = annealer(problem, cutoffs=cutoffs, error=1.5, chains=32, seed=2).measure()
    estimate, annealing = found.estimate, found.annealing
    assert found.whole
    assert found.warnings == []
    assert annealing.converged
    assert annealing.agreed_radius == math.inf
    assert not failed(found)
    assert not estimate.lower_bound.any()
    for place, cutoff in enumerate(cutoffs):
        truth = problem.log_volume(cutoff)
        assert estimate.lower[place] <= truth <= estimate.upper[place]
        assert annealing.markov[place] < truth
        assert estimate.stderr[place] < 1.5
    assert annealing.reverse[1] > problem.log_volume(0.04)
    assert annealing.reverse[0] == math.inf
    curve = annealing.curve
    assert (np.diff(curve.radius) > 0).all()
    assert (curve.radius[-1], curve.agrees[-1]) == (math.inf, True)
    # Both starts of it, by particles of their own.
    for name in ("ladder", "outward"):
        low, high = getattr(curve, f"{name}_lower")[-1], getattr(curve, f"{name}_upper")[-1]
        assert low <= problem.log_volume(0.04) <= high
    # The quadratic's slope is half its rank.
    assert estimate.tilt[1] * 0.04 == pytest.approx(5, rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("n", [10, 100])
def test_quadratics_by_both_starts(n, part):
    problem, tally = anneal.Quadratic(n, part), Tally()
    truth = problem.log_volume(0.01)
    for seed in range(20):
        found = annealer(problem, seed=seed, cutoffs=(0.01,)).measure()
        tally.add(found, truth, 0.01, n=n)
        if found.annealing.converged:
            assert found.estimate.log_volume[0] == ladder_volume(found, 0.01, n=n).value
    tally.check(17)
    assert sum(tally.converged) >= 17


@pytest.mark.slow
@pytest.mark.parametrize(("n", "part"), [(1000, 0.1), (1000, 1.0), (2000, 0.1)])
def test_large_quadratics_within_a_million_gradients(n, part):
    """The metric has the 100 stiffest directions, and the mean of the others."""
    problem = anneal.Quadratic(n, part, power=1.5, kept=100)
    truth = problem.log_volume(0.01)
    found = annealer(problem, cutoffs=(0.01,), error=1.5).measure()
    volume = ladder_volume(found, 0.01, n=n)
    assert found.annealing.n_gradients <= 1_000_000
    assert volume.stderr < 2
    assert volume.lower <= truth <= volume.upper
    assert found.annealing.markov[0] < truth


# Losses that are not quadratic ------------------------------------------------------------------

TRUTHS = {
    name: (problem, truth(CUTOFF), None) for name, (problem, truth) in anneal.FLAT_MINIMA.items()
}
TRUTHS |= {
    "(x y - 1)^2": (anneal.HYPERBOLA, anneal.hyperbola(CUTOFF), None),
    "(x y - 1)^2 within 0.5": (anneal.HYPERBOLA, anneal.hyperbola(CUTOFF, 0.5), 0.5),
}


def test_the_whole_hyperbola_is_twice_its_component():
    """Within 1 of (1, 1) there is the one component only, most of it."""
    whole = anneal.hyperbola(CUTOFF)
    assert whole - math.log(2) - 0.25 < anneal.hyperbola(CUTOFF, 1.0) < whole - math.log(2)
    assert anneal.hyperbola(CUTOFF, 50.0) == pytest.approx(whole, abs=1e-6)


def tallied(name, seeds, **options):
    problem, truth, radius = TRUTHS[name]
    n, tally = len(problem.anchor), Tally()
    for seed in seeds:
        found = annealer(problem, seed=seed, tether=radius, **options).measure()
        tally.add(found, truth, CUTOFF, n=n, radius=math.inf if radius is None else radius)
    return tally


@pytest.mark.parametrize("name", list(TRUTHS))
def test_truths_that_are_not_quadratic(name):
    tallied(name, range(10), starts=("ladder",)).check(8)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRUTHS))
def test_truths_that_are_not_quadratic_in_many_seeds(name):
    tallied(name, range(100, 160), starts=("ladder",)).check(51, most=3)


@pytest.mark.parametrize(("name", "seed"), [("x^2 y^2", 1), ("(x y - 1)^2 within 0.5", 2)])
def test_both_starts_of_a_truth(name, seed):
    problem, truth, radius = TRUTHS[name]
    found = annealer(problem, seed=seed, tether=radius).measure()
    annealing, estimate = found.annealing, found.estimate
    assert annealing.converged
    assert annealing.agreed_radius == annealing.radius == (radius or math.inf)
    assert estimate.lower[0] <= truth <= estimate.upper[0]
    curve = annealing.curve
    assert abs(curve.outward[-1] - truth) < 4 * curve.outward_stderr[-1]


def test_the_outward_curve_is_right_at_every_radius():
    """Within 0.1 to 0.5 of (1, 1), by one run from the anchor."""
    problem, _, radius = TRUTHS["(x y - 1)^2 within 0.5"]
    found = annealer(problem, seed=2, tether=radius).measure()
    curve = found.annealing.curve
    assert len(curve.radius) == 6
    assert curve.radius[0] < 0.2
    for place, reach in enumerate(curve.radius):
        gap = curve.outward[place] - anneal.hyperbola(CUTOFF, float(reach))
        assert abs(gap) < 3.5 * curve.outward_stderr[place] + 0.01


def test_a_loss_of_zero():
    anchor = 0.3 * torch.ones(3, dtype=torch.float64)
    flat = anneal.Problem(anchor=anchor, residual=lambda z: 0 * z[0])
    found = annealer(flat).measure()
    assert found.estimate.log_volume[0] == 0
    assert found.estimate.upper[0] == 0
    assert found.annealing.ladder.beta.tolist() == [0.0]
    assert found.annealing.n_gradients < 40_000


# Learning coefficients --------------------------------------------------------------------------


def learning(dims, *, part, levels, islands, seed=0):
    """``beta E[dL]`` at the end of a ladder to E[dL] = part * lambda, its error, and beta there.

    The metric has no direction: on the fibre of all factorisations every chain has another one.
    """
    problem = anneal.reduced_rank(*dims)
    n, goal = len(problem.anchor), part * anneal.REDUCED_RANK[dims][0]

    def metric_at(positions, number):
        found = problem.metric_at(positions, number)
        return dataclasses.replace(anneal.no_metric(n), bulk=float(found.values.sum()) / n)

    pilot = Scout(
        energy=problem.energy,
        anchor=problem.anchor,
        metric_at=metric_at,
        chains=16,
        seed=seed,
        name="test",
    )
    pilot.start(0.0)
    pilot.warm(goal)
    pilot.settle(goal)
    path = refined(pilot.trail, levels, [float(pilot.trail.length[-1])])
    found, _ = annealed(
        path,
        problem.energy,
        problem.anchor,
        islands=islands,
        size=8,
        draws=0,
        seed=seed,
        label=("test",),
    )
    value, stderr = local_learning(found)
    assert found.acceptance[-1].mean() > 0.5
    return float(value[-1]), float(stderr[-1]), float(path.beta[-1])


def near_lambda(dims, value, stderr, beta):
    """Within the error, and up to (m - 1) / log(beta) below."""
    coefficient, multiplicity = anneal.REDUCED_RANK[dims]
    bias = (multiplicity - 1) / math.log(beta)
    return coefficient - bias - 3 * stderr < value < coefficient + 3 * stderr


@pytest.mark.parametrize("dims", list(anneal.REDUCED_RANK))
def test_learning_coefficients_of_reduced_rank_regression(dims):
    value, stderr, beta = learning(dims, part=3e-3, levels=120, islands=24)
    assert stderr < 0.05 * max(anneal.REDUCED_RANK[dims][0], 2)
    assert near_lambda(dims, value, stderr, beta)


@pytest.mark.slow
@pytest.mark.parametrize("dims", list(anneal.REDUCED_RANK))
def test_learning_coefficients_deeper_in_the_basin(dims):
    """At a tenth of the cutoff, in the mean of four seeds."""
    found = [learning(dims, part=3e-4, levels=400, islands=32, seed=s) for s in range(4)]
    value, _, beta = np.mean(found, axis=0)
    stderr = math.sqrt(sum(error**2 for _, error, _ in found)) / 4
    assert stderr < 0.02 * max(anneal.REDUCED_RANK[dims][0], 2)
    assert near_lambda(dims, value, stderr, beta)
