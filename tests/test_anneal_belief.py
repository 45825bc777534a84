"""When an annealed volume is not believed: planted failures, starts that disagree, false alarms."""

import dataclasses
import math
import re

import anneal
import numpy as np
import pytest
import torch
from annealers import BOTH, CUTOFF, annealer, check_not_converged, failed, ladder_volume
from scipy import stats

from landscape.units import MemoryUnits
from landscape.volume import anneal_job
from landscape.volume.anneal import annealed
from landscape.volume.anneal_job import keep_annealing
from landscape.volume.anneal_plan import Shortfall
from landscape.volume.anneal_verdict import verdict
from landscape.volume.belief import AGREE, NOT_COMPARED, Start, agree, checks, finding, start
from landscape.volume.islands import Islands
from landscape.volume.options import VolumeOptions
from landscape.volume.path import refined
from landscape.volume.pilot import Scout
from landscape.volume.weights import LogMean, mean_of_estimates

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
    assert not [w for w in again.warnings if w.startswith("anneal: outward")]


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


def test_a_finding_says_what_keeps_starts_from_agreeing():
    near = a_start(-10, 0.3)
    assert finding(near, a_start(-10.5, 0.3), error=1.0) == AGREE
    assert finding(None, near, error=1.0) == "no run from the prior"
    assert finding(near, None, error=1.0) == "no run from the checkpoint"
    low = a_start(-10, 0.3, label="lower bound")
    assert finding(near, low, error=1.0) == "a lower bound from the checkpoint"
    assert finding(low, near, error=1.0) == "a lower bound from the prior"
    apart = a_start(-15, 0.3, distance=1.2)
    text = finding(near, apart, error=1.0)
    assert text.startswith("log V differs by 5, not 1.")
    assert "; distance differs by 0.2, not 0.1" in text
    wide = finding(a_start(-10, 9.0), a_start(-10, 9.0), error=1.0)
    assert wide.startswith("log V is known to")


def test_a_bound_has_no_upper_end_in_the_curve():
    found = annealer(anneal.Quadratic(10, 0.4), starts=("ladder",)).measure().annealing
    assert math.isfinite(found.curve.ladder_upper[-1])
    # Islands that differ by more than can be averaged.
    ladder = found.ladder
    shift = np.linspace(0, 30, ladder.log_scale.shape[1])
    wide = dataclasses.replace(ladder, log_scale=ladder.log_scale + shift)
    curve = verdict(
        wide,
        None,
        marks=[len(wide.marks) - 1],
        radii=[],
        nearer={},
        n=10,
        radius=math.inf,
        upper=math.inf,
        levels={"ladder": 40},
        options=VolumeOptions(cutoffs=(CUTOFF,)),
        symmetries=(),
        n_gradients=1,
        gradient_seconds=math.nan,
        bare_seconds=math.nan,
    ).annealing.curve
    assert curve.ladder_upper.tolist() == [math.inf]
    assert np.isfinite(curve.ladder_lower).all()


def test_radii_without_a_ladder_are_not_compared():
    found = annealer(anneal.Quadratic(10, 0.4)).measure().annealing
    assert found.converged
    curve = found.curve
    assert curve.findings[-1] == AGREE
    assert set(curve.findings[:-1]) == {NOT_COMPARED}
    assert not curve.agrees[:-1].any()


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
