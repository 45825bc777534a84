"""On a CUDA device: the same numbers as on the CPU. ``pytest -m gpu`` runs these alone."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch

from landscape.eigensolver import extreme_eigenpairs
from landscape.hessian import HessianOptions
from landscape.krylov import quadrature
from landscape.operators import DenseOperator, curvature
from landscape.products import default_graph_memory
from landscape.runs import hessian_spectrum
from landscape.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device, and torch.cuda.is_available() is False here",
    ),
]

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


def moved(name, dtype, device):
    risk = networks.risk(name, dtype=dtype)
    return type(risk)(risk.task, risk.data, device=device, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(networks.NETWORKS))
@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
def test_products_equal_those_of_the_cpu(name, operator, dtype):
    here = curvature(operator, moved(name, dtype, "cpu"))
    there = curvature(operator, moved(name, dtype, "cuda"))
    rows = torch.randn(3, here.n, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = here.rows(rows)
    scale = TOLERANCE[dtype] * float(expected.abs().max())
    assert there.device.type == "cuda"
    assert (there.rows(rows.cuda()).cpu() - expected).abs().max() < scale
    assert (there.matvec(rows[0].cuda()).cpu() - expected[0]).abs().max() < scale


def test_compiled_products_equal_the_plain_ones():
    risk = moved("digits-mlp", torch.float32, "cuda")
    plain, compiled = curvature("hessian", risk), curvature("hessian", risk, compiled=True)
    vector = torch.randn(risk.n, device="cuda")
    expected = plain.matvec(vector)
    assert (compiled.matvec(vector) - expected).abs().max() < 2e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_and_quadrature_equal_those_of_the_cpu(dtype):
    values = torch.cat([torch.arange(1, 9.0), torch.linspace(-0.1, 0.1, 400)]).double()
    q, _ = torch.linalg.qr(
        torch.randn(408, 408, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    matrix = ((q * values) @ q.T).to(dtype)
    tol = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    here, there = DenseOperator(matrix), DenseOperator(matrix.cuda())
    for max_basis in (None, 25):
        options = {"top": 6, "bottom": 1, "tol": tol, "max_basis": max_basis}
        expected, found = extreme_eigenpairs(here, **options), extreme_eigenpairs(there, **options)
        assert found.converged.all()
        assert abs(found.values - expected.values).max() < 20 * tol
        assert found.vectors.is_cuda
    start = torch.randn(408, generator=torch.Generator().manual_seed(1), dtype=dtype)
    nodes, weights = quadrature(here, start, steps=20)
    nodes_there, weights_there = quadrature(there, start.cuda(), steps=20)
    assert weights_there @ np.exp(nodes_there) == pytest.approx(
        weights @ np.exp(nodes), rel=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_whole_run(method):
    options = HessianOptions(top=4, probes=2, steps=30, method=method)
    task = networks.build("digits-mlp")
    results = [
        hessian_spectrum(
            task,
            settings=Settings(device=device, dtype="float64", examples=200),
            options=options,
        )
        for device in ("cpu", "cuda")
    ]
    here, there = (r.spectra["hessian"].eigenvalues[:4] for r in results)
    assert "cuda" in results[1].info.device
    assert here == pytest.approx(there, rel=1e-8)
    assert results[1].spectra["hessian"].converged[:4].all()


def test_the_memory_plan_asks_the_device():
    free, _ = torch.cuda.mem_get_info()
    assert 0 < default_graph_memory(torch.device("cuda")) <= free
