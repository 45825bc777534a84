"""The law of Gaussian quadratic forms against closed forms, and identities that it must keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratic_forms import (
    cdf,
    exponential_cdf,
    form_of,
    log_gamma_cdf,
    log_positive_cdf,
    log_scaled_chi2_cdf,
)
from scipy import special, stats

from landscape import contour
from landscape.errors import NotConvergedError, UsageError
from landscape.quadratic_form import QuadraticForm, log_cdf, log_cdf_reweighted


def spectrum(a, m=1.0, location=0.0):
    a = np.atleast_1d(np.asarray(a, dtype=float))
    m, location = (np.broadcast_to(np.asarray(v, dtype=float), a.shape) for v in (m, location))
    return QuadraticForm(eigenvalues=a, multiplicity=m, location=location)


def log_p(form, e):
    found = log_cdf(form, e).log_probability
    return float(found[0]) if np.ndim(e) == 0 else found


# Closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 1000, 10**4, 10**6, 10**8])
@pytest.mark.parametrize("share", [1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0])
def test_equal_eigenvalues(n, share):
    e = share * n / 2 * 7.0
    expected = log_scaled_chi2_cdf(7.0, n, e)
    # Both sides are differences of numbers of size n.
    bound = 1e-13 * max(1.0, abs(expected)) + 1e-15 * n if share < 1.005 else 1e-12 * abs(expected)
    assert abs(log_p(spectrum(7.0, n), e) - expected) <= bound


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
@pytest.mark.parametrize("share", [1.2, 2.0, 5.0, 20.0])
def test_probabilities_near_one_keep_the_tail(n, share):
    e = share * n / 2
    tail = special.gammaincc(n / 2, e)
    if tail > 1e-300:
        assert log_p(spectrum(1.0, n), e) == pytest.approx(np.log1p(-tail), rel=1e-11)


@pytest.mark.parametrize(
    "term",
    [(1.0, 0.0, 0.0), (2.0, 3.0, 0.0), (2.0, 3.0, 5.0), (-1.0, 0.5, 0.3), (0.0, 1.0, 2.0)],
    ids=str,
)
@pytest.mark.parametrize("e", [-30.0, -2.0, -1e-3, 1e-9, 1e-3, 0.4, 3.0, 25.0])
def test_one_dimension(term, e):
    form, expected = form_of([term]), cdf([term], e)
    if expected == 0:
        assert log_p(form, e) == -np.inf
    else:
        assert np.exp(log_p(form, e)) == pytest.approx(expected, rel=1e-12)


PAIRS = {
    "positive": [(1.0, 0.0, 0.0), (0.2, 0.0, 0.0)],
    "steep": [(1.0, 0.3, 0.0), (1e-4, 2.0, 0.0)],
    "located": [(1.0, 2.0, 0.0), (0.5, -1.0, 0.0)],
    "sloped": [(1.0, 2.0, 0.7), (0.5, -1.0, 0.3)],
    "linear": [(0.0, 0.0, 0.4), (1.0, 0.5, 0.2)],
    "weakly linear": [(0.0, 0.0, 0.03), (1.0, 0.0, 0.0)],
    "indefinite": [(-1.0, 0.3, 0.1), (1.5, -0.4, 0.2)],
    "slightly indefinite": [(-1e-5, 0.1, 0.0), (1.5, -0.4, 0.0)],
    "negative": [(-1.0, 0.3, 0.1), (-0.2, 0.4, 0.2)],
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("e", [-3.0, -0.2, 1e-3, 0.1, 1.0, 6.0])
def test_convolutions(name, e):
    expected = cdf(PAIRS[name], e)
    found = np.exp(log_p(form_of(PAIRS[name]), e))
    assert found == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    "a", [(1.0, -0.5), (3.0, 1.0, -2.0), (1.0, 0.3, -1e-3), (-1.0, -2.0, 4.0), (0.2, 5.0)], ids=str
)
@pytest.mark.parametrize("e", [-60.0, -2.0, -1e-4, 0.0, 1e-4, 0.7, 9.0])
def test_sums_of_exponentials(a, e):
    expected = exponential_cdf(a, e)
    if expected < 1e-12:
        return  # The closed form cancels.
    assert np.exp(log_p(spectrum(a, 2.0), e)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("e", [-1e-3, -1.0, -300.0])
def test_deep_negative_tail(e):
    """One negative pair of directions: its tail is a single exponential."""
    expected = e / 0.5 - np.log(1 + 1 / 0.5) - np.log(1 + 3 / 0.5)
    assert log_p(spectrum([1.0, 3.0, -0.5], 2.0), e) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("a", "m", "located", "terms"),
    [
        ([1.0, 2.0, 5.0], [1, 2, 3], [0, 0, 0], 400),
        ([1.0, 2.0, 5.0], [1, 2, 3], [4.0, 1.0, 9.0], 600),
        (np.linspace(1, 8, 30), np.ones(30), np.linspace(0, 3, 30), 1200),
        ([1.0, 3.0], [500, 500], [100.0, 400.0], 3500),
        ([2.0], [1000], [600.0], 2000),
    ],
)
@pytest.mark.parametrize("share", [1e-6, 0.01, 0.3, 0.9])
def test_positive_spectra(a, m, located, terms, share):
    form = spectrum(a, m, located)
    e = share * form.mean
    expected = log_positive_cdf(a, m, located, e, terms=terms)
    assert log_p(form, e) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_prior_far_away():
    """|z*|^2 = 1e8 in one direction: the distance to a far ball's nearest point."""
    term = (1.0, 1e4, 0.0)
    found = log_p(form_of([term]), 0.5)
    expected = stats.norm.logcdf(-(1e4 - 1)) + np.log1p(
        -np.exp(stats.norm.logcdf(-(1e4 + 1)) - stats.norm.logcdf(-(1e4 - 1)))
    )
    assert found == pytest.approx(expected, rel=1e-14)


