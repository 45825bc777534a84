"""The library's entry point, run keys, settings and the checks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape.checkpoint import read_checkpoint
from landscape.checks import check_risk, non_smooth_functions
from landscape.data import materialise
from landscape.errors import UsageError
from landscape.hessian import HessianOptions
from landscape.runs import HessianRun, hessian_spectrum
from landscape.settings import Settings, resolve_device, resolve_dtype
from landscape.store import load, save
from landscape.task import Task, resolve_task
from landscape.training import train
from landscape.units import MemoryUnits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return train("digits-mlp", {"width": 3}, steps=20, checkpoints=1, out=out)[-1].path


def prepared(checkpoint, settings=None, options=None, **task_settings):
    resolved = resolve_task("digits-mlp", {"width": 3, **task_settings})
    settings = settings or Settings()
    data = materialise(resolved.task.data, examples=settings.examples, seed=settings.data_seed)
    return HessianRun(
        resolved=resolved,
        data=data,
        checkpoint=read_checkpoint(checkpoint),
        settings=settings,
        options=options or HessianOptions(),
    )


def test_a_task_in_memory_is_measured_at_its_own_weights():
    task = resolve_task("digits-mlp", {"width": 2}).task
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    result = landscape.hessian_spectrum(task)
    assert result.info.n_parameters == len(result.spectra["hessian"].eigenvalues)
    assert result.info.checkpoint == ""
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == torch.float32


def test_exact_and_lanczos_agree(checkpoint):
    options = {"top": 6, "bottom": 3, "operators": ("hessian", "ggn")}
    exact = prepared(checkpoint, options=HessianOptions(**options, method="exact")).measure()
    lanczos = prepared(
        checkpoint,
        Settings(dtype="float64"),
        HessianOptions(**options, method="lanczos", steps=30),
    ).measure()
    for name in ("hessian", "ggn"):
        all_values = exact.spectra[name].eigenvalues
        wanted = np.r_[all_values[:6], all_values[-3:]]
        assert abs(lanczos.spectra[name].eigenvalues - wanted).max() < 1e-8 * all_values[0]
        trace = lanczos.moments[name].trace
        assert abs(trace.value - exact.moments[name].trace.value) < 4 * trace.stderr
        assert exact.moments[name].trace.stderr == 0
    assert exact.info.dtype == "float64"
    assert exact.info.n_matvecs == 2 * exact.info.n_parameters  # Fewer than the Gram matrix's rows.


def test_saved_and_loaded_results_are_equal(checkpoint, tmp_path):
    options = HessianOptions(method="lanczos", save_vectors=True, steps=10, probes=3, bottom=2)
    result = prepared(checkpoint, Settings(examples=100), options).measure()
    save(tmp_path / "r.h5", result)
    again = load(tmp_path / "r.h5")
    assert again.info == result.info
    for field in dataclasses.fields(result.spectra["hessian"]):
        np.testing.assert_equal(
            getattr(again.spectra["hessian"], field.name),
            getattr(result.spectra["hessian"], field.name),
        )
    assert (again.densities["hessian"].nodes == result.densities["hessian"].nodes).all()
    assert again.moments == result.moments
    assert (again.indices == result.indices).all()
    assert len(again.indices) == 100
    vectors = again.spectra["hessian"].eigenvectors
    assert vectors.shape == (12, result.info.n_parameters)


def test_what_changes_the_key(checkpoint):
    def key(settings=None, options=None, **task):
        return prepared(checkpoint, settings, options, **task).key

    base = key()
    for same in (
        key(Settings(batch_size=100)),
        key(Settings(graph_memory=0)),
        key(Settings(device="cpu")),
        key(options=HessianOptions(probes=99)),
        key(options=HessianOptions(save_vectors=True)),
        key(options=HessianOptions(top=10, method="exact")),
        key(Settings(dtype="float64")),
        # All eigenvalues are known on the exact path, whatever is asked for.
        key(options=HessianOptions(top=9)),
        key(options=HessianOptions(bottom=1)),
        key(options=HessianOptions(steps=99)),
    ):
        assert same == base
    others = [
        key(Settings(seed=1)),
        key(Settings(loss="behaviour")),
        key(Settings(examples=100)),
        key(Settings(params=("0.*",))),
        key(Settings(dtype="float32")),
        key(options=HessianOptions(tol=1e-3)),
        key(options=HessianOptions(method="lanczos")),
        key(options=HessianOptions(method="lanczos", top=9)),
        key(options=HessianOptions(method="lanczos", bottom=1)),
        key(options=HessianOptions(method="lanczos", steps=99)),
        key(options=HessianOptions(operators=("ggn",))),
        key(options=HessianOptions(density=False)),
        key(activation="relu"),
    ]
    assert len({base, *others}) == len(others) + 1


def test_seeds_change_probes_only_within_their_errors(checkpoint):
    options = HessianOptions(method="lanczos", steps=10)
    runs = [prepared(checkpoint, Settings(seed=s), options).measure() for s in (0, 0, 1)]
    traces = [run.moments["hessian"].trace for run in runs]
    assert traces[0] == traces[1] != traces[2]
    assert abs(traces[0].value - traces[2].value) < 4 * (traces[0].stderr + traces[2].stderr)


def test_an_interrupted_measurement_continues_bit_for_bit(checkpoint):
    options = HessianOptions(method="lanczos", steps=12, probes=4, operators=("hessian", "ggn"))
    whole = prepared(checkpoint, options=options).measure()

    class Eager(MemoryUnits):
        def due(self):
            return True

    class StopNowError(Exception):
        pass

    for stop in (3, 17, 40, 75):
        units, seen = Eager(), 0

        def interrupt(phase, done, total, stop=stop):
            nonlocal seen
            seen += 1
            if seen == stop:
                raise StopNowError

        with pytest.raises(StopNowError):
            prepared(checkpoint, options=options).measure(units=units, progress=interrupt)
        again = prepared(checkpoint, options=options).measure(units=units)
        assert again.moments == whole.moments
        for name in ("hessian", "ggn"):
            assert (again.spectra[name].eigenvalues == whole.spectra[name].eigenvalues).all()
            assert (again.densities[name].nodes == whole.densities[name].nodes).all()
        assert again.info.n_matvecs == whole.info.n_matvecs


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "other"},
        {"dtype": "float16"},
        {"examples": 0},
        {"batch_size": -1},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(UsageError):
        Settings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"operators": ("hess",)},
        {"top": -1},
        {"bottom": -2},
        {"steps": 0},
        {"probes": 0},
        {"tol": 0.0},
        {"tol": 2.0},
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(UsageError):
        HessianOptions(**wrong)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in {"cpu", "cuda"}
    for name in ("gpu", "cuda:99", "meta", "xla"):
        with pytest.raises(UsageError, match="--device"):
            resolve_device(name)
    with pytest.raises(UsageError, match="mps"):
        resolve_dtype("float64", torch.device("mps"))


def test_check_reports_cost_and_non_smooth_functions():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 2

    def run(activation):
        task = Task(
            model=nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 2)),
            data=(x, y),
            criterion="cross_entropy",
        )
        return landscape.Risk(task, materialise(task.data))

    report = check_risk(run(nn.Tanh()))
    assert report.symmetric
    assert report.non_smooth == ()
    assert report.plan.n_kept == report.n_batches == 1
    assert report.rebuilt == 0
    assert report.product_seconds > 0
    assert check_risk(run(nn.ReLU()), graph_memory=0).rebuilt == 1
    for activation, label in (
        (nn.ReLU(), "relu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.Hardtanh(), "hardtanh / relu6"),
        (nn.ReLU6(), "hardtanh / relu6"),
        (nn.PReLU(), "prelu"),
    ):
        assert label in non_smooth_functions(run(activation).batch_loss(0)), activation


def test_default_top_fits_small_models():
    task = Task(
        model=nn.Linear(2, 1, bias=False),
        data=(torch.eye(2), torch.ones(2, 1)),
        criterion="mse",
    )
    result = hessian_spectrum(task)
    assert result.spectra["hessian"].eigenvalues == pytest.approx([0.5, 0.5])
    outputs = task.model(torch.eye(2)).detach()
    assert result.info.loss == pytest.approx(float(0.25 * (outputs - 1).square().sum()), rel=1e-6)
