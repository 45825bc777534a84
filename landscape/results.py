"""What the measurements return: frozen dataclasses, the same ones that a result file loads as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Density",
    "Estimate",
    "HessianResult",
    "Moments",
    "Result",
    "RunInfo",
    "Spectrum",
    "block_size",
]

FloatArray = NDArray[np.float64]

MODULES = "/modules/"
"""``hessian/modules/layers.0`` names the diagonal block of a module's parameters."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its standard error and 95% interval (all equal where it is exact)."""

    value: float
    stderr: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Eigenvalues of one operator, top and bottom together, in descending order.

    Attributes:
        operator: ``hessian``, ``ggn``, ...
        method: ``dense`` (explicit matrix) or ``gram`` (Gram matrix of the GGN's factor), which
            give every eigenvalue, or ``lanczos``.
        eigenvalues: (k,), in loss units per squared parameter.
        residuals: ``|A x - theta x|`` of every pair, or an upper bound of it, (k,).
        converged: residual within the tolerance times the largest |eigenvalue|, (k,).
        tol: that tolerance.
        top: how many of the eigenvalues were asked for as the largest.
        bottom: how many as the smallest.
        orthogonality: largest entry of ``|Q Q^T - I|`` of the vectors behind the values.
        symmetry: ``max |A - A^T| / max |A|`` of the explicit matrix (NaN for ``lanczos``).
        n_restarts: thick restarts.
        n_matvecs: matrix-vector products used.
        eigenvectors: unit rows (k, n) where they were asked for.
    """

    operator: str
    method: str
    eigenvalues: FloatArray
    residuals: FloatArray
    converged: NDArray[np.bool_]
    tol: float
    top: int
    bottom: int
    orthogonality: float
    symmetry: float
    n_restarts: int
    n_matvecs: int
    eigenvectors: NDArray[Any] | None = None

    @property
    def exact(self) -> bool:
        """Whether every eigenvalue is known."""
        return self.method != "lanczos"


@dataclass(frozen=True, kw_only=True)
class Density:
    """Spectral density: the distribution of the n eigenvalues, total mass 1.

    Row p of nodes and weights is one probe's quadrature of the whole spectrum: the deflated
    eigenvalues with weight 1/n each, then the Lanczos nodes of the rest. Each row's weights sum
    to 1 and ``n * weights @ f(nodes)`` estimates tr f(A) without bias (for polynomials f of degree
    below twice the number of steps). Rows are padded with weight 0.

    Attributes:
        operator: ``hessian``, ``ggn``, ...
        nodes: (probe, step).
        weights: (probe, step).
        grid: eigenvalue grid (g,).
        density: mean over probes of the nodes smoothed by a Gaussian, (g,), per eigenvalue unit.
            Its integral is 1, its mean tr A / n, its second moment tr A^2 / n + bandwidth^2.
        stderr: standard error of the density over probes, (g,); NaN with one probe.
        bandwidth: standard deviation of the Gaussian.
        n_deflated: leading columns of nodes that are converged eigenvalues.
        n_matvecs: matrix-vector products used.
    """

    operator: str
    nodes: FloatArray
    weights: FloatArray
    grid: FloatArray
    density: FloatArray
    stderr: FloatArray
    bandwidth: float
    n_deflated: int
    n_matvecs: int


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Functions of the whole spectrum, with errors over probes.

    Attributes:
        operator: ``hessian``, ``ggn``, ...
        trace: tr A, the sum of the eigenvalues.
        trace_square: tr A^2, the squared Frobenius norm.
        negative_mass: fraction of the n eigenvalues below ``-resolution``.
        near_zero_mass: fraction within the resolution of zero: not separable from exact zeros.
        resolution: half-width of the interval about zero that the run cannot resolve.
        n: size of the operator.
        n_probes: probes behind the estimates; 0 where they are exact.
    """

    operator: str
    trace: Estimate
    trace_square: Estimate
    negative_mass: Estimate
    near_zero_mass: Estimate
    resolution: float
    n: int
    n_probes: int


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Where a result comes from: a result file's root attributes.

    Attributes:
        wall_seconds: the analysis alone, without imports, loading, checks and writing.
        n_matvecs: matrix-vector products over the whole data set.
        n_forward: forward passes over the whole data set.
        n_gradient: gradients over the whole data set.
        key: SHA-256 of everything that determines the estimates.
    """

    schema: str
    command: str
    argv: tuple[str, ...]
    config: Mapping[str, Any]
    key: str
    seed: int
    versions: Mapping[str, str]
    device: str
    dtype: str
    task: str
    task_sha256: str
    checkpoint: str
    checkpoint_sha256: str
    step: int | None
    n_parameters: int
    n_examples: int
    loss: float
    gradient_norm: float
    status: str
    started: str
    finished: str
    wall_seconds: float
    n_matvecs: int
    n_forward: int
    n_gradient: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every measurement returns at least.

    Attributes:
        info: where it comes from.
        indices: the examples that were used, where a subset was asked for.
    """

    info: RunInfo
    indices: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class HessianResult(Result):
    """Result of ``landscape hessian``: by operator, its spectrum, density and moments.

    Diagonal blocks of modules stand under ``<operator>/modules/<name>``.
    """

    spectra: Mapping[str, Spectrum]
    densities: Mapping[str, Density] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)


def block_size(result: HessianResult, name: str) -> int:
    """Number of rows of an operator, or of a module's diagonal block."""
    return result.moments[name].n if name in result.moments else result.info.n_parameters
