"""Bromwich integrals of quadratic forms along hyperbolas of steepest descent.

At ``s = s_0 (1 + d)`` the integrand ``exp(K(-s) + s e) / s`` is its value at s_0 times
``exp(E(d)) / (1 + d)`` with, in the names of :mod:`landscape.quadratic_form` at s_0,

    E(d) = (s_0 e - s_0 E[Q]) d - 1/2 sum m (log(1 + r d) - r d) + 1/2 d^2 sum c / (1 + r d),

which keeps its digits however large the dimension is. The contour crosses the real axis at d = 0,
follows the path of steepest descent nearby and ends at a fixed angle from the vertical. At less
than pi/4 the modulus of every factor of a positive spectrum falls all along it, that of a Gaussian
factor exp(y s^2 / 2) included, which grows along the parabolas that fit positive eigenvalues. On
every vertical line the modulus falls for every spectrum: so the contour may be left for one where
the integrand has become negligible. The trapezoidal rule converges geometrically on it.

Sources: Rice, SIAM J. Sci. Stat. Comput. 1 (1980); Weideman and Trefethen, Math. Comp. 76 (2007).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BromwichIntegral", "integrate", "log1p"]

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_ANGLE = np.pi / 7  # Between the ends of the contour and the vertical.
_FALLEN = np.exp(-46.0)  # Part of its largest value at which the integrand is negligible.
_RISEN = 20.0  # Growth of the integrand that tells that the contour opens to the wrong side.
_FURTHEST = 300.0  # Largest parameter of the hyperbola: exp(300) of its radii.
_POINTS = 32  # Evaluated at a time while the end of the contour is looked for.
_MOST = 40_000  # Points at which the rule gives up.
_TOLERANCE = 1e-11  # Relative change by halved steps; what is left is about its square.
_ROUNDING = 1e-14  # Of the integral of the modulus.
_BLOCK = 1 << 20  # Points times eigenvalues held at a time.


@dataclass(frozen=True, kw_only=True)
class BromwichIntegral:
    """``1/(2 pi i)`` times the integral of ``exp(E(d)) / (1 + d)`` over d, for p sets of weights.

    Attributes:
        value: the integral, (p,).
        error: its estimated error, rounding included, (p,); infinite without convergence.
        density: the same without the pole, (p,); NaN where that diverges.
    """

    value: FloatArray
    error: FloatArray
    density: FloatArray


def log1p(x: NDArray[np.float64 | np.complex128]) -> NDArray[np.float64 | np.complex128]:
    """log(1 + x) on the principal branch, exact to rounding for small complex x too."""
    if not np.iscomplexobj(x):
        return np.asarray(np.log1p(x))
    real, imag = x.real, x.imag
    logs = np.empty(x.shape, dtype=np.complex128)
    logs.real = 0.5 * np.log1p(real * (2 + real) + imag * imag)
    logs.imag = np.arctan2(imag, 1 + real)
    return logs


def integrate(
    r: FloatArray,
    m: FloatArray,
    c: FloatArray,
    *,
    linear: FloatArray,
    variance: float,
    third: float,
    weight: float,
) -> BromwichIntegral:
    """Integrate along the hyperbola through d = 0, for several multiplicities at once.

    Args:
        r: (k,).
        m: multiplicities (k, p); the contour is made for the first column.
        c: (k,).
        linear: ``s_0 e - s_0 E[Q]``, (p,); 1 at the saddle point of the integrand.
        variance: ``s_0^2 Var[Q]`` of the first column.
        third: ``s_0^3`` times its third cumulant.
        weight: how much of the density matters: ``|s_0 e|``.

    Cost: 20 to 200 points times k (p + 10).
    """

    def exponent(d: ComplexArray) -> ComplexArray:
        total = d[:, None] * linear
        step = max(1, _BLOCK // max(1, len(m)))
        for start in range(0, len(d), step):
            part = slice(start, start + step)
            x = d[part, None] * r
            total[part] -= 0.5 * ((log1p(x) - x) @ m)
            total[part] += 0.5 * (d[part] ** 2 * ((1 / (1 + x)) @ c))[:, None]
        return total

    # The pole's factor 1 / (1 + d) takes part in the saddle like an eigenvalue of multiplicity 2.
    width = (variance + 1) ** -0.5
    bend = (-third - 2) / (6 * (variance + 1))
    side = -1.0 if bend <= 0 else 1.0
    near = np.sin(_ANGLE) / (2 * max(abs(bend), 1e-300) * np.cos(_ANGLE) ** 2)
    # Steepest descent nearby can lead to the wrong side far away; then the nearly straight other.
    for way, radius in ((side, min(near, 10 * width)), (-side, 10 * width)):
        rule = _trapezoid(_along(exponent, radius, way), width / radius, weight)
        if rule is not None:
            return rule
    unknown = np.full(len(linear), np.nan)
    return BromwichIntegral(value=unknown, error=unknown + np.inf, density=unknown)


Points = Callable[[FloatArray], tuple[ComplexArray, FloatArray]]


def _along(exponent: Callable[[ComplexArray], ComplexArray], radius: float, way: float) -> Points:
    """The integrand on ``d(t) = radius (way sin(angle) (cosh t - 1) + i cos(angle) sinh t)``."""
    sine, cosine = way * np.sin(_ANGLE), np.cos(_ANGLE)

    def points(t: FloatArray) -> tuple[ComplexArray, FloatArray]:
        """With and without the pole: integrands (2, t, p), and moduli before d'(t), (t, p)."""
        d = radius * (sine * (np.cosh(t) - 1) + 1j * cosine * np.sinh(t))
        slope = radius * (sine * np.sinh(t) + 1j * cosine * np.cosh(t))
        with np.errstate(all="ignore"):
            bare = np.exp(exponent(d))
            whole = bare / (1 + d)[:, None]
            return np.stack([whole, bare]) * slope[:, None], np.abs(whole)

    return points


