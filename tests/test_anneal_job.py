"""Annealed volumes against exact ones, by both starts; planted failures; interruptions."""

from __future__ import annotations

import dataclasses
import math
import re

import anneal
import numpy as np
import pytest
import torch
from scipy import stats

from landscape.units import MemoryUnits, silent
from landscape.volume import anneal_job
from landscape.volume.anneal import annealed
from landscape.volume.anneal_job import Annealer, keep_annealing, mark_places
from landscape.volume.anneal_plan import Plan, Shortfall
from landscape.volume.anneal_work import SpentError, Work
from landscape.volume.belief import Start, agree, checks, start
from landscape.volume.islands import Islands, local_learning
from landscape.volume.options import VolumeOptions
from landscape.volume.path import Metric, refined
from landscape.volume.pilot import Scout
from landscape.volume.weights import LogMean, mean_of_estimates

F64 = torch.float64
BOTH = ("ladder", "outward")


def annealer(
    problem,
    *,
    seed=0,
    cutoffs=(0.04,),
    limit=1_000_000,
    starts=BOTH,
    units=None,
    stop=lambda count: False,
    energy=None,
    **options,
):
    return Annealer(
        energy=problem.energy if energy is None else energy,
        anchor=problem.anchor,
        metrics=lambda name: problem.metric_at,
        options=VolumeOptions(cutoffs=cutoffs, methods=("anneal",), **options),
        seed=seed,
        units=MemoryUnits() if units is None else units,
        stop=stop,
        limit=limit,
        progress=silent,
        starts=starts,
    )


def ladder_volume(found, cutoff, *, n, radius=math.inf, place=0):
    """The ladder's interval, whether it is believed or not."""
    annealing = found.annealing
    mark = int(annealing.marks[place])
    return start(annealing.ladder, mark, cutoff, n=n, radius=radius).volume


def failed(found):
    return [check.name for check in found.annealing.checks if not check.passed]


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

CUTOFF = 0.04
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
    anchor = 0.3 * torch.ones(3, dtype=F64)
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


# Planted failures -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pilot():
    """A quadratic, and a pilot's trail of it."""
    problem = anneal.Quadratic(40, kept=5)
    scout = Scout(
        energy=problem.energy,
        anchor=problem.anchor,
        metric_at=problem.metric_at,
        chains=16,
        seed=0,
        name="test",
    )
    scout.start(0.0)
    scout.warm(0.02)
    scout.settle(0.02)
    return problem, scout.trail


def along(problem, path):
    found, _ = annealed(
        path,
        problem.energy,
        problem.anchor,
        islands=8,
        size=8,
        draws=16,
        seed=0,
        label=("test",),
    )
    return [check.name for check in checks("ladder", found) if not check.passed], found


def test_a_path_as_planned_has_nothing_against_it(pilot):
    problem, trail = pilot
    names, found = along(problem, refined(trail, 120, [float(trail.length[-1])]))
    assert names == []
    gap = found.log_partition[-1] - problem.log_partition(found.beta[-1])
    assert abs(np.log(np.exp(gap).mean())) < 1.0


def test_too_few_levels_are_seen(pilot):
    problem, trail = pilot
    for levels in (5, 10):
        names, _ = along(problem, refined(trail, levels, [float(trail.length[-1])]))
        assert "ladder: widest step between levels" in names


def test_a_step_too_large_is_seen(pilot):
    problem, trail = pilot
    path = refined(trail, 120, [float(trail.length[-1])])
    names, _ = along(problem, dataclasses.replace(path, step=4 * path.step))
    assert "ladder: lowest acceptance" in names
    names, _ = along(problem, dataclasses.replace(path, step=30 * path.step))
    assert {"ladder: lowest acceptance", "ladder: divergent trajectories"} <= set(names)


def test_a_bad_mass_is_seen(pilot):
    """Without a metric the steps of the pilot are far too large."""
    problem, trail = pilot
    path = refined(trail, 120, [float(trail.length[-1])])
    blind = tuple(anneal.no_metric(40) for _ in path.metrics)
    names, _ = along(problem, dataclasses.replace(path, metrics=blind))
    assert "ladder: lowest acceptance" in names


