"""Coupling between groups of parameters of a dense curvature matrix; knows nothing of networks.

With the whitened curvature A and the tilt s, ``M = I + s A`` is the precision of the tilted law.
Its blocks over the groups a, b, ... give, in nats,

    C = 1/2 (sum_a log det M_a - log det M) >= 0            in total,
    C_ab = -1/2 sum_i log(1 - rho_i^2),  rho = svd(M_a^(-1/2) M_ab M_b^(-1/2)),   for a pair,

the latter being C of the pair alone. Both are >= 0 by Fischer's inequality: without its
off-diagonal blocks, M has the larger determinant. At fixed diagonal blocks, then, decoupling
tempers the extreme eigenvalues and yet makes the width term -1/2 log det M smaller, never larger.

Source: Horn and Johnson, Matrix Analysis (2013), theorem 7.8.5 (Fischer) and section 0.8.5 (Schur).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import NotFiniteError, UsageError

__all__ = ["Coupling", "block_coupling", "canonical_correlations", "schur_complement"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CORRELATIONS = 8  # Canonical correlations of a pair that are kept.


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Coupling between all pairs of G groups, from dense float64 matrices.

    Attributes:
        norm: Frobenius norm of every block of A, (G, G).
        rank: numerical rank of every off-diagonal block of A, (G, G); 0 on the diagonal.
        coupling: C_ab in nats, (G, G); 0 on the diagonal.
        correlations: the largest rho of every pair, descending, (G, G, k); 0 on the diagonal and
            where a pair has fewer.
        log_det_groups: log det M_a, (G,).
        log_det_schur: log det of the Schur complement of all other groups, (G,): of the precision
            of a group once the others are integrated out.
        log_det: log det M.
        total: C in nats. No sum of pairs: three groups can share more or less than their pairs.
        extremes: smallest and largest eigenvalue of A.
        extremes_groups: those of every diagonal block, (G, 2), which lie within the former.
    """

    norm: FloatArray
    rank: IntArray
    coupling: FloatArray
    correlations: FloatArray
    log_det_groups: FloatArray
    log_det_schur: FloatArray
    log_det: float
    total: float
    extremes: tuple[float, float]
    extremes_groups: FloatArray

    @property
    def extremes_diagonal(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of the block-diagonal part."""
        return float(self.extremes_groups[:, 0].min()), float(self.extremes_groups[:, 1].max())


def block_coupling(
    matrix: Tensor,
    groups: Sequence[Tensor],
    *,
    tilt: float,
    tol: float = 1e-10,
    on_group: Callable[[int], None] | None = None,
) -> Coupling:
    """Coupling between groups of coordinates of a symmetric matrix.

    Args:
        matrix: A, (n, n), symmetric.
        groups: indices of every group, that together name each of the n coordinates once.
        tilt: s >= 0.
        tol: singular values of a block above this part of the matrix's largest absolute eigenvalue
            count towards its rank.
        on_group: called with the number of groups done.

    Raises:
        UsageError: groups that overlap, are empty or leave a coordinate out, or bad numbers.
        NotFiniteError: an entry that is not finite, or I + s A that is not positive definite.

    Cost: eigenvalues of A, a singular value decomposition of every block, and a factorisation for
    every group; O(G n^3) flops.
    """
    n = len(matrix)
    if not 0 <= tilt < float("inf") or not 0 < tol < 1:
        raise UsageError(f"tilt {tilt}, tol {tol}: expected a number >= 0, and one between 0 and 1")
    named = torch.cat([torch.as_tensor(group) for group in groups]) if groups else torch.empty(0)
    if any(not len(group) for group in groups) or named.sort().values.tolist() != list(range(n)):
        raise UsageError(
            f"{len(groups)} groups name {len(named)} coordinates of {n}; expected each coordinate "
            "in one group, and no empty group"
        )
    a = matrix.double()
    if not a.isfinite().all():
        raise NotFiniteError("the curvature has entries that are not finite. Check the weights")
    m = torch.eye(n, dtype=a.dtype, device=a.device) + tilt * a
    values = torch.linalg.eigvalsh(a)
    scale = float(values.abs().max())
    count = len(groups)
    norm, coupling = np.zeros((count, count)), np.zeros((count, count))
    rank = np.zeros((count, count), dtype=np.int64)
    correlations = np.zeros((count, count, _CORRELATIONS))
    schur = np.zeros(count)
    factors = [_factor(m[g][:, g]) for g in groups]
    within = [torch.linalg.eigvalsh(a[g][:, g])[[0, -1]].tolist() for g in groups]
    for i, first in enumerate(groups):
        norm[i, i] = float(a[first][:, first].norm())
        for j in range(i):
            block = a[first][:, groups[j]]
            norm[i, j] = norm[j, i] = float(block.norm())
            sizes = torch.linalg.svdvals(block)
            rank[i, j] = rank[j, i] = int((sizes > tol * scale).sum())
            rho = _correlations(tilt * block, factors[i], factors[j])
            coupling[i, j] = coupling[j, i] = float(0.5 * (-torch.log1p(-rho.square())).sum())
            largest = rho[:_CORRELATIONS].cpu().numpy()
            correlations[i, j, : len(largest)] = correlations[j, i, : len(largest)] = largest
        rest = torch.cat([group for j, group in enumerate(groups) if j != i] or [first[:0]])
        schur[i] = _log_det(_factor(schur_complement(m, first, rest)))
        if on_group is not None:
            on_group(i + 1)
    log_dets = np.array([_log_det(factor) for factor in factors])
    log_det = _log_det(_factor(m))
    return Coupling(
        norm=norm,
        rank=rank,
        coupling=coupling,
        correlations=correlations,
        log_det_groups=log_dets,
        log_det_schur=schur,
        log_det=log_det,
        total=0.5 * (float(log_dets.sum()) - log_det),
        extremes=(float(values[0]), float(values[-1])),
        extremes_groups=np.array(within),
    )


def canonical_correlations(matrix: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Singular values of ``M_a^(-1/2) M_ab M_b^(-1/2)``, descending, (min(n_a, n_b),).

    Args:
        matrix: M, symmetric and positive definite.
        first: indices of the group a.
        second: indices of the group b.

    Raises:
        NotFiniteError: a diagonal block that is not positive definite.
    """
    m = matrix.double()
    blocks = (_factor(m[first][:, first]), _factor(m[second][:, second]))
    return _correlations(m[first][:, second], *blocks)


def schur_complement(matrix: Tensor, group: Tensor, rest: Tensor) -> Tensor:
    """``M_a - M_ab M_b^(-1) M_ba``: the precision of a group once the rest is integrated out.

    ``log det M = log det M_b + log det`` of it.

    Raises:
        NotFiniteError: the block of the rest is not positive definite.
    """
    m = matrix.double()
    across = m[rest][:, group]
    if not len(rest):
        return m[group][:, group]
    solved = torch.cholesky_solve(across, _factor(m[rest][:, rest]))
    return m[group][:, group] - across.T @ solved


def _correlations(block: Tensor, first: Tensor, second: Tensor) -> Tensor:
    # Cholesky factors in place of symmetric roots: they differ by rotations.
    left = torch.linalg.solve_triangular(first, block, upper=False)
    both = torch.linalg.solve_triangular(second, left.T, upper=False)
    rho: Tensor = torch.linalg.svdvals(both)
    return rho


def _factor(block: Tensor) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(block)
    if int(info):
        raise NotFiniteError(
            "I + s A is not positive definite; expected a curvature without large negative "
            "eigenvalues. Use --loss behaviour or --curvature ggn, whose curvature has none, or a "
            "smaller --tilt"
        )
    return factor


def _log_det(factor: Tensor) -> float:
    return 2 * float(factor.diagonal().log().sum())
