"""Figures: what they show, in which formats, from which results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib import rc_context

from landscape.errors import ResultFileError, UsageError
from landscape.hessian import HessianOptions
from landscape.plotting import hessian_figure, plot_results
from landscape.runs import hessian_spectrum
from landscape.settings import Settings
from landscape.store import save
from landscape.task import resolve_task


@pytest.fixture(scope="module")
def results():
    task = resolve_task("digits-mlp", {"width": 2}).task
    found = []
    for step, options in (
        (None, {"method": "exact"}),
        (7, {"method": "lanczos", "steps": 20, "probes": 3, "bottom": 2}),
        (100, {"method": "lanczos", "steps": 20, "probes": 1}),
        (None, {"method": "lanczos", "density": False}),
    ):
        options = HessianOptions(operators=("hessian", "ggn"), **options)
        result = hessian_spectrum(task, settings=Settings(examples=50), options=options)
        info = dataclasses.replace(result.info, step=step, checkpoint="a$x_{$.pt")
        found.append(dataclasses.replace(result, info=info))
    return found


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_formats_and_determinism(results, tmp_path, ending):
    files = []
    for index, result in enumerate(results):
        files.append(tmp_path / f"{index}.h5")
        save(files[-1], result)
    one, two = tmp_path / f"one{ending}", tmp_path / f"new/two{ending}"
    plot_results(files, one)
    plot_results(files, two)
    assert one.stat().st_size > 5000
    assert one.read_bytes() == two.read_bytes()


def test_one_result(results):
    figure = hessian_figure([results[1]])
    density, scree = figure.axes[:2]
    assert "nats" in density.get_xlabel()
    assert density.get_yscale() == scree.get_yscale() == "log"
    labels = [text.get_text() for text in density.get_legend().get_texts()]
    assert labels == ["step 7", "95% interval over probes", "eigenvalues"]
    assert "σ" in density.get_legend().get_title().get_text()
    # Twelve points: ten filled, two open ones where they are negative.
    assert sum(len(c.lines[0].get_xdata()) for c in scree.containers) == 12
    assert len(figure.axes) == 4


def test_several_results_share_one_smoothing(results):
    figure = hessian_figure(results)
    curves = figure.axes[0].lines
    assert len(curves) == 4  # Three densities and the ticks; the fourth result has none.
    for line, result in zip(curves[:3], results[:3], strict=True):
        x, y = line.get_xdata(), np.nan_to_num(line.get_ydata())
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02), result.info.step


def test_without_density_there_is_one_panel(results):
    assert len(hessian_figure([results[3]]).axes) == 2


def test_long_spectra_are_lines_by_magnitude(results):
    axes = hessian_figure([results[0]]).axes[1]
    assert axes.get_xscale() == "log"
    values = axes.lines[0].get_ydata()
    assert (np.diff(values[np.isfinite(values)]) <= 0).all()


def test_wrong_files(results, tmp_path):
    save(tmp_path / "r.h5", results[0])
    with pytest.raises(UsageError, match="gif"):
        plot_results([tmp_path / "r.h5"], tmp_path / "x.gif")
    with pytest.raises(UsageError, match="cannot write"):
        plot_results([tmp_path / "r.h5"], tmp_path / "r.h5" / "x.png")
    with pytest.raises(ResultFileError):
        plot_results([tmp_path / "none.h5"], tmp_path / "x.png")


def test_settings_of_matplotlib_are_left_alone(results, tmp_path):
    save(tmp_path / "r.h5", results[0])
    with rc_context({"font.size": 3}):
        from matplotlib import rcParams

        plot_results([tmp_path / "r.h5"], tmp_path / "x.png")
        assert rcParams["font.size"] == 3
