"""Products, exact spectra and Lanczos against explicitly built matrices, on three networks."""

from __future__ import annotations

from functools import cache

import networks
import numpy as np
import pytest
import torch

from landscape.hessian import HessianOptions, measure_operator
from landscape.operators import curvature
from landscape.units import MemoryUnits

NAMES = list(networks.NETWORKS)


@cache
def dense(name: str, operator: str) -> torch.Tensor:
    build = networks.dense_hessian if operator == "hessian" else networks.dense_ggn
    return build(networks.risk(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_products_match_the_dense_matrix(name, operator):
    risk = networks.risk(name)
    expected = dense(name, operator)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(5, risk.n, generator=generator, dtype=torch.float64)
    op = curvature(operator, risk)
    scale = torch.linalg.matrix_norm(expected, 2)
    assert (op.rows(rows) - rows @ expected).abs().max() < 1e-10 * scale * risk.n**0.5
    assert (op.matvec(rows[0]) - expected @ rows[0]).abs().max() < 1e-10 * scale * risk.n**0.5
    assert op.n_matvecs == 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_eigenvalues_in_float64(name, operator, method):
    expected = torch.linalg.eigvalsh(dense(name, operator)).numpy()[::-1]
    op = curvature(operator, networks.risk(name))
    # The smallest eigenvalues of a GGN are a cluster at zero: only the Hessian's are asked for.
    bottom = 4 if operator == "hessian" else 0
    options = HessianOptions(top=12, bottom=bottom, method=method, density=False)
    spectrum, _, _ = measure_operator(op, operator, options, seed=0, units=MemoryUnits())
    largest = abs(expected).max()
    if method == "exact":
        assert abs(spectrum.eigenvalues - expected).max() < 1e-8 * largest
        assert spectrum.symmetry < 1e-12
    else:
        wanted = np.r_[expected[:12], expected[len(expected) - bottom :]]
        assert abs(spectrum.eigenvalues - wanted).max() < 1e-8 * largest
        assert spectrum.orthogonality < 1e-12
    assert spectrum.converged.all()
    assert spectrum.residuals.max() < 1e-8 * largest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_eigenvalues_in_float32(name, operator, method):
    expected = torch.linalg.eigvalsh(dense(name, operator)).numpy()[::-1]
    op = curvature(operator, networks.risk(name, dtype=torch.float32))
    options = HessianOptions(top=12, method=method, density=False)
    spectrum, _, _ = measure_operator(op, operator, options, seed=0, units=MemoryUnits())
    assert abs(spectrum.eigenvalues[:12] - expected[:12]).max() < 1e-4 * abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_micro_batches_and_graph_memory_change_only_the_rounding(name, operator):
    vector = None
    results = []
    for batch, memory in ((None, None), (1000, None), (7, None), (29, 0), (29, 300_000)):
        op = curvature(operator, networks.risk(name, batch=batch), graph_memory=memory)
        if vector is None:
            vector = torch.randn(
                op.n, generator=torch.Generator().manual_seed(2), dtype=torch.float64
            )
        results.append(op.matvec(vector))
        results.append(op.matvec(vector))
    largest = results[0].abs().max()
    for other in results[1:]:
        assert (other - results[0]).abs().max() < 1e-12 * largest


def test_a_budget_keeps_some_graphs_and_rebuilds_the_others():
    risk = networks.risk("digits-mlp", batch=29)
    whole = curvature("hessian", risk).product.plan
    assert (whole.n_batches, whole.n_kept) == (5, 5)
    assert whole.graph_bytes > 29 * 64 * 8
    some = curvature("hessian", risk, graph_memory=2 * whole.graph_bytes).product.plan
    assert some.n_kept == 2
    assert curvature("hessian", risk, graph_memory=0).product.plan.n_kept == 0


@pytest.mark.parametrize("name", NAMES)
def test_behaviour_hessian_is_the_ggn(name):
    risk = networks.risk(name, loss="behaviour")
    assert risk.loss() == 0
    assert risk.gradient().abs().max() < 1e-14
    vector = torch.randn(risk.n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = dense(name, "ggn") @ vector
    for operator in ("hessian", "ggn"):
        product = curvature(operator, risk).matvec(vector)
        assert (product - expected).abs().max() < 1e-12 * expected.abs().max() * risk.n


def test_relabelled_uses_the_anchors_predictions():
    risk = networks.risk("digits-mlp", loss="relabelled")
    inputs, _ = networks.whole_batch(risk)
    outputs = risk.model(inputs).detach()
    expected = torch.nn.functional.cross_entropy(outputs, outputs.argmax(-1))
    assert risk.loss() == pytest.approx(float(expected), rel=1e-12)
