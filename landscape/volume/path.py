"""Paths of laws: what a pilot learned about one, and the finer, frozen path that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landscape.memory import stored_tensor
from landscape.volume.mass import Mass
from landscape.volume.particles import Level

__all__ = ["Metric", "Path", "Trail", "refined"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_AHEAD = 5  # Levels of a pilot whose smallest step is taken.
_SMOOTH = 4  # Levels on each side whose median smooths what few chains measured.


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """Mean curvature ``G = U^T diag(values) U + bulk (I - U^T U)`` where chains are.

    Attributes:
        vectors: orthonormal rows U, (d, n).
        values: (d,).
        bulk: mean of the eigenvalues without a vector.
    """

    vectors: Tensor
    values: Tensor
    bulk: float

    def mass(self, beta: float, tether: float) -> Mass:
        """``(1 + k) I + beta G``: the curvature of the law's potential."""
        base = 1 + tether
        return Mass(
            vectors=self.vectors,
            values=base + beta * self.values.clamp(min=0.0),
            rest=base + beta * max(self.bulk, 0.0),
        )

    def as_unit(self) -> dict[str, Any]:
        """Arrays for a unit of work, unrounded: a mass needs orthonormal vectors."""
        vectors, values = self.vectors.cpu().numpy(), self.values.cpu().numpy()
        return {"vectors": vectors, "values": values, "bulk": self.bulk}

    @staticmethod
    def of_unit(unit: dict[str, Any], like: Tensor) -> Metric:
        """The inverse of :meth:`as_unit`."""
        vectors, values = (stored_tensor(unit[k]).to(like) for k in ("vectors", "values"))
        return Metric(vectors=vectors, values=values, bulk=float(unit["bulk"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Trail:
    """A pilot's levels, each as its chains saw it.

    Attributes:
        beta: inverse temperature, (l,).
        tether: k, (l,).
        length: thermodynamic length from the start, ``int sd(dL) dbeta + int sd(|z - z*|^2 / 2)
            dk``, (l,): levels a unit apart tell themselves apart by about one standard deviation.
        loss: mean excess loss, (l,).
        distance: mean ``|z - z*|^2 / n``, (l,).
        step: step size, (l,).
        metric: index of the metric in use, (l,).
        metrics: mean curvatures.
    """

    beta: FloatArray
    tether: FloatArray
    length: FloatArray
    loss: FloatArray
    distance: FloatArray
    step: FloatArray
    metric: IntArray
    metrics: tuple[Metric, ...]

    def where_loss(self, cutoff: float) -> float:
        """Length at which the mean excess loss first falls to the cutoff."""
        loss = np.minimum.accumulate(_smoothed(self.loss))
        first = int(np.argmax(loss <= cutoff)) if (loss <= cutoff).any() else len(loss) - 1
        if first == 0:
            return float(self.length[0])
        high, low = np.log(np.maximum(loss[[first - 1, first]], 1e-300))
        part = 1.0 if high <= low else np.clip((high - np.log(cutoff)) / (high - low), 0, 1)
        a, b = self.length[[first - 1, first]]
        return float(a + part * (b - a))


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """Levels of a frozen path and those at which volumes are estimated.

    Attributes:
        beta, tether, step: (l,); the first level is the Gaussian that particles are drawn from.
        metric: index of each level's metric, (l,).
        metrics: mean curvatures.
        marks: levels at which particles stay for draws, ascending, (m,).
    """

    beta: FloatArray
    tether: FloatArray
    step: FloatArray
    metric: IntArray
    metrics: tuple[Metric, ...]
    marks: IntArray

    def __len__(self) -> int:
        return len(self.beta)

    def level(self, index: int) -> Level:
        """One level."""
        beta, tether = float(self.beta[index]), float(self.tether[index])
        mass = self.metrics[self.metric[index]].mass(beta, tether)
        return Level(beta=beta, tether=tether, step=float(self.step[index]), mass=mass)


def refined(trail: Trail, levels: int, marks: Sequence[float]) -> Path:
    """A path of about as many levels, equally spaced in thermodynamic length.

    Args:
        trail: what a pilot learned.
        levels: steps between levels, at least 1.
        marks: lengths at which there must be a level.
    """
    end = float(trail.length[-1])
    marks_at = np.clip(np.asarray(marks, dtype=np.float64), 0.0, end)
    # Corners of the path, where one coordinate stops and the other goes on, are levels too.
    turns = np.flatnonzero(np.diff(np.diff(trail.tether) != 0) != 0) + 1
    at = np.unique(
        np.concatenate([np.linspace(0.0, end, levels + 1), marks_at, trail.length[turns]])
    )
    # Where steps shrink those of a pilot, which adapt as it goes, come too late.
    steps = _smoothed(trail.step)
    soon = np.array([steps[i : i + _AHEAD].min() for i in range(len(steps))])
    step = np.exp(np.interp(at, trail.length, np.log(soon)))
    known = np.searchsorted(trail.length, at, side="right").clip(1, len(trail.length)) - 1
    return Path(
        beta=np.interp(at, trail.length, trail.beta),
        tether=np.interp(at, trail.length, trail.tether),
        step=step,
        metric=trail.metric[known],
        metrics=trail.metrics,
        marks=np.searchsorted(at, np.unique(marks_at)).astype(np.int64),
    )


def _smoothed(values: FloatArray) -> FloatArray:
    """Running median; ends are kept nearer to themselves."""
    count = len(values)
    reach = [min(_SMOOTH, i, count - 1 - i) for i in range(count)]
    return np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])
