"""Islands of annealed particles: what they gathered, and the log-volumes that follow from it.

Needs only numpy: stored islands are evaluated anew, merged and drawn without torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.volume.weights import LogMean, log_mean_exp, mean_of_estimates

__all__ = [
    "Islands",
    "evaluated",
    "integrated",
    "joined",
    "local_learning",
    "parted",
    "squared_distances",
    "volumes",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Islands:
    """What independent islands of particles gathered along a path of laws.

    Islands are the last axis but for draws, whose last are islands and their particles.

    Attributes:
        beta, tether: of every level, (l,).
        log_partition: estimates of log Z, each unbiased for Z, (l, i).
        loss: weighted mean excess loss, (l, i).
        distance: weighted mean ``|z - z*|^2``, (l, i).
        acceptance: mean acceptance, (l, i); 1 at the first level, which is drawn exactly.
        divergent: trajectories that left their level set, (l, i).
        stride: standard deviation of the log-weights' change on the way to the level, (l, i).
        marks: levels at which draws were taken, (m,).
        log_scale: log-weight of each island at the marks, (m, i).
        draw_loss: excess losses there, equally weighted, (m, s, i, p).
        draw_distance: ``|z - z*|^2`` there, (m, s, i, p).
        n_gradients: gradients used.
        n_resampled: resamplings of all islands, those at marks included.
    """

    beta: FloatArray
    tether: FloatArray
    log_partition: FloatArray
    loss: FloatArray
    distance: FloatArray
    acceptance: FloatArray
    divergent: IntArray
    stride: FloatArray
    marks: IntArray
    log_scale: FloatArray
    draw_loss: FloatArray
    draw_distance: FloatArray
    n_gradients: int
    n_resampled: int

    def as_unit(self) -> dict[str, Any]:
        """Arrays for a unit of work."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @staticmethod
    def of_unit(unit: Mapping[str, Any]) -> Islands:
        """The inverse of :meth:`as_unit`."""
        found = {f.name: unit[f.name] for f in dataclasses.fields(Islands)}
        for name in ("n_gradients", "n_resampled"):
            found[name] = int(found[name])
        return Islands(**found)


_PARTS, _SHORTEST = 16, 8  # Of a path, and the levels of one: particles forget within a few.

BY_LEVEL = ("log_partition", "loss", "distance", "acceptance", "divergent", "stride")
"""Arrays with the axes (level, island)."""


_AXIS = dict.fromkeys((*BY_LEVEL, "log_scale"), 1) | {"draw_loss": 2, "draw_distance": 2}


def joined(runs: Sequence[Islands]) -> Islands:
    """Runs along one path as one, with the islands of all."""
    first = runs[0]
    columns = {
        name: np.concatenate([getattr(r, name) for r in runs], axis=place)
        for name, place in _AXIS.items()
    }
    return dataclasses.replace(
        first,
        **columns,
        n_gradients=sum(r.n_gradients for r in runs),
        n_resampled=sum(r.n_resampled for r in runs),
    )


def parted(islands: Islands, count: int) -> list[Islands]:
    """Runs of so many islands each that :func:`joined` made one of."""
    runs = islands.loss.shape[1] // count
    columns = {
        name: np.split(getattr(islands, name), runs, axis=place) for name, place in _AXIS.items()
    }
    return [
        dataclasses.replace(
            islands,
            **{name: parts[run] for name, parts in columns.items()},
            n_gradients=islands.n_gradients // runs,
            n_resampled=islands.n_resampled // runs,
        )
        for run in range(runs)
    ]


def volumes(islands: Islands, mark: int, cutoff: float, reach: float = math.inf) -> FloatArray:
    """Unbiased estimates of V from the draws at a mark, in logs; -inf where no draw is inside.

    Args:
        islands: of a path.
        mark: number of the mark.
        cutoff: largest excess loss.
        reach: largest ``|z - z*|``.

    Returns:
        (i,).
    """
    logs = _log_weights(islands, mark, cutoff, reach)
    found: FloatArray = islands.log_scale[mark] + log_mean_exp(logs, axis=(0, 2))
    return found


