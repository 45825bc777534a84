"""A spectrum as expected numbers of eigenvalues per decade of |eigenvalue|; needs only numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from landscape.results import Density
from landscape.smoothing import smooth

__all__ = ["BANDWIDTH", "counts_per_decade", "log_grid"]

FloatArray = NDArray[np.float64]

BANDWIDTH = 0.1
"""Standard deviation of the smoothing, in decades."""

_PER_BANDWIDTH = 4  # Grid points: sums over the grid are then exact to rounding.
_MARGIN = 5  # Bandwidths beyond the outermost eigenvalue.


def log_grid(parts: Iterable[tuple[Density, float]], bandwidth: float = BANDWIDTH) -> FloatArray:
    """An even grid of log10 |eigenvalue| that holds all of several smoothed spectra.

    Args:
        parts: densities, each with the half-width about zero that it does not resolve.
        bandwidth: standard deviation of the smoothing, in decades.

    Returns:
        the grid, empty where no eigenvalue is resolved from zero.
    """
    ends = []
    for density, resolution in parts:
        size = np.abs(density.nodes[density.weights > 0])
        size = size[(size > resolution) & np.isfinite(size)]
        if len(size):
            ends += [float(size.min()), float(size.max())]
    if not ends:
        return np.zeros(0)
    low, high = (
        np.log10(end) + s * _MARGIN * bandwidth for end, s in ((min(ends), -1), (max(ends), 1))
    )
    return np.linspace(low, high, int(np.ceil((high - low) / bandwidth * _PER_BANDWIDTH)) + 1)


def counts_per_decade(
    density: Density, grid: FloatArray, *, n: int, resolution: float, bandwidth: float = BANDWIDTH
) -> tuple[FloatArray, FloatArray]:
    """Expected number of positive and of negative eigenvalues per decade of their size.

    Each integral over the grid is the expected number of such eigenvalues; together they are n
    less those within the resolution of zero.

    Args:
        density: nodes and weights by probe.
        grid: values of log10 |eigenvalue|, from :func:`log_grid`.
        n: size of the operator.
        resolution: half-width about zero that is left out.
        bandwidth: standard deviation of the smoothing, in decades.
    """
    found = []
    share = n / len(density.nodes)  # Every probe has an equal part of the mean.
    for signed in (density.nodes, -density.nodes):
        chosen = (signed > resolution) & (density.weights > 0)
        logs = np.log10(signed[chosen])
        found.append(smooth(logs, share * density.weights[chosen], grid, bandwidth))
    return found[0], found[1]
