"""Float32 products for the Krylov space, verified in float64."""

from __future__ import annotations

import dataclasses

import networks
import numpy as np
import pytest
import torch
from torch import nn

from landscape.data import materialise
from landscape.eigensolver import extreme_eigenpairs
from landscape.errors import UsageError
from landscape.hessian import HessianOptions
from landscape.mixed import MixedOperator, rounded
from landscape.operators import DenseOperator, curvature
from landscape.partial import MemoryUnits
from landscape.risk import Risk
from landscape.runs import HessianRun, hessian_spectrum
from landscape.settings import Settings
from landscape.task import ResolvedTask, Task

VALUES = np.r_[10 * 0.7 ** np.arange(12), np.linspace(-0.05, 0.05, 288)]


def symmetric(values: np.ndarray, *, error: float = 0.0) -> torch.Tensor:
    """A matrix of known eigenvalues, and a symmetric error relative to the largest."""
    draw = torch.Generator().manual_seed(0)
    n = len(values)
    basis = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.float64)).Q
    noise = torch.randn(n, n, generator=draw, dtype=torch.float64)
    noise = error * values[0] * (noise + noise.T) / np.sqrt(8 * n)
    return basis @ torch.diag(torch.from_numpy(values)) @ basis.T + noise


def mixed(error: float) -> MixedOperator:
    cheap = symmetric(VALUES, error=error).float()
    return MixedOperator(DenseOperator(symmetric(VALUES)), DenseOperator(cheap))


@pytest.mark.parametrize("top", [2, 8])
@pytest.mark.parametrize("error", [0.0, 1e-4])
def test_residuals_are_those_of_the_exact_operator(top, error):
    """By each pair's product (2 pairs) and by random combinations of them (8)."""
    operator = mixed(error)
    pairs = extreme_eigenpairs(operator, top=top, tol=1e-6)
    rows = pairs.vectors.double()
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    gaps = rows @ symmetric(VALUES) - torch.from_numpy(pairs.values)[:, None] * rows
    true = torch.linalg.vector_norm(gaps, dim=1).numpy()
    assert operator.exact.n_matvecs >= 2
    assert operator.exact.n_matvecs + operator.cheap.n_matvecs == pairs.n_matvecs
    assert (true < 1.5 * pairs.residuals + 1e-6).all()
    if error:
        assert not pairs.converged.any()
        assert (pairs.residuals > 1e-6 * VALUES[0]).all()
    else:
        assert pairs.converged.all()
        assert (true < 1e-6 * VALUES[0]).all()
        assert abs(pairs.values - VALUES[:top]).max() < 1e-6 * VALUES[0]


def test_single_products_give_eigenvalues_beyond_float32():
    pairs = extreme_eigenpairs(mixed(0.0), top=2, tol=1e-6)
    assert abs(pairs.values - VALUES[:2]).max() < 1e-11 * VALUES[0]


@pytest.mark.parametrize("name", ["hessian", "ggn", "residual"])
def test_products_of_a_network(name):
    risk = networks.risk("digits-mlp")
    exact = curvature(name, risk, graph_memory=0)
    single = rounded(risk, torch.float32)
    assert all(p.dtype == torch.float64 for p in risk.space.parameters)
    operator = MixedOperator(exact, curvature(name, single))
    matrix = curvature(name, risk).dense()
    largest = torch.linalg.eigvalsh((matrix + matrix.T) / 2).abs().max()
    vector = torch.randn(risk.n, generator=torch.Generator().manual_seed(1))
    truth = matrix @ vector.double()
    assert (operator.fresh(vector) - truth).norm() < 1e-12 * largest * vector.norm()
    assert 0 < (operator.matvec(vector) - truth).norm() < 1e-5 * largest * vector.norm()
    assert (operator.dense() - matrix).abs().max() < 1e-12 * largest
    if name != "residual":
        block = operator.block([0, 2])
        assert (block.fresh(vector[: block.n]).dtype) == torch.float64
        part = curvature(name, risk).block([0, 2]).matvec(vector[: block.n].double())
        assert (block.fresh(vector[: block.n]) - part).norm() < 1e-12 * largest * vector.norm()


