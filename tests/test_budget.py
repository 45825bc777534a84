"""Budgets, requested errors, diagonal blocks of modules, and sums shown from stored results."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
import xarray

from landscape.budget import Budget
from landscape.data import materialise
from landscape.errors import UsageError
from landscape.hessian import HessianOptions
from landscape.operators import curvature
from landscape.results import MODULES
from landscape.risk import Risk
from landscape.runs import HessianRun, hessian_spectrum
from landscape.settings import Settings
from landscape.store import load, save
from landscape.task import resolve_task
from landscape.training import train
from landscape.units import MemoryUnits
from landscape_cli.app import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return train("digits-mlp", {"width": 3}, steps=20, checkpoints=1, out=out)[-1].path


def prepared(options, settings):
    resolved = resolve_task("digits-mlp", {"width": 3})
    data = materialise(resolved.task.data, examples=200)
    return HessianRun(
        resolved=resolved, data=data, checkpoint=None, settings=settings, options=options
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60", Budget(seconds=60)),
        ("1.5s", Budget(seconds=1.5)),
        ("2000mv", Budget(products=2000)),
        ("1e3 mv", Budget(products=1000)),
    ],
)
def test_budgets_are_read(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "many", "10 minutes", "0mv", "nan"])
def test_wrong_budgets(text):
    with pytest.raises(UsageError, match="--budget"):
        Budget.parse(text)


def test_a_budget_cuts_and_a_larger_one_continues_to_the_same_numbers():
    options = HessianOptions(method="lanczos", steps=15, probes=5, operators=("hessian", "ggn"))
    whole = prepared(options, Settings()).measure()
    assert whole.info.status == "complete"
    units = MemoryUnits()
    for products in (5, 20, 45, 60):
        settings = Settings(budget=Budget(products=products))
        cut = prepared(options, settings).measure(units=units)
        assert cut.info.status == "budget"
        assert any("budget" in text for text in cut.info.warnings)
    result = prepared(options, Settings()).measure(units=units)
    assert result.info.status == "complete"
    assert result.moments == whole.moments
    for name in ("hessian", "ggn"):
        assert (result.spectra[name].eigenvalues == whole.spectra[name].eigenvalues).all()


def test_a_budget_large_enough_changes_nothing():
    options = HessianOptions(method="lanczos", steps=5, probes=2, top=2)
    result = prepared(options, Settings(budget=Budget(products=100_000, seconds=600))).measure()
    assert result.info.status == "complete"
    assert result.info.warnings == ()


def test_probes_are_added_until_the_error_is_met():
    few = HessianOptions(method="lanczos", steps=8, probes=2, top=2)
    trace = prepared(few, Settings()).measure().moments["hessian"].trace
    assert (trace.upper - trace.lower) / 2 > 0.1 * trace.value
    more = HessianOptions(method="lanczos", steps=8, probes=2, top=2, error=0.1)
    result = prepared(more, Settings()).measure()
    found = result.moments["hessian"]
    assert found.n_probes > 2
    assert (found.trace.upper - found.trace.lower) / 2 <= 0.1 * found.trace.value
    assert result.info.status == "complete"


def test_modules_are_the_diagonal_blocks(tmp_path):
    task = resolve_task("digits-mlp", {"width": 3}).task
    options = HessianOptions(operators=("hessian", "ggn"), per_module=True, top=20, bottom=2)
    result = hessian_spectrum(task, settings=Settings(examples=60), options=options)
    data = materialise(task.data, examples=60)
    risk = Risk(task, data)
    names = [f"{o}{MODULES}{m}" for o in ("hessian", "ggn") for m in ("0", "2")]
    assert [n for n in result.spectra if MODULES in n] == names
    for operator in ("hessian", "ggn"):
        matrix = curvature(operator, risk).dense()
        blocks = {"0": slice(0, 195), "2": slice(195, 235)}
        for module, part in blocks.items():
            values = torch.linalg.eigvalsh(matrix[part, part]).flip(0).numpy()
            found = result.spectra[f"{operator}{MODULES}{module}"]
            assert abs(found.eigenvalues - values).max() < 1e-10 * values[0]
            trace = result.moments[f"{operator}{MODULES}{module}"].trace.value
            assert trace == pytest.approx(values.sum(), rel=1e-9)
        parts = sum(result.moments[f"{operator}{MODULES}{m}"].trace.value for m in blocks)
        assert result.moments[operator].trace.value == pytest.approx(parts, rel=1e-9)
    save(tmp_path / "r.h5", result)
    again = load(tmp_path / "r.h5")
    assert list(again.spectra) == ["hessian", *names[:2], "ggn", *names[2:]]
    assert again.moments == result.moments
    with xarray.open_datatree(tmp_path / "r.h5", engine="h5netcdf") as tree:
        block = tree["spectrum/hessian/modules/0"]
        assert np.array_equal(block["eigenvalues"], result.spectra[names[0]].eigenvalues)


def test_small_modules_give_all_they_have():
    task = resolve_task("digits-mlp", {"width": 1}).task
    options = HessianOptions(per_module=True, top=60, method="lanczos", density=False)
    result = hessian_spectrum(task, settings=Settings(examples=60), options=options)
    assert len(result.spectra[f"hessian{MODULES}2"].eigenvalues) == 20


def line(argv, capsys):
    code = run([str(a) for a in argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_budget_on_the_command_line_keeps_its_state(checkpoint, tmp_path, capsys):
    base = ["hessian", checkpoint, "--task", "digits-mlp", "--set", "width=3", "-o", tmp_path]
    base += ["--method", "lanczos", "--steps", "15", "--probes", "4", "--json"]
    code, out, _ = line([*base, "--budget", "60mv"], capsys)
    assert code == 0
    assert json.loads(out)["results"][0]["status"] == "budget"
    assert len(list(tmp_path.glob("*.partial"))) == 1
    code, out, err = line(base, capsys)
    document = json.loads(out)["results"][0]
    assert (code, document["status"]) == (0, "complete")
    assert "resuming" in err
    assert not list(tmp_path.glob("*.partial"))
    assert len(list(tmp_path.glob("*.h5"))) == 1
    file = document["file"]
    stamp = os.stat(file).st_mtime_ns
    line(base, capsys)
    assert os.stat(file).st_mtime_ns == stamp


def test_error_on_the_command_line_continues_the_same_file(checkpoint, tmp_path, capsys):
    base = ["hessian", checkpoint, "--task", "digits-mlp", "--set", "width=3", "-o", tmp_path]
    base += ["--method", "lanczos", "--steps", "6", "--probes", "2", "--json"]
    line(base, capsys)
    (file,) = tmp_path.glob("*.h5")
    first = load(file)
    code, out, _ = line([*base, "--error", "0.05"], capsys)
    second = load(file)
    assert code == 0
    count = second.moments["hessian"].n_probes
    assert count > 2
    assert np.array_equal(second.densities["hessian"].nodes[:2], first.densities["hessian"].nodes)
    code, out, _ = line([*base, "--error", "0.05"], capsys)
    assert not json.loads(out)["results"][0]["new"]


def test_sums_are_shown_from_stored_results(checkpoint, tmp_path, capsys):
    base = ["hessian", checkpoint, "--task", "digits-mlp", "--set", "width=3", "-o", tmp_path]
    code, out, _ = line([*base, "--json", "--threshold", "0.1"], capsys)
    document = json.loads(out)["results"][0]
    values = document["values"]["hessian"]
    count = sum(v > 0.1 for v in values["eigenvalues"])
    assert values["sums"]["eigenvalues above 0.1"]["value"] == count
    code, out, _ = line(["show", document["file"], "--threshold", "0.1", "--log-det", "2"], capsys)
    assert code == 0
    assert f"eigenvalues above 0.1  {count} (exact)" in " ".join(out.split("\n"))
    assert "log det(I + 2 A)" in out
    for wrong in (["--log-det", "-1"], ["--threshold", "nan"]):
        code, _, err = line(["show", document["file"], *wrong], capsys)
        assert code == 2
        assert err.startswith("error:")
