"""Sums over a spectrum, ``sum_i f(lambda_i)``, from the nodes and weights of its density.

Each probe gives one independent estimate, so every sum comes with a standard error and a 95%
t-interval. Needs only numpy and scipy: stored results are enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from landscape.results import Density, Estimate, Moments

__all__ = ["count_above", "estimate", "is_exact", "log_det", "moments", "standard_error"]

FloatArray = NDArray[np.float64]


def standard_error(rows: FloatArray) -> FloatArray:
    """Standard error of the mean over independent rows, NaN for one row."""
    if len(rows) < 2:
        return np.full(rows.shape[1:], np.nan)
    return np.asarray(rows.std(0, ddof=1) / np.sqrt(len(rows)))


def estimate(samples: FloatArray, *, exact: bool = False) -> Estimate:
    """Mean of independent samples with its standard error and 95% t-interval.

    One sample has an infinite interval, unless it is exact.
    """
    value = float(np.mean(samples))
    if exact:
        return Estimate(value=value, stderr=0.0, lower=value, upper=value)
    if len(samples) < 2:
        return Estimate(value=value, stderr=np.nan, lower=-np.inf, upper=np.inf)
    stderr = float(standard_error(samples[:, None])[0])
    half = float(stats.t.ppf(0.975, len(samples) - 1)) * stderr
    return Estimate(value=value, stderr=stderr, lower=value - half, upper=value + half)


def moments(density: Density, *, n: int, eps: float) -> Moments:
    """Trace, trace of the square, negative and near-zero mass of a density.

    Args:
        density: nodes and weights by probe.
        n: size of the operator.
        eps: rounding unit of the products that the nodes come from.
    """
    nodes, weights = density.nodes, density.weights
    exact = is_exact(density)
    resolution = _resolution(nodes, weights, n=n, eps=eps, exact=exact)

    def mass(chosen: NDArray[np.bool_]) -> Estimate:
        found = estimate((weights * chosen).sum(1), exact=exact)
        return Estimate(
            value=found.value,
            stderr=found.stderr,
            lower=max(found.lower, 0.0),
            upper=min(found.upper, 1.0),
        )

    return Moments(
        operator=density.operator,
        trace=estimate(n * (weights * nodes).sum(1), exact=exact),
        trace_square=estimate(n * (weights * nodes**2).sum(1), exact=exact),
        negative_mass=mass(nodes < -resolution),
        near_zero_mass=mass(np.abs(nodes) <= resolution),
        resolution=resolution,
        n=n,
        n_probes=0 if exact else len(nodes),
    )


def log_det(density: Density, *, n: int, scale: float) -> Estimate:
    """``log det(I + s A) = sum_i log(1 + s lambda_i)`` in nats, from a density.

    Args:
        density: nodes and weights by probe.
        n: size of the operator.
        scale: s > 0.

    Returns:
        the estimate; NaN where a node lies at or below ``-1/s``, so that no logarithm exists.
    """
    kept = density.weights > 0
    argument = np.where(kept, scale * density.nodes, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.log1p(argument)
    if not np.isfinite(values).all():
        return Estimate(value=np.nan, stderr=np.nan, lower=np.nan, upper=np.nan)
    return estimate(n * (density.weights * values).sum(1), exact=is_exact(density))


def count_above(density: Density, *, n: int, threshold: float) -> Estimate:
    """Number of eigenvalues above a threshold.

    A quadrature node stands for the mass around it, so each probe's cumulative mass is
    interpolated between nodes (half of a node's own mass counts at the node): it then lies within
    the Chebyshev-Markov-Stieltjes bounds. Deflated eigenvalues count exactly.

    Args:
        density: nodes and weights by probe.
        n: size of the operator.
        threshold: eigenvalues larger than this count.
    """
    d = density.n_deflated
    sharp = float((density.nodes[0, :d] > threshold).sum()) if d else 0.0
    if is_exact(density):
        return estimate(np.array([sharp]), exact=True)
    counts = []
    for nodes, weights in zip(density.nodes[:, d:], density.weights[:, d:], strict=True):
        t, w = nodes[weights > 0], weights[weights > 0]
        if len(t) == 0 or threshold >= t[-1] or threshold < t[0]:
            # The extreme Ritz values are sharp ends of the spectrum.
            above = float(w.sum()) if len(t) and threshold < t[0] else 0.0
        else:
            above = float(np.interp(threshold, t, w.sum() - np.cumsum(w) + w / 2))
        counts.append(sharp + n * above)
    found = estimate(np.array(counts))
    return Estimate(
        value=found.value,
        stderr=found.stderr,
        lower=max(found.lower, 0.0),
        upper=min(found.upper, float(n)),
    )


def is_exact(density: Density) -> bool:
    """Whether every eigenvalue is known."""
    return bool(density.n_deflated == density.nodes.shape[1])


def _outside(nodes: FloatArray) -> bool:
    """Whether zero lies outside the spectrum: farther from its end than the nodes are apart there.

    The outermost node also stands for what lies beyond it, but not farther than to its neighbour.
    """
    ends = nodes if nodes[0] > 0 else -nodes[::-1]
    return bool(ends[0] > 0 and (len(ends) == 1 or ends[0] > ends[1] - ends[0]))


def _resolution(
    nodes: FloatArray, weights: FloatArray, *, n: int, eps: float, exact: bool
) -> float:
    """Half-width about zero inside which eigenvalues cannot be told from exact zeros.

    Rounding gives ``eps * sqrt(n) * max |node|``. A quadrature node stands for all eigenvalues
    nearer to it than to its neighbours, so the node nearest zero adds the half-width of its cell.
    """
    floor = float(eps * np.sqrt(n) * np.abs(nodes).max(initial=0.0))
    if exact:
        return floor
    cells = []
    for row, weight in zip(nodes, weights, strict=True):
        t = np.unique(row[weight > 0])
        if _outside(t):
            continue
        k = int(np.abs(t).argmin())
        cells.append(max(abs(t[k] + t[j]) / 2 for j in (max(k - 1, 0), min(k + 1, len(t) - 1))))
    return max(floor, float(np.median(cells))) if cells else floor
