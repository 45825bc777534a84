"""Radial integrals: closed forms, recurrences and high-precision quadrature, from n = 1 to 1e8."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import integrate, special

from landscape.errors import UsageError
from landscape.volume.radial_integrals import log_radial_integral, reach, typical_radius

EPS = np.finfo(float).eps
FRACTIONS = (1e-8, 1e-3, 0.3, 0.9, 1.0, 1.1, 3.0, np.inf)


def by_mpmath(n, a, b, end):
    """The same with 40 digits: tanh-sinh panels around the largest value, found by bisection."""
    with mpmath.workdps(40):
        a, b, p = mpmath.mpf(a), mpmath.mpf(b), n - 1

        def f(r):
            return (p * mpmath.log(r) if p else mpmath.mpf(0)) - a * r * r / 2 - b * r

        if a:
            mode = (-b + mpmath.sqrt(b * b + 4 * a * p)) / (2 * a)
        else:
            mode = p / b if b > 0 else mpmath.inf
        end = mpmath.mpf(end) if math.isfinite(end) else mpmath.inf
        top = min(max(mode, 0), end)
        largest = f(top) if top else mpmath.mpf(0)

        def edge(sign):
            last = top if sign < 0 else end - top
            width = (top or 1) * mpmath.mpf("1e-14")
            while width < last and largest - f(top + sign * width) < 70:
                width *= 2
            return top + sign * min(width, last)

        low, high = edge(-1) if top else mpmath.mpf(0), edge(1)
        points = sorted({low + (top - low) * i / 8 for i in range(9)})
        points += sorted({top + (high - top) * i / 8 for i in range(1, 9)} - {top})

        def integrand(r):
            return mpmath.exp(f(r) - largest) if r or not p else mpmath.mpf(0)

        return float(largest + mpmath.log(mpmath.quad(integrand, points)))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40, 1000])
@pytest.mark.parametrize("a", [1e-6, 1.0, 1e6])
def test_without_a_linear_term_it_is_an_incomplete_gamma_function(n, a):
    for fraction in FRACTIONS[3:]:
        end = fraction * math.sqrt(n / a)
        expected = (
            (n / 2 - 1) * math.log(2)
            - n / 2 * math.log(a)
            + special.gammaln(n / 2)
            + math.log(special.gammainc(n / 2, a * end**2 / 2))
        )
        found = float(log_radial_integral(n, a, 0.0, end))
        assert found == pytest.approx(expected, abs=1e-11 + 1e-14 * abs(expected))


@pytest.mark.parametrize("n", [1, 2, 5, 300])
def test_without_a_quadratic_term_it_is_a_gamma_function_or_a_power(n):
    ends = np.array([1e-9, 0.5, 3.0])
    assert log_radial_integral(n, 0.0, 0.0, ends) == pytest.approx(n * np.log(ends) - math.log(n))
    for b in (1e-3, 1.0, 1e5):
        expected = special.gammaln(n) - n * math.log(b)
        assert float(log_radial_integral(n, 0.0, b, np.inf)) == pytest.approx(expected, abs=1e-10)
        end = 0.8 * n / b
        expected += math.log(special.gammainc(n, b * end))
        assert float(log_radial_integral(n, 0.0, b, end)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("b", [0.0, 1e-9, 0.7, -0.7, 30.0, -30.0, 1e5, -1e3])
@pytest.mark.parametrize("a", [1e-4, 1.0, 1e4])
def test_in_one_dimension_it_is_a_difference_of_normal_tails(a, b):
    for fraction in FRACTIONS:
        end = fraction * float(typical_radius(1, a, b))
        x, y = b / math.sqrt(a), math.sqrt(a) * end + b / math.sqrt(a)
        if x > 0:
            x, y = -y, -x  # The tail on which nothing cancels.
        upper, lower = special.log_ndtr(y), special.log_ndtr(x)
        gap = math.log(-math.expm1(lower - upper)) if lower < upper else -math.inf
        expected = math.log(2 * math.pi / a) / 2 + b * b / (2 * a) + upper + gap
        cancelled = EPS * (1 + abs(upper) + b * b / a) / max(-math.expm1(lower - upper), EPS)
        found = float(log_radial_integral(1, a, b, end))
        if cancelled < 1e-3:
            assert found == pytest.approx(expected, abs=1e-11 + 10 * cancelled)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("b", [-8.0, -1.0, 0.0, 2.0, 40.0])
def test_low_dimensions_by_adaptive_quadrature(n, b):
    for end in (0.01, 1.0, 6.0, 30.0):
        expected, _ = integrate.quad(
            lambda r: r ** (n - 1) * math.exp(-r * r / 2 - b * r),
            0,
            end,
            points=[min(end, float(typical_radius(n, 1.0, b)))],
            epsabs=0,
            epsrel=1e-12,
            limit=500,
        )
        found = float(log_radial_integral(n, 1.0, b, end))
        assert found == pytest.approx(math.log(expected), abs=1e-10)


def test_integration_by_parts_holds_everywhere():
    """``R^n e^(-h(R)) = n I_n - a I_(n+2) - b I_(n+1)``, the noncentral moments' recurrence."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 100, 1000):
        a = 10 ** rng.uniform(-3, 3, 500)
        b = rng.choice([-1, 1], 500) * np.sqrt(n * a) * 10 ** rng.uniform(-3, 1, 500)
        end = typical_radius(n, a, b) * 10 ** rng.uniform(-2, 0.5, 500)
        boundary = n * np.log(end) - a * end**2 / 2 - b * end
        first, second, third = (log_radial_integral(n + i, a, b, end) for i in range(3))
        with np.errstate(under="ignore"):
            terms = np.array(
                [
                    n * np.ones(500),
                    -a * np.exp(third - first),
                    -b * np.exp(second - first),
                    -np.exp(boundary - first),
                ]
            )
        size = np.abs(terms).max(0) * (1 + np.abs(first) + a * end**2 + np.abs(b) * end)
        assert (np.abs(terms.sum(0)) < 1e-12 * size).all()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 10**6, 10**8])
