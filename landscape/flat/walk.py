"""Walking along null directions on the level set of the behaviour.

A null direction at the anchor is flat to second order only. A walk steps along one, returns to the
level set by Gauss-Newton steps of least length, and goes on along the null direction nearest to its
last step: a discrete geodesic of the level set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import NotFiniteError, UsageError
from landscape.flat.ranks import TOLERANCE
from landscape.flat.records import NullWalk
from landscape.rng import stream
from landscape.units import MemoryUnits, Units

__all__ = ["Behaviour", "null_walk"]

Behaviour = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What must not change at z, (r,), 0 at the anchor, and its derivatives in z, (r, n)."""

_CORRECTIONS = 8  # Gauss-Newton steps after one step.
_SHORTEST = 1e-3  # Of the step: a walk that needs shorter ones has come to an end.


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """A point, what must not change there, and the null directions."""

    z: Tensor
    residual: Tensor
    left: Tensor  # (r, k)
    singular: Tensor  # (k,)
    right: Tensor  # (k, n)

    def along(self, direction: Tensor) -> Tensor:
        """The part of a direction that is null."""
        return direction - (direction @ self.right.T) @ self.right

    @property
    def null(self) -> int:
        return self.right.shape[1] - len(self.right)

    def correction(self) -> Tensor:
        """The shortest step that takes the residual away to first order."""
        return -((self.residual @ self.left) / self.singular) @ self.right


