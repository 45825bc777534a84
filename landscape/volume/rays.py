"""First passage along rays: how far the excess loss stays below a cutoff, many rays at a time.

Radii are verified: the excess loss was evaluated at the point that is returned and is at most the
cutoff there, and was evaluated, and is above it, at a point less than the tolerance farther out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from landscape.errors import UsageError

__all__ = ["Radii", "first_passage"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_GROWTH = 2.0  # Largest step outwards: a wider one could pass over a first crossing.
_MARGIN = 1.1  # Predicted crossings are overstepped by this, so that they are bracketed.
_SHRINK = 32.0
_SMALLEST = 1e-14  # Of the limit: a ray above the cutoff down to here has radius 0.
_RESOLUTION = 1e-14  # Finest relative tolerance: float64 tells radii 2e-16 apart.
_FALL = 1e-3  # Smaller falls of the excess loss, relative to the cutoff, may be rounding.
_CEILING = 1e6  # Excess losses above this many cutoffs are alike.


@dataclass(frozen=True, kw_only=True)
class Radii:
    """Where k rays first pass the cutoff.

    Attributes:
        inside: largest radius verified to be at most the cutoff, with no crossing seen below it;
            inf where none was met up to the limit, 0 where the excess loss is above the cutoff
            however near to the anchor, (k,).
        outside: smallest radius verified to be above the cutoff, inf where there is none, (k,).
        converged: outside / inside is within the tolerance, or there is no crossing, (k,).
        not_finite: a NaN was met, (k,); it counts as above the cutoff. So does an excess loss of
            inf, which is no error.
        non_monotone: the excess loss, once positive, was seen to fall, (k,): it may have been above
            the cutoff at a smaller radius than one where it is below.
        evaluations: evaluations of the excess loss, (k,).
    """

    inside: FloatArray
    outside: FloatArray
    converged: BoolArray
    not_finite: BoolArray
    non_monotone: BoolArray
    evaluations: IntArray

    @property
    def infinite(self) -> BoolArray:
        """No crossing up to the limit, (k,)."""
        return np.isinf(self.inside)


def first_passage(
    excess: Callable[[Tensor], Tensor],
    anchor: Tensor,
    directions: Tensor,
    *,
    cutoff: float,
    limit: ArrayLike,
    tolerance: float,
    guess: ArrayLike | None = None,
    scan: int = 4,
    batch: int = 64,
) -> Radii:
    """The radii where the excess loss along each ray first passes the cutoff.

    From a guess the radius moves as if the excess loss grew like the square of it: inwards until
    a point lies below the cutoff, then outwards, at most doubling, until one lies above. The
    ``scan`` radii ``inside / 2^(j/2)`` are looked at for earlier crossings. ITP then shrinks the
    bracket, on the log of excess over cutoff against log r, where a power law is a line. Rays leave
    the batch as they converge. What happens between evaluated points stays unseen.

    Args:
        excess: excess loss of each of k points (k, n): (k,), 0 at the anchor.
        anchor: z*, (n,).
        directions: unit rows u (k, n).
        cutoff: largest excess loss that counts as inside, > 0.
        limit: largest radius to look at, finite, one or (k,).
        tolerance: largest relative width of the bracket. A relative error t of the radius changes
            the log of the mass along the ray by about n t. At least 1e-14, where float64 ends.
        guess: where to look first, one or (k,); the limit where None.
        scan: how many smaller radii are checked.
        batch: points in one evaluation.

    Raises:
        UsageError: the cutoff or a limit is not positive and finite.

    Cost: about 5 + scan evaluations a ray for a good guess and a tolerance of 1e-5, one point (n,)
    each, and log2(limit / guess) more on rays without a crossing.

    Source (root finding): Oliveira and Takahashi, An enhancement of the bisection method average
    performance preserving minmax optimality, ACM Trans. Math. Softw. 47 (2020), algorithm 1.
    """
    k = len(directions)
    far = np.broadcast_to(np.asarray(limit, dtype=np.float64), (k,))
    if not (0 < cutoff < math.inf and bool(((far > 0) & np.isfinite(far)).all())):
        raise UsageError(
            f"radii at cutoff {cutoff} up to {far.max(initial=0):.3g} cannot be searched; expected "
            "a positive, finite cutoff and limit. Choose another --cutoff or --tether"
        )
    search = _Search(excess, anchor, directions, cutoff, batch)
    start = far if guess is None else np.broadcast_to(np.asarray(guess, dtype=np.float64), (k,))
    start = np.clip(start, _SMALLEST * far, far)
    waiting = np.arange(k)
    while len(waiting):
        search.bracket(waiting, start, far)
        waiting, start = search.scan(waiting, scan)
    search.refine(max(tolerance, _RESOLUTION))
    return search.radii(max(tolerance, _RESOLUTION))


class _Search:
    """The brackets of k rays, in numpy; only points and excess losses are tensors.

    ``low`` and ``high`` are the verified radii inside and outside (0 and inf before there are any)
    and ``below`` and ``above`` the excess losses there, in cutoffs.
    """

    def __init__(
        self,
        excess: Callable[[Tensor], Tensor],
        anchor: Tensor,
        directions: Tensor,
        cutoff: float,
        batch: int,
    ) -> None:
        self._excess, self._anchor, self._directions = excess, anchor, directions
        self._cutoff, self._batch = cutoff, batch
        k = len(directions)
        self.low, self.below = np.zeros(k), np.zeros(k)
        self.high, self.above = np.full(k, np.inf), np.full(k, np.inf)
        self.not_finite = np.zeros(k, dtype=bool)
        self.evaluations = np.zeros(k, dtype=np.int64)
        self._seen: list[tuple[FloatArray, FloatArray]] = []  # Radii and values of all rays.

    def evaluate(self, rays: IntArray, radii: FloatArray) -> FloatArray:
        """Excess losses at one radius of each ray, in cutoffs; inf where it is NaN."""
        parts = []
        for first in range(0, len(rays), self._batch):
            rows = torch.from_numpy(rays[first : first + self._batch]).to(self._anchor.device)
            steps = torch.from_numpy(radii[first : first + self._batch]).to(self._anchor)
            points = self._anchor + steps[:, None] * self._directions[rows]
            parts.append(self._excess(points).detach().cpu().double().numpy())
        values = np.concatenate(parts) / self._cutoff
        bad = np.isnan(values) | (values == -np.inf)
        self.not_finite[rays] |= bad
        self.evaluations[rays] += 1
        values = np.where(bad, np.inf, values)
        everywhere = np.full((2, len(self.low)), np.nan)
        everywhere[:, rays] = radii, values
        self._seen.append((everywhere[0], everywhere[1]))
        return values

    def record(self, rays: IntArray, radii: FloatArray, values: FloatArray) -> None:
        """Move the ends of the brackets to evaluated points between them."""
        inside = values <= 1
        self.low[rays[inside]], self.below[rays[inside]] = radii[inside], values[inside]
        self.high[rays[~inside]], self.above[rays[~inside]] = radii[~inside], values[~inside]

    def bracket(self, rays: IntArray, start: FloatArray, limit: FloatArray) -> None:
        """Bracket the first crossing within a factor of _GROWTH, or reach a limit."""
        radii = start[rays]
        while len(rays):
            self.record(rays, radii, self.evaluate(rays, radii))
            low, high, far = self.low[rays], self.high[rays], limit[rays]
            # Excess losses grow about quadratically, or faster.
            last = np.where(low > 0, self.below[rays], self.above[rays])
            ratio = 1 / np.sqrt(np.clip(last, _CEILING**-2, _CEILING**2))
            outwards = low * np.clip(ratio * _MARGIN, _MARGIN, _GROWTH)
            inwards = high * np.clip(ratio / _MARGIN, 1 / _SHRINK, 1 / _MARGIN)
            radii = np.where(low > 0, np.minimum(outwards, far), inwards)
            found = (low > 0) & ((high <= _GROWTH * low) | (low >= far))
            active = ~found & (radii >= _SMALLEST * far)
            rays, radii = rays[active], radii[active]

    def scan(self, rays: IntArray, count: int) -> tuple[IntArray, FloatArray]:
        """Look for crossings below the brackets.

        Returns:
            the rays that are above the cutoff at all the radii, and where to look on, for all rays.
        """
        rays = rays[self.low[rays] > 0]
        start = np.zeros(len(self.low))
        if not count or not len(rays):
            return rays[:0], start
        # Ascending; the last row is the bracket's inner end.
        radii = self.low[rays] * 2 ** (np.arange(-count, 1)[:, None] / 2)
        values = np.stack([self.evaluate(rays, row) for row in radii[:-1]] + [self.below[rays]])
        earlier = (values > 1).any(0)
        rays, radii, values = rays[earlier], radii[:, earlier], values[:, earlier]
        columns, first = np.arange(len(rays)), (values > 1).argmax(0)
        self.high[rays], self.above[rays] = radii[first, columns], values[first, columns]
        before = np.maximum(first - 1, 0)
        self.low[rays] = np.where(first > 0, radii[before, columns], 0.0)
        self.below[rays] = values[before, columns]
        start[rays] = radii[0] / _GROWTH
        return rays[first == 0], start

    def refine(self, tolerance: float) -> None:
        """Shrink the brackets to a relative width of at most the tolerance (ITP)."""
        open_ = (self.low > 0) & (self.high > (1 + tolerance) * self.low)
        rays = np.flatnonzero(open_ & np.isfinite(self.high))
        unit = self.low.copy()  # Positions are logs of ratios to it.
        width = math.log1p(tolerance)
        spans = np.zeros(len(unit))
        spans[rays] = np.log(self.high[rays] / unit[rays])
        steps = np.ceil(np.log2(np.maximum(spans / width, 1))) + 1  # One more than bisection.
        done = 0
        while len(rays):
            a, b = np.log(self.low[rays] / unit[rays]), np.log(self.high[rays] / unit[rays])
            middle = (a + b) / 2
            guess = _interpolate(a, b, self.below[rays], self.above[rays])
            towards = np.sign(middle - guess)
            # Past the root by a little, so that both ends move.
            shift = np.maximum(0.3 * (b - a) ** 2, 0.3 * width)
            x = np.where(shift <= np.abs(middle - guess), guess + towards * shift, middle)
            slack = np.maximum(width / 2 * 2 ** (steps[rays] - done) - (b - a) / 2, 0.0)
            x = np.where(np.abs(x - middle) <= slack, x, middle - towards * slack)
            radii = unit[rays] * np.exp(x)
            self.record(rays, radii, self.evaluate(rays, radii))
            rays = rays[self.high[rays] > (1 + tolerance) * self.low[rays]]
            done += 1

    def radii(self, tolerance: float) -> Radii:
        """What was found."""
        infinite = (self.low > 0) & np.isinf(self.high)
        converged = infinite | ((self.low > 0) & (self.high <= (1 + tolerance) * self.low))
        return Radii(
            inside=np.where(infinite, np.inf, self.low),
            outside=self.high,
            converged=converged,
            not_finite=self.not_finite,
            non_monotone=_falls(self._seen),
            evaluations=self.evaluations,
        )


def _interpolate(a: FloatArray, b: FloatArray, below: FloatArray, above: FloatArray) -> FloatArray:
    """Where the line through both ends crosses the cutoff; the middle beside an infinite loss."""
    power = below > 0
    left = np.log(below, where=power, out=below - 1)
    right = np.where(power, np.log(above), above - 1)
    usable = np.isfinite(right)
    fraction = -left / np.where(usable, right - left, 1.0)
    return np.where(usable, a + np.clip(fraction, 0, 1) * (b - a), (a + b) / 2)


def _falls(seen: list[tuple[FloatArray, FloatArray]]) -> BoolArray:
    """Rays whose excess loss, once positive, falls between two of the evaluated points."""
    if not seen:
        return np.zeros(0, dtype=bool)
    radii, values = (np.stack(part) for part in zip(*seen, strict=True))
    order = np.argsort(radii, axis=0)  # NaN, where a ray was not evaluated, goes last.
    values = np.take_along_axis(values, order, 0)
    values = np.clip(np.nan_to_num(values, nan=_CEILING, posinf=_CEILING), 0, _CEILING)
    largest = np.maximum.accumulate(values, axis=0)
    return np.asarray((largest - values > _FALL * np.maximum(largest, 1)).any(0))
