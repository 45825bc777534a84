"""What ``landscape compare`` is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from landscape.errors import UsageError

__all__ = ["CompareOptions"]

_MOST_POINTS = 1001


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What to measure of two networks A and B.

    Args:
        ablate: changes of B; see :func:`landscape.compare.ablation.parse_ablation`.
        bootstrap: resamples behind the intervals.
        over: what is drawn anew: ``examples``, whose tokens stay together, or single ``terms`` of
            the mean (tokens, pixels).
        points: points of the straight path between the weights, its ends included; 0 for no path.
        align: whether units of B change places for a second path.
        eigenspaces: dimension of the top eigenspaces of both Hessians to compare; 0 for none.

    Raises:
        UsageError: a number out of range or an unknown word.
    """

    ablate: tuple[str, ...] = ()
    bootstrap: int = 1000
    over: Literal["examples", "terms"] = "examples"
    points: int = 11
    align: bool = True
    eigenspaces: int = 0

    def __post_init__(self) -> None:
        if self.bootstrap < 2:
            raise UsageError(f"--bootstrap {self.bootstrap}: expected at least 2 resamples")
        if self.eigenspaces < 0:
            raise UsageError(f"--eigenspaces {self.eigenspaces}: expected a number from 0")
        if self.eigenspaces and self.ablate:
            raise UsageError(
                "--eigenspaces: the Hessian of an ablated network is not measured; leave --ablate "
                "or --eigenspaces out"
            )
        if self.over not in ("examples", "terms"):
            raise UsageError(f"--over {self.over}: expected examples or terms")
        if self.points != 0 and not 3 <= self.points <= _MOST_POINTS:
            raise UsageError(
                f"--points {self.points}: expected 0 (no path) or a number from 3 to {_MOST_POINTS}"
            )
