"""Mass matrices of Hamiltonian Monte Carlo: low rank plus a multiple of the identity, or dense."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Mass"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mass:
    """``M = U^T diag(values) U + rest (I - U^T U)`` with orthonormal rows U.

    Its inverse and roots have the same form (Woodbury's identity in the eigenbasis), so that M at
    another inverse temperature costs nothing. With as many rows as coordinates M is any dense
    matrix.

    Attributes:
        vectors: U, (d, n).
        values: eigenvalues > 0 on the rows of U, (d,).
        rest: eigenvalue > 0 of their complement.

    Cost: two products of (d, n) matrices with the rows for each application, one for a square.
    """

    vectors: Tensor
    values: Tensor
    rest: float

    def inverse(self, rows: Tensor) -> Tensor:
        """``M^-1`` times every row of (C, n)."""
        return self.power(rows, -1.0)

    def inverse_root(self, rows: Tensor) -> Tensor:
        """``M^(-1/2)`` times every row of (C, n): rows from N(0, I) become velocities."""
        return self.power(rows, -0.5)

    def square(self, rows: Tensor) -> Tensor:
        """``v^T M v`` of every row v of (C, n), float64, (C,)."""
        inside = (rows @ self.vectors.T).double().square() @ (self.values.double() - self.rest)
        return inside + self.rest * rows.double().square().sum(1)

    def power(self, rows: Tensor, power: float) -> Tensor:
        """``M^power`` times every row of (C, n)."""
        outside = float(self.rest**power)
        if not len(self.values):
            return rows * outside
        inside = (rows @ self.vectors.T) * (self.values**power - outside)
        product: Tensor = inside @ self.vectors
        return product.add_(rows, alpha=outside)
