"""Which coordinates of a long vector this process holds, and sums over all of them.

A Krylov basis over several processes is sharded by coordinates: each holds a slice of every vector,
so that its memory and the work of reorthogonalisation are divided; only coefficients are exchanged.
Every process gets the same bits of them, so that all take the same decisions.
"""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Generator, Tensor

from landscape import reductions
from landscape.rng import normal

__all__ = ["Coordinates", "Group", "Slice", "cuts"]


def cuts(count: int, size: int) -> list[int]:
    """Where so many items are cut for processes: equal parts up to one item, (size + 1,)."""
    return [count * rank // size for rank in range(size + 1)]


class Coordinates:
    """All n coordinates of a vector, in this process.

    Args:
        n: their number.

    Attributes:
        n: number of coordinates of the whole vector.
        length: how many this process holds.
        burden: numbers that the memory of this process's device or host holds of one vector.
    """

    def __init__(self, n: int) -> None:
        self.n = self.length = self.burden = n

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm of the whole vector."""
        return reductions.norm(vector)

    def dot(self, left: Tensor, right: Tensor) -> float:
        """Inner product of two whole vectors."""
        return reductions.dot(left, right)

    def inner(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Inner products of k rows with a vector, in float64: (k,)."""
        return reductions.inner(rows, vector)

    def gram(self, rows: Tensor) -> Tensor:
        """Inner products of k rows with each other, in float64: (k, k)."""
        return reductions.gram(rows)

    def deviation(self, rows: Tensor) -> float:
        """Largest entry of ``|X X^T - I|`` for rows X of k whole vectors."""
        return reductions.deviation(self.gram(rows))

    def normal(self, generator: Generator, *, like: Tensor) -> Tensor:
        """This process's coordinates of a standard normal vector: the same for any sharding."""
        return self.own(normal(self.n, generator, like=like))

    def own(self, rows: Tensor) -> Tensor:
        """This process's coordinates of whole vectors (..., n), which all processes have."""
        return rows

    def whole(self, rows: Tensor) -> Tensor:
        """The whole vectors (..., n), in every process."""
        return rows

    def collected(self, rows: Tensor) -> Tensor:
        """The whole vectors (k, n) on the CPU of the process that stores them; (0, n) elsewhere."""
        return rows.cpu()

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return number


class Group(Protocol):
    """What :class:`Slice` needs of several processes; see :mod:`landscape.distributed`."""

    rank: int
    size: int
    local_size: int

    def total(self, part: Tensor) -> Tensor:
        """Sum over the processes, in their order, of a small tensor."""

    def each(self, value: float) -> list[float]:
        """Every process's number."""

    def joined(self, part: Tensor, lengths: list[int]) -> Tensor:
        """The processes' rows, so many of each, one after the other."""


class Slice(Coordinates):
    """The slice of the coordinates that one of several processes holds.

    Args:
        n: number of coordinates.
        group: the processes.
        host: whether the processes of one node share its memory, as on the CPU.
    """

    def __init__(self, n: int, group: Group, *, host: bool = True) -> None:
        self.n = n
        self._group = group
        ends = cuts(n, group.size)
        self._lengths = [stop - start for start, stop in itertools.pairwise(ends)]
        self._here = slice(ends[group.rank], ends[group.rank + 1])
        self.length = self._lengths[group.rank]
        self.burden = -(-n // group.size) * (group.local_size if host else 1)

    def norm(self, vector: Tensor) -> float:
        """Euclidean norm of the whole vector."""
        return math.hypot(*self._group.each(reductions.norm(vector)))

    def dot(self, left: Tensor, right: Tensor) -> float:
        """Inner product of two whole vectors."""
        return math.fsum(self._group.each(reductions.dot(left, right)))

    def inner(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Inner products of k rows with a vector, in float64: (k,)."""
        return self._group.total(reductions.inner(rows, vector))

    def gram(self, rows: Tensor) -> Tensor:
        """Inner products of k rows with each other, in float64: (k, k)."""
        return self._group.total(reductions.gram(rows))

    def own(self, rows: Tensor) -> Tensor:
        """This process's coordinates of whole vectors (..., n), which all processes have."""
        return rows[..., self._here].contiguous()

    def whole(self, rows: Tensor) -> Tensor:
        """The whole vectors (..., n), in every process."""
        if rows.dim() == 1:
            return self._group.joined(rows, self._lengths)
        found = rows.new_empty(len(rows), self.n)
        for place, row in enumerate(rows):
            found[place] = self._group.joined(row, self._lengths)
        return found

    def collected(self, rows: Tensor) -> Tensor:
        """The whole vectors (k, n) on the CPU of the process that stores them; (0, n) elsewhere."""
        stores = self._group.rank == 0
        found = torch.empty(len(rows) if stores else 0, self.n, dtype=rows.dtype)
        for place, row in enumerate(rows):
            joined = self._group.joined(row, self._lengths)
            if stores:
                found[place] = joined
        return found

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return int(min(self._group.each(float(number))))
