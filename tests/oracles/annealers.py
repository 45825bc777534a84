"""Annealed measurements of problems without a network, and what tests ask of them."""

import math

from landscape.units import MemoryUnits, silent
from landscape.volume.anneal_job import Annealer
from landscape.volume.belief import start
from landscape.volume.options import VolumeOptions

BOTH = ("ladder", "outward")
CUTOFF = 0.04


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


def check_not_converged(found, truth):
    """A lower bound only, which holds, and a notice with the remedy."""
    annealing, estimate = found.annealing, found.estimate
    assert not annealing.converged
    assert estimate.lower_bound.all()
    assert estimate.upper[0] == math.inf
    assert estimate.lower[0] == annealing.markov[0] < truth
    assert any(note.startswith("anneal: not converged") for note in found.warnings)