def check_not_converged(found, truth):
    """A lower bound only, which holds, and a notice with the remedy."""
    annealing, estimate = found.annealing, found.estimate
    assert not annealing.converged
    assert estimate.lower_bound.all()
    assert estimate.upper[0] == math.inf
    assert estimate.lower[0] == annealing.markov[0] < truth
    assert any(note.startswith("anneal: not converged") for note in found.warnings)


@pytest.mark.parametrize("name", BOTH)
def test_one_start_alone_is_not_believed(name):
    problem = anneal.Quadratic(10, 0.4)
    found = annealer(problem, starts=(name,)).measure()
    check_not_converged(found, problem.log_volume(CUTOFF))
    assert failed(found) == ["independent starts"]
    assert math.isnan(found.annealing.agreed_radius)
    assert name in found.estimate.path


def wrapped_plan(monkeypatch, change):
    """Let paths be other than planned."""
    honest = anneal_job.planned

    def planned(trail, marks, **options):
        plan = honest(trail, marks, **options)
        if isinstance(plan, Shortfall):
            return plan
        return dataclasses.replace(plan, path=change(trail, marks, plan))

    monkeypatch.setattr(anneal_job, "planned", planned)


PLANTED = {
    "too few levels": lambda trail, marks, plan: refined(trail, 6, marks),
    "step too large": lambda trail, marks, plan: dataclasses.replace(
        plan.path, step=4 * plan.path.step
    ),
}


@pytest.mark.parametrize("name", list(PLANTED))
def test_planted_failures_are_reported(name, monkeypatch):
    wrapped_plan(monkeypatch, PLANTED[name])
    problem = anneal.Quadratic(40, kept=5)  # An exact metric would allow for any step.
    found = annealer(problem, limit=100_000).measure()
    check_not_converged(found, problem.log_volume(CUTOFF))
    expected = {"too few levels": "widest step", "step too large": "lowest acceptance"}[name]
    for run in BOTH:
        assert any(run in check and expected in check for check in failed(found))


@pytest.mark.parametrize("limit", [300, 3000, 9000, 20_000])
def test_few_gradients_say_less_and_nothing_wrong(limit):
    problem = anneal.Quadratic(60)
    found = annealer(problem, limit=limit, chains=32).measure()
    if found.annealing is None:
        assert found.estimate.lower_bound.all()
        assert (found.estimate.log_volume == -np.inf).all()
        assert limit < 20_000
        assert not found.whole
        (note,) = found.warnings
        assert re.search("were too few|was left out", note)
        return
    check_not_converged(found, problem.log_volume(CUTOFF))
    assert found.annealing.n_gradients < 1.3 * limit


def test_a_start_that_the_budget_does_not_reach_is_named_with_what_it_needs():
    """And what is left goes to the other one."""
    problem = anneal.Quadratic(60, kept=5)
    found = annealer(problem, limit=30_000, chains=64, error=0.3).measure()
    check_not_converged(found, problem.log_volume(CUTOFF))
    assert found.annealing.outward is None
    assert not found.whole
    (note,) = [w for w in found.warnings if "was left out" in w]
    assert note.startswith("anneal: outward: a run of its 64 chains takes")
    needed = float(re.search(r"--budget of ([\d.e+]+)grad", note)[1])
    assert needed > 30_000
    again = annealer(problem, limit=needed, chains=64, error=0.3).measure()
    assert again.annealing.outward is not None
    assert not [w for w in again.warnings if "was left out" in w]


def test_a_prior_without_a_finite_loss_is_said_at_once():
    problem = anneal.Quadratic(5)

    def energy(z):
        loss, slope = problem.energy(z)
        far = (z - problem.anchor).norm(dim=1) > 0.01
        return torch.where(far, math.inf, loss), slope

    found = annealer(problem, limit=20_000, energy=energy).measure()
    assert found.annealing is None
    assert found.estimate.log_volume == -np.inf
    (note,) = found.warnings
    assert "not finite at any of 24 points from the prior" in note
    assert "--sigma" in note


def test_a_complete_result_without_an_upper_bound_can_get_one_later():
    """An infinite bound is none: it is not taken for finished work."""
    problem = anneal.Quadratic(5)
    found = annealer(problem, starts=BOTH).measure().annealing
    for bound in (math.inf, -3.0):
        units = MemoryUnits()
        annealing = dataclasses.replace(found, reverse_partition=bound)
        keep_annealing(annealing, 64, units)
        assert (units.get("anneal/reverse") is not None) == math.isfinite(bound)