def test_the_rounded_risk_has_the_same_loss_and_parameters():
    task = networks.build("digits-mlp")
    risk = Risk(task, materialise(task.data), params=["*.weight"], loss="behaviour")
    single = rounded(risk, torch.float32)
    assert single.space.names == risk.space.names
    assert single.loss_kind == "behaviour"
    assert single.model is not risk.model


SETTINGS = Settings(products="float32", examples=200)
OPTIONS = HessianOptions(top=10, method="lanczos", steps=20, probes=2)


def test_the_measurement_equals_that_in_float64():
    task = networks.build("digits-mlp")
    options = dataclasses.replace(OPTIONS, density=False)
    found = hessian_spectrum(task, settings=SETTINGS, options=options)
    truth = hessian_spectrum(
        task, settings=Settings(dtype="float64", examples=200), options=options
    )
    assert found.info.dtype == "float64"
    assert found.info.config["products"] == "float32"
    assert "products" not in truth.info.config
    assert found.info.key != truth.info.key
    spectrum, exact = found.spectra["hessian"], truth.spectra["hessian"]
    assert spectrum.tol == 1e-6
    assert spectrum.converged.all()
    assert (spectrum.residuals <= 1e-6 * exact.eigenvalues[0]).all()
    assert abs(spectrum.eigenvalues - exact.eigenvalues).max() < 1e-6 * exact.eigenvalues[0]


def test_an_interrupted_run_gives_the_same_numbers():
    class Interrupted(MemoryUnits):
        """Ends the run once an unfinished solve has been stored."""

        def due(self) -> bool:
            return True

        def put(self, name, unit):
            super().put(name, unit)
            if name == "lanczos-hessian" and unit["n_matvecs"] == 9:
                raise KeyboardInterrupt

    def run() -> HessianRun:
        task = networks.build("digits-mlp")
        resolved = ResolvedTask(task=task, name="", path="", sha256="", settings={})
        data = materialise(task.data, examples=200, seed=0)
        return HessianRun(
            resolved=resolved, data=data, checkpoint=None, settings=SETTINGS, options=OPTIONS
        )

    whole = run().measure()
    units = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run().measure(units=units)
    kept = MemoryUnits()
    kept.put("lanczos-hessian", units.get("lanczos-hessian"))
    resumed = run().measure(units=kept)
    for name in ("eigenvalues", "residuals"):
        one, other = (getattr(r.spectra["hessian"], name) for r in (whole, resumed))
        assert np.array_equal(one, other)
    assert np.array_equal(whole.densities["hessian"].nodes, resumed.densities["hessian"].nodes)


def test_what_float64_cannot_verify_is_refused():
    task = networks.build("digits-mlp")
    for settings, message in (
        (dataclasses.replace(SETTINGS, dtype="float32"), "verifies in float64"),
        (dataclasses.replace(SETTINGS, dtype="bfloat16"), "verifies in float64"),
    ):
        with pytest.raises(UsageError, match=message):
            hessian_spectrum(task, settings=settings, options=OPTIONS)
    with pytest.raises(UsageError, match="expected float32"):
        Settings(products="float16")  # type: ignore[arg-type]


def test_a_monte_carlo_fisher_is_refused():
    def criterion(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1])

    data = (torch.eye(4), torch.tensor([0, 1, 2, 0]))
    task = Task(model=nn.Linear(4, 3), data=data, criterion=criterion)
    options = HessianOptions(operators=("fisher",), method="lanczos", top=2)
    with pytest.raises(UsageError, match="labels differ"):
        hessian_spectrum(task, settings=Settings(products="float32"), options=options)
