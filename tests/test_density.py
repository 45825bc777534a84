"""Densities and moments: exactness, bias, coverage of the intervals, and their width."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch

from landscape.density import assemble_density, exact_density, probe
from landscape.hessian import HessianOptions, measure_operator
from landscape.operators import DenseOperator, curvature
from landscape.smoothing import smooth
from landscape.sums import estimate, moments
from landscape.units import MemoryUnits

SPECTRUM = np.r_[[10.0, 6.0, 4.0], np.linspace(-0.2, 1, 60), np.zeros(37)]
N = len(SPECTRUM)


def operator(values=SPECTRUM, dtype=torch.float64):
    q, _ = torch.linalg.qr(
        torch.randn(
            len(values), len(values), generator=torch.Generator().manual_seed(5), dtype=dtype
        )
    )
    matrix = (q * torch.as_tensor(values)) @ q.T
    return DenseOperator((matrix + matrix.T) / 2)


def measured(*, seed, top=3, probes=8, steps=30, values=SPECTRUM):
    op = operator(values)
    options = HessianOptions(top=top, probes=probes, steps=steps, method="lanczos")
    return measure_operator(op, "hessian", options, seed=seed, units=MemoryUnits())


@pytest.mark.parametrize("top", [0, 3])
def test_density_integrates_to_one_and_has_the_right_moments(top):
    _, density, found = measured(seed=0, top=top)
    width = np.diff(density.grid)[0]
    assert density.density.sum() * width == pytest.approx(1, abs=1e-9)
    assert density.weights.sum(1) == pytest.approx(np.ones(8), abs=1e-12)
    mean = (density.density * density.grid).sum() * width
    second = (density.density * density.grid**2).sum() * width - density.bandwidth**2
    assert mean == pytest.approx(found.trace.value / N, rel=1e-7)
    assert second == pytest.approx(found.trace_square.value / N, rel=1e-7)
    assert abs(mean - SPECTRUM.sum() / N) < 3 * found.trace.stderr / N
    assert abs(second - (SPECTRUM**2).sum() / N) < 3 * found.trace_square.stderr / N


@pytest.mark.parametrize("name", ["digits-mlp", "modular-addition"])
@pytest.mark.parametrize("operator_name", ["hessian", "ggn"])
def test_moments_of_a_network_match_the_dense_matrix(name, operator_name):
    build = networks.dense_hessian if operator_name == "hessian" else networks.dense_ggn
    values = torch.linalg.eigvalsh(build(networks.risk(name))).numpy()
    n = len(values)
    options = HessianOptions(top=5, method="lanczos", probes=10, steps=40)
    op = curvature(operator_name, networks.risk(name))
    _, density, found = measure_operator(op, operator_name, options, seed=4, units=MemoryUnits())
    assert abs(found.trace.value - values.sum()) < 3 * found.trace.stderr
    assert abs(found.trace_square.value - (values**2).sum()) < 3 * found.trace_square.stderr
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(density.density * density.grid, density.grid) == pytest.approx(
        found.trace.value / n, rel=1e-6
    )


@pytest.mark.parametrize("top", [0, 3])
def test_trace_intervals_cover_and_are_not_wide(top):
    truth = SPECTRUM.sum()
    found = [measured(seed=seed, top=top, steps=6)[2].trace for seed in range(100)]
    assert sum(f.lower <= truth <= f.upper for f in found) >= 88
    # Var of d u'Bu for u uniform on the sphere of R^d: 2 d/(d+2) (tr B^2 - (tr B)^2/d).
    rest = np.sort(SPECTRUM)[: N - top]
    d = len(rest)
    variance = 2 * d / (d + 2) * ((rest**2).sum() - rest.sum() ** 2 / d)
    ideal = 2 * 1.96 * np.sqrt(variance / 8)
    assert np.mean([f.upper - f.lower for f in found]) < 1.3 * ideal
    # No bias: the mean over seeds lies within its own standard error.
    values = np.array([f.value for f in found])
    assert abs(values.mean() - truth) < 3 * np.sqrt(variance / 800)
    # And the error bar is the right size: a chi-square with 100 * 7 degrees of freedom.
    reported = np.mean([f.stderr**2 for f in found])
    assert reported == pytest.approx(variance / 8, rel=4 * np.sqrt(2 / 700))


def test_deflation_lowers_the_error():
    plain = np.std([measured(seed=s, top=0, steps=6)[2].trace.value for s in range(40)])
    deflated = np.std([measured(seed=s, top=3, steps=6)[2].trace.value for s in range(40)])
    assert deflated < plain / 3


def test_full_depth_counts():
    _, _, found = measured(seed=1, steps=N, probes=30)
    negative = (-found.resolution > SPECTRUM).mean()
    assert abs(found.negative_mass.value - negative) < 4 * found.negative_mass.stderr
    near = (abs(SPECTRUM) <= found.resolution).mean()
    assert abs(found.near_zero_mass.value - near) < 4 * found.near_zero_mass.stderr
    assert found.negative_mass.lower >= 0


def test_probes_are_independent_of_order_and_number():
    op = operator()
    alone = probe(op, 5, steps=10, seed=3)
    several = [probe(op, index, steps=10, seed=3) for index in range(7)]
    assert (alone[0] == several[5][0]).all()
    assert not np.array_equal(several[4][0], several[5][0])


def test_exact_density():
    values = np.sort(SPECTRUM)[::-1]
    density = exact_density("hessian", values)
    found = moments(density, n=N, eps=2e-16)
    assert found.trace.value == pytest.approx(values.sum(), rel=1e-12)
    assert found.trace_square.value == pytest.approx((values**2).sum(), rel=1e-12)
    assert found.trace.stderr == found.negative_mass.stderr == 0
    assert found.negative_mass.value == pytest.approx((values < -1e-12).mean())
    assert found.near_zero_mass.value == pytest.approx(37 / N)
    assert (density.stderr == 0).all()
    assert found.n_probes == 0


@pytest.mark.parametrize("values", [[0.0], [2.5], np.zeros(12), np.full(9, -3.0), [1.0, 2.0]])
def test_degenerate_spectra(values):
    values = np.asarray(values, dtype=float)
    _, density, found = measured(seed=0, top=1, probes=3, values=values)
    assert found.trace.value == pytest.approx(values.sum(), abs=1e-12)
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-6)
    assert found.negative_mass.value == pytest.approx((values < 0).mean(), abs=1e-12)


def test_one_probe_has_no_error_bar():
    _, density, found = measured(seed=0, probes=1)
    assert np.isnan(found.trace.stderr)
    assert (found.trace.lower, found.trace.upper) == (-np.inf, np.inf)
    assert np.isnan(density.stderr).all()


def test_ragged_probes_are_padded_with_weight_zero():
    probes = [(np.array([1.0, 2.0]), np.array([0.5, 0.5])), (np.array([3.0]), np.array([1.0]))]
    density = assemble_density("hessian", probes, n=10, deflated=np.array([7.0]), n_matvecs=3)
    assert np.allclose(density.weights, [[0.1, 0.45, 0.45], [0.1, 0.9, 0.0]], rtol=1e-14)
    assert density.nodes[1, 2] == 3.0


def test_smooth_is_a_mixture_of_gaussians():
    grid = np.linspace(-3, 3, 601)
    out = smooth(np.array([0.0, 1.0]), np.array([0.25, 0.75]), grid, 0.1)
    peak = 1 / (0.1 * np.sqrt(2 * np.pi))
    assert out[300] == pytest.approx(0.25 * peak)
    assert out[400] == pytest.approx(0.75 * peak)


def test_estimate_uses_student_t():
    found = estimate(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2
    assert found.upper - found.lower == pytest.approx(2 * 4.302653 / np.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_null_space_of_a_semi_definite_matrix_is_near_zero(dtype):
    values = np.r_[np.zeros(120), np.geomspace(1e-3, 1, 80)]
    op = operator(values, torch.float64)
    op = DenseOperator(op.matrix.to(dtype))
    options = HessianOptions(top=5, probes=6, steps=25, method="lanczos")
    for seed in range(5):
        found = measure_operator(op, "ggn", options, seed=seed, units=MemoryUnits())[2]
        assert 0.5 < found.near_zero_mass.value < 0.8
        assert found.negative_mass.value < 0.02


def test_zero_outside_the_spectrum_is_no_null_space():
    found = measured(seed=0, top=0, values=np.linspace(1, 3, 60), steps=12)[2]
    assert found.near_zero_mass.value == 0
    assert found.resolution < 1e-10
