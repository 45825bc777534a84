"""A symmetric operator on vectors whose coordinates are shared out over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.coordinates import Coordinates
from landscape.distributed import Alone
from landscape.operators import LinearOperator

__all__ = ["sharded"]


def sharded(operator: LinearOperator, ranks: Alone) -> LinearOperator:
    """The operator on slices of vectors, one slice a process; itself where there is one process.

    A product gathers the slices (n numbers), multiplies, and takes its slice of the result.

    Args:
        operator: on whole vectors; the same in every process, such as a sum over all their data.
        ranks: the processes.
    """
    return operator if ranks.size == 1 else _Sharded(operator, ranks)


class _Sharded(LinearOperator):
    def __init__(self, operator: LinearOperator, ranks: Alone) -> None:
        self.operator = operator
        self.n, self.dtype, self.device = operator.n, operator.dtype, operator.device
        self._coordinates = ranks.coordinates(operator.n, operator.device)

    @property
    def coordinates(self) -> Coordinates:
        """The slice that this process holds."""
        return self._coordinates

    @property
    def precision(self) -> torch.dtype:
        """The operator's."""
        return self.operator.precision

    def _matvec(self, vector: Tensor) -> Tensor:
        return self._coordinates.own(self.operator.matvec(self._coordinates.whole(vector)))

    def fresh(self, vector: Tensor) -> Tensor:
        """A v as exactly as the operator can."""
        self.n_matvecs += 1
        return self._coordinates.own(self.operator.fresh(self._coordinates.whole(vector)))

    def _rows(self, rows: Tensor) -> Tensor:
        return self._coordinates.own(self.operator.rows(self._coordinates.whole(rows)))

    def release(self) -> None:
        """Free what the operator keeps."""
        self.operator.release()
