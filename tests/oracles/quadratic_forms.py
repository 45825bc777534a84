"""Laws of small quadratic forms by other roads than the Bromwich integral.

A term is ``(a, c, g)``: q(z) = a (z - c)^2 / 2 + g (z - c) with z ~ N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from landscape.quadratic_form import QuadraticForm

Term = tuple[float, float, float]

_GAUSS = np.polynomial.legendre.leggauss(40)
_FAR = 39.0  # Beyond which a standard normal number never falls.


def form_of(terms: Sequence[Term]) -> QuadraticForm:
    """The form whose coordinates are these terms."""
    a, c, g = np.array(terms, dtype=float).T
    return QuadraticForm(
        eigenvalues=a, multiplicity=np.ones(len(a)), location=c * c, cross=c * g, slope=g * g
    )


def log_gamma_cdf(shape: float, x: float) -> float:
    """log of the regularised lower incomplete gamma function: a series of positive terms."""
    if x <= 0:
        return -np.inf
    if x > shape + 1:
        return math.log1p(-special.gammaincc(shape, x))
    total = term = 1.0
    k = 0
    while term > 1e-18 * total:
        k += 1
        term *= x / (shape + k)
        total += term
    return shape * math.log(x) - x - math.lgamma(shape + 1) + math.log(total)


def log_scaled_chi2_cdf(a: float, m: float, e: float) -> float:
    """log P(a chi2_m / 2 <= e) for a > 0."""
    return log_gamma_cdf(m / 2, e / a)


def log_positive_cdf(a, m, l, e: float, *, terms: int) -> float:  # noqa: E741
    """log P of a positive spectrum: a mixture of chi-square laws with positive weights.

    Source: Ruben, Ann. Math. Statist. 33 (1962), with the scale of the smallest eigenvalue.
    """
    a, m, l = (np.asarray(v, dtype=float) for v in (a, m, l))  # noqa: E741
    beta = a.min()
    ratio = 1 - beta / a
    k = np.arange(1, terms)[:, None]
    steps = 0.5 * (m * ratio**k + k * l * (1 - ratio) * ratio ** (k - 1)).sum(1)
    c = np.zeros(terms)
    c[0] = 1
    for j in range(1, terms):
        c[j] = steps[:j][::-1] @ c[:j] / j
    shapes = m.sum() / 2 + np.arange(terms)
    logs = np.array([log_gamma_cdf(shape, e / beta) for shape in shapes])
    with np.errstate(divide="ignore"):
        logs += np.log(c)
    assert logs[-1] < logs.max() - 40, "too few terms"
    return float(0.5 * (m @ np.log(beta / a) - l.sum()) + special.logsumexp(logs))


def exponential_cdf(a: Sequence[float], e: float) -> float:
    """P(sum a_i E_i <= e) for independent unit exponentials: distinct a of any sign, m = 2 each."""
    tail = 0.0
    for i, x in enumerate(a):
        if x * e > 0 or (e == 0 and x > 0):
            weight = math.prod(x / (x - y) for j, y in enumerate(a) if j != i)
            tail += weight * math.exp(-e / x)
    return tail if e < 0 else 1 - tail


def cdf(terms: Sequence[Term], e: float) -> float:
    """P(sum of one or two terms <= e): exact in the last, Gauss-Legendre over the other."""
    last_a, _, last_g = terms[-1]
    if len(terms) == 1:
        return float(sum(_normal_mass(*ends) for ends in _below(*terms[0], np.asarray(e))))
    if last_a < 0:
        return 1 - cdf([(-a, c, -g) for a, c, g in terms], -e)
    a, c, g = terms[0]
    total = 0.0
    for left, right in _below(a, c, g, np.asarray(e + 0.5 * last_g**2 / last_a)):
        left, right = left.clip(-12, 12), right.clip(-12, 12)
        # Roots of the distance to the ends are smooth in the sine's angle.
        panels = np.linspace(-np.pi / 2, np.pi / 2, 61)
        middle, half = (panels[1:] + panels[:-1])[:, None] / 2, (panels[1] - panels[0]) / 2
        angle = middle + half * _GAUSS[0]
        z = (left + right) / 2 + (right - left) / 2 * np.sin(angle)
        density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (right - left) / 2 * np.cos(angle)
        level = e - 0.5 * a * (z - c) ** 2 - g * (z - c)
        inner = sum(_normal_mass(*ends) for ends in _below(*terms[1], level))
        total += float(((density * inner) @ _GAUSS[1]).sum() * half)
    return total


def _below(a: float, c: float, g: float, e: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Intervals of z where q(z) <= e, within the reach of a normal number."""
    low, high = np.full(e.shape, -_FAR), np.full(e.shape, _FAR)
    if a == 0:
        if g == 0:
            return [(low, np.where(e >= 0, high, low))]
        root = c + np.where(np.isinf(e), np.inf, e / g)
        return [(low, root.clip(-_FAR, _FAR))] if g > 0 else [(root.clip(-_FAR, _FAR), high)]
    square = g * g + 2 * a * e
    reach = np.sqrt(np.maximum(square, 0)) / abs(a)
    left = (c - g / a - reach).clip(-_FAR, _FAR)
    right = (c - g / a + reach).clip(-_FAR, _FAR)
    if a > 0:
        return [(left, right)]
    return [(low, left), (right, high)]


def _normal_mass(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mass of N(0, 1) between two points, without cancellation where they are near."""
    middle, half = (left + right) / 2, (right - left) / 2
    near = half < 0.5
    z = middle[..., None] + np.where(near, half, 0.0)[..., None] * _GAUSS[0]
    narrow = half * (np.exp(-(z**2) / 2) @ _GAUSS[1]) / np.sqrt(2 * np.pi)
    flip = np.where(middle > 0, -1.0, 1.0)
    wide = np.abs(special.ndtr(flip * right) - special.ndtr(flip * left))
    return np.where(near, narrow, wide)
