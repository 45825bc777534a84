"""Evaluations at many points over several processes, led by rank 0.

Rays and chains decide by what they meet, and chaotic chains would drift apart where every process
repeated the decisions with other rounding. So rank 0 alone decides, and every evaluation of points
is shared out by rows: the others evaluate what they are sent until they are dismissed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

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
            # Rank 0 has every error, too, and may know what to do; a lost process is another thing.
            with contextlib.suppress(_EvaluationError):
                self._together(self._like.new_empty(count, n))

    def dismiss(self) -> None:
        """Let the others go on."""
        self._announce(-1, 0)

    def _announce(self, count: int, n: int) -> tuple[int, int]:
        counts, sizes = self._ranks.each(float(count)), self._ranks.each(float(n))
        return int(counts[0]), int(sizes[0])

    def _together(self, rows: Tensor) -> tuple[Tensor, ...]:
        ranks, count = self._ranks, len(rows)
        ends = [count * rank // ranks.size for rank in range(ranks.size + 1)]
        rows = ranks.sent(rows)
        mine: tuple[Tensor, ...] = ()
        try:
            with ranks.unanimous():
                mine = self._evaluate(rows[ends[ranks.rank] : ends[ranks.rank + 1]])
        except Exception as error:
            if ranks.rank:
                raise _EvaluationError from error
            raise
        lengths = [stop - start for start, stop in itertools.pairwise(ends)]
        return tuple(_joined(ranks, part, lengths) for part in mine)


class _EvaluationError(Exception):
    """Some process's evaluation failed, which rank 0 deals with."""


def _joined(ranks: Alone, part: Tensor, lengths: list[int]) -> Tensor:
    """The processes' rows, one after the other."""
    width = math.prod(part.shape[1:])
    flat = ranks.joined(part.reshape(-1), [width * length for length in lengths])
    return flat.reshape(sum(lengths), *part.shape[1:])
