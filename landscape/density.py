"""Spectral density and moments by stochastic Lanczos quadrature, or from every eigenvalue.

Converged eigenpairs are deflated first: they enter with their exact weight 1/n, and the probes
only estimate the rest. A probe is uniform on the unit sphere of the remaining space, so that
``(n - d) * quadrature`` estimates the trace of any function there without bias.

Sources: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017); Lin, Saad and Yang, SIAM
Review 58 (2016); Ghorbani, Krishnan and Xiao, ICML 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landscape.krylov import quadrature
from landscape.operators import LinearOperator
from landscape.results import Density
from landscape.rng import stream
from landscape.smoothing import smooth
from landscape.sums import standard_error

__all__ = ["assemble_density", "exact_density", "probe"]

FloatArray = NDArray[np.float64]

_GRID = 2048
_BANDWIDTH = 1 / 150  # Of the spectrum's span: outliers stay apart, the bulk stays smooth.


def probe(
    operator: LinearOperator,
    index: int,
    *,
    steps: int,
    seed: int,
    deflate: Tensor | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights (sum 1) of one probe on the space orthogonal to ``deflate``.

    The probe's vector comes from a stream of its own, so probes can be run in any order.

    Cost: ``steps`` matrix-vector products.
    """
    start = operator.coordinates.normal(stream(seed, "probe", index), like=operator.like)
    return quadrature(operator, start, steps=steps, deflate=deflate, on_step=on_step)


def assemble_density(
    name: str,
    probes: Sequence[tuple[FloatArray, FloatArray]],
    *,
    n: int,
    deflated: FloatArray,
    n_matvecs: int,
) -> Density:
    """Join probes and deflated eigenvalues into a density.

    Args:
        name: the operator's name.
        probes: (nodes, weights) of every probe.
        n: size of the operator.
        deflated: the deflated eigenvalues (d,).
        n_matvecs: products used.
    """
    d = len(deflated)
    longest = max((len(nodes) for nodes, _ in probes), default=0)
    nodes = np.zeros((max(len(probes), 1), d + longest))
    weights = np.zeros_like(nodes)
    nodes[:, :d], weights[:, :d] = deflated, 1 / n
    for row, (t, w) in enumerate(probes):
        nodes[row, d : d + len(t)] = t
        nodes[row, d + len(t) :] = t[-1] if len(t) else 0.0
        weights[row, d : d + len(t)] = (n - d) / n * w
    return _density(name, nodes, weights, d, n_matvecs)


def exact_density(name: str, eigenvalues: FloatArray) -> Density:
    """The density of a fully known spectrum: one row, every eigenvalue with weight 1/n."""
    n = len(eigenvalues)
    return _density(name, eigenvalues[None, :], np.full((1, n), 1 / n), n, 0)


def _density(
    name: str, nodes: FloatArray, weights: FloatArray, n_deflated: int, n_matvecs: int
) -> Density:
    low, high = float(nodes.min()), float(nodes.max())
    # Equal eigenvalues differ by rounding: their span is no scale to draw them on.
    span = max(high - low, 1e-3 * max(abs(low), abs(high))) or 1.0
    bandwidth = span * _BANDWIDTH
    grid = np.linspace(low - 6 * bandwidth, high + 6 * bandwidth, _GRID)
    rows = np.stack([smooth(t, w, grid, bandwidth) for t, w in zip(nodes, weights, strict=True)])
    exact = n_deflated == nodes.shape[1]
    spread = np.zeros(_GRID) if exact else standard_error(rows)
    return Density(
        operator=name,
        nodes=nodes,
        weights=weights,
        grid=grid,
        density=rows.mean(0),
        stderr=spread,
        bandwidth=bandwidth,
        n_deflated=n_deflated,
        n_matvecs=n_matvecs,
    )
