"""Log-determinants of a matrix of low rank, exact for every region: what probes need not estimate.

With the largest eigenpairs ``A_k = V^T diag(lambda) V`` and ``W = (s lambda)^(1/2) V`` the blocks
of ``I + s A_k`` are ``I + W_R^T W_R``, whose log-determinant and logarithm follow from the small
matrix ``W_R W_R^T = U diag(mu) U^T``. As a control variate it takes from the probes all noise of
the steep directions, of every region alike, as deflation would for one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LowRank"]


class LowRank:
    """``I + s A_k`` on unions of groups.

    Args:
        values: eigenvalues, (d,); those that are not positive are left out.
        vectors: orthonormal eigenvectors as rows (d, n), float64.
        groups: coordinates of every group.
        tilt: s.

    Cost: d^2 n flops, and O(d^3) for every region.
    """

    def __init__(
        self, values: Tensor, vectors: Tensor, groups: Sequence[Tensor], *, tilt: float
    ) -> None:
        kept = values > 0
        self._rows = (tilt * values[kept]).sqrt()[:, None] * vectors[kept]
        self._groups = groups
        self._grams = [self._rows[:, g] @ self._rows[:, g].T for g in groups]
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def _eigen(self, region: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mu (d,) and U (d, d) of a region."""
        if region not in self._known:
            gram = torch.stack([self._grams[a] for a in region]).sum(0)
            values, vectors = torch.linalg.eigh(gram)
            self._known[region] = values.clamp(min=0), vectors
        return self._known[region]

    def excess(self, region: tuple[int, ...], vector: Tensor) -> float:
        """``v_R^T log(I + W_R^T W_R) v_R - log det(I + W_R^T W_R)`` for a vector v, (n,)."""
        values, vectors = self._eigen(region)
        if not len(values):
            return 0.0
        along = torch.zeros_like(values)
        for group in (self._groups[a] for a in region):
            along += self._rows[:, group] @ vector[group]
        square = (vectors.T @ along).square()
        logs = values.log1p()
        # The limit of log(1 + mu) / mu, and no rounding of it, where mu vanishes.
        share = torch.where(values > 0, logs / values.clamp(min=1e-300), torch.ones_like(values))
        return float(share @ square - logs.sum())
