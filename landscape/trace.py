"""The trace of an operator by XTrace, an exchangeable leave-one-out estimator.

For operators whose eigenvalues decay its error falls much faster with the number of products than
the error of plain probes: the range of A is found by the same vectors that estimate the rest.

Source: Epperly, Tropp and Webber, XTrace: Making the most of every sample in stochastic trace
estimation, SIAM J. Matrix Anal. Appl. 45 (2024), section 2.3 and supplement (normalisation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from landscape.errors import UsageError
from landscape.operators import LinearOperator
from landscape.results import Estimate
from landscape.rng import normal, stream
from landscape.sums import estimate

__all__ = ["xtrace"]


def xtrace(operator: LinearOperator, *, vectors: int, seed: int = 0) -> Estimate:
    """Estimate tr A by k test vectors, with a jackknife standard error.

    Each vector is left out in turn: the others' images span a space on which the trace is exact,
    and the one left out estimates the rest, normalised to its dimension. The k estimates share
    vectors, so their spread understates the error of their mean (by a factor of 1.3 to 1.9 for k
    from n/5 to n/2). The jackknife over vectors never does in expectation (Efron and Stein, 1981);
    measured, it is about twice the error.

    Args:
        operator: symmetric operator of size n.
        vectors: number k of test vectors, 3 <= k <= n.
        seed: seed of the test vectors.

    Returns:
        the estimate with its 95% t-interval.

    Raises:
        UsageError: k is out of range.

    Cost: 2 k matrix-vector products, 3 k n numbers, O(k^2 n + k^4) flops.
    """
    n, k = operator.n, vectors
    if not 3 <= k <= n:
        raise UsageError(f"xtrace with {k} vectors: expected 3 to n = {n} of them")
    test = torch.stack([normal(n, stream(seed, "xtrace", i), like=operator.like) for i in range(k)])
    test = test.double().cpu()
    test *= n**0.5 / torch.linalg.vector_norm(test, dim=1, keepdim=True)
    images = _apply(operator, test)
    basis, triangle = torch.linalg.qr(images.T)
    rank = _rank(triangle)
    if rank < k:
        # The images span the whole range, so the trace on their span is the trace.
        basis = torch.linalg.svd(images.T, full_matrices=False).U[:, :rank]
        exact = (basis * _apply(operator, basis.T).T).sum()
        return estimate(exact[None].numpy(), exact=True)
    on_basis = _apply(operator, basis.T)  # Row i: A q_i.
    problem = _Small(
        n=n,
        triangle=triangle,
        inside=basis.T @ test.T,
        cross=on_basis @ test.T,
        projected=on_basis @ basis,
        quadratic=(test * images).sum(1),
    )
    whole = problem.estimate()
    if k == n:
        return estimate(np.array([whole]), exact=True)
    left_out = np.array([problem.without(i).estimate() for i in range(k)])
    stderr = float(np.sqrt((k - 1) / k * ((left_out - left_out.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, k - 1)) * stderr
    return Estimate(value=whole, stderr=stderr, lower=whole - half, upper=whole + half)


@dataclass(frozen=True, kw_only=True)
class _Small:
    """All that XTrace needs of the n-dimensional vectors, for k test vectors omega_i.

    Attributes:
        n: size of the operator.
        triangle: R of ``A Omega = Q R``, (k, k).
        inside: ``Q^T Omega``, (k, k).
        cross: ``Q^T A Omega``, (k, k).
        projected: ``Q^T A Q``, (k, k).
        quadratic: ``omega_i^T A omega_i``, (k,).
    """

    n: int
    triangle: Tensor
    inside: Tensor
    cross: Tensor
    projected: Tensor
    quadratic: Tensor

    def _orthogonal(self) -> Tensor:
        """Column i: the unit vector, in Q's coordinates, orthogonal to all images but the i-th."""
        columns: Tensor = torch.linalg.inv(self.triangle).T.clone()
        columns /= torch.linalg.vector_norm(columns, dim=0)
        return columns

    def estimate(self) -> float:
        """Mean of the leave-one-out estimates."""
        s, k = self._orthogonal(), len(self.triangle)
        inside = self.inside - s * (s * self.inside).sum(0)
        exact = self.projected.trace() - (s * (self.projected @ s)).sum(0)
        rest = (
            self.quadratic
            - 2 * (self.cross * inside).sum(0)
            + (inside * (self.projected @ inside)).sum(0)
        )
        size = self.n - inside.square().sum(0)
        scale = (self.n - k + 1) / size.clamp(min=torch.finfo(torch.float64).tiny)
        return float((exact + scale * rest).mean())

    def without(self, index: int) -> _Small:
        """The same without one test vector; needs no further products."""
        kept = torch.arange(len(self.triangle)) != index
        unit = self._orthogonal()[:, index : index + 1]
        basis = torch.linalg.qr(unit, mode="complete").Q[:, 1:]
        return _Small(
            n=self.n,
            triangle=basis.T @ self.triangle[:, kept],
            inside=basis.T @ self.inside[:, kept],
            cross=basis.T @ self.cross[:, kept],
            projected=basis.T @ self.projected @ basis,
            quadratic=self.quadratic[kept],
        )


def _apply(operator: LinearOperator, rows: Tensor) -> Tensor:
    """Products with rows, as float64 on the CPU."""
    return operator.rows(rows.to(operator.like)).double().cpu()


def _rank(triangle: Tensor) -> int:
    values = torch.linalg.svdvals(triangle)
    return int((values > 1e-12 * values[0]).sum()) if float(values[0]) > 0 else 0
