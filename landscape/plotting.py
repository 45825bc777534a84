"""Figures from stored results; imports neither torch nor any numerics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as t_law

from landscape.agreement import require_one_command
from landscape.compare.records import CompareResult
from landscape.errors import UsageError
from landscape.flat.records import FlatResult
from landscape.flat_series import FlatSeries
from landscape.modules.records import ModulesResult
from landscape.results import MODULES, Density, HessianResult, Result
from landscape.series import collect
from landscape.series_store import kind_of, load_series
from landscape.smoothing import smooth
from landscape.store import load
from landscape.sweep_store import load_sweep
from landscape.text import escape_name
from landscape.volume.records import VolumeResult
from landscape.volume_series import VolumeSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ABOVE", "BLUE", "ORANGE", "hessian_figure", "plain", "plot_results", "step_colours"]
__all__ += ["title"]

ABOVE: Mapping[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98)}
"""Where a legend hides nothing of a panel that is full."""
_FORMATS = (".png", ".pdf", ".svg")
_DIGITS = 6  # Of positions in a figure.
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
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart with any colour vision.


def plot_results(
    files: Sequence[Path], target: Path, *, run: int | None = None, surface: bool = False
) -> None:
    """Draw result files, or one series, and save the figure as PNG, PDF or SVG by its ending.

    Args:
        files: results, or a file of a series or of a sweep.
        target: the figure.
        run: which of a sweep's series.
        surface: draw planes of ``landscape slice`` as surfaces.

    Raises:
        UsageError: another ending, the file cannot be written, a series among other files, or a
            surface of something else than planes.
        ResultFileError: a file is not a result.
    """
    import matplotlib

    if target.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"figure {target}: the ending {target.suffix!r} is not known; expected "
            f"{', '.join(_FORMATS)}"
        )
    with matplotlib.rc_context(_STYLE):
        figure = _figure(files, run, surface=surface)
        if figure.subfigs or target.suffix.lower() != ".png":
            _settle(figure)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A figure is a function of its results: no date in the file.
            dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
            figure.savefig(target, dpi=200, metadata=dated.get(target.suffix.lower()))
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


def _settle(figure: Figure) -> None:
    """Lay out a figure, to digits that are the same every time.

    The solver behind layouts rounds by the order in which it happens to meet their parts. Pixels
    hide that where nothing is nested.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    parts: list[Any] = [*figure.subfigs]
    for part in parts:
        parts += part.subfigs
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(_DIGITS))
        for text in part.texts:
            text.set_position(np.round(text.get_position(), _DIGITS))
    for axes in figure.axes:
        left, bottom, width, height = np.round(axes.get_position().bounds, _DIGITS)
        axes.set_position((left, bottom, width, height))


def _figure(files: Sequence[Path], run: int | None, *, surface: bool) -> Figure:
    """The figure of a series file, or of the results of single checkpoints."""
    from landscape.flat_plot import flat_figure
    from landscape.series_plot import series_figure
    from landscape.volume_series_plot import volume_series_figure

    series = [file for file in files if kind_of(file) != "result"]
    if surface and series:
        raise UsageError(f"--surface: {series[0]} is a series; expected results of landscape slice")
    if series and len(files) > 1:
        raise UsageError(f"{series[0]} is a series; expected it alone. Draw other files apart")
    if series:
        if kind_of(series[0]) == "sweep":
            found = load_sweep(series[0]).only(run)
            if len(found) > 1:
                raise UsageError(f"{series[0]} holds several runs; say which of {[*found]}")
            [loaded] = found.values()
        else:
            loaded = load_series(series[0])
        if isinstance(loaded, VolumeSeries):
            return volume_series_figure(loaded)
        if isinstance(loaded, FlatSeries):
            return flat_figure(loaded)
        return series_figure(loaded)
    results = [load(file) for file in files]
    names = [str(file) for file in files]
    require_one_command(results, names, "Draw each kind by itself")
    if results[0].info.command == "slice":
        from landscape.slice_plot import slice_figure

        return slice_figure(results, surface=surface)
    if surface:
        raise UsageError(
            f"--surface: {names[0]} is a result of landscape {results[0].info.command}; expected "
            "results of landscape slice"
        )
    if isinstance(results[0], VolumeResult):
        return _volumes(results, names)
    if isinstance(results[0], CompareResult):
        from landscape.compare_plot import compare_figure

        return compare_figure(results)
    if results[0].info.command == "information":
        from landscape.information_plot import information_figure

        return information_figure(results)
    if isinstance(results[0], ModulesResult):
        from landscape.modules_plot import modules_figure

        return modules_figure(sorted(results, key=_step))
    if isinstance(results[0], FlatResult):
        found, only = _one_each(results, names), results[0]
        if len(results) > 1:
            return flat_figure(found)
        return flat_figure(found, walk=only.walk, sweep=only.sweep)
    return hessian_figure(sorted(results, key=_step))