def test_an_outward_start_that_misses_half_of_the_volume():
    """The second component is seen from the prior alone; within its distance both agree."""
    truth = anneal.hyperbola(CUTOFF)
    for seed in (0, 3):
        found = annealer(anneal.HYPERBOLA, seed=seed).measure()
        check_not_converged(found, truth)
        annealing = found.annealing
        assert any("starts differ by" in name for name in failed(found))
        assert 0.2 < annealing.agreed_radius < 1.2
        curve = annealing.curve
        place = int(np.searchsorted(curve.radius, annealing.agreed_radius))
        near = anneal.hyperbola(CUTOFF, float(annealing.agreed_radius))
        assert abs(curve.ladder[place] - near) < 4 * curve.ladder_stderr[place]
        assert near - 1 < curve.outward[place] < near + 4 * curve.outward_stderr[place]
        assert not curve.agrees[-1]
        # The ladder has both.
        volume = ladder_volume(found, CUTOFF, n=2)
        assert volume.lower <= truth <= volume.upper
        assert curve.outward[-1] < truth - 0.5


@dataclasses.dataclass(eq=False)
class TwoWells:
    """A narrow well at the anchor, and a wide one far away with nearly all of the volume."""

    n: int = 10

    def __post_init__(self):
        self.energy, self.anchor = anneal.two_wells(self.n, narrow=40.0, wide=4.0, apart=3.0)

    def metric_at(self, positions, number):
        near = positions.norm(dim=1).mean() < 1.5
        return dataclasses.replace(anneal.no_metric(self.n), bulk=40.0 if near else 4.0)

    def log_volumes(self, cutoff):
        """Log V of both wells, which do not meet."""
        narrow = stats.chi2.logcdf(2 * cutoff / 40.0, self.n)
        wide = stats.ncx2.logcdf(2 * cutoff / 4.0, self.n, 9.0)
        return float(narrow), float(wide)

    def within(self, cutoff, radius):
        """Log V of the near well within the radius."""
        return stats.chi2.logcdf(min(2 * cutoff / 40.0, radius**2 * self.n), self.n)


def test_a_wide_well_far_from_the_anchor():
    problem = TwoWells()
    narrow, wide = problem.log_volumes(CUTOFF)
    assert wide > narrow + 5
    found = annealer(problem).measure()
    check_not_converged(found, wide)
    annealing, curve = found.annealing, found.annealing.curve
    place = int(np.searchsorted(curve.radius, annealing.agreed_radius))
    assert abs(curve.outward[-1] - narrow) < 4 * curve.outward_stderr[-1]
    assert abs(curve.ladder[-1] - wide) < 4 * curve.ladder_stderr[-1]
    # A tether that leaves nothing but the near well costs little.
    assert abs(curve.ladder[place] - problem.within(CUTOFF, annealing.agreed_radius)) < 0.3
    assert annealing.n_gradients < 200_000


# Belief -----------------------------------------------------------------------------------------


def a_start(value, stderr, *, distance=1.0, distance_stderr=0.01, label="estimate", islands=8):
    volume = LogMean(
        value=value,
        stderr=stderr,
        lower=value - 2 * stderr,
        upper=value + 2 * stderr,
        label=label,
        ess=8.0,
        largest_share=0.2,
        tail_index=math.nan,
        freedom=islands - 1.0,
    )
    return Start(volume=volume, distance=distance, distance_stderr=distance_stderr, islands=islands)


def test_agreement_is_within_errors_that_are_small_enough():
    def passed(one, two, error=1.0):
        return [check.passed for check in agree(one, two, error=error)]

    assert passed(a_start(-10, 0.3), a_start(-10.5, 0.3)) == [True, True]
    assert passed(a_start(-10, 0.3), a_start(-12, 0.3)) == [False, True]
    # A difference of 2.5 is within large errors, one of 5 says nothing even then.
    assert passed(a_start(-10, 1.0), a_start(-12.5, 1.0))[0]
    assert not passed(a_start(-10, 1.5), a_start(-15, 1.5))[0]
    assert passed(a_start(-10, 2.5), a_start(-15, 2.5), error=5.0)[0]
    # What is not known does not agree.
    assert not passed(a_start(-10, 9.0), a_start(-10, 9.0))[0]
    assert not passed(a_start(-10, 0.3, label="lower bound"), a_start(-10, 0.3))[0]
    # Distances agree to 5% beyond their errors.
    near = a_start(-10, 0.3)
    assert passed(near, a_start(-10, 0.3, distance=1.06)) == [True, True]
    assert passed(near, a_start(-10, 0.3, distance=1.2)) == [True, False]
    assert passed(near, a_start(-10, 0.3, distance=1.2, distance_stderr=0.1)) == [True, True]


