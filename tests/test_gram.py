"""The Gram path: exact GGN spectra from the small matrix, against the dense one."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from torch import nn

from landscape.data import materialise
from landscape.errors import UsageError
from landscape.gram import factor, factor_width
from landscape.hessian import HessianOptions, choose_method
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.runs import hessian_spectrum
from landscape.settings import Settings
from landscape.spectrum import gram_spectrum
from landscape.task import Task


def draws(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", list(networks.NETWORKS))
@pytest.mark.parametrize("batch", [None, 23])
def test_factor_squares_to_the_ggn(name, batch):
    risk = networks.risk(name, batch=batch)
    expected = networks.dense_ggn(risk)
    rows = factor(risk)
    assert factor_width(risk) == (10 if name == "modular-addition" else 9)
    assert len(rows) <= risk.data.n_examples * factor_width(risk)
    assert (rows.T @ rows - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("criterion", ["mse", "binary_cross_entropy", "cross_entropy", "tokens"])
@pytest.mark.parametrize("loss", ["task", "behaviour"])
def test_every_criterion(criterion, loss):
    inputs = draws(7, 2, 3) if criterion == "tokens" else draws(7, 3)
    targets = draws(7, 4).sigmoid()
    if criterion == "cross_entropy":
        targets = torch.arange(7) % 4
    if criterion == "tokens":
        targets = torch.arange(14).reshape(7, 2) % 4
        targets[2, 1] = -100
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    name = "cross_entropy" if criterion == "tokens" else criterion
    task = Task(model=model, data=(inputs, targets), criterion=name)
    risk = Risk(task, materialise(task.data), loss=loss, batch_size=4)
    rows = factor(risk)
    expected = curvature("ggn", risk).dense()
    assert (rows.T @ rows - expected).abs().max() < 1e-13
    terms = 13 if criterion == "tokens" else 7
    assert len(rows) == terms * (3 if name == "cross_entropy" else 4)


@pytest.mark.parametrize(("r", "n"), [(1, 1), (3, 8), (8, 3), (1, 5), (0, 4), (6, 6)])
@pytest.mark.parametrize("top", [0, 1, 3])
def test_spectrum_of_a_factor(r, n, top):
    top = min(top, n)
    rows = draws(r, n)
    spectrum, vectors = gram_spectrum(rows, "ggn", top=top, bottom=0, tol=1e-8)
    expected = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
    assert torch.allclose(torch.from_numpy(spectrum.eigenvalues), expected, atol=1e-12)
    assert spectrum.converged.all()
    gap = vectors @ (rows.T @ rows) - torch.from_numpy(spectrum.eigenvalues[:top, None]) * vectors
    assert (gap.abs() < 1e-12).all()
    assert spectrum.orthogonality < 1e-12
    assert np.allclose(torch.linalg.vector_norm(gap, dim=1), spectrum.residuals[:top], atol=1e-13)


def test_it_is_chosen_where_it_is_the_smaller_one_and_gives_the_same():
    task = networks.build("digits-mlp")
    settings = Settings(examples=30)
    found = hessian_spectrum(
        task, settings=settings, options=HessianOptions(operators=("hessian", "ggn", "fisher"))
    )
    assert [s.method for s in found.spectra.values()] == ["dense", "gram", "gram"]
    dense = hessian_spectrum(
        task,
        settings=Settings(examples=30, loss="behaviour"),
        options=HessianOptions(operators=("hessian",)),
    )
    largest = dense.spectra["hessian"].eigenvalues[0]
    gap = dense.spectra["hessian"].eigenvalues - found.spectra["ggn"].eigenvalues
    assert abs(gap).max() < 1e-12 * largest
    assert found.moments["ggn"].trace.value == pytest.approx(
        dense.moments["hessian"].trace.value, rel=1e-12
    )
    assert found.moments["ggn"].near_zero_mass.value >= 1 - 270 / found.info.n_parameters
    assert found.info.dtype == "float64"


def test_choices():
    assert choose_method("auto", "ggn", 100, 40) == "gram"
    assert choose_method("auto", "ggn", 100, 400) == "dense"
    assert choose_method("auto", "ggn", 10_000, 400) == "gram"
    assert choose_method("auto", "ggn", 10_000, 5000) == "lanczos"
    assert choose_method("auto", "hessian", 10_000, None) == "lanczos"
    assert choose_method("auto", "hessian", 4096, None) == "dense"
    assert choose_method("exact", "hessian", 10_000, None) == "dense"
    assert choose_method("lanczos", "ggn", 10, 4) == "lanczos"
    with pytest.raises(UsageError, match="GB"):
        choose_method("exact", "hessian", 10**6, None)


def test_a_criterion_that_is_not_convex_in_the_outputs():
    data = (draws(5, 3), draws(5, 2))
    task = Task(model=nn.Linear(3, 2).double(), data=data, criterion=lambda f, b: f.cos().mean())
    with pytest.raises(UsageError, match="convex"):
        factor(Risk(task, materialise(data)))
    found = hessian_spectrum(task, options=HessianOptions(operators=("ggn",)))
    assert found.spectra["ggn"].method == "dense"
    assert found.spectra["ggn"].eigenvalues[-1] < 0


def test_rows_continue_from_earlier_ones():
    risk = networks.risk("digits-mlp", batch=40)
    seen = []
    whole = factor(risk, on_rows=seen.append)
    assert len(seen) > 20
    for part in seen[::9]:
        assert torch.equal(factor(risk, rows=part), whole)
    # Micro-batches of another size: rows at hand need not end where one of them ends.
    other = networks.risk("digits-mlp", batch=11)
    for part in seen[:3]:
        assert torch.allclose(factor(other, rows=part), whole, atol=1e-12)
