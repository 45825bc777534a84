"""XTrace, log-determinants, counts and functions of an operator: exactness, coverage, width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.checkpoint import load_into, read_checkpoint
from landscape.data import materialise
from landscape.errors import NotFiniteError, UsageError
from landscape.hessian import HessianOptions, measure_operator
from landscape.krylov import FUNCTIONS, apply_function
from landscape.operators import DenseOperator, Shifted, curvature
from landscape.risk import Risk
from landscape.sums import count_above, log_det
from landscape.task import resolve_task
from landscape.trace import xtrace
from landscape.training import train
from landscape.units import MemoryUnits

SPECTRUM = np.r_[[30.0, 18.0, 9.0], np.arange(1, 98.0) ** -1.0]
N = len(SPECTRUM)


def operator(values=SPECTRUM, dtype=torch.float64, seed=5):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    )
    matrix = (q * torch.as_tensor(np.array(values, dtype=float))) @ q.T
    return DenseOperator(((matrix + matrix.T) / 2).to(dtype))


def density(seed, *, top=3, probes=8, steps=25, values=SPECTRUM):
    options = HessianOptions(top=top, probes=probes, steps=steps, method="lanczos")
    op = operator(values)
    return measure_operator(op, "hessian", options, seed=seed, units=MemoryUnits())[1]


def sphere_error(image, probes):
    """Standard error of the mean over probes of d u'Bu, u uniform on the unit sphere of R^d."""
    d = len(image)
    variance = 2 * d / (d + 2) * ((image**2).sum() - image.sum() ** 2 / d)
    return np.sqrt(variance / probes)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_log_det_intervals_cover_and_are_not_wide(scale):
    truth = np.log1p(scale * SPECTRUM).sum()
    found = [log_det(density(seed), n=N, scale=scale) for seed in range(100)]
    assert sum(f.lower <= truth <= f.upper for f in found) >= 88
    error = sphere_error(np.log1p(scale * SPECTRUM[3:]), 8)
    assert np.mean([f.upper - f.lower for f in found]) < 1.3 * 2 * 1.96 * error
    assert abs(np.mean([f.value for f in found]) - truth) < 3 * error / 10


@pytest.mark.parametrize("threshold", [0.5, 0.05, 0.02, 15.0])
def test_counts_cover_and_are_not_wide(threshold):
    truth = (threshold < SPECTRUM).sum()
    found = [count_above(density(seed, steps=60), n=N, threshold=threshold) for seed in range(100)]
    assert sum(f.lower <= truth <= f.upper for f in found) >= 88
    error = sphere_error((threshold < SPECTRUM[3:]).astype(float), 8)
    assert np.mean([f.upper - f.lower for f in found]) <= 1.3 * 2 * 1.96 * error


def test_counts_of_a_known_spectrum_are_exact():
    options = HessianOptions(method="exact")
    found = measure_operator(operator(), "hessian", options, seed=0, units=MemoryUnits())[1]
    for threshold in (0.0105, 0.3, 10, 40, -1):
        count = count_above(found, n=N, threshold=threshold)
        assert count.value == (threshold < SPECTRUM).sum()
        assert count.stderr == 0
    assert log_det(found, n=N, scale=2.0).value == pytest.approx(
        np.log1p(2 * SPECTRUM).sum(), rel=1e-12
    )


def test_log_det_below_its_domain_is_nan():
    found = log_det(density(0, values=np.linspace(-1, 1, 40)), n=40, scale=2.0)
    assert np.isnan(found.value)


