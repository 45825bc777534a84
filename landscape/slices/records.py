"""Results of ``landscape slice``."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.results import FloatArray, Result

__all__ = ["Direction", "Known", "Position", "SliceResult"]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One axis of a slice: what a step d of one unit is.

    Attributes:
        name: as it was asked for, such as ``eigen:1``.
        kind: ``eigen``, ``random``, ``to`` or ``pca``.
        low: the axis' smallest coordinate, in units of d.
        high: its largest.
        length: ``|d|`` over the selected parameters.
        cosine: of the second direction with the first, before it was made orthogonal to it; 0 for
            the first.
        slope: ``g'd`` with the gradient g at the anchor.
        curvature: ``d'Hd`` with the Hessian H there.
        eigenvalue: of an eigenvector, else NaN.
        residual: ``|Hv - theta v|`` of an eigenvector, else NaN.
        converged: whether an eigenvector is; true for others.
        share: of the trajectory's variance, of a principal component, else NaN.
    """

    name: str
    kind: str
    low: float
    high: float
    length: float
    cosine: float
    slope: float
    curvature: float
    eigenvalue: float
    residual: float
    converged: bool
    share: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """A checkpoint of the trajectory, projected onto the slice.

    Attributes:
        checkpoint: its path.
        step: its training step; -1 where it is not known.
        x: coordinate along the first direction.
        y: along the second; 0 on a line.
        off: distance from the slice, over the selected parameters.
    """

    checkpoint: str
    step: int
    x: float
    y: float
    off: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """Every point that was ever evaluated for this slice, for finer and wider grids to reuse.

    Attributes:
        at: coordinates, (points, axes).
        loss: loss there, (points,).
    """

    at: FloatArray
    loss: FloatArray


@dataclass(frozen=True, kw_only=True)
class SliceResult(Result):
    """Result of ``landscape slice``; losses on a grid of coordinates, in the order (x, y).

    Attributes:
        directions: one for a line, two for a plane.
        x: coordinates along the first direction, (x,).
        y: along the second, (y,); None on a line.
        loss: L there; inf or NaN where it overflows.
        excess_loss: the excess loss: L less its value at the anchor (``behaviour``: L itself).
        quadratic: what gradient and Hessian at the anchor predict for the excess loss.
        mixed: ``d'He`` of the two directions; NaN on a line.
        known: the points of this and of earlier grids.
        trajectory: where its checkpoints are in the slice.
        eigenvectors: unit rows (k, n) of the directions ``eigen:K``, in their order; None where
            there are none.
    """

    directions: tuple[Direction, ...]
    x: FloatArray
    y: FloatArray | None
    loss: FloatArray
    excess_loss: FloatArray
    quadratic: FloatArray
    mixed: float
    known: Known
    trajectory: tuple[Position, ...] = ()
    eigenvectors: FloatArray | None = None