def test_random_forms_against_samples():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200_000, 12))
    for _ in range(6):
        a, c, g = rng.normal(size=(3, 12)) * np.array([[1.0], [1.5], [0.7]])
        q = (0.5 * a * (draws - c) ** 2 + g * (draws - c)).sum(1)
        form = form_of(np.stack([a, c, g], 1))
        assert form.mean == pytest.approx(q.mean(), abs=4 * q.std() / len(q) ** 0.5)
        for e in np.quantile(q, [0.003, 0.1, 0.5, 0.9, 0.997]):
            p = np.exp(log_p(form, e))
            assert abs((q <= e).mean() - p) < 4 * np.sqrt(p * (1 - p) / len(q))


@pytest.mark.parametrize(("n", "off"), [(1, 0.45), (10, 0.13), (100, 0.02)])
def test_the_saddle_point_formula_is_only_a_check(n, off):
    found = log_cdf(spectrum(1.0, n), 1e-3 * n)
    assert abs(found.log_probability - found.saddlepoint)[0] == pytest.approx(off, rel=0.5)


# Extremes ----------------------------------------------------------------------------------------


def test_cutoffs_and_eigenvalues_of_any_size():
    for a in (1e-30, 1.0, 1e30):
        for e in 10.0 ** np.arange(-300, 301, 25):
            for n in (1, 4):
                # The cutoff in units of the eigenvalue need not be a double.
                ratio = np.log(e) - np.log(a)
                if ratio < -20:
                    expected = n / 2 * ratio - special.gammaln(n / 2 + 1)
                else:
                    expected = log_gamma_cdf(n / 2, np.exp(min(ratio, 60.0)))
                assert log_p(spectrum(a, n), e) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_a_spectrum_over_sixty_decades():
    a = 10.0 ** np.arange(-30, 31)
    found = log_cdf(spectrum(a), 10.0 ** np.arange(-40.0, 41, 4))
    assert (np.diff(found.log_probability) >= 0).all()
    assert (np.diff(found.saddle) <= 0).all()
    # Every decade of the cutoff frees one direction more.
    middle = found.slope[(found.cutoffs > 1e-28) & (found.cutoffs < 1e28)]
    assert (np.abs(np.diff(middle) + 2) < 0.3).all()