def test_deflation_lowers_the_error_of_log_det_at_equal_products(tmp_path):
    """On a trained network, pairs included in the count: at s = 10, where few directions matter.

    The gain falls with s (1.6 at s = 100): hundreds of eigenvalues then contribute alike.
    """
    checkpoint = train("digits-mlp", {"width": 8}, steps=300, checkpoints=1, out=tmp_path)[-1].path
    task = resolve_task("digits-mlp", {"width": 8}).task
    task.model.double()
    load_into(task.model, read_checkpoint(checkpoint))
    matrix = curvature("ggn", Risk(task, materialise(task.data, examples=500))).dense()
    truth = float(torch.linalg.eigvalsh(matrix).mul(10).log1p().sum())

    def error(seed, **options):
        op = DenseOperator(matrix)
        options = HessianOptions(method="lanczos", steps=20, tol=1e-4, **options)
        found = measure_operator(op, "ggn", options, seed=seed, units=MemoryUnits())[1]
        return log_det(found, n=op.n, scale=10.0).value - truth, op.n_matvecs

    deflated = [error(seed, top=50, probes=8) for seed in range(16)]
    products = max(count for _, count in deflated)
    plain = [error(seed, top=0, probes=-(-products // 20)) for seed in range(16)]
    assert min(count for _, count in plain) >= products
    ratio = np.std([e for e, _ in plain]) / np.std([e for e, _ in deflated])
    assert ratio > 3


@pytest.mark.parametrize("vectors", [5, 20, 40])
def test_xtrace_covers_and_beats_plain_probes(vectors):
    truth = SPECTRUM.sum()
    found = [xtrace(operator(), vectors=vectors, seed=seed) for seed in range(100)]
    assert sum(f.lower <= truth <= f.upper for f in found) >= 88
    errors = np.array([f.value for f in found]) - truth
    assert abs(errors.mean()) < 3 * errors.std() / 10 + 1e-9
    # The error bar is no smaller than the error; with few vectors it is a coarse bound.
    reported = np.median([f.stderr for f in found])
    assert 0.85 * errors.std() < reported < (6 if vectors == 5 else 2.6) * errors.std()
    plain = sphere_error(SPECTRUM, 2 * vectors)
    assert errors.std() < plain * (1.2 if vectors == 5 else 0.25)


@pytest.mark.parametrize(
    "values", [np.zeros(9), np.r_[[4.0, -2.0], np.zeros(30)], np.ones(12), [5.0, 1.0, 0.5]]
)
def test_xtrace_on_degenerate_spectra(values):
    values = np.asarray(values, dtype=float)
    found = xtrace(operator(values), vectors=min(6, len(values)), seed=0)
    assert found.value == pytest.approx(values.sum(), abs=1e-9)


def test_xtrace_at_full_rank_is_exact_and_out_of_range_refused():
    values = np.linspace(1, 2, 10)
    assert xtrace(operator(values), vectors=10).value == pytest.approx(15, rel=1e-9)
    op = operator(values)
    for k in (2, 11):
        with pytest.raises(UsageError):
            xtrace(op, vectors=k)
    xtrace(op, vectors=4)
    assert op.n_matvecs == 8


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("n", [1, 2, 7, 120])
def test_functions_of_an_operator(name, n):
    values = np.linspace(0.5, 4, n)
    op = operator(values)
    v = torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    eigenvalues, vectors = torch.linalg.eigh(op.matrix)
    image = torch.as_tensor(FUNCTIONS[name](eigenvalues.numpy()))
    expected = vectors @ (image * (vectors.T @ v))
    found, error = apply_function(op, v, name, tol=1e-11)
    assert (found - expected).norm() < 1e-10 * expected.norm()
    assert error <= 1e-11
    assert op.n_matvecs <= min(n, 60)


def test_function_limits():
    op = operator()
    v = torch.ones(N, dtype=torch.float64)
    found, error = apply_function(op, v, np.sqrt, tol=1e-14, max_steps=5)
    assert error > 1e-14
    assert torch.isfinite(found).all()
    assert apply_function(op, 0 * v, "exp")[0].abs().max() == 0
    with pytest.raises(NotFiniteError, match="Ritz value"):
        apply_function(Shifted(op, -5.0), v, "log1p")
