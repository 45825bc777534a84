"""Symmetric linear operators on the flat vector: what the Krylov methods see of a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.coordinates import Coordinates
from landscape.errors import NotFiniteError, UsageError
from landscape.jacobian_products import EmpiricalFisherProduct, FisherProduct, GGNProduct
from landscape.products import CurvatureProduct, HessianProduct
from landscape.risk import Risk

__all__ = [
    "OPERATORS",
    "Combination",
    "CurvatureOperator",
    "DenseOperator",
    "LinearOperator",
    "Restricted",
    "Shifted",
    "Whitened",
    "curvature",
]


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

    @property
    def coordinates(self) -> Coordinates:
        """Which coordinates of vectors this process holds: all, unless they are shared out."""
        return Coordinates(self.n)

    @property
    def precision(self) -> torch.dtype:
        """What the products are computed in, where that is less than what they are returned in."""
        return self.dtype

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

    def fresh(self, vector: Tensor) -> Tensor:
        """A v as exactly as the operator can, for residuals; one matrix-vector product."""
        return self.matvec(vector)

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

    def block(self, positions: Sequence[int]) -> LinearOperator:
        """The diagonal block of some parameters, by their indices in the model's order."""
        raise NotImplementedError(f"{type(self).__name__} knows no parameters")

    def release(self) -> None:  # noqa: B027  (most operators hold nothing)
        """Free what is kept between products."""

    @staticmethod
    def _finite(product: Tensor) -> Tensor:
        # The sum is finite unless an entry is not (or it overflows, which the second look tells).
        if not math.isfinite(float(product.sum())) and not bool(torch.isfinite(product).all()):
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
    """A curvature matrix of a risk over the whole data set, or one of its diagonal blocks.

    Args:
        product: the matrix-vector products.
        name: the operator's name.
        positions: indices of the parameters of a diagonal block; the whole matrix where None.
    """

    def __init__(
        self, product: CurvatureProduct, name: str, positions: Sequence[int] | None = None
    ) -> None:
        self.product = product
        self.name = name
        self.positions = positions
        sizes = product.risk.space.sizes
        self.n = sum(sizes) if positions is None else sum(sizes[i] for i in positions)
        # A bfloat16 product belongs to float32 vectors: a basis in bfloat16 is not orthogonal.
        self.dtype = torch.promote_types(product.risk.dtype, torch.float32)
        self.device = product.risk.device

    @property
    def precision(self) -> torch.dtype:
        """The risk's dtype."""
        return self.product.risk.dtype

    def _matvec(self, vector: Tensor) -> Tensor:
        product = self.product.matvec(vector.to(self.precision), self.positions)
        return product.to(self.dtype)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.product.rows(rows.to(self.precision), self.positions).to(self.dtype)

    def block(self, positions: Sequence[int]) -> CurvatureOperator:
        """The diagonal block of some parameters; it shares the kept graphs."""
        return CurvatureOperator(self.product, self.name, positions)

    def release(self) -> None:
        """Free the kept graphs."""
        self.product.release()