def test_no_curvature():
    for form in (spectrum([0.0], 5.0, 3.0), spectrum([1.0, 2.0], 0.0), spectrum(np.zeros(0))):
        found = log_cdf(form, [-1.0, 0.0, 1.0])
        assert found.log_probability.tolist() == [-np.inf, 0, 0]
        assert np.isnan(found.saddle).all()
        assert found.width.tolist() == found.location.tolist() == [0, 0, 0]


def test_outside_the_support():
    found = log_cdf(spectrum([1.0, 3.0]), [-1.0, 0.0, -np.inf, np.inf])
    assert found.log_probability.tolist() == [-np.inf, -np.inf, -np.inf, 0]
    assert np.isnan(found.saddle).all()
    found = log_cdf(spectrum([-1.0, -3.0]), [-1.0, 0.0, 1.0])
    assert found.log_probability[0] < 0
    assert found.log_probability[1:].tolist() == [0, 0]
    sloped = log_cdf(form_of([(2.0, 1.0, 3.0)]), [-2.26, -2.25, -2.249])
    assert np.isinf(sloped.log_probability).tolist() == [True, True, False]


def test_an_infinite_density():
    """z1^2 - z2^2 has one at 0, where the slope e f(e) / P still is 0, and so elsewhere shifted."""
    found = log_cdf(spectrum([1.0, -1.0]), [-1e-200, 0.0, 1e-200])
    assert found.log_probability == pytest.approx(np.log(0.5), abs=1e-14)
    assert found.slope == pytest.approx(0, abs=1e-150)
    shifted = log_cdf(form_of([(1.0, 0.0, 1.0), (-1.0, 0.0, 0.0)]), -0.5)
    assert np.isnan(shifted.slope).all()
    assert np.isfinite(shifted.log_probability).all()


# Parts -------------------------------------------------------------------------------------------


FORMS = {
    "positive": spectrum([1.0, 0.1, 0.01], [3, 10, 40], [2.0, 0.0, 30.0]),
    "indefinite": spectrum([1.0, 0.1, -0.03], [3, 10, 4], [2.0, 0.0, 1.0]),
    "sloped": form_of([(1.0, 0.3, 0.2), (0.5, -1.0, 0.4), (0.0, 1.0, 0.1), (-0.2, 0.1, 0.0)]),
    "weights": spectrum([1.0, 0.5, 0.2, 0.9], [0.3, 2.7, 11.2, 0.0], [0.0, 0.0, 0.0, 1.7]),
}


@pytest.mark.parametrize("name", FORMS)
def test_parts_add_up(name):
    form = FORMS[name]
    e = form.mean + form.variance**0.5 * np.array([-1.2, -0.5, 0.0, 0.7, 2.0])
    found = log_cdf(form, e)
    assert found.width + found.location + found.remainder == pytest.approx(found.log_probability)
    assert form.tilted_mean(found.saddle) == pytest.approx(e, rel=1e-9, abs=1e-12)
    cumulant = form.log_laplace(found.saddle)
    assert found.width + found.location == pytest.approx(cumulant, rel=1e-12, abs=1e-13)
    logs = np.log1p(found.saddle[:, None] * form.eigenvalues) @ form.multiplicity
    assert found.width == pytest.approx(-0.5 * logs, abs=1e-13)


