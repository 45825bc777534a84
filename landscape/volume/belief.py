"""Whether to believe an annealed volume: what its own runs say against it.

Two independent starts must agree: the ladder, whose particles come from the Gaussian, and the
outward run, whose particles come from the anchor. Seeds of one start that agree prove nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from landscape.volume.anneal_records import Check
from landscape.volume.islands import (
    Islands,
    evaluated,
    integrated,
    squared_distances,
    volumes,
)
from landscape.volume.mixing import FEWEST, split_rhat
from landscape.volume.weights import LogMean

__all__ = ["AGREE", "DIFFER", "NOT_COMPARED", "Start", "agree", "checks", "finding", "start"]

FloatArray = NDArray[np.float64]

AGREE = "agree"
DIFFER = "log V of both starts differ by"
NOT_COMPARED = "not compared: no ladder at this R"

# Sixteen independent draws of many chains give up to 1.1, of chains that need five trajectories for
# an independent draw 1.4: weights allow for that, not for chains that stay where they are.
_RHAT = 1.5
_ACCEPTANCE = 0.4
_DIVERGENT = 0.01
_STRIDE = (
    1.2  # Standard deviation of a level's log-weights, in the mean over a tenth of the levels.
)
_APART = 0.05  # Relative difference of distances that is no difference.
_PRECISE = 3.0  # Nats that the difference of the starts must be known to, or the error asked for.
_MORE = "a larger --budget, with a smaller --error where that is reached: a finer path"
_FARTHER = (
    "a smaller --error with a larger --budget, or a smaller --tether: beyond the radius at which "
    "both starts agree the value is only a lower bound"
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """``log V`` at one radius and cutoff from one start.

    Attributes:
        volume: with its interval.
        distance: rms distance of the basin's mass from the anchor, in prior standard deviations.
        distance_stderr: its standard error.
        islands: number of islands behind it.
    """

    volume: LogMean
    distance: float
    distance_stderr: float
    islands: int


def start(islands: Islands, mark: int, cutoff: float, *, n: int, radius: float) -> Start:
    """What one run says at one of its marks.

    Args:
        islands: the run.
        mark: number of the mark.
        cutoff: largest excess loss.
        n: number of coordinates.
        radius: R, in prior standard deviations; inf for no limit.
    """
    reach = radius * math.sqrt(n)
    logs = volumes(islands, mark, cutoff, reach)
    # Of the prior's mass in the basin, the same whatever law the draws are from.
    squares, known = squared_distances(islands, mark, cutoff, reach) / n, np.isfinite(logs)
    share = np.zeros(len(logs))
    if known.any():
        share[known] = special.softmax(logs[known])
    mean = float(share[known] @ squares[known]) if known.any() else math.nan
    count = int(known.sum())
    gaps = (share[known] ** 2) @ (squares[known] - mean) ** 2
    spread = math.sqrt(float(gaps) * count / (count - 1)) if count > 1 else math.inf
    distance = math.sqrt(mean)
    return Start(
        volume=evaluated(islands, int(islands.marks[mark]), logs),
        distance=distance,
        distance_stderr=spread / max(2 * distance, 1e-300),
        islands=len(logs),
    )


def agree(one: Start, two: Start, *, error: float) -> tuple[Check, Check]:
    """Whether two starts found the same volume, and the same distance.

    Log-volumes must not differ by more than the 99% interval of their difference (Welch's t), nor
    may that be wider than the error asked for or 3 nats, whichever is larger: what is not known
    does not agree. Distances must not differ by more than theirs and 5%.
    """
    known = one.volume.label == two.volume.label == "estimate"
    most = max(_PRECISE, 2 * error)
    spread = math.inf
    if known:
        spread = _interval(
            one.volume.stderr, two.volume.stderr, one.volume.freedom, two.volume.freedom
        )
    gap, limit = abs(one.volume.value - two.volume.value), min(spread, most)
    name, remedy = DIFFER, _FARTHER
    if spread > 2 * most and not gap > limit:
        # Near each other by luck, perhaps: say what is wrong.
        name, remedy, gap, limit = "log V of both starts is known to", _MORE, spread, 2 * most
    apart = abs(one.distance - two.distance)
    room = _interval(one.distance_stderr, two.distance_stderr, one.islands - 1, two.islands - 1)
    room += _APART * max(one.distance, two.distance)
    return (
        Check(
            name=name,
            value=gap,
            limit=limit,
            at_least=False,
            passed=gap <= limit,
            remedy=remedy,
        ),
        Check(
            name="distance of both starts differ by",
            value=apart,
            limit=room,
            at_least=False,
            passed=apart <= room,
            remedy="a smaller --error with a larger --budget, or a smaller --tether",
        ),
    )


def finding(ladder: Start | None, outward: Start | None, *, error: float) -> str:
    """:data:`AGREE`, or in few words why both starts do not."""
    if ladder is None or outward is None:
        return f"no run from the {'prior' if ladder is None else 'checkpoint'}"
    for name, found in (("prior", ladder), ("checkpoint", outward)):
        if found.volume.label != "estimate":
            return f"a {found.volume.label} from the {name}"
    failed = [check for check in agree(ladder, outward, error=error) if not check.passed]
    texts = [f"{c.name} {c.value:.2g}, not {c.limit:.2g}" for c in failed]
    brief = "; ".join(texts).replace(" of both starts differ", " differs")
    return brief.replace(" of both starts", "") or AGREE


def _interval(a: float, b: float, freedom_a: float, freedom_b: float) -> float:
    """Half the 99% interval of a difference (Welch)."""
    total = a * a + b * b
    if not total > 0:
        return 0.0
    freedom = total**2 / (a**4 / max(freedom_a, 1) + b**4 / max(freedom_b, 1))
    return float(stats.t.ppf(0.995, freedom)) * math.sqrt(total)


def checks(name: str, islands: Islands) -> list[Check]:
    """What one run says about itself.

    Args:
        name: ``ladder`` or ``outward``.
        islands: the run.
    """
    found = []
    levels, count = islands.loss.shape
    acceptance = islands.acceptance[1:].mean(1)
    if levels > 1:
        lowest = float(acceptance.min())
        found.append(
            _check(
                f"{name}: lowest acceptance",
                lowest,
                _ACCEPTANCE,
                True,
                "--seed or report it: the pilot's step is too large",
            )
        )
        share = float(islands.divergent.mean()) / max(islands.draw_loss.shape[-1], 1)
        found.append(
            _check(
                f"{name}: divergent trajectories",
                share,
                _DIVERGENT,
                False,
                "--seed or report it: the pilot's step is too large",
            )
        )
        part = max(levels // 10, 1)
        widest = np.convolve(islands.stride.mean(1), np.full(part, 1 / part), "valid").max()
        found.append(
            _check(f"{name}: widest step between levels", float(widest), _STRIDE, False, _MORE)
        )
    # Weights and integration see the same particles in two ways.
    total = integrated(islands)[-1]
    weighed = evaluated(islands, levels - 1)
    gap = abs(float(total.mean()) - weighed.value)
    spread = float(total.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    limit = _interval(spread, weighed.stderr, count - 1, weighed.freedom) + 0.1
    found.append(_check(f"{name}: weights against integration", gap, limit, False, _MORE))
    if len(islands.draw_loss) and islands.draw_loss.shape[1] >= FEWEST:
        # Distances forget so slowly that they would raise an alarm wherever there are flat
        # directions; the other start tells whether that matters.
        rhat = split_rhat(islands.draw_loss[-1])
        what = f"{name}: split R-hat of the excess loss"
        found.append(_check(what, rhat, _RHAT, False, _MORE))
    return found


def _check(name: str, value: float, limit: float, at_least: bool, remedy: str) -> Check:
    passed = value >= limit if at_least else value <= limit
    return Check(
        name=name, value=value, limit=limit, at_least=at_least, passed=bool(passed), remedy=remedy
    )