class Combination(LinearOperator):
    """``sum_i c_i A_i`` of operators of one size; one product with each for every product."""

    def __init__(self, terms: Sequence[tuple[float, LinearOperator]]) -> None:
        sizes = {operator.n for _, operator in terms}
        if len(sizes) != 1:
            raise UsageError(f"operators of sizes {sorted(sizes)} cannot be added")
        self.terms = tuple(terms)
        first = terms[0][1]
        self.n, self.dtype, self.device = first.n, first.dtype, first.device

    @property
    def precision(self) -> torch.dtype:
        """The coarsest of the terms'."""
        return max((t.precision for _, t in self.terms), key=lambda kind: torch.finfo(kind).eps)

    def _matvec(self, vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for factor, operator in self.terms:
            total += factor * operator.matvec(vector)
        return total

    def _rows(self, rows: Tensor) -> Tensor:
        total = torch.zeros_like(rows)
        for factor, operator in self.terms:
            total += factor * operator.rows(rows)
        return total

    def block(self, positions: Sequence[int]) -> LinearOperator:
        """The diagonal block of some parameters."""
        return Combination([(factor, operator.block(positions)) for factor, operator in self.terms])

    def release(self) -> None:
        """Free the kept graphs of all terms."""
        for _, operator in self.terms:
            operator.release()


class Shifted(LinearOperator):
    """``A + mu I``."""

    def __init__(self, operator: LinearOperator, mu: float) -> None:
        self.operator, self.mu = operator, mu
        self.n, self.dtype, self.device = operator.n, operator.dtype, operator.device

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.operator.matvec(vector) + self.mu * vector

    def _rows(self, rows: Tensor) -> Tensor:
        return self.operator.rows(rows) + self.mu * rows


class Whitened(LinearOperator):
    """``D A D`` with a diagonal D, such as the standard deviations of a prior, (n,)."""

    def __init__(self, operator: LinearOperator, diagonal: Tensor) -> None:
        if diagonal.shape != (operator.n,):
            raise UsageError(
                f"a diagonal of shape {tuple(diagonal.shape)} does not fit an operator of size "
                f"{operator.n}"
            )
        self.operator = operator
        self.n, self.dtype, self.device = operator.n, operator.dtype, operator.device
        self.diagonal = diagonal.to(operator.like)

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.diagonal * self.operator.matvec(self.diagonal * vector)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.diagonal * self.operator.rows(self.diagonal * rows)

    def release(self) -> None:
        """Free the kept graphs."""
        self.operator.release()


class Restricted(LinearOperator):
    """``A[index, index]``: the coordinates of an index vector (k,), by embedding with zeros."""

    def __init__(self, operator: LinearOperator, index: Tensor) -> None:
        self.operator = operator
        self.index = index.to(operator.device)
        self.n, self.dtype, self.device = len(index), operator.dtype, operator.device

    def _matvec(self, vector: Tensor) -> Tensor:
        whole = torch.zeros(self.operator.n, dtype=self.dtype, device=self.device)
        whole[self.index] = vector
        return self.operator.matvec(whole)[self.index]

    def _rows(self, rows: Tensor) -> Tensor:
        whole = torch.zeros(len(rows), self.operator.n, dtype=self.dtype, device=self.device)
        whole[:, self.index] = rows
        return self.operator.rows(whole)[:, self.index]


OPERATORS = ("hessian", "ggn", "fisher", "empirical-fisher", "residual")


def curvature(
    name: str,
    risk: Risk,
    *,
    graph_memory: int | None = None,
    seed: int = 0,
    compiled: bool = False,
) -> LinearOperator:
    """The operator of that name at the risk's anchor.

    Args:
        name: ``hessian``: second derivatives of the loss. ``ggn``: ``J^T (d^2 loss/df^2) J``.
            ``fisher``: the GGN where that is exact, else a Monte-Carlo estimate with labels from
            the model's own law. ``empirical-fisher``: mean outer product of the gradients.
            ``residual``: Hessian minus GGN, two products each.
        risk: the loss at the anchor.
        graph_memory: bytes for kept gradient graphs.
        seed: seed of the labels of a Monte-Carlo Fisher matrix.
        compiled: compile the products of the ``hessian``, or say in its product's ``fallback``
            why not.

    Raises:
        UsageError: an unknown name, or a criterion that the operator does not fit.
    """
    if name == "hessian":
        if not compiled:
            return CurvatureOperator(HessianProduct(risk, graph_memory=graph_memory), name)
        from landscape.compiled import CompiledHessianProduct  # The compiler is heavy.

        return CurvatureOperator(CompiledHessianProduct(risk, graph_memory=graph_memory), name)
    if name == "ggn" or (name == "fisher" and risk.criterion.fisher_is_ggn):
        return CurvatureOperator(GGNProduct(risk, graph_memory=graph_memory), name)
    if name == "fisher":
        return CurvatureOperator(FisherProduct(risk, seed=seed, graph_memory=graph_memory), name)
    if name == "empirical-fisher":
        return CurvatureOperator(EmpiricalFisherProduct(risk, graph_memory=graph_memory), name)
    if name == "residual":
        half = None if graph_memory is None else graph_memory // 2
        terms = [(1.0, "hessian"), (-1.0, "ggn")]
        return Combination([(c, curvature(n, risk, graph_memory=half)) for c, n in terms])
    raise UsageError(f"unknown operator {name!r}; expected one of {', '.join(OPERATORS)}")
