"""The quadratic model's log-volume: closed forms, equal paths, errors that cover."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from quadratic_forms import cdf, log_gamma_cdf, log_positive_cdf

from landscape.eigensolver import extreme_eigenpairs
from landscape.errors import UsageError
from landscape.operators import DenseOperator, LinearOperator
from landscape.quadratic_form import QuadraticForm, log_cdf
from landscape.volume.measures import (
    eigenpair_measure,
    exact_form,
    location_measure,
    merged,
    probe_measure,
    radau_measure,
)
from landscape.volume.quadratic import (
    combine,
    negative_curvature,
    quadratic_exact,
    quadratic_stochastic,
    quadratic_volume,
)


class Diagonal(LinearOperator):
    """A diagonal matrix; probes are normal, so that this is any matrix with these eigenvalues."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(np.array(values, dtype=float)).to(dtype)
        self.n, self.dtype, self.device = len(values), dtype, self.values.device

    def _matvec(self, vector):
        return self.values * vector


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(values, seed=3):
    """A symmetric matrix with these eigenvalues and its eigenvectors as rows."""
    q, _ = torch.linalg.qr(normal(len(values), len(values), seed=seed))
    matrix = (q * torch.as_tensor(np.array(values, dtype=float))) @ q.T
    return (matrix + matrix.T) / 2, q.T.contiguous()


def exact(values, z_star, cutoffs, gradient=None):
    """The exact volume of a diagonal matrix."""
    return quadratic_exact(
        values, torch.eye(len(values), dtype=torch.float64), z_star, gradient, cutoffs=cutoffs
    )


# Closed forms ------------------------------------------------------------------------------------


