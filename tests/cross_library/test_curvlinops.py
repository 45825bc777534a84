"""Eigenvalues and traces against curvlinops, an independent library, in unequal micro-batches."""

from __future__ import annotations

import networks
import pytest
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.hessian import HessianOptions, measure_operator
from landscape.information.split import exact_split
from landscape.mixed import MixedOperator, rounded
from landscape.operators import curvature
from landscape.units import MemoryUnits, silent

PEERS = {"hessian": HessianLinearOperator, "ggn": GGNLinearOperator}


class Forward(torch.nn.Module):
    """The task's forward function as the module that curvlinops expects."""

    def __init__(self, risk):
        super().__init__()
        self.model, self.task = risk.model, risk.task

    def forward(self, inputs):
        return self.task.forward(self.model, (inputs,))


def peer_matrix(risk, operator):
    """The peer's matrix."""
    module = Forward(risk)
    data = [(x, y) for x, y in (risk.batch(i) for i in range(risk.n_batches))]
    peer = PEERS[operator](
        module,
        torch.nn.CrossEntropyLoss(),
        list(module.parameters()),
        data,
        check_deterministic=False,
    )
    with sdpa_kernel(SDPBackend.MATH):
        matrix = peer @ torch.eye(risk.n, dtype=torch.float64)
    return (matrix + matrix.T) / 2


def peer_values(risk, operator):
    """All eigenvalues of the peer's matrix, descending."""
    return torch.linalg.eigvalsh(peer_matrix(risk, operator)).flip(0)


@pytest.mark.parametrize("name", list(networks.NETWORKS))
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_spectrum_agrees(name, operator):
    risk = networks.risk(name)
    expected = peer_values(risk, operator)
    options = HessianOptions(top=10, method="lanczos", probes=4, steps=20)
    spectrum, _, moments = measure_operator(
        curvature(operator, risk), operator, options, seed=0, units=MemoryUnits()
    )
    values = torch.from_numpy(spectrum.eigenvalues)
    assert (values - expected[:10]).abs().max() < 1e-8 * expected.abs().max()
    gap = abs(moments.trace.value - float(expected.sum()))
    assert gap < 5 * moments.trace.stderr


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_eigenvalues_by_products_of_lower_precision_agree(operator):
    risk = networks.risk(next(iter(networks.NETWORKS)))
    expected = peer_values(risk, operator)
    cheap = curvature(operator, rounded(risk, torch.float32))
    mixed = MixedOperator(curvature(operator, risk), cheap)
    options = HessianOptions(top=10, method="lanczos", probes=2, steps=20, tol=1e-5)
    spectrum, _, _ = measure_operator(mixed, operator, options, seed=0, units=MemoryUnits())
    assert spectrum.converged.all()
    values = torch.from_numpy(spectrum.eigenvalues)
    # An eigenvalue is nearer than its residual.
    assert (values - expected[:10]).abs().max() < 1e-5 * expected.abs().max()


def test_norms_of_ggn_and_residual_agree():
    risk = networks.risk("modular-addition")
    h, ggn = (peer_matrix(risk, operator) for operator in ("hessian", "ggn"))
    operators = [curvature(name, risk) for name in ("hessian", "ggn")]
    split, _ = exact_split(*operators, {}, tol=1e-10, units=MemoryUnits(), progress=silent)
    found = split.norms[0]
    expected = [float(torch.linalg.matrix_norm(part)) for part in (h, ggn, h - ggn)]
    assert [found.hessian, found.ggn, found.residual] == pytest.approx(expected, rel=1e-8)
    assert found.residual > 1e-3 * found.hessian
