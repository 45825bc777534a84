"""The learning coefficient of losses whose log-volume is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import singular_volumes as sv

from landscape.errors import UsageError
from landscape.flat.learning import effective_dimension, learning_coefficient

CASES = {
    "x^4": (lambda e: sv.power(e, 2), 1 / 4, 1),
    "x^6": (lambda e: sv.power(e, 3), 1 / 6, 1),
    "x^2 y^2, reduced rank (1, 1, 1, 0)": (sv.product, 1 / 2, 2),
    "(a1 b1 + a2 b2)^2": (sv.two_products, 1 / 2, 1),
    "|a|^2 |b|^2, reduced rank (2, 1, 2, 0)": (sv.outer_product, 1, 2),
    "(xy - 1)^2, reduced rank (1, 1, 1, 1)": (sv.hyperbola, 1 / 2, 1),
    "24 dimensions, reduced rank (5, 4, 5, 4)": (lambda e: sv.quadratic(e, 24), 12, 1),
}


@pytest.mark.parametrize("span", [(-4, -1), (-6, -2), (-8, -3), (-12, -6)], ids=str)
@pytest.mark.parametrize("name", list(CASES))
def test_within_the_reported_error(name, span):
    volume, expected, multiplicity = CASES[name]
    cutoffs = np.logspace(*span, 9)
    found = learning_coefficient(cutoffs, [volume(e) for e in cutoffs], multiplicity=multiplicity)
    # Rounding alone is left of the error where the asymptotic law is exact.
    assert abs(found.value - expected) <= found.stderr + 1e-9
    assert found.stderr < 0.25 * expected
    assert found.n_cutoffs == 9
    assert (found.lowest, found.highest) == pytest.approx((cutoffs[0], cutoffs[-1]))
    assert found.reason == ""


def test_the_closed_form_of_the_table():
    assert math.exp(sv.product(1e-4)) == pytest.approx(0.0364220, abs=5e-8)


@pytest.mark.parametrize(
    ("shape", "regular", "expected", "multiplicity"),
    [
        ((5, 4, 5), 0, 8, 1),  # (5, 4, 5, 0)
        ((2, 1, 2), 0, 1, 2),  # (2, 1, 2, 0)
        ((3, 2, 3), 16, 10.5, 1),  # (5, 4, 5, 2): 2 (5 + 5 - 2) coordinates are regular.
        ((3, 2, 3), 0, 2.5, 1),
        ((5, 5, 5), 75, 47, 2),  # (10, 10, 10, 5)
    ],
    ids=str,
)
def test_reduced_rank(shape, regular, expected, multiplicity):
    cutoffs = np.logspace(-8, -5, 5)
    value, stderr = sv.zero_matrix(cutoffs, *shape, regular=regular, samples=10000)
    found = learning_coefficient(cutoffs, value, stderr, multiplicity=multiplicity)
    assert abs(found.value - expected) < 2 * found.stderr
    assert found.stderr < 0.03 * expected


def test_the_sampled_volume_agrees_with_the_closed_form():
    value, stderr = sv.zero_matrix(np.array([1e-3]), 2, 1, 2, samples=50000)
    assert abs(value[0] - sv.outer_product(1e-3)) < 4 * stderr[0]


def test_noise_of_known_size_is_reported():
    generator = np.random.default_rng(0)
    cutoffs = np.logspace(-8, -2, 9)
    exact = 3 * np.log(cutoffs) + 1.5
    errors, values = [], []
    for _ in range(300):
        noisy = exact + 0.1 * generator.normal(size=9)
        found = learning_coefficient(cutoffs, noisy, np.full(9, 0.1))
        values.append(found.value)
        errors.append(found.stderr)
    spread = np.std(values)
    assert np.mean(values) == pytest.approx(3, abs=4 * spread / 300**0.5)
    inside = np.abs(np.array(values) - 3) < np.array(errors)
    assert inside.mean() > 0.6
    assert spread * 0.9 < np.median(errors) < 4 * spread


def test_weights_count():
    cutoffs = np.array([1e-4, 1e-3, 1e-2, 1e-1])
    values = 2 * np.log(cutoffs)
    values[-1] += 5  # Far off, and known to be.
    found = learning_coefficient(cutoffs, values, [0.01, 0.01, 0.01, 100])
    assert found.value == pytest.approx(2, abs=1e-4)
    assert found.misfit == pytest.approx(5, rel=1e-3)


def test_the_order_of_cutoffs_does_not_matter():
    cutoffs = np.logspace(-6, -2, 5)
    values = np.array([sv.two_products(e) for e in cutoffs])
    order = np.array([3, 0, 4, 1, 2])
    assert learning_coefficient(cutoffs, values) == learning_coefficient(
        cutoffs[order], values[order]
    )


@pytest.mark.parametrize(
    "values",
    [[-3.0], [-3.0, -2.0], [-3.0, -2.0, -math.inf], [math.nan] * 4, [], [-3.0, -3.0, -3.0]],
)
def test_too_few_cutoffs_are_refused_with_a_reason(values):
    cutoffs = np.logspace(-3, -1, len(values))
    if len(set(values)) == 1 and len(values) == 3:
        cutoffs = np.array([0.1, 0.1, 0.2])
    found = learning_coefficient(cutoffs, values)
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)
    assert "expected 3 or more" in found.reason
    words = {0: "0 cutoffs with", 1: "1 cutoff with", 2: "2 cutoffs with"}
    assert found.reason.startswith(words[found.n_cutoffs])


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (([0.1, 0.2], [1.0]), {}, "as many"),
        (([0.1, 2.0, 0.3], [1.0] * 3), {}, "between 0 and 1"),
        (([0.1, 0.2, 0.3], [1.0] * 3), {"multiplicity": 0}, "multiplicity"),
        (([0.1, 0.2, 0.3], [1.0] * 3, [0.1, -1, 0.1]), {}, "negative"),
    ],
)
def test_wrong_use_is_refused(arguments, options, text):
    with pytest.raises(UsageError, match=text):
        learning_coefficient(*arguments, **options)


def test_effective_dimension():
    cutoffs = np.logspace(-6, -3, 13)
    values = np.array([sv.quadratic(e, 7) for e in cutoffs])
    assert effective_dimension(cutoffs, values) == pytest.approx(np.full(13, 7.0), abs=1e-2)
    assert np.isnan(effective_dimension([0.1], [-2.0])).all()
    holes = np.where(cutoffs == cutoffs[6], -np.inf, values)
    found = effective_dimension(cutoffs, holes)
    assert np.isnan(found[5:8]).sum() >= 2
    assert np.isfinite(found[:5]).all()
    with pytest.raises(UsageError, match="ascending"):
        effective_dimension([0.2, 0.1], [1.0, 2.0])