def test_a_round_bowl():
    e = np.array([1e-6, 1e-3, 0.1, 1.0, 20.0])
    found = exact(np.ones(2), torch.zeros(2, dtype=torch.float64), e)
    assert found.log_volume == pytest.approx(np.log(-np.expm1(-e)), rel=1e-13)
    assert (found.stderr == 0).all()
    assert (found.lower == found.log_volume).all()
    assert (found.upper == found.log_volume).all()
    assert found.effective_dimension == pytest.approx(2 * e / np.expm1(e), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("e", [1e-3, 0.05, 0.7])
def test_a_bowl_away_from_the_prior_s_mean(sigma, e):
    """1/2 sum h_i (w_i - c_i)^2 under N(0, sigma^2): whitened, a = h sigma^2 and z* = c / sigma."""
    h, c = np.array([2.0, 0.5]), np.array([0.4, -1.1])
    expected = np.log(cdf([(h[i] * sigma**2, c[i] / sigma, 0.0) for i in range(2)], e))
    found = exact(h * sigma**2, torch.as_tensor(c / sigma), e)
    assert found.log_volume[0] == pytest.approx(expected, abs=1e-10)
    h, c = np.linspace(1, 6, 20), np.linspace(-1, 2, 20)
    expected = log_positive_cdf(h * sigma**2, np.ones(20), (c / sigma) ** 2, e, terms=1200)
    found = exact(h * sigma**2, torch.as_tensor(c / sigma), e)
    assert found.log_volume[0] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
@pytest.mark.parametrize("e", [1e-8, 0.01, 3.0])
def test_equal_curvature_at_the_prior_s_mean(n, e):
    found = exact(np.full(n, 3.0), torch.zeros(n, dtype=torch.float64), e)
    assert found.log_volume[0] == pytest.approx(log_gamma_cdf(n / 2, e / 3), abs=1e-10)


def test_one_parameter_with_a_gradient():
    found = exact(
        [2.0],
        torch.tensor([0.7], dtype=torch.float64),
        [0.1, 1.0],
        torch.tensor([0.4], dtype=torch.float64),
    )
    expected = [np.log(cdf([(2.0, 0.7, 0.4)], e)) for e in (0.1, 1.0)]
    assert found.log_volume == pytest.approx(expected, rel=1e-12)


# Paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sloped", [False, True])
def test_dense_and_gram_paths_agree(sloped):
    factor = normal(9, 60)
    values, vectors = torch.linalg.eigh(factor.T @ factor)
    small, left = torch.linalg.eigh(factor @ factor.T)
    rows = (left / small.sqrt()).T @ factor
    z_star, gradient = normal(60, seed=1), normal(60, seed=2) if sloped else None
    cutoffs = [1e-2, 1.0, 50.0, 500.0]
    dense = quadratic_exact(values, vectors.T.contiguous(), z_star, gradient, cutoffs=cutoffs)
    gram = quadratic_exact(small, rows, z_star, gradient, cutoffs=cutoffs)
    for name in ("log_volume", "width", "location", "remainder", "saddle", "n_eff"):
        assert getattr(dense, name) == pytest.approx(getattr(gram, name), rel=1e-8, abs=1e-9)
    assert dense.n == gram.n == 60
    assert gram.form.multiplicity.sum() == 60
    assert gram.form.location.sum() == pytest.approx(float(z_star @ z_star))
    if sloped:
        assert gram.form.cross.sum() == pytest.approx(float(z_star @ gradient))
        assert gram.form.slope.sum() == pytest.approx(float(gradient @ gradient))


def test_rotations_change_nothing():
    values = np.r_[np.arange(1, 40.0) ** -1.5, 0, -0.02]
    z_star, gradient = normal(41, seed=1), 0.1 * normal(41, seed=2)
    expected = exact(values, z_star, [1e-2, 1.0, 10.0], gradient)
    matrix, _ = rotated(values)
    found_values, vectors = torch.linalg.eigh(matrix)
    _, q = rotated(values)
    found = quadratic_exact(
        found_values,
        vectors.T.contiguous(),
        q.T @ z_star,
        q.T @ gradient,
        cutoffs=[1e-2, 1.0, 10.0],
    )
    assert found.log_volume == pytest.approx(expected.log_volume, rel=1e-11)
    assert found.negative.count == expected.negative.count == 1


def test_parts_add_up():
    found = exact(np.linspace(0, 2, 30), normal(30), [1e-3, 0.1, 3.0, 40.0])
    assert found.width + found.location + found.remainder == pytest.approx(found.log_volume)
    s = found.saddle[:, None]
    assert found.n_eff == pytest.approx(
        (s * np.linspace(0, 2, 30) / (1 + s * np.linspace(0, 2, 30))).sum(1)
    )


# Curvature that is not positive ------------------------------------------------------------------


def test_no_curvature():
    found = exact(np.zeros(5), normal(5), [0.0, 1e-3])
    assert found.log_volume.tolist() == [0, 0]
    assert np.isnan(found.saddle).all()
    operator = Diagonal(np.zeros(50))
    free = quadratic_stochastic(operator, normal(50), cutoffs=1e-3, steps=5, probes=3)
    assert free.log_volume[0] == free.lower[0] == free.upper[0] == 0


def test_negative_curvature_is_said():
    values = np.r_[np.linspace(0.1, 2, 20), -0.5, -0.25, -1e-12]
    found = exact(values, torch.zeros(23, dtype=torch.float64), 0.1)
    assert found.negative.count == 2
    assert found.negative.least == -0.5
    assert found.negative.fraction == pytest.approx(2 / 23)
    assert np.isfinite(found.log_volume).all()
    clipped = exact(values.clip(min=0), torch.zeros(23, dtype=torch.float64), 0.1)
    assert found.log_volume[0] > clipped.log_volume[0] + 1
    none = negative_curvature(np.array([1.0, -1e-9]), np.ones(2))
    assert (none.count, none.fraction, none.least) == (0, 0, 0)
    empty = negative_curvature(np.zeros(0), np.zeros(0))
    assert empty.count == 0


def test_noise_about_zero_is_not_clipped():
    """Symmetric noise of 1e-6 of the largest eigenvalue: clipped, it biases by nats."""
    rng = np.random.default_rng(0)
    values = np.r_[np.arange(1, 101.0) ** -1.5, np.zeros(900)]
    noise = 1e-6 * rng.normal(size=1000)
    z_star = torch.zeros(1000, dtype=torch.float64)
    truth = exact(values, z_star, 1e-2).log_volume[0]
    assert abs(exact(values + noise, z_star, 1e-2).log_volume[0] - truth) < 0.2
    assert abs(exact((values + noise).clip(min=0), z_star, 1e-2).log_volume[0] - truth) > 0.5


# Matrix-free parts -------------------------------------------------------------------------------


VALUES = np.r_[np.geomspace(3, 0.1, 25), np.zeros(5), -0.05]


@pytest.mark.parametrize("d", [0, 6])
@pytest.mark.parametrize("sloped", [False, True])
def test_the_location_measure_is_exact_for_polynomials(d, sloped):
    z_star, gradient = normal(31, seed=1), normal(31, seed=2) if sloped else None
    operator = Diagonal(VALUES)
    deflate = torch.eye(31, dtype=torch.float64)[:d] if d else None
    found = location_measure(operator, z_star, gradient, steps=6, deflate=deflate)
    assert operator.n_matvecs == (12 if sloped else 6)
    assert (found.multiplicity == 0).all()
    c = z_star.numpy()[d:]
    g = gradient.numpy()[d:] if sloped else np.zeros_like(c)
    for degree in range(11):
        for part, weight in ((found.location, c * c), (found.cross, c * g), (found.slope, g * g)):
            expected = weight @ VALUES[d:] ** degree
            assert part @ found.eigenvalues**degree == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("sloped", [False, True])
def test_a_full_location_run_is_exact(sloped):
    z_star, gradient = normal(31, seed=1), normal(31, seed=2) if sloped else None
    operator = Diagonal(VALUES)
    location = location_measure(operator, z_star, gradient, steps=60)
    trace = QuadraticForm(eigenvalues=VALUES, multiplicity=np.ones(31))
    found = log_cdf(merged([location, trace], [1.0, 1.0]), [0.1, 3.0]).log_probability
    expected = exact(VALUES, z_star, [0.1, 3.0], gradient).log_volume
    assert found == pytest.approx(expected, rel=1e-10)


def test_location_of_nothing_costs_nothing():
    operator = Diagonal(VALUES)
    for z_star in (torch.zeros(31), torch.eye(31)[2]):
        deflate = torch.eye(31, dtype=torch.float64)[:5]
        found = location_measure(operator, z_star.double(), steps=10, deflate=deflate)
        assert len(found.eigenvalues) == 0
    assert operator.n_matvecs == 0
    nothing = torch.zeros(31, dtype=torch.float64)
    assert len(location_measure(operator, nothing, nothing, steps=4).eigenvalues) == 0
    assert operator.n_matvecs == 0
    sloped = location_measure(operator, nothing, normal(31), steps=4)
    assert sloped.slope.sum() == pytest.approx(float(normal(31) @ normal(31)))
    assert not sloped.location.any()


def test_probes_have_the_whole_mass_and_no_bias():
    operator = Diagonal(VALUES)
    deflate = torch.eye(31, dtype=torch.float64)[:6]
    probes = [
        probe_measure(operator, index=i, seed=0, steps=10, deflate=deflate) for i in range(400)
    ]
    assert operator.n_matvecs == 4000
    sums = np.array([p.multiplicity @ p.eigenvalues**2 for p in probes])
    assert [p.multiplicity.sum() for p in probes] == pytest.approx([25] * 400)
    assert abs(sums.mean() - (VALUES[6:] ** 2).sum()) < 3 * sums.std() / 20
    again = probe_measure(operator, index=7, seed=0, steps=10, deflate=deflate)
    assert (again.multiplicity == probes[7].multiplicity).all()
    assert (probes[8].multiplicity != probes[7].multiplicity).any()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_radau_rule_is_exact_for_polynomials(steps):
    values = np.geomspace(1, 1e-3, 40)
    z_star = normal(40)
    gauss = location_measure(Diagonal(values), z_star, steps=steps)
    radau = radau_measure(gauss, steps=steps, rest=40)
    assert radau.eigenvalues.min() == pytest.approx(0, abs=1e-12)
    square = z_star.numpy() ** 2
    for degree in range(2 * steps - 1):
        expected = square @ values**degree
        assert radau.location @ radau.eigenvalues**degree == pytest.approx(expected, rel=1e-9)
    for s in (1.0, 1e3):
        low, truth, high = (
            w @ np.log1p(s * a)
            for a, w in (
                (radau.eigenvalues, radau.location),
                (values, square),
                (gauss.eigenvalues, gauss.location),
            )
        )
        assert low < truth < high


def test_complete_runs_have_no_other_rule():
    few = Diagonal(np.repeat([1.0, 0.5, 0.0], 10))
    for part in (
        location_measure(few, normal(30), steps=10),
        probe_measure(few, index=0, seed=0, steps=10),
        probe_measure(Diagonal(VALUES), index=0, seed=0, steps=100),
    ):
        assert radau_measure(part, steps=10 if len(part.eigenvalues) == 3 else 100, rest=31) is part


# Matrix-free volumes -----------------------------------------------------------------------------


def test_the_jackknife_leaves_out_one_probe_at_a_time():
    operator, cutoffs = Diagonal(np.geomspace(2, 1e-2, 80)), [1e-3, 0.1, 5.0]
    location = location_measure(operator, normal(80), steps=12)
    probes = [probe_measure(operator, index=i, seed=1, steps=12) for i in range(5)]
    options = {"n": 80, "eigenpairs": None, "location": location, "cutoffs": cutoffs}
    found = combine(probes=probes, **options)
    others = [combine(probes=probes[:i] + probes[i + 1 :], **options) for i in range(5)]
    left_out = np.array([other.log_volume for other in others])
    expected = np.sqrt(0.8 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    assert found.stderr == pytest.approx(expected, rel=1e-8)
    assert found.n_probes == 5
    assert np.isnan(found.truncation).all()


def test_units_give_what_one_call_gives():
    matrix, _ = rotated(np.arange(1, 91.0) ** -1.5)
    operator, z_star, cutoffs = DenseOperator(matrix), normal(90), [1e-3, 1.0]
    pairs = extreme_eigenpairs(operator, top=10, tol=1e-8)
    whole = quadratic_stochastic(
        operator, z_star, cutoffs=cutoffs, pairs=pairs, steps=15, probes=4, seed=6
    )
    options = {"steps": 15, "deflate": pairs.vectors}
    parts = [probe_measure(operator, index=i, seed=6, **options) for i in (0, 1, 2, 3)]
    stored = [{f.name: getattr(part, f.name).copy() for f in fields(part)} for part in parts]
    again = combine(
        n=90,
        eigenpairs=eigenpair_measure(pairs.values, pairs.vectors, z_star),
        location=location_measure(operator, z_star, **options),
        probes=[QuadraticForm(**arrays) for arrays in stored],
        cutoffs=cutoffs,
        steps=15,
    )
    for name in ("log_volume", "stderr", "lower", "upper", "truncation", "saddle"):
        assert (getattr(whole, name) == getattr(again, name)).all()
    assert whole.n_eigenpairs == 10
    values, vectors = torch.linalg.eigh(matrix)
    truth = quadratic_exact(values, vectors.T.contiguous(), z_star, cutoffs=cutoffs)
    assert (whole.lower <= truth.log_volume).all()
    assert (truth.log_volume <= whole.upper).all()


def test_one_probe_tells_no_error():
    found = quadratic_stochastic(
        Diagonal(np.linspace(0.1, 1, 50)), normal(50), cutoffs=[1e-2, 0.0], steps=8, probes=1
    )
    assert np.isnan(found.stderr).all()
    assert (found.lower == -np.inf).all()
    assert (found.upper == 0).all()


def test_eigenpairs_of_everything_leave_nothing_to_probe():
    matrix, _ = rotated(np.arange(1, 31.0) ** -1.0)
    operator, z_star = DenseOperator(matrix), normal(30)
    pairs = extreme_eigenpairs(operator, top=30, tol=1e-10)
    done = operator.n_matvecs
    found = quadratic_stochastic(operator, z_star, cutoffs=[0.01, 2.0], pairs=pairs, probes=5)
    assert operator.n_matvecs == done
    assert (found.n_probes, found.n_eigenpairs) == (0, 30)
    assert (found.stderr == 0).all()
    assert (found.truncation == 0).all()
    values, vectors = torch.linalg.eigh(matrix)
    truth = quadratic_exact(values, vectors.T.contiguous(), z_star, cutoffs=[0.01, 2.0])
    assert found.log_volume == pytest.approx(truth.log_volume, rel=1e-10)


TARGETS = {
    "isotropic": np.ones(1000),
    "power law": np.arange(1, 1001.0) ** -1.5,
    "mostly zero": np.r_[np.linspace(0.1, 2, 100), np.zeros(900)],
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_error_with_five_hundred_products(name):
    """Prior centred off the anchor: the standard error is below 1% and is no smaller than it is."""
    values, z_star, cutoffs = TARGETS[name], normal(1000, seed=5), [1e-3, 1e-2]
    truth = exact(values, z_star, cutoffs)
    operator = Diagonal(values)
    pairs = extreme_eigenpairs(operator, top=110, tol=1e-4, seed=2)
    found = quadratic_stochastic(
        operator, z_star, cutoffs=cutoffs, pairs=pairs, steps=20, probes=16, seed=2
    )
    assert operator.n_matvecs <= 520
    assert (found.stderr < 0.01 * np.abs(truth.log_volume)).all()
    error = np.abs(found.log_volume - truth.log_volume)
    assert (error < 3 * found.stderr + 1e-5).all()
    assert (found.truncation < 0.1).all()
    assert found.width + found.location + found.remainder == pytest.approx(found.log_volume)


@pytest.mark.parametrize("place", ["deep", "above the mean"])
def test_intervals_cover(place):
    values = np.r_[[30.0, 9.0], np.geomspace(1, 0.01, 198)]
    z_star = normal(200, seed=4)
    e = 0.02 if place == "deep" else 1.1 * exact(values, z_star, 1.0).form.mean
    truth = exact(values, z_star, e).log_volume[0]
    operator, deflate = Diagonal(values), torch.eye(200, dtype=torch.float64)[:2]
    known = eigenpair_measure(values[:2], deflate, z_star)
    location = location_measure(operator, z_star, steps=15, deflate=deflate)
    covered = 0
    for seed in range(100):
        probes = [
            probe_measure(operator, index=i, seed=seed, steps=15, deflate=deflate) for i in range(6)
        ]
        found = combine(
            n=200, eigenpairs=known, location=location, probes=probes, cutoffs=e, steps=15
        )
        covered += found.lower[0] <= truth <= found.upper[0]
    assert covered >= 88


def test_an_unresolved_spectrum_is_said():
    """Ten decades and 20 steps: the Gauss rule alone would be off by 500 nats within 20."""
    values, z_star = 10 * np.geomspace(1, 1e-9, 1000), normal(1000)
    truth = exact(values, z_star, 1e-2).log_volume[0]
    widths = []
    for steps in (20, 60):
        found = quadratic_stochastic(Diagonal(values), z_star, cutoffs=1e-2, steps=steps, probes=6)
        assert found.log_volume[0] + 10 * found.stderr[0] < truth
        assert found.lower[0] < truth < found.upper[0]
        widths.append(found.truncation[0])
    assert widths[0] > 2 * widths[1] > 100


def test_single_precision_products():
    values, z_star = np.r_[np.arange(1, 201.0) ** -1.0], normal(200)
    truth = exact(values, z_star, 0.05).log_volume[0]
    for gradient in (None, 1e-6 * normal(200, seed=8)):
        found = quadratic_stochastic(
            Diagonal(values, torch.float32), z_star, gradient, cutoffs=0.05, steps=30, probes=8
        )
        assert found.lower[0] < truth < found.upper[0]


# Wrong use ---------------------------------------------------------------------------------------


def test_wrong_use():
    operator, eye = Diagonal(VALUES), torch.eye(31, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"z\* has shape \(30,\)"):
        quadratic_stochastic(operator, normal(30), cutoffs=1.0)
    with pytest.raises(UsageError, match="gradient has shape"):
        quadratic_exact(VALUES, eye, normal(31), normal(31, 1), cutoffs=1.0)
    with pytest.raises(UsageError, match="30 eigenvalues and 31"):
        exact_form(VALUES[1:], eye, normal(31))
    with pytest.raises(UsageError, match="steps"):
        quadratic_stochastic(operator, normal(31), cutoffs=1.0, steps=0)
    with pytest.raises(UsageError, match="no probe"):
        quadratic_stochastic(operator, normal(31), cutoffs=1.0, probes=0)
    with pytest.raises(UsageError, match="cutoffs"):
        quadratic_volume(exact_form(VALUES, eye, normal(31)), np.nan, n=31)
