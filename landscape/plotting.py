"""Figures from stored results; imports neither torch nor any numerics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import UsageError
from landscape.results import Density, HessianResult, Spectrum
from landscape.store import load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["hessian_figure", "plot_results"]

_FORMATS = (".png", ".pdf", ".svg")
_FLOOR = 1e-2  # Smallest expected number of eigenvalues per bandwidth that is drawn.
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "landscape",
    "pdf.fonttype": 42,
}
_BLUE, _ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart with any colour vision.


def plot_results(files: Sequence[Path], target: Path) -> None:
    """Draw result files and save the figure; the ending chooses PNG, PDF or SVG.

    Raises:
        UsageError: another ending, or the file cannot be written.
        ResultFileError: a file is not a result.
    """
    import matplotlib

    if target.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"figure {target}: the ending {target.suffix!r} is not known; expected "
            f"{', '.join(_FORMATS)}"
        )
    results = sorted(
        (load(file) for file in files),
        key=lambda r: math.inf if r.info.step is None else r.info.step,
    )
    with matplotlib.rc_context(_STYLE):
        figure = hessian_figure(results)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A figure is a function of its results: no date in the file.
            dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
            figure.savefig(target, dpi=200, metadata=dated.get(target.suffix.lower()))
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


def hessian_figure(results: Sequence[HessianResult]) -> Figure:
    """Density (left, where known) and largest eigenvalues (right); one row per operator."""
    from matplotlib.figure import Figure

    operators = list(dict.fromkeys(name for r in results for name in r.spectra))
    dense = any(result.densities for result in results)
    figure = Figure(figsize=(7.2 if dense else 4.2, 3.0 * len(operators)), layout="constrained")
    grid: Any = figure.subplots(len(operators), 2 if dense else 1, squeeze=False)
    for row, name in zip(grid, operators, strict=True):
        of = [result for result in results if name in result.spectra]
        colours = _colours(len(of))
        if dense:
            _density_panel(row[0], name, of, colours)
        _scree_panel(row[-1], name, of, colours)
    return figure


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count == 1:
        return [_BLUE]
    return list(colormaps["viridis"](np.linspace(0.0, 0.88, count)))


def _label(result: HessianResult) -> str:
    step = result.info.step
    return Path(result.info.checkpoint).stem if step is None else f"step {step}"


def _unit(result: HessianResult) -> str:
    return str(result.info.config.get("units", "loss units"))


def _density_panel(
    axes: Axes, name: str, results: Sequence[HessianResult], colours: Sequence[Any]
) -> None:
    axes.set_yscale("log")
    floor = math.inf
    for result, colour in zip(results, colours, strict=True):
        density = result.densities.get(name)
        if density is None:
            continue
        n = result.info.n_parameters
        # Below a small part of one eigenvalue the curve is only the Gaussian's tail.
        least = _FLOOR / (n * density.bandwidth)
        floor = min(floor, least)
        shown = np.where(density.density >= least, density.density, np.nan)
        axes.plot(density.grid, shown, color=colour, lw=1.1, label=_label(result))
        if np.isfinite(density.stderr).all() and density.stderr.any():
            low = np.maximum(density.density - 1.96 * density.stderr, least)
            high = np.maximum(density.density + 1.96 * density.stderr, least)
            axes.fill_between(density.grid, low, high, color=colour, alpha=0.2, lw=0)
    last = results[-1]
    if math.isfinite(floor):
        axes.set_ylim(bottom=floor)
    ticks = _known(last.spectra[name], last.densities.get(name))
    axes.plot(
        ticks,
        np.full(len(ticks), 0.02),
        "|",
        color="black",
        ms=6,
        mew=0.7,
        transform=axes.get_xaxis_transform(),
        label="eigenvalues" if len(results) == 1 else f"eigenvalues, {_label(last)}",
    )
    axes.set_xlabel(f"eigenvalue λ of the {_title(name)} [{_unit(last)} / parameter²]")
    axes.set_ylabel("density of eigenvalues [1 / unit of λ]")
    axes.legend(fontsize=7)


def _title(name: str) -> str:
    titles = {"hessian": "Hessian", "ggn": "GGN", "fisher": "Fisher matrix"}
    return titles.get(name, name)


def _known(spectrum: Spectrum, density: Density | None) -> Any:
    """Eigenvalues known up to their residual, where a tick can be trusted."""
    return spectrum.eigenvalues[spectrum.converged]


def _scree_panel(
    axes: Axes, name: str, results: Sequence[HessianResult], colours: Sequence[Any]
) -> None:
    smallest = math.inf
    negative = False
    for result, colour in zip(results, colours, strict=True):
        spectrum = result.spectra[name]
        k = len(spectrum.eigenvalues) if spectrum.exact else spectrum.top
        values, residuals = spectrum.eigenvalues[:k], spectrum.residuals[:k]
        rank = np.arange(1, k + 1)
        positive = values > 0
        negative |= bool((values < 0).any())
        style: dict[str, Any] = {"ms": 3, "lw": 0, "color": colour}
        axes.errorbar(
            rank[positive],
            values[positive],
            # A bar must not reach zero on a logarithmic axis.
            yerr=np.minimum(residuals[positive], 0.999 * values[positive]),
            marker="o",
            elinewidth=0.8,
            label=_label(result),
            **style,
        )
        axes.plot(rank[~positive], -values[~positive], marker="o", mfc="none", mew=0.6, **style)
        if positive.any():
            smallest = min(smallest, float(values[positive].min()))
    axes.set_yscale("log")
    most = max(len(r.spectra[name].eigenvalues) for r in results)
    if most > 60:
        axes.set_xscale("log")
        top = max(float(np.abs(r.spectra[name].eigenvalues).max(initial=0.0)) for r in results)
        if top > 0:
            # Rounding noise of exact zeros would fill most of the axis.
            axes.set_ylim(bottom=max(top * 1e-12, smallest * 0.5 if smallest < math.inf else 0))
    axes.set_xlabel("rank of the eigenvalue")
    axes.set_ylabel(f"|λ| [{_unit(results[-1])} / parameter²]")
    hint = "bars: residual; open: negative" if negative else "bars: residual"
    axes.text(0.98, 0.97, hint, transform=axes.transAxes, ha="right", va="top", fontsize=7)
    if len(results) > 1:
        axes.legend(fontsize=7, loc="lower left")