def _step(result: Result) -> float:
    return math.inf if result.info.step is None else result.info.step


def _volumes(results: Sequence[VolumeResult], names: Sequence[str]) -> Figure:
    """The figure of one checkpoint, or of several over the training step."""
    from landscape.volume_plot import volume_figure
    from landscape.volume_series_plot import volume_series_figure

    series = _one_each(results, names)
    return volume_figure(results[0], series) if len(results) == 1 else volume_series_figure(series)


def _one_each(results: Sequence[Any], names: Sequence[str]) -> Any:
    """Results as a series, of which none may be left out."""
    series = collect(results, sources=names)
    if series.notices:
        raise UsageError(
            f"{series.notices[0]}; expected one result of each checkpoint. Draw them apart, or "
            "merge shards with landscape collect --merge"
        )
    return series


def hessian_figure(results: Sequence[HessianResult]) -> Figure:
    """Density (left, where known) and largest eigenvalues (right); one row per operator."""
    from matplotlib.figure import Figure

    names = dict.fromkeys(name for r in results for name in r.spectra)
    operators = [name for name in names if MODULES not in name]
    dense = any(result.densities for result in results)
    figure = Figure(figsize=(7.2 if dense else 4.2, 3.0 * len(operators)), layout="constrained")
    grid: Any = figure.subplots(len(operators), 2 if dense else 1, squeeze=False)
    for row, name in zip(grid, operators, strict=True):
        of = [result for result in results if name in result.spectra]
        colours = step_colours(len(of))
        if dense:
            _density_panel(row[0], name, of, colours)
        _scree_panel(row[-1], name, of, colours)
    return figure


def step_colours(count: int) -> list[Any]:
    """A colour for every checkpoint, in the order of their steps."""
    from matplotlib import colormaps

    if count == 1:
        return [BLUE]
    return list(colormaps["viridis"](np.linspace(0.0, 0.88, count)))


def _label(result: HessianResult) -> str:
    step = result.info.step
    return plain(Path(result.info.checkpoint).stem) if step is None else f"step {step}"


def plain(text: str) -> str:
    """Text from a file that is no formula."""
    return escape_name(text).replace("$", r"\$")


def _unit(result: HessianResult) -> str:
    return plain(str(result.info.config.get("units", "loss units")))


def _density_panel(
    axes: Axes, name: str, results: Sequence[HessianResult], colours: Sequence[Any]
) -> None:
    axes.set_yscale("log")
    shown = [
        (result, result.densities[name], colour)
        for result, colour in zip(results, colours, strict=True)
        if name in result.densities
    ]
    floor, bandwidth = math.inf, 0.0
    if len(shown) > 1:
        # One, wider smoothing for all, so that curves over each other stay readable.
        low = min(float(density.nodes.min()) for _, density, _ in shown)
        high = max(float(density.nodes.max()) for _, density, _ in shown)
        bandwidth = max(high - low, 1e-12) / 60
    for result, density, colour in shown:
        n = result.info.n_parameters
        curve = _Curve.of(density, bandwidth)
        # Below a small part of one eigenvalue the curve is only the Gaussian's tail.
        least = _FLOOR / (n * curve.bandwidth)
        floor, bandwidth = min(floor, least), curve.bandwidth
        visible = np.where(curve.mean >= least, curve.mean, np.nan)
        axes.plot(curve.grid, visible, color=colour, lw=1.1, label=_label(result))
        if curve.half is not None:
            below, above = (np.maximum(curve.mean + s * curve.half, least) for s in (-1, 1))
            band = "95% interval over probes" if len(shown) == 1 else None
            axes.fill_between(curve.grid, below, above, color=colour, alpha=0.25, lw=0, label=band)
    if math.isfinite(floor):
        axes.set_ylim(bottom=floor)
    last = results[-1].spectra[name]
    ticks = last.eigenvalues[last.converged]
    axes.plot(
        ticks,
        np.full(len(ticks), 0.02),
        "|",
        color="black",
        ms=6,
        mew=0.7,
        transform=axes.get_xaxis_transform(),
        label="eigenvalues" if len(results) == 1 else f"eigenvalues, {_label(results[-1])}",
    )
    axes.set_xlabel(f"eigenvalue λ of the {title(name)} [{_unit(results[-1])} / parameter²]")
    axes.set_ylabel("density of eigenvalues [1 / unit of λ]")
    axes.legend(fontsize=7, title=f"smoothed by σ = {bandwidth:.2g}", title_fontsize=7)


