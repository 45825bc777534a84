"""One-dimensional integrals along rays, in log space: ``r^(n-1) exp(-a r^2 / 2 - b r)``.

The mass of a Gaussian along a ray. With ``p = n - 1`` the log-integrand
``f(r) = p log r - a r^2 / 2 - b r`` is concave, so all of its mass lies in one interval about its
largest value on [0, R], whose ends have closed-form bounds. Gauss-Legendre nodes on both sides of
the largest value do the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.errors import UsageError

__all__ = ["log_radial_integral", "reach", "typical_radius"]

FloatArray = NDArray[np.float64]

_DEPTH = 45.0  # Where the integrand is below exp(-45) of its largest value it is left out.
# 60 nodes reach 1e-15; the rest is reserve.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def log_radial_integral(
    n: int, quadratic: ArrayLike, linear: ArrayLike, radius: ArrayLike
) -> FloatArray:
    """``log of the integral from 0 to R of r^(n-1) exp(-a r^2 / 2 - b r) dr``, in nats.

    Accurate to about 1e-13 of the integral plus float64's rounding of the log-integrand's largest
    value, which is 1e-16 times its size (about ``n log n``).

    Args:
        n: dimension, at least 1.
        quadratic: a >= 0, any shape that broadcasts with the others.
        linear: b, of any sign.
        radius: R in [0, inf]; the integral is 0 (its log -inf) at R = 0.

    Returns:
        the logs, in the arguments' common shape.

    Raises:
        UsageError: an argument is out of range, or the integral diverges (R = inf with a = 0 and
            b <= 0).

    Cost: 160 values of the integrand for each integral.
    """
    a, b, end = _arguments(n, quadratic, linear, radius)
    if bool(((a == 0) & (b <= 0) & np.isinf(end)).any()):
        raise UsageError(
            "a radial integral to infinity without decay (quadratic = 0, linear <= 0) diverges; "
            "expected decay or a finite radius. Give the ray an end"
        )
    empty = end == 0
    end = np.where(empty, 1.0, end)
    top, unit, slope, a_unit, lower, upper = _frame(n, a, b, end)
    p = n - 1
    total = np.zeros(a.shape)
    for width, side in ((lower, -1.0), (upper, 1.0)):
        y = side * width[..., None] * _NODES
        exponent = p * (np.log1p(y) - y) + slope[..., None] * y - a_unit[..., None] * y**2 / 2
        total += width * (np.exp(exponent) @ _WEIGHTS)
    largest = (p * np.log(top) if p else 0.0) - a * top**2 / 2 - b * top
    return np.where(empty, -np.inf, largest + np.log(unit) + np.log(total))


def typical_radius(n: int, quadratic: ArrayLike, linear: ArrayLike) -> FloatArray:
    """Where ``r^n exp(-a r^2 / 2 - b r)`` is largest: the ray's mass lies about there.

    Args:
        n: dimension, at least 1.
        quadratic: a >= 0.
        linear: b; inf is returned where a = 0 and b <= 0.

    Returns:
        positive radii, in the arguments' common shape.
    """
    a, b, _ = _arguments(n, quadratic, linear, np.inf)
    return _stationary(n, a, b)


def reach(n: int, quadratic: ArrayLike, linear: ArrayLike) -> FloatArray:
    """The radius beyond which the integrand is below exp(-45) of its largest value.

    Beyond it there is less than 1e-17 of the whole integral.

    Args:
        n: dimension, at least 1.
        quadratic: a >= 0.
        linear: b; inf is returned where a = 0 and b <= 0.

    Returns:
        positive radii, in the arguments' common shape.
    """
    a, b, end = _arguments(n, quadratic, linear, np.inf)
    decays = (a > 0) | (b > 0)
    top, unit, _, _, _, upper = _frame(n, np.where(decays, a, 1.0), b, end)
    return np.where(decays, top + unit * upper, np.inf)


def _arguments(
    n: int, quadratic: ArrayLike, linear: ArrayLike, radius: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    a, b, end = np.broadcast_arrays(
        *(np.asarray(value, dtype=np.float64) for value in (quadratic, linear, radius))
    )
    if n < 1 or not (np.isfinite(a) & (a >= 0) & np.isfinite(b) & (end >= 0)).all():
        raise UsageError(
            "a radial integral's arguments are out of range; expected n >= 1, quadratic >= 0, a "
            "finite linear term and a radius >= 0. Check the curvature and the anchor for NaN"
        )
    return a, b, end


def _stationary(p: float, a: FloatArray, b: FloatArray) -> FloatArray:
    """The root r >= 0 of ``p - b r - a r^2``, without cancellation; inf where there is none."""
    root = np.hypot(b, 2 * np.sqrt(a * p))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.where(b > 0, 2 * p / (b + root), (root - b) / (2 * a))
    return np.where((a == 0) & (b <= 0), np.inf, found)


def _frame(
    n: int, a: FloatArray, b: FloatArray, end: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Where the integrand's mass lies, for ends > 0 and integrals that converge.

    With r = top + unit y the log-integrand is ``f(top) + p (log(1 + y) - y) + slope y
    - a_unit y^2 / 2``, and below ``f(top) - _DEPTH`` outside [-lower, upper]: the lower bound's
    curvature is at least that at the top, the upper one's follows from
    ``y - log(1 + y) >= y^2 / (2 + 4 y / 3)``.

    Returns:
        top, unit, slope, a_unit, lower, upper.
    """
    p = n - 1
    mode = _stationary(p, a, b)
    top = np.minimum(mode, end)
    # Only at n = 1 can the largest value be at 0: it then has no lower side, and no own scale.
    origin = top == 0
    decay = np.where(origin, b + np.hypot(b, np.sqrt(2 * _DEPTH * a)), 1.0)
    unit = np.where(origin, np.minimum(2 * _DEPTH / decay, end), top)
    a_unit = a * unit**2
    edge = np.maximum(p - a_unit - b * unit, 0.0)
    slope = np.where(origin, -b * unit, np.where(mode < end, 0.0, edge))
    with np.errstate(divide="ignore"):
        lower = 2 * _DEPTH / (slope + np.sqrt(slope**2 + 2 * _DEPTH * (a_unit + p)))
        from_linear = _DEPTH / p * (2 / 3 + np.sqrt(4 / 9 + 2 * p / _DEPTH)) if p else np.inf
        from_quadratic = np.sqrt(2 * _DEPTH / a_unit)
    lower = np.where(origin, 0.0, np.minimum(lower, 1.0))
    upper = np.where(origin, 1.0, np.minimum(from_linear, from_quadratic))
    with np.errstate(over="ignore"):
        room = np.where(origin, 1.0, (end - top) / unit)
    return top, unit, slope, a_unit, lower, np.minimum(upper, room)