def test_high_precision_quadrature(n):
    cases = [(1.0, -1.0, 1.0), (1.0, 30.0, 1e-6), (1.0, -30.0, 0.9), (0.0, 1.0, np.inf)]
    cases += [(1e6, -1.0, np.inf), (1.0, 1e5, 1.1), (1e-6, -1e-3, 0.5)]
    for a, slope, fraction in cases:
        b = slope * math.sqrt(n)
        end = fraction * float(typical_radius(n, a, b))
        expected = by_mpmath(n, a, b, end)
        radius = min(end, float(typical_radius(n, a, b)))
        size = abs(n * math.log(radius)) + a * radius**2 + abs(b) * radius
        found = float(log_radial_integral(n, a, b, end))
        assert found == pytest.approx(expected, abs=1e-12 + 4 * EPS * size), (a, b, end)


@pytest.mark.parametrize("n", [1, 2, 50, 10**8])
def test_extremes_and_order(n):
    ends = np.r_[0.0, 1e-300, np.geomspace(1e-10, 1e10, 200) * math.sqrt(n), np.inf]
    for b in (0.0, 1e5 * math.sqrt(n), -1e5 * math.sqrt(n)):
        values = log_radial_integral(n, 1.0, b, ends)
        assert values[0] == -np.inf
        assert np.isfinite(values[1:]).all()
        rounding = 4 * EPS * np.abs(values[2:]).max()
        assert (np.diff(values[1:]) >= -rounding).all()
        far = float(reach(n, 1.0, b))
        assert values[-1] - float(log_radial_integral(n, 1.0, b, far)) <= 1e-13 + rounding


def test_arguments_broadcast_and_are_checked():
    found = log_radial_integral(3, 1.0, np.zeros((4, 1)), np.ones(5))
    assert found.shape == (4, 5)
    assert (found == found[0, 0]).all()
    for arguments in ((0, 1.0, 0.0, 1.0), (2, -1.0, 0.0, 1.0), (2, 1.0, np.nan, 1.0)):
        with pytest.raises(UsageError, match="out of range; expected"):
            log_radial_integral(*arguments)
    with pytest.raises(UsageError, match="out of range"):
        log_radial_integral(2, 1.0, 0.0, -1.0)
    with pytest.raises(UsageError, match="diverges; expected"):
        log_radial_integral(2, 0.0, 0.0, np.inf)
    assert np.isinf(reach(2, 0.0, -1.0))
    assert np.isinf(typical_radius(2, 0.0, 0.0))