def evaluated(islands: Islands, level: int, logs: FloatArray | None = None) -> LogMean:
    """Mean of one unbiased estimate from each island, whose spread grows along the path.

    The path is cut into up to 16 parts of 8 levels at least, unless its tether moves: what a tether
    strains it gives back later, and parts far from each other vary together.

    Args:
        islands: of a path.
        level: number of a level.
        logs: log-volumes from there, (i,); log Z itself without them.
    """
    path = islands.log_partition
    still = (islands.tether[: level + 1] == islands.tether[level]).all()
    count = max(min(_PARTS, level // _SHORTEST), 1) if still else 1
    cuts = np.linspace(0, level, count + 1).round().astype(int)
    logs = path[level] if logs is None else logs
    with np.errstate(invalid="ignore"):  # Islands without weight.
        parts = np.vstack([np.diff(path[cuts], axis=0), logs - path[level]])
    return mean_of_estimates(logs, parts)


def squared_distances(
    islands: Islands, mark: int, cutoff: float, reach: float = math.inf
) -> FloatArray:
    """Mean ``|z - z*|^2`` of the prior's mass in the basin, (i,); arguments of :func:`volumes`.

    NaN where no draw is inside.
    """
    logs = _log_weights(islands, mark, cutoff, reach)
    top = logs.max(axis=(0, 2), keepdims=True)
    weights = np.exp(logs - np.where(np.isfinite(top), top, 0.0))
    with np.errstate(invalid="ignore"):
        found: FloatArray = (weights * islands.draw_distance[mark]).sum((0, 2)) / weights.sum(
            (0, 2)
        )
    return found


def _log_weights(islands: Islands, mark: int, cutoff: float, reach: float) -> FloatArray:
    """``beta dL + k |z - z*|^2 / 2`` of draws in the basin, -inf of others, (s, i, p)."""
    level = islands.marks[mark]
    beta, tether = islands.beta[level], islands.tether[level]
    loss, distance = islands.draw_loss[mark], islands.draw_distance[mark]
    inside = (loss <= cutoff) & (distance <= reach**2)
    with np.errstate(invalid="ignore"):
        logs: FloatArray = np.where(inside, beta * loss + tether / 2 * distance, -np.inf)
    return logs


def integrated(islands: Islands) -> FloatArray:
    """Log Z of every level by thermodynamic integration, one an island, (l, i).

    ``log Z_ref - int E[dL] dbeta - int E[|z - z*|^2] / 2 dk`` by the trapezoidal rule over the
    weighted means: it shares the particles with the weights, but neither their exponentials nor
    their bias towards what few particles carry. Steps from a law under which a loss may be infinite
    are the weights' own.
    """
    steps = np.zeros_like(islands.loss)
    for values, x in ((islands.loss, islands.beta), (islands.distance / 2, islands.tether)):
        change = np.diff(x)[:, None]
        with np.errstate(invalid="ignore"):
            steps[1:] -= np.where(change != 0, change * (values[1:] + values[:-1]) / 2, 0.0)
    with np.errstate(invalid="ignore"):
        weighed = np.diff(islands.log_partition, axis=0)
    steps[1:] = np.where(np.isfinite(steps[1:]), steps[1:], weighed)
    found: FloatArray = islands.log_partition[:1] + np.cumsum(steps, axis=0)
    return found


def local_learning(islands: Islands) -> tuple[FloatArray, FloatArray]:
    """Local learning coefficient ``beta E[dL]`` of every level and its standard error, (l,).

    It tends to the learning coefficient as beta grows; ``2 beta E[dL]`` is an effective dimension.

    Source: Lau et al., The local learning coefficient, AISTATS (2025), section 4.
    """
    found = islands.beta[:, None] * np.nan_to_num(islands.loss)
    count = found.shape[1]
    spread = found.std(1, ddof=1) if count > 1 else np.full(len(found), np.nan)
    return found.mean(1), spread / math.sqrt(count)