@dataclass(frozen=True)
class _Curve:
    """A density curve with the half-width of its 95% interval, where that is known."""

    grid: Any
    mean: Any
    half: Any
    bandwidth: float

    @staticmethod
    def of(density: Density, bandwidth: float) -> _Curve:
        """The stored curve, or one of another bandwidth from the nodes."""
        grid, mean, stderr = density.grid, density.density, density.stderr
        if bandwidth > density.bandwidth:
            low, high = density.nodes.min(), density.nodes.max()
            grid = np.linspace(low - 5 * bandwidth, high + 5 * bandwidth, 1000)
            pairs = zip(density.nodes, density.weights, strict=True)
            rows = np.stack([smooth(t, w, grid, bandwidth) for t, w in pairs])
            spread = rows.std(0, ddof=1) if len(rows) > 1 else np.full(len(grid), np.nan)
            mean, stderr = rows.mean(0), spread / math.sqrt(len(rows))
        known = bool(np.isfinite(stderr).all()) and bool(stderr.any())
        half = t_law.ppf(0.975, len(density.nodes) - 1) * stderr if known else None
        return _Curve(grid, mean, half, max(bandwidth, density.bandwidth))


def title(name: str) -> str:
    """An operator's name in a sentence."""
    titles = {"hessian": "Hessian", "ggn": "GGN", "fisher": "Fisher matrix"}
    return titles.get(name, name)


def _scree_panel(
    axes: Axes, name: str, results: Sequence[HessianResult], colours: Sequence[Any]
) -> None:
    """Eigenvalues by magnitude with residual bars; long spectra as lines on a log-log scale."""
    from matplotlib.ticker import MaxNLocator

    axes.set_yscale("log")
    spectra = [result.spectra[name] for result in results]
    long = max(len(spectrum.eigenvalues) for spectrum in spectra) > 60
    negative = False
    for result, spectrum, colour in zip(results, spectra, colours, strict=True):
        order = np.argsort(-np.abs(spectrum.eigenvalues), kind="stable")
        values, residuals = spectrum.eigenvalues[order], spectrum.residuals[order]
        rank, size = np.arange(1, len(values) + 1), np.abs(values)
        below = values < 0
        negative |= bool(below.any())
        label = _label(result)
        if long:
            axes.plot(rank, np.where(size > 0, size, np.nan), color=colour, lw=1.2, label=label)
            continue
        # A bar must not reach zero on a logarithmic axis.
        bars = np.minimum(residuals, 0.999 * size)
        for chosen, face, text in ((~below, colour, label), (below, "none", None)):
            style: dict[str, Any] = {"color": colour, "mfc": face, "ms": 4, "lw": 0, "marker": "o"}
            axes.errorbar(
                rank[chosen], size[chosen], yerr=bars[chosen], elinewidth=1, label=text, **style
            )
    if long:
        axes.set_xscale("log")
        top = max(float(np.abs(spectrum.eigenvalues).max()) for spectrum in spectra)
        if top > 0:
            # Rounding noise of exact zeros would fill most of the axis.
            axes.set_ylim(bottom=top * 1e-10)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank by magnitude")
    axes.set_ylabel(f"|λ| [{_unit(results[-1])} / parameter²]")
    hints = ["both signs" if long else "open: negative"] if negative else []
    hints += [] if long else ["bars: residual"]
    if hints:
        axes.text(
            0.98, 0.97, "; ".join(hints), transform=axes.transAxes, ha="right", va="top", fontsize=7
        )
    if len(results) > 1:
        axes.legend(fontsize=7, loc="lower left")
