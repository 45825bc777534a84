"""Symmetric linear operators on the flat vector: what the Krylov methods see of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from landscape.errors import NotFiniteError, UsageError
from landscape.products import CurvatureProduct, GGNProduct, HessianProduct
from landscape.risk import Risk

__all__ = ["OPERATORS", "CurvatureOperator", "DenseOperator", "LinearOperator", "curvature"]


class LinearOperator(ABC):
    """A symmetric matrix of shape (n, n) that is known through its products.

    Attributes:
        n: number of rows and columns.
        dtype: floating-point type of the products.
        device: where the products are computed.
        n_matvecs: matrix-vector products so far.
    """

    n: int
    dtype: torch.dtype
    device: torch.device
    n_matvecs: int = 0

    @property
    def like(self) -> Tensor:
        """An empty tensor of the products' dtype and device."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    @abstractmethod
    def _matvec(self, vector: Tensor) -> Tensor:
        """Product with one vector (n,)."""

    def _rows(self, rows: Tensor) -> Tensor:
        """Product with each of k rows (k, n)."""
        return torch.stack([self._matvec(row) for row in rows])

    def matvec(self, vector: Tensor) -> Tensor:
        """A v for a vector of shape (n,); one matrix-vector product.

        Raises:
            NotFiniteError: the product has NaN or infinite entries.
        """
        self.n_matvecs += 1
        return self._finite(self._matvec(vector))

    def rows(self, rows: Tensor) -> Tensor:
        """A applied to each of k rows (k, n), i.e. rows @ A; k matrix-vector products."""
        if not len(rows):
            return rows.clone()
        self.n_matvecs += len(rows)
        return self._finite(self._rows(rows))

    def __matmul__(self, other: Tensor) -> Tensor:
        """A @ v for (n,), or A @ V for columns (n, k)."""
        return self.matvec(other) if other.dim() == 1 else self.rows(other.T).T

    def dense(self) -> Tensor:
        """The matrix itself, (n, n); n matrix-vector products."""
        return self.rows(torch.eye(self.n, dtype=self.dtype, device=self.device))

    @staticmethod
    def _finite(product: Tensor) -> Tensor:
        if not bool(torch.isfinite(product).all()):
            raise NotFiniteError(
                "a matrix-vector product is not finite; expected finite numbers. Check the "
                "weights and the data (landscape check), or use --dtype float64"
            )
        return product


class DenseOperator(LinearOperator):
    """An explicit symmetric matrix (n, n) as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.n = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def _rows(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix


class CurvatureOperator(LinearOperator):
    """A curvature matrix of a risk: the Hessian or the GGN over the whole data set."""

    def __init__(self, product: CurvatureProduct, name: str) -> None:
        self.product = product
        self.name = name
        self.n = product.risk.n
        self.dtype = product.risk.dtype
        self.device = product.risk.device

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.product.matvec(vector)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.product.rows(rows)


OPERATORS: dict[str, type[CurvatureProduct]] = {"hessian": HessianProduct, "ggn": GGNProduct}


def curvature(name: str, risk: Risk, *, graph_memory: int | None = None) -> CurvatureOperator:
    """The operator of that name at the risk's anchor.

    Args:
        name: ``hessian`` (second derivatives of the loss) or ``ggn`` (``J^T (d^2 loss/df^2) J``).
        risk: the loss at the anchor.
        graph_memory: bytes for kept gradient graphs.

    Raises:
        UsageError: an unknown name.
    """
    if name not in OPERATORS:
        raise UsageError(f"unknown operator {name!r}; expected one of {', '.join(OPERATORS)}")
    return CurvatureOperator(OPERATORS[name](risk, graph_memory=graph_memory), name)
