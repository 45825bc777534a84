"""How fine an annealed path must be for a wanted error, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from landscape.quadratic_form import QuadraticForm
from landscape.volume.path import Path, Trail, refined
from landscape.volume.pilot import LENGTH

__all__ = ["ISLAND", "Plan", "Shortfall", "planned", "predicted_gradients"]

ISLAND = 8  # Particles in an island.
_LAG = 5.0  # Variance per squared length, measured: 3 to 7. Without lag it would be 1.
_AIM = 0.7  # Part of the wanted error that is aimed at.
_WIDEST = 3.0  # Variance of an island's log-weight that is aimed at, at most.
_FREEDOM = 2.0  # Of the variance, over those of the islands alone: a path's parts add theirs.
_COARSEST = 1.0  # Thermodynamic length between levels beyond which particles lose track.
_FINE = 0.25  # Length between levels that is wanted whatever the error: time to relax.
_FEWEST = 40  # Levels that are wanted,
_LEAST = 12  # and with which one has to do.
_STEPS = 6.0  # Leapfrog steps of a trajectory, before a pilot knows.
_PILOT = 4.0  # Gradients of both pilots for each chain, level and step.


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A frozen path and what one run along it costs.

    Attributes:
        path: the levels.
        n_gradients: expected gradients of one run, draws at the marks included.
        levels: that were planned; marks and corners add a few.
    """

    path: Path
    n_gradients: int
    levels: int


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """No path: even a coarse one costs more than there is.

    Attributes:
        n_gradients: what one run along it would cost.
    """

    n_gradients: int


def _wanted(length: float, chains: int, error: float) -> float:
    """Levels so that one run of so many chains has the error aimed at.

    An island's log-weight has the variance ``v = lag L^2 / (J P)`` over J levels with P particles,
    and the mean of I islands the squared error ``v / I + v^2 / (2 d)``.
    """
    islands = chains // ISLAND
    a, b = 1 / (2 * _FREEDOM * max(islands - 1, 1)), 1 / islands
    aim = (_AIM * error) ** 2
    # The root of a v^2 + b v = aim, without cancellation.
    variance = min(2 * aim / (b + math.sqrt(b * b + 4 * a * aim)), _WIDEST)
    return max(_LAG * length**2 / (ISLAND * variance), length / _FINE, _FEWEST)


def planned(
    trail: Trail,
    marks: list[float],
    *,
    chains: int,
    draws: int,
    error: float,
    n_gradients: float,
    levels: int = 0,
    stays: bool = False,
) -> Plan | Shortfall:
    """The path that a run takes, if the gradients left reach for a coarse one at least.

    Args:
        trail: what the pilot learned.
        marks: lengths at which volumes are estimated.
        chains: particles of a run.
        draws: trajectories at each mark.
        error: standard error that is wanted, in nats.
        n_gradients: what one run may cost.
        levels: of an earlier plan, which stays unless twice as many are wanted and paid for.
        stays: it stays even then: more runs along it are as good as a finer path.
    """
    length = float(trail.length[-1])
    steps = float(np.mean([_steps(step) for step in trail.step]))
    stay = chains * draws * len(set(marks)) * steps
    wanted = _wanted(length, chains, error)
    most = (n_gradients - stay) / (chains * steps)
    least = max(length / _COARSEST, _LEAST)
    count = round(min(wanted, most))
    if levels and (stays or count < 2 * levels):
        count = levels
    elif most < least:
        return Shortfall(n_gradients=math.ceil(least * chains * steps + stay))
    path = refined(trail, count, marks)
    return Plan(path=path, n_gradients=round(len(path) * chains * steps + stay), levels=count)


def _steps(step: float) -> float:
    """Mean number of leapfrog steps of a trajectory."""
    lengths = LENGTH * (0.5 + (np.arange(64) + 0.5) / 64)
    return float(np.maximum(np.ceil(lengths / step), 1).mean())


def predicted_gradients(
    form: QuadraticForm, tilt: float, *, chains: int, draws: int, error: float
) -> float:
    """Gradients that both starts would take if the loss were its quadratic model.

    Args:
        form: whitened curvature and location.
        tilt: s at the smallest cutoff: the inverse temperature at which the ladder ends.
        chains: as for :func:`planned`, as the next two.
        draws: trajectories at the end.
        error: wanted, in nats.
    """
    if not (math.isfinite(tilt) and tilt > 0):
        return 0.0
    s = tilt * np.concatenate([[0.0], np.geomspace(1e-8, 1.0, 400)])
    spread = np.sqrt(np.maximum(form.tilted_variance(s), 0.0))
    length = float(np.trapezoid(spread, s))
    levels = _wanted(length, chains, error)
    pilots = _PILOT * 24 * _STEPS * (length + 12)
    return pilots + 2.5 * chains * _STEPS * (levels + draws)
