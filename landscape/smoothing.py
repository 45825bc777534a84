"""Smoothing a discrete spectrum into a density; needs only numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["smooth"]

FloatArray = NDArray[np.float64]


def smooth(
    nodes: FloatArray, weights: FloatArray, grid: FloatArray, bandwidth: float
) -> FloatArray:
    """``sum_j weights_j N(grid; nodes_j, bandwidth^2)``, shape of grid."""
    out = np.zeros_like(grid)
    for start in range(0, len(nodes), 256):
        z = (grid[None, :] - nodes[start : start + 256, None]) / bandwidth
        out += weights[start : start + 256] @ np.exp(-0.5 * z * z)
    out /= bandwidth * np.sqrt(2 * np.pi)
    return out