def test_false_alarms_are_as_rare_as_they_say():
    """The 99% interval of a difference, of 8 islands each."""
    generator = np.random.default_rng(0)
    logs = generator.normal(size=(2000, 2, 8)) * 0.5
    means, errors = logs.mean(2), logs.std(2, ddof=1) / math.sqrt(8)
    alarms = [
        not agree(a_start(*pair[0]), a_start(*pair[1]), error=1.0)[0].passed
        for pair in zip(
            np.stack([means[:, 0], errors[:, 0]], 1),
            np.stack([means[:, 1], errors[:, 1]], 1),
            strict=True,
        )
    ]
    assert 0.003 < np.mean(alarms) < 0.017


def test_the_distance_of_a_start_weighs_its_islands():
    levels, islands = 2, 6
    scale = np.log(np.array([1.0, 1, 1, 1, 1, 15]))
    squares = np.array([1.0, 2, 3, 4, 5, 9]) * 2
    zeros = np.zeros((levels, islands))
    found = Islands(
        beta=np.array([0.0, 3.0]),
        tether=np.zeros(2),
        log_partition=zeros,
        loss=zeros,
        distance=zeros,
        acceptance=zeros + 1,
        divergent=zeros.astype(np.int64),
        stride=zeros,
        marks=np.array([1]),
        log_scale=scale[None] - 700,
        draw_loss=np.zeros((1, 4, islands, 8)),
        draw_distance=np.broadcast_to(squares[:, None], (1, 4, islands, 8)),
        n_gradients=0,
        n_resampled=0,
    )
    seen = start(found, 0, 0.1, n=2, radius=math.inf)
    assert seen.distance == pytest.approx(math.sqrt((15 + 15 * 9) / 20))
    assert seen.volume.value == mean_of_estimates(found.log_scale[0]).value
    assert seen.islands == islands
    # Beyond the radius there is nothing.
    assert start(found, 0, 0.1, n=2, radius=0.5).volume.value == -math.inf


# Interruptions ----------------------------------------------------------------------------------


class KeptUnits(MemoryUnits):
    """Everything that may be stored is stored, as copies."""

    def put(self, name, unit):
        copied = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in unit.items()}
        super().put(name, copied)

    def due(self):
        return True


class KilledError(Exception):
    pass


class Fuse:
    """An energy that fails after so many rows."""

    def __init__(self, energy, rows):
        self.energy, self.left, self.used = energy, rows, 0

    def __call__(self, z):
        if self.left < len(z):
            raise KilledError
        self.left -= len(z)
        self.used += len(z)
        return self.energy(z)


def numbers(found):
    annealing = found.annealing
    return (
        found.estimate.log_volume.tolist(),
        found.estimate.stderr.tolist(),
        annealing.markov.tolist(),
        annealing.reverse.tolist(),
        annealing.ladder.log_partition.tolist(),
        annealing.outward.draw_loss.tolist(),
        annealing.curve.ladder.tolist()[-1:],
        annealing.n_gradients,
        annealing.converged,
    )