@pytest.mark.parametrize("name", FORMS)
def test_the_slope_is_the_derivative(name):
    form = FORMS[name]
    e = form.mean + form.variance**0.5 * np.array([-1.2, -0.5, 0.1, 0.7, 2.0])
    h = 1e-4 * form.variance**0.5
    nearby = [log_p(form, e + k * h) for k in (-2, -1, 1, 2)]
    difference = (nearby[0] - 8 * nearby[1] + 8 * nearby[2] - nearby[3]) / (12 * h)
    assert log_cdf(form, e).slope == pytest.approx(e * difference, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("name", FORMS)
def test_the_transform_and_its_derivatives(name):
    form = FORMS[name]
    s = np.array([0.4, 1.1, -0.3, 0.7 + 2j, -1.5 + 4j])
    h = 1e-4
    nearby = [form.log_laplace(s + k * h) for k in (-1, 0, 1)]
    assert form.tilted_mean(s) == pytest.approx((nearby[0] - nearby[2]) / (2 * h), rel=1e-6)
    second = (nearby[0] - 2 * nearby[1] + nearby[2]) / h**2
    assert form.tilted_variance(s) == pytest.approx(second, rel=1e-5)
    rng = np.random.default_rng(1)
    if name != "weights":
        assert form.log_laplace(np.array(0.0)) == 0
    z = rng.normal(size=(400_000, len(form.eigenvalues)))
    if (form.multiplicity == 1).all():
        c = np.sqrt(form.location)
        g = np.divide(form.cross, c, out=np.sqrt(form.slope), where=c > 0)
        q = (0.5 * form.eigenvalues * (z - c) ** 2 + g * (z - c)).sum(1)
        assert np.exp(-0.4 * q).mean() == pytest.approx(np.exp(form.log_laplace(0.4)), rel=0.01)


@pytest.mark.parametrize("angle", [np.pi / 11, np.pi / 5])
def test_other_contours_agree(angle, monkeypatch):
    expected = {name: log_cdf(form, [1e-3, 0.3, 2.0, 9.0]) for name, form in FORMS.items()}
    monkeypatch.setattr(contour, "_ANGLE", angle)
    for name, form in FORMS.items():
        found = log_cdf(form, [1e-3, 0.3, 2.0, 9.0])
        for part in ("log_probability", "slope"):
            assert getattr(found, part) == pytest.approx(
                getattr(expected[name], part), rel=1e-12, abs=1e-14
            )


# Identities --------------------------------------------------------------------------------------

sizes = st.floats(-4, 4).map(lambda x: 10.0**x)
signs = st.sampled_from([1.0, 1.0, 1.0, -1.0])


@st.composite
def forms(draw):
    k = draw(st.integers(1, 6))
    many = st.lists(st.tuples(sizes, signs, st.integers(1, 50), sizes), min_size=k, max_size=k)
    rows = draw(many)
    located, sloped = draw(st.booleans()), draw(st.booleans())
    a = np.array([row[0] * row[1] for row in rows])
    c = np.array([row[3] for row in rows]) * located
    g = np.abs(a) * np.array([0.3 * row[1] for row in rows]) * sloped
    return QuadraticForm(
        eigenvalues=a,
        multiplicity=np.array([float(row[2]) for row in rows]),
        location=c * c,
        cross=c * g,
        slope=g * g,
    )


def near(found, expected):
    return found == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(forms(), st.floats(-4, 4))
def test_identities(form, place):
    e = form.mean + place * form.variance**0.5
    up = e + 0.1 * form.variance**0.5
    low, high = log_p(form, np.array([e, up]))
    assert low <= high <= 0
    fields = ("multiplicity", "location", "cross", "slope")
    parts = {name: getattr(form, name) for name in fields}
    # Rounding of the form's own numbers is magnified where its parts cancel.
    terms = np.abs(form.eigenvalues) * (form.multiplicity + form.location) + np.abs(form.cross)
    loss = 1e-13 * terms.sum() / form.variance**0.5 * (1 + abs(place)) + 1e-12 * max(1, abs(low))

    scaled = QuadraticForm(
        eigenvalues=1e3 * form.eigenvalues,
        multiplicity=form.multiplicity,
        location=form.location,
        cross=1e3 * form.cross,
        slope=1e6 * form.slope,
    )
    assert abs(log_p(scaled, 1e3 * e) - low) <= loss if low > -np.inf else True
    flat = {name: np.append(value, [0.0, 0.0]) for name, value in parts.items()}
    flat["multiplicity"][-2:] = [1e8, 0.0]
    flat["location"][-2:] = [1e8, 3.0]
    padded = QuadraticForm(eigenvalues=np.append(form.eigenvalues, [0.0, 0.0]), **flat)
    assert abs(log_p(padded, e) - low) <= loss if low > -np.inf else True
    halves = QuadraticForm(
        eigenvalues=np.repeat(form.eigenvalues, 2),
        **{name: np.repeat(value / 2, 2) for name, value in parts.items()},
    )
    assert abs(log_p(halves, e) - low) <= loss if low > -np.inf else True


@settings(max_examples=40, deadline=None, derandomize=True)
@given(forms(), st.floats(-3, 3))
def test_the_two_tails_add_up_to_one(form, place):
    e = form.mean + place * form.variance**0.5
    reflected = QuadraticForm(
        eigenvalues=-form.eigenvalues,
        multiplicity=form.multiplicity,
        location=form.location,
        cross=-form.cross,
        slope=form.slope,
    )
    both = np.exp([log_p(form, e), log_p(reflected, -e)])
    assert both.sum() == pytest.approx(1, abs=1e-12)


# Several multiplicities at once ------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.3, 30.0])
@pytest.mark.parametrize("name", FORMS)
def test_reweighted_laws(name, spread):
    form = FORMS[name]
    logs = np.random.default_rng(2).uniform(-1, 1, (5, len(form.eigenvalues)))
    weights = form.multiplicity * spread**logs
    e = form.mean + form.variance**0.5 * np.array([-1.0, 0.2, 1.5])
    found = log_cdf_reweighted(form, weights, e)
    for row, multiplicity in zip(found, weights, strict=True):
        expected = log_p(replace(form, multiplicity=multiplicity), e)
        assert row == pytest.approx(expected, rel=1e-11 if spread < 2 else 1e-8)


def test_reweighted_laws_outside_the_support():
    found = log_cdf_reweighted(spectrum([1.0, 2.0]), np.ones((3, 2)), [-1.0, np.inf])
    assert found.tolist() == [[-np.inf, 0.0]] * 3
    for wrong in (np.ones(2), np.ones((1, 3)), -np.ones((1, 2))):
        with pytest.raises(UsageError, match="multiplicities"):
            log_cdf_reweighted(spectrum([1.0, 2.0]), wrong, 1.0)


# Wrong use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiplicity": [1.0]}, "shape"),
        ({"eigenvalues": [[1.0, 2.0]]}, "shape"),
        ({"location": [1.0, np.nan]}, "not finite"),
        ({"multiplicity": [1.0, -1.0]}, "negative"),
        ({"slope": [1.0, -1e-9]}, "negative"),
        ({"cross": [0.0, 0.1]}, "exceeds"),
    ],
)
def test_impossible_forms(change, message):
    with pytest.raises(UsageError, match=message):
        QuadraticForm(**{"eigenvalues": [1.0, 2.0], "multiplicity": [1.0, 1.0], **change})


@pytest.mark.parametrize("cutoffs", [[np.nan], [[1.0]]])
def test_impossible_cutoffs(cutoffs):
    with pytest.raises(UsageError, match="cutoffs"):
        log_cdf(spectrum(1.0), cutoffs)


def test_lost_digits_are_refused():
    """A law that is a point but for 1e-11 of a direction: its far tail is below rounding."""
    with pytest.raises(NotConvergedError, match="rounding"):
        log_cdf(spectrum([1.0, -1.0], [30.0, 1e-12]), 1e-9)