def _trapezoid(points: Points, width: float, weight: float) -> BromwichIntegral | None:
    """The trapezoidal rule with halved steps; None where the contour is no good.

    Args:
        points: the integrand on the upper half of the contour; the lower half is its conjugate.
        width: of the saddle, in the parameter t.
        weight: how much of the density matters.
    """
    step = min(width / 2, 0.25)
    blocks: list[ComplexArray] = []
    end, first, ended = 0, np.zeros(0), False
    while not ended and end * step <= _FURTHEST:
        values, modulus = points(step * np.arange(end, end + _POINTS, dtype=np.float64))
        with np.errstate(all="ignore"):
            size = np.maximum(np.abs(values[0]), weight * np.abs(values[1]))
        first = first if blocks else size[0]
        negligible = (size <= _FALLEN * first).all(1)
        ended = bool(negligible.any())
        count = int(negligible.argmax()) + 1 if ended else _POINTS
        if not np.isfinite(values[:, :count]).all() or modulus[:count].max() > _RISEN:
            return None
        blocks.append(values[:, :count])
        end += count
    values = np.concatenate(blocks, axis=1)
    total = step / np.pi * (values.imag.sum(1) - values[:, 0].imag / 2)
    rounding = _ROUNDING * step / np.pi * np.abs(values).sum(1)
    good = np.zeros(total.shape, dtype=np.bool_)
    while end <= _MOST and not good.all():
        middle = step / np.pi * points(step * np.arange(0.5, end))[0].imag.sum(1)
        change = np.abs(middle - total) / 2
        total = (total + middle) / 2
        # The density enters the slope d log P / d log e with the weight.
        size = np.abs(total)
        size[1] += size[0] / weight if weight else np.inf
        good = change <= _TOLERANCE * size + rounding
        step, end = step / 2, 2 * end
    if not good[0].all():
        return None
    density = np.where(good[1], total[1], np.nan)
    return BromwichIntegral(value=total[0], error=rounding[0], density=density)
