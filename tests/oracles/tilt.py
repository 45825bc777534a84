"""Oracle for quadratic excess losses under N(0, I): saddle point and exact log-volume.

Q = sum_i a_i (z_i - c_i)^2 / 2 + g_i (z_i - c_i) with independent coordinates. By brute force on
the eigenvalues: a bracketing root finder for the saddle, and the trapezoidal rule for the inverse
Laplace transform on a left-opening parabola through it.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize


def log_transform(s, values, centre, gradient):
    """``log E exp(-s Q)``."""
    m = 1 + s * values
    b = centre + s * gradient
    # log1p of each term: the root of a product would leave its branch.
    return np.sum(-np.log1p(s * values) / 2 + b * b / m / 2 - centre**2 / 2, axis=-1)


def mean(s, values, centre, gradient):
    """E[Q] under the law tilted by exp(-s Q)."""
    m = 1 + s * values
    y = -(centre + s * gradient) / m
    return np.sum(values * (1 / m + y**2) / 2 + gradient * y)


def saddle(cutoff, values, centre, gradient=0.0):
    """The s > 0 where E[Q] is the cutoff."""
    values, centre = np.asarray(values, float), np.asarray(centre, float)
    gradient = np.broadcast_to(np.asarray(gradient, float), values.shape)

    def gap(t):
        return mean(np.exp(t), values, centre, gradient) - cutoff

    return float(np.exp(optimize.brentq(gap, -30, 60, xtol=1e-13)))


def log_volume(cutoff, values, centre, gradient=0.0, points=4001):
    """log P(Q <= cutoff), from ``1/(2 pi i)`` times the integral of exp(K(-s) + s cutoff) / s."""
    values, centre = np.asarray(values, float), np.asarray(centre, float)
    gradient = np.broadcast_to(np.asarray(gradient, float), values.shape)
    s0 = saddle(cutoff, values, centre, gradient)
    m = 1 + s0 * values
    y = -(centre + s0 * gradient) / m
    slope = values * y + gradient
    curvature = np.sum(values**2 / m**2 / 2 + slope**2 / m)
    # Stay right of the pole at 0 and the branch points: the parabola bends at the saddle's scale.
    width = 1 / np.sqrt(curvature)
    v = np.linspace(-9, 9, points)
    t = np.sinh(v) / np.sinh(1)
    bend = 0.5 * width**2 / s0
    s = s0 + 1j * width * t - bend * t**2
    ds = (1j * width - 2 * bend * t) * np.cosh(v) / np.sinh(1)
    exponent = np.array([log_transform(x, values, centre, gradient) + x * cutoff for x in s])
    top = log_transform(s0, values, centre, gradient) + s0 * cutoff
    integrand = np.exp(exponent - top) / s * ds
    total = (integrand.sum() * (v[1] - v[0]) / (2j * np.pi)).real
    return float(top + np.log(total))
