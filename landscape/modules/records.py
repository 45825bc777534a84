"""Results of ``landscape modules``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landscape.results import Estimate, FloatArray, Result
from landscape.volume.records import PriorTable

__all__ = ["ModuleCoupling", "ModulesResult"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ModuleCoupling:
    """Coupling between G groups of parameters.

    With the whitened curvature A and the tilt s, ``M = I + s A`` is the precision of the quadratic
    model's law at the cutoff. What is exact has standard errors of 0 and intervals of no width;
    else intervals (95%) are Student's t over probes and reach over what the Lanczos steps leave
    open. NaN is what was not measured.

    Attributes:
        method: ``dense`` and ``gram`` are exact; ``matrix-free``.
        tilt: s.
        size: number of coordinates of every group, (G,).
        norm: Frobenius norm of every block of A, (G, G).
        norm_stderr: its standard error, (G, G).
        rank: numerical rank of every off-diagonal block of A, (G, G).
        rank_bound: whether that is only a lower bound, (G, G).
        tol: singular values above this part of the largest ``|eigenvalue|`` of A count.
        coupling: C_ab in nats, (G, G); 0 on the diagonal.
        coupling_stderr: its standard error, (G, G).
        coupling_lower: lower end of its interval, (G, G).
        coupling_upper: upper end, (G, G).
        correlations: the largest canonical correlations of every pair, (G, G, k).
        rest: coupling of every group with all others together, in nats, (G,).
        rest_stderr: its standard error, (G,).
        rest_lower: lower end of its interval, (G,).
        rest_upper: upper end, (G,).
        log_det_groups: log det M_a, (G,).
        log_det_groups_stderr: its standard error, (G,).
        log_det_schur: log det of the Schur complement of all other groups, (G,).
        log_det_schur_stderr: its standard error, (G,).
        log_det: log det M.
        total: C, half of the sum of log det M_a less log det M.
        truncation: width that the Lanczos steps add to the interval of the total, in nats.
        lowest: smallest eigenvalue of A.
        highest: largest one.
        lowest_groups: smallest eigenvalue of every diagonal block, (G,).
        highest_groups: largest one, (G,).
        residual: largest residual of these eigenvalues; 0 where they are exact.
        converged: whether that is within the tolerance of the eigensolver.
        steps: Lanczos steps of every log-determinant; 0 where exact.
        region: which groups a log-determinant is of, (r, G); none where exact.
        log_det_high: log det M of the region by the Gauss rule of every probe, (r, probes).
        log_det_low: the same by the Gauss-Radau rule, (r, probes).
    """

    method: str
    tilt: float
    size: IntArray
    norm: FloatArray
    norm_stderr: FloatArray
    rank: IntArray
    rank_bound: BoolArray
    tol: float
    coupling: FloatArray
    coupling_stderr: FloatArray
    coupling_lower: FloatArray
    coupling_upper: FloatArray
    correlations: FloatArray
    rest: FloatArray
    rest_stderr: FloatArray
    rest_lower: FloatArray
    rest_upper: FloatArray
    log_det_groups: FloatArray
    log_det_groups_stderr: FloatArray
    log_det_schur: FloatArray
    log_det_schur_stderr: FloatArray
    log_det: Estimate
    total: Estimate
    truncation: float
    lowest: float
    highest: float
    lowest_groups: FloatArray
    highest_groups: FloatArray
    residual: float
    converged: int
    steps: int
    region: BoolArray
    log_det_high: FloatArray
    log_det_low: FloatArray

    @property
    def exact(self) -> bool:
        """Whether nothing is estimated."""
        return self.method != "matrix-free"

    @property
    def unresolved(self) -> bool:
        """Whether the number of Lanczos steps matters more than the number of probes."""
        return self.truncation > 2 * self.total.stderr + 1e-9 * abs(self.total.value)

    @property
    def n_probes(self) -> int:
        """Probes of the log-determinants; 0 where they are exact."""
        return int(self.log_det_high.shape[1])

    @property
    def lowest_diagonal(self) -> float:
        """Smallest eigenvalue of the block-diagonal part of A."""
        return float(self.lowest_groups.min())

    @property
    def highest_diagonal(self) -> float:
        """Largest eigenvalue of the block-diagonal part of A."""
        return float(self.highest_groups.max())

    @property
    def correlation_bound(self) -> FloatArray:
        """What every pair's largest canonical correlation is at most, (G, G), by its coupling.

        ``-1/2 log(1 - rho^2) <= C_ab``, so that ``rho <= sqrt(1 - exp(-2 C_ab))``; of the upper end
        of its interval.
        """
        return np.asarray(np.sqrt(-np.expm1(-2 * np.maximum(self.coupling_upper, 0.0))))


@dataclass(frozen=True, kw_only=True)
class ModulesResult(Result):
    """Result of ``landscape modules``.

    Attributes:
        names: of the groups, (G,).
        modules: coupling between them.
        prior: the prior.
    """

    names: tuple[str, ...]
    modules: ModuleCoupling
    prior: PriorTable
