"""An operator with cheap products for Krylov spaces and exact ones for residuals."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.operators import LinearOperator
from landscape.risk import Risk

__all__ = ["MixedOperator", "rounded"]


class MixedOperator(LinearOperator):
    """The exact operator, with a Krylov space that is built from products of lower precision.

    A Ritz vector of the cheap operator has a residual of the cheap products' rounding in the exact
    one too, so tolerances above that need exact products only to verify.

    Args:
        exact: the operator; its products make residuals and explicit matrices.
        cheap: the same operator in lower precision.
    """

    def __init__(self, exact: LinearOperator, cheap: LinearOperator) -> None:
        self.exact, self.cheap = exact, cheap
        self.n, self.dtype, self.device = cheap.n, cheap.dtype, cheap.device

    @property
    def precision(self) -> torch.dtype:
        """The cheap operator's."""
        return self.cheap.precision

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.cheap.matvec(vector)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.exact.rows(rows.to(self.exact.dtype))

    def fresh(self, vector: Tensor) -> Tensor:
        """The exact A v, in the exact operator's dtype."""
        self.n_matvecs += 1
        return self.exact.matvec(vector.to(self.exact.dtype))

    def block(self, positions: Sequence[int]) -> LinearOperator:
        """The diagonal block of some parameters."""
        return MixedOperator(self.exact.block(positions), self.cheap.block(positions))

    def release(self) -> None:
        """Free the kept graphs of both."""
        self.exact.release()
        self.cheap.release()


def rounded(risk: Risk, dtype: torch.dtype, *, batch_size: int | None = None) -> Risk:
    """The same risk in another precision, on a copy of the model."""
    return Risk(
        dataclasses.replace(risk.task, model=copy.deepcopy(risk.model)),
        risk.data,
        loss=risk.loss_kind,
        params=risk.space.names,
        batch_size=batch_size,
        device=risk.device,
        dtype=dtype,
        ranks=risk.ranks,
    )