def null_walk(
    excess: Callable[[Tensor], Tensor],
    behaviour: Behaviour,
    start: Tensor,
    *,
    cutoff: float,
    walks: int = 4,
    step: float = 0.05,
    limit: float = 5.0,
    tol: float = TOLERANCE,
    seed: int = 0,
    directions: Tensor | None = None,
    on_step: Callable[[int, float], None] = lambda walk, distance: None,
    units: Units | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> NullWalk:
    """Walk from the anchor along null directions until the basin ends or the limit is reached.

    All lengths are in prior standard deviations: coordinates are whitened.

    Args:
        excess: excess loss at rows (k, n), (k,).
        behaviour: what the level set is of, and its derivatives.
        start: the anchor z*, (n,).
        cutoff: largest excess loss of the basin.
        walks: number of walks, each in a random null direction.
        step: length of a step; shorter where the level set bends.
        limit: straight distance from the anchor at which a walk ends.
        tol: singular values of the derivatives above this part of the largest are constraints.
        seed: of the directions.
        directions: rows (w, n) whose null parts to walk along instead.
        on_step: called with the walk's number and the distance after every step.
        units: where finished walks are kept.
        stop: whether the budget is spent: the walk in progress is the last.

    Returns:
        how far each walk came. One that neither left the basin nor reached the limit came to a
        point beyond which the level set could not be followed. No walk where nothing is null.

    Raises:
        UsageError: lengths that are not positive, shapes that do not fit, or an anchor that is not
            on the level set.
        NotFiniteError: the behaviour or its derivatives are not finite.

    Cost: two or three derivatives of the behaviour, a singular value decomposition of each, and one
    excess loss, for every step.
    """
    if not (step > 0 and limit > 0 and cutoff > 0):
        raise UsageError(
            f"a walk of step {step:g}, limit {limit:g} and cutoff {cutoff:g}: expected positive "
            "numbers"
        )
    origin = _place(behaviour, start.double().cpu(), tol)
    scale = float(origin.singular[0]) if len(origin.singular) else 0.0
    if float(torch.linalg.vector_norm(origin.residual)) > 1e-6 * max(scale, 1e-300):
        raise UsageError(
            "the behaviour at the anchor differs from the anchor's own; expected 0 there. Pass "
            "the difference from the anchor's outputs"
        )
    if directions is None:
        draws = [
            torch.randn(len(start), generator=stream(seed, "walk", w), dtype=torch.float64)
            for w in range(walks)
        ]
    else:
        if directions.dim() != 2 or directions.shape[1] != len(start):
            raise UsageError(
                f"directions of shape {tuple(directions.shape)}; expected rows of {len(start)} "
                "coordinates"
            )
        draws = list(directions.double().cpu())
    units = MemoryUnits() if units is None else units
    walker = _Walker(excess, behaviour, origin, cutoff, step, limit, tol)
    ends: list[_End] = []
    for number, draw in enumerate(draws if origin.null else []):
        stored = units.get(f"walk-{number}")
        if stored is not None:
            ends.append(_End(**stored))
            continue
        first = origin.along(draw)
        length = float(torch.linalg.vector_norm(first))
        if stop():
            break
        if length > 1e-9 * float(torch.linalg.vector_norm(draw)):
            end = walker.run(first / length, functools.partial(on_step, number))
            units.put(f"walk-{number}", asdict(end))
            ends.append(end)
    return NullWalk(
        cutoff=cutoff,
        distance=np.array([end.distance for end in ends]),
        arc=np.array([end.arc for end in ends]),
        left=np.array([end.left for end in ends], dtype=np.bool_),
        excess=np.array([end.excess for end in ends]),
        largest_excess=np.array([end.largest for end in ends]),
        null=np.array([end.null for end in ends], dtype=np.int64),
        start_null=origin.null,
        limit=limit,
        n_steps=np.array([end.n_steps for end in ends], dtype=np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class _End:
    distance: float
    arc: float
    left: bool
    excess: float
    largest: float
    null: int
    n_steps: int


def _place(behaviour: Behaviour, z: Tensor, tol: float) -> _Place:
    residual, rows = (part.detach().double().cpu() for part in behaviour(z))
    if rows.shape != (len(residual), len(z)):
        raise UsageError(
            f"derivatives of shape {tuple(rows.shape)} of {len(residual)} numbers in {len(z)} "
            "coordinates; expected one row for each number"
        )
    if not bool(torch.isfinite(rows).all() and torch.isfinite(residual).all()):
        raise NotFiniteError(
            "the behaviour or its derivatives are not finite on a walk; expected finite numbers. "
            "Check the checkpoint, or walk less far"
        )
    if len(rows) > len(z):
        # Of more rows than coordinates only what the columns span can be corrected.
        q, rows = torch.linalg.qr(rows)
        residual = residual @ q
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    kept = singular > tol * singular[:1].sum()
    return _Place(
        z=z, residual=residual, left=left[:, kept], singular=singular[kept], right=right[kept]
    )


class _Walker:
    """One walk."""

    def __init__(
        self,
        excess: Callable[[Tensor], Tensor],
        behaviour: Behaviour,
        origin: _Place,
        cutoff: float,
        step: float,
        limit: float,
        tol: float,
    ) -> None:
        self._excess, self._behaviour, self._origin = excess, behaviour, origin
        self._cutoff, self._step, self._limit, self._tol = cutoff, step, limit, tol

    def run(self, direction: Tensor, on_step: Callable[[float], None]) -> _End:
        """Walk along a unit null direction."""
        here = self._origin
        arc = distance = excess = largest = 0.0
        length, steps, left = self._step, 0, False
        most = int(20 * self._limit / self._step) + 20
        while distance < self._limit and steps < most:
            there = self._next(here, direction, length)
            if there is None:
                length /= 2
                if length < _SHORTEST * self._step:
                    break
                continue
            value = float(self._excess(there.z[None])[0])
            largest = max(largest, value)
            if not value <= self._cutoff:  # A NaN is outside too.
                left = True
                break
            chord = there.z - here.z
            arc += float(torch.linalg.vector_norm(chord))
            here, excess, steps = there, value, steps + 1
            distance = float(torch.linalg.vector_norm(here.z - self._origin.z))
            on_step(distance)
            ahead = here.along(chord)
            size = float(torch.linalg.vector_norm(ahead))
            if size < 1e-3 * length:
                break
            direction = ahead / size
            length = min(2 * length, self._step)
        return _End(
            distance=distance,
            arc=arc,
            left=left,
            excess=excess,
            largest=largest,
            null=here.null,
            n_steps=steps,
        )

    def _next(self, here: _Place, direction: Tensor, length: float) -> _Place | None:
        """The point of the level set one step on; None where the step is too long."""
        there = _place(self._behaviour, here.z + length * direction, self._tol)
        start = float(torch.linalg.vector_norm(there.residual))
        scale = float(self._origin.singular[0]) if len(self._origin.singular) else 0.0
        enough = 1e-10 * scale
        for _ in range(_CORRECTIONS):
            size = float(torch.linalg.vector_norm(there.residual @ there.left))
            if size <= enough or not len(there.singular):
                break
            there = _place(self._behaviour, there.z + there.correction(), self._tol)
        moved = there.z - here.z
        straight = float(moved @ direction)
        bent = float(torch.linalg.vector_norm(moved - straight * direction))
        worse = float(torch.linalg.vector_norm(there.residual)) > max(start, enough)
        return None if worse or not bent < 0.3 * length or straight <= 0 else there