CASES = {
    "quadratic": (anneal.Quadratic(6, 0.5), {"chains": 32, "error": 0.4, "cutoffs": (0.3, 0.04)}),
    "nearer": (anneal.HYPERBOLA, {"chains": 32, "seed": 3}),
    "radius": (anneal.HYPERBOLA, {"chains": 32, "tether": 0.5}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_killed_measurement_goes_on_with_the_same_numbers(name):
    problem, options = CASES[name]
    whole = anneal.Counted(problem.energy)
    expected = annealer(problem, energy=whole, **options).measure()
    generator, units, used, kills = np.random.default_rng(1), KeptUnits(), 0, 0
    found = None
    while found is None:
        # Never so little that a level cannot be done.
        fuse = Fuse(problem.energy, int(generator.integers(1500, whole.rows // 6)))
        try:
            found = annealer(problem, energy=fuse, units=units, **options).measure()
        except KilledError:
            kills += 1
        used += fuse.used
    assert kills >= 6
    assert numbers(found) == numbers(expected)
    # A level is a trajectory of 32 chains, or 16 of them at a mark.
    assert used - whole.rows < kills * 32 * 17 * 12


def test_a_budget_stops_and_a_larger_one_goes_on():
    problem, options = CASES["quadratic"]
    expected = annealer(problem, **options).measure()
    units, cut = MemoryUnits(), 0
    for part in (0.02, 0.3, 0.3, 0.3, 1.0):
        allowed = int(part * expected.annealing.n_gradients)

        def spent(count, allowed=allowed):
            return count >= allowed

        found = annealer(problem, units=units, stop=spent, **options).measure()
        cut += not found.whole
    assert cut >= 3
    assert found.whole
    assert numbers(found) == numbers(expected)


def test_finished_runs_are_taken_from_a_result():
    problem, options = CASES["quadratic"]
    first = annealer(problem, **options).measure()
    units = MemoryUnits()
    keep_annealing(first.annealing, 32, units)
    counted = anneal.Counted(problem.energy)
    again = annealer(problem, energy=counted, units=units, **options).measure()
    assert again.estimate.log_volume.tolist() == first.estimate.log_volume.tolist()
    assert again.annealing.reverse.tolist() == first.annealing.reverse.tolist()
    assert counted.rows < 0.5 * first.annealing.n_gradients
    # A smaller error adds runs to them.
    finer = annealer(problem, units=units, **options | {"error": 0.25}).measure()
    assert finer.annealing.ladder.loss.shape[1] >= first.annealing.ladder.loss.shape[1]
    assert finer.estimate.stderr.max() <= 0.25


def test_marks_are_found_by_their_lengths():
    islands = Islands(
        beta=np.arange(4.0),
        marks=np.array([1, 2, 3]),
        n_gradients=0,
        n_resampled=0,
        **dict.fromkeys(
            ("tether", "log_partition", "loss", "distance", "acceptance", "divergent", "stride"),
            np.zeros((4, 1)),
        ),
        **dict.fromkeys(("log_scale", "draw_loss", "draw_distance"), np.zeros((3, 1, 1, 1))),
    )
    assert mark_places(islands, [5.0, 1.0, 5.0, 3.0]) == [2, 0, 2, 1]


def test_a_metric_is_not_needed():
    """Without any curvature at all only the steps become smaller."""
    problem = anneal.Quadratic(5, 0.5)

    class Blind:
        energy, anchor = staticmethod(problem.energy), problem.anchor

        @staticmethod
        def metric_at(positions, number):
            n = positions.shape[1]
            return Metric(
                vectors=positions.new_zeros(0, n), values=positions.new_zeros(0), bulk=0.0
            )

    found = annealer(Blind, seed=1).measure()
    volume = ladder_volume(found, CUTOFF, n=5)
    assert volume.lower <= problem.log_volume(CUTOFF) <= volume.upper


def test_a_way_back_is_not_continued_along_a_finer_path():
    problem, units = anneal.Quadratic(5), MemoryUnits()
    spent: list[bool] = []

    def work():
        return Work(
            energy=problem.energy,
            anchor=problem.anchor,
            metrics=lambda name: problem.metric_at,
            chains=32,
            seed=0,
            units=units,
            stop=lambda count: bool(spent),
            limit=10**9,
            progress=lambda phase, done, total: (
                spent.append(True) if phase == "back to the prior" and done == 5 else None
            ),
        )

    scout = work().scout("ladder")
    scout.start(0.0)
    scout.warm(0.05)
    scout.settle(0.05)
    trail = scout.trail
    for levels in (14, 40):
        path = refined(trail, levels, [float(trail.length[-1])])
        plan, here = Plan(path=path, n_gradients=0, levels=levels), work()
        here.run("ladder", plan, 0)
        if levels == 14:
            with pytest.raises(SpentError):
                here.back(plan)
        spent.clear()
    again = work()
    again.progress = silent
    assert math.isfinite(again.back(plan))
