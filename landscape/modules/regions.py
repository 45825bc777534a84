"""Couplings as sums of log-determinants of regions, which are unions of groups.

All of them are of the form ``1/2 (sum_i log det M_i - sum_j log det M_j)``. One probe serves all
regions: where groups are hardly coupled, its noise in both sums is almost the same and cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from scipy import stats

from landscape.results import Estimate, FloatArray
from landscape.sums import standard_error

__all__ = ["LogDets", "Region", "regions"]

Region = tuple[int, ...]
"""The groups of a union, ascending."""


def regions(count: int) -> tuple[list[Region], int]:
    """The regions of so many groups, and how many of them are needed for all but pairs.

    The whole comes first, then single groups, all groups but one, and pairs.
    """
    whole = tuple(range(count))
    first = [whole, *((a,) for a in whole)]
    first += [tuple(b for b in whole if b != a) for a in whole]
    base = list(dict.fromkeys(first))
    return list(dict.fromkeys([*base, *combinations(whole, 2)])), len(base)


@dataclass(frozen=True, kw_only=True)
class LogDets:
    """Log-determinants of regions by probe.

    Attributes:
        regions: the regions, (r,).
        high: upper bounds of ``v^T log(M) v``, (r, probes), whose mean over probes bounds log det
            M; NaN where a probe was not run.
        low: lower bounds, (r, probes).
    """

    regions: Sequence[Region]
    high: FloatArray
    low: FloatArray

    @cached_property
    def _rows(self) -> dict[Region, int]:
        return {region: row for row, region in enumerate(self.regions)}

    def combined(
        self, plus: Sequence[Region], minus: Sequence[Region] = (), *, factor: float = 1.0
    ) -> Estimate:
        """``factor (sum of log det over plus - the same over minus)`` with its interval.

        The value lies midway between the means of the bounds. The interval is Student's t (95%)
        and reaches over both bounds. All NaN without a probe, and an infinite interval for one.
        """
        add = [self._rows[r] for r in plus]
        take = [self._rows[r] for r in minus]
        lower = factor * (self.low[add].sum(0) - self.high[take].sum(0))
        upper = factor * (self.high[add].sum(0) - self.low[take].sum(0))
        done = np.isfinite(lower) & np.isfinite(upper)
        lower, upper = lower[done], upper[done]
        count = len(lower)
        if not count:
            return Estimate(value=np.nan, stderr=np.nan, lower=np.nan, upper=np.nan)
        middle = (lower + upper) / 2
        if count == 1:
            return Estimate(value=float(middle[0]), stderr=np.nan, lower=-np.inf, upper=np.inf)
        stderr, low, high = standard_error(np.stack([middle, lower, upper], axis=1))
        t = float(stats.t.ppf(0.975, count - 1))
        return Estimate(
            value=float(middle.mean()),
            stderr=float(stderr),
            lower=float(lower.mean() - t * low),
            upper=float(upper.mean() + t * high),
        )

    def coupling(self, plus: Sequence[Region], minus: Sequence[Region]) -> Estimate:
        """Half of it, which is never negative: an interval's end below 0 is raised to 0."""
        found = self.combined(plus, minus, factor=0.5)
        return Estimate(
            value=found.value,
            stderr=found.stderr,
            lower=max(found.lower, 0.0),
            upper=max(found.upper, 0.0),
        )

    def truncation(self, plus: Sequence[Region], minus: Sequence[Region]) -> float:
        """Mean width of the bounds of half of it, which more Lanczos steps would narrow."""
        index = [self._rows[r] for r in (*plus, *minus)]
        width = 0.5 * (self.high[index] - self.low[index]).sum(0)
        done = np.isfinite(width)
        return float(width[done].mean()) if done.any() else np.nan
