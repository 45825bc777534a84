"""Annealed measurements that are interrupted, continued, or lack something."""

import dataclasses
import math

import anneal
import numpy as np
import pytest
import torch
from annealers import CUTOFF, annealer, ladder_volume

from landscape.partial import PartialFile
from landscape.units import MemoryUnits, silent
from landscape.volume.anneal_job import keep_annealing, mark_places
from landscape.volume.anneal_plan import Plan
from landscape.volume.anneal_work import SpentError, Work
from landscape.volume.islands import Islands
from landscape.volume.path import Metric, refined

F64 = torch.float64


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


@pytest.mark.parametrize("kept", ["in memory", "in a file"])
@pytest.mark.parametrize("name", list(CASES))
def test_a_killed_measurement_goes_on_with_the_same_numbers(name, kept, tmp_path):
    problem, options = CASES[name]
    whole = anneal.Counted(problem.energy)
    expected = annealer(problem, energy=whole, **options).measure()
    generator, units, used, kills = np.random.default_rng(1), KeptUnits(), 0, 0
    found, limits = None, [1500, whole.rows // 6]
    while found is None:
        if kept == "in a file":  # Of which another process knows no more than what is there.
            units = PartialFile(tmp_path / "a.h5", "key", interval=0)
            assert (units.n_resumed > 0) == (kills > 0)
            limits = [1500, whole.rows // 12]
        # Never so little that a level cannot be done.
        fuse = Fuse(problem.energy, int(generator.integers(*limits)))
        try:
            found = annealer(problem, energy=fuse, units=units, **options).measure()
        except KilledError:
            kills += 1
        used += fuse.used
    assert kills >= (15 if kept == "in a file" and name == "nearer" else 6)
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
    # What is cut short within a run that it adds keeps the bound.
    kept = MemoryUnits()
    keep_annealing(first.annealing, 32, kept)
    wanted = options | {"error": 0.05}
    rows = counted.rows
    cut = annealer(problem, units=kept, stop=lambda count: count > rows, **wanted).measure()
    assert not cut.whole
    assert cut.annealing.reverse_partition == first.annealing.reverse_partition
    # A smaller error adds runs to them.
    finer = annealer(problem, units=units, **options | {"error": 0.25}).measure()
    assert finer.annealing.ladder.loss.shape[1] >= first.annealing.ladder.loss.shape[1]
    assert finer.estimate.stderr.max() <= 0.25


def test_uneven_islands_and_starts_that_disagree_give_way_to_a_finer_path():
    problem, options = CASES["quadratic"]
    first = annealer(problem, **options).measure().annealing
    levels = first.ladder_levels
    even = dataclasses.replace(first.ladder, log_partition=0.1 * first.ladder.log_partition)
    uneven = dataclasses.replace(even, log_partition=1e3 * even.log_partition)
    for changes, stays in (
        ({"ladder": even}, True),
        ({"ladder": even, "converged": False}, False),
        ({"ladder": uneven}, False),
    ):
        units = MemoryUnits()
        keep_annealing(dataclasses.replace(first, **{"converged": True} | changes), 32, units)
        plan = units.get("anneal/ladder/plan")
        assert (plan["levels"], math.isfinite(plan["stderr"])) == (levels, stays)


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
