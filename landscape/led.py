"""Evaluations at many points over several processes, led by rank 0.

Rays and chains decide by what they meet, and chaotic chains would drift apart where every process
repeated the decisions with other rounding. So rank 0 alone decides, and every evaluation of points
is shared out by rows: the others evaluate what they are sent until they are dismissed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from landscape.coordinates import cuts
from landscape.distributed import Alone
from landscape.errors import RankError, TerminatedError

__all__ = ["Evaluate", "led"]

Found = TypeVar("Found")
Evaluate = Callable[[Tensor], tuple[Tensor, ...]]


def led(
    ranks: Alone, evaluate: Evaluate, work: Callable[[Evaluate], Found], *, like: Tensor
) -> Found:
    """``work(evaluate)`` by rank 0, with the rows of every evaluation shared out over the ranks.

    Args:
        ranks: the processes, which all call this.
        evaluate: tensors with a first dimension k at rows (k, n), the same function everywhere.
        work: done by rank 0; its result is sent to all.
        like: a tensor of the points' dtype and device.

    Raises:
        LandscapeError: what the work or an evaluation of any process raised, in all of them.
    """
    if ranks.size == 1:
        return work(evaluate)
    leader = _Leader(ranks, evaluate, like)
    if ranks.rank:
        leader.serve()
        return ranks.shared(lambda: None)  # type: ignore[return-value]

    def whole() -> Found:
        try:
            found = work(leader)
        except (TerminatedError, RankError):
            raise  # In the midst of an exchange, maybe: there is no other one to be had.
        except Exception:
            leader.dismiss()
            raise
        leader.dismiss()
        return found

    return ranks.shared(whole)


class _Leader:
    """Evaluates rows together with the other processes."""

    def __init__(self, ranks: Alone, evaluate: Evaluate, like: Tensor) -> None:
        self._ranks, self._evaluate, self._like = ranks, evaluate, like

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors at rows (k, n); called by rank 0."""
        self._announce(*rows.shape)
        return self._together(rows.to(self._like))

    def serve(self) -> None:
        """Evaluate what rank 0 sends until it dismisses this process."""
        while True:
            count, n = self._announce(0, 0)
            if count < 0:
                return
            try:
                self._together(self._like.new_empty(count, n))
            except Exception as error:
                # Others' or one's own error of an evaluation: rank 0 may know what to do.
                if isinstance(error, TerminatedError | RankError):
                    raise

    def dismiss(self) -> None:
        """Let the others go on."""
        self._announce(-1, 0)

    def _announce(self, count: int, n: int) -> tuple[int, int]:
        counts, sizes = self._ranks.each(float(count)), self._ranks.each(float(n))
        return int(counts[0]), int(sizes[0])

    def _together(self, rows: Tensor) -> tuple[Tensor, ...]:
        ranks, ends = self._ranks, cuts(len(rows), self._ranks.size)
        rows = ranks.sent(rows)
        mine: tuple[Tensor, ...] = ()
        with ranks.unanimous():
            mine = self._evaluate(rows[ends[ranks.rank] : ends[ranks.rank + 1]])
        lengths = [stop - start for start, stop in itertools.pairwise(ends)]
        return tuple(ranks.joined(part, lengths) for part in mine)
