"""log V of singular losses under N(0, I), in closed form or by one-dimensional integrals."""

from __future__ import annotations

import numpy as np
from scipy import integrate, special


def power(cutoff: float, k: int) -> float:
    """x^(2k) in one dimension: V = erf(e^(1/2k) / sqrt 2)."""
    return float(np.log(special.erf(cutoff ** (1 / (2 * k)) / np.sqrt(2))))


def product(cutoff: float) -> float:
    """x^2 y^2, or xy of the (1, 1, 1, 0) network: V = 2/pi times the integral of K0 to sqrt e."""
    a = np.sqrt(cutoff)
    # K0 has a logarithm at 0: its integral by parts leaves smooth integrands.
    value, _ = integrate.quad(lambda t: special.k0(t), 0, a, epsabs=0, epsrel=1e-12, limit=500)
    return float(np.log(2 / np.pi * value))


def two_products(cutoff: float) -> float:
    """(a1 b1 + a2 b2)^2: V = 1 - exp(-sqrt e)."""
    return float(np.log(-np.expm1(-np.sqrt(cutoff))))


def outer_product(cutoff: float) -> float:
    """|a|^2 |b|^2 for a, b in R^2, the (2, 1, 2, 0) network: V = 1 - sqrt e K1(sqrt e)."""
    a = np.sqrt(cutoff)
    # 1 - a K1(a) is the integral of t K0(t), without cancellation.
    value, _ = integrate.quad(lambda t: t * special.k0(t), 0, a, epsabs=0, epsrel=1e-12, limit=500)
    return float(np.log(value))


def hyperbola(cutoff: float) -> float:
    """(xy - 1)^2 near (1, 1), the (1, 1, 1, 1) network: V = 1/2pi int K0 over 1 +- sqrt e."""
    a = np.sqrt(cutoff)
    value, _ = integrate.quad(special.k0, 1 - a, 1 + a, epsabs=0, epsrel=1e-12)
    return float(np.log(value / (2 * np.pi)))


def quadratic(cutoff: float, n: int) -> float:
    """|z|^2 / 2 in n dimensions, a chi-square law: lambda = n / 2."""
    x, shape = cutoff, n / 2
    total = term = 1.0
    k = 0
    while term > 1e-18 * total:
        k += 1
        term *= x / (shape + k)
        total += term
    return float(shape * np.log(x) - x - special.gammaln(shape + 1) + np.log(total))


def zero_matrix(
    cutoffs: np.ndarray,
    m: int,
    h: int,
    n: int,
    *,
    regular: int = 0,
    samples: int = 20000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """|A B|^2 for A (m, h), B (h, n), h <= m: the reduced-rank network (m, h, n, 0).

    With ``regular`` the squares of so many further coordinates are added. In good coordinates the
    loss of (m + r, h + r, n + r, r) is that with r (m + n + r) of them.

    Given A, it is a sum of h chi-square laws of n degrees, weighted by the eigenvalues of A^T A; of
    these, which follow the Laguerre law, logarithms are drawn uniformly and weighed.

    Returns:
        log V and its standard error.
    """
    draws = np.random.default_rng(seed)
    cutoffs = np.asarray(cutoffs)
    low, high = np.log(cutoffs.min()) - 12, np.log(60.0)
    t = draws.uniform(low, high, size=(samples, h))
    x = np.exp(t)
    log_density = ((m - h - 1) / 2) * t.sum(1) - x.sum(1) / 2 + t.sum(1)
    for i in range(h):
        for j in range(i):
            log_density += np.log(np.abs(x[:, i] - x[:, j]))
    # The normalisation of the Laguerre law of unordered eigenvalues (Muirhead 1982, 3.2.18).
    gamma = sum(special.gammaln((m - i) / 2) + special.gammaln((h - i) / 2) for i in range(h))
    constant = h * h / 2 * np.log(np.pi) - m * h / 2 * np.log(2)
    constant -= gamma + h * (h - 1) / 2 * np.log(np.pi) + special.gammaln(h + 1)
    degrees = np.array([n] * h + [regular] * (regular > 0))
    spread = np.concatenate([x, np.ones((samples, int(regular > 0)))], axis=1)
    log_weight = log_density + constant + h * np.log(high - low)
    values, errors = [], []
    for cutoff in cutoffs:
        terms = log_weight + _log_cdf(spread, degrees, cutoff)
        top = terms.max()
        parts = np.exp(terms - top)
        mean = parts.mean()
        values.append(top + np.log(mean))
        errors.append(parts.std(ddof=1) / np.sqrt(samples) / mean)
    return np.array(values), np.array(errors)


def _log_cdf(x: np.ndarray, n: np.ndarray, cutoff: float) -> np.ndarray:
    """log P(sum_i x_i chi2_(n_i) <= cutoff) by the inverse Laplace transform, many rows at once."""
    # The saddle of -n/2 sum log(1 + 2 s x) + s cutoff - log s, by bisection in log s.
    low, high = np.full(len(x), -60.0), np.full(len(x), 80.0)
    for _ in range(80):
        middle = (low + high) / 2
        s = np.exp(middle)
        slope = cutoff - (n * x / (1 + 2 * s[:, None] * x)).sum(1) - 1 / s
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    s0 = np.exp((low + high) / 2)
    bent = (2 * n * x**2 / (1 + 2 * s0[:, None] * x) ** 2).sum(1) + 1 / s0**2
    width = 1 / np.sqrt(bent)
    v = np.linspace(-4.2, 4.2, 101)
    t = np.sinh(v)
    bend = 0.1 * width**2 / s0
    s = s0[:, None] + 1j * width[:, None] * t - bend[:, None] * t**2
    ds = (1j * width[:, None] - 2 * bend[:, None] * t) * np.cosh(v)
    exponent = s * cutoff - np.log(s)
    top = s0 * cutoff - np.log(s0)
    for i in range(x.shape[1]):
        exponent = exponent - n[i] / 2 * np.log1p(2 * s * x[:, i : i + 1])
        top = top - n[i] / 2 * np.log1p(2 * s0 * x[:, i])
    total = (np.exp(exponent - top[:, None]) * ds).sum(1) * (v[1] - v[0]) / (2j * np.pi)
    return top + np.log(np.maximum(total.real, 1e-300))
