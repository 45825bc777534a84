"""Figures of a series: the spectrum over the training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.plotting import BLUE, ORANGE, plain, title
from landscape.results import MODULES
from landscape.series_records import Band, OperatorSeries, Series
from landscape.step_axis import step_axis, step_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["series_figure"]

_GREY = "0.45"
_SHOWN = 10  # Largest eigenvalues that are drawn.
_DECADE = 20.0  # Ratio from which a logarithmic axis is used.
_LEAST = 0.3  # Expected eigenvalues per decade from which a cell has a colour.
_SPAN = 9.0  # Decades of |eigenvalue| that are drawn.

FloatArray = NDArray[np.float64]


def series_figure(series: Series) -> Figure:
    """Panels over the training step, a block of them for every operator (without modules)."""
    from matplotlib.figure import Figure

    operators = [o for name, o in series.operators.items() if MODULES not in name]
    panels = [_panels(series, operator) for operator in operators]
    heights = [
        2.1 * ((len(p) + 1) // 2) + 3.0 * bool(len(o.log_lambda))
        for p, o in zip(panels, operators, strict=True)
    ]
    figure = Figure(figsize=(7.2, sum(heights) + 0.25 * (len(heights) - 1)), layout="constrained")
    blocks: Any = figure.subfigures(len(operators), 1, height_ratios=heights, squeeze=False)
    for block, operator, drawn in zip(blocks[:, 0], operators, panels, strict=True):
        if len(operators) > 1:
            block.suptitle(title(operator.operator), fontsize=10)
        _draw(block, series, operator, drawn)
    return figure


Panel = Callable[["Axes", Series, OperatorSeries], None]


def _panels(series: Series, operator: OperatorSeries) -> list[Panel]:
    """What is known of the operator, two panels a row; the density has a row of its own."""
    found: list[Panel] = []
    if operator.eigenvalues.size or operator.smallest.size:
        found.append(_eigenvalues)
    if np.isfinite(operator.trace.value).any():
        found += [_trace, _negative_mass]
    if np.isfinite(operator.overlap).any():
        found.append(_overlap)
    found.append(_loss)
    if len(found) % 2:
        found.append(_gradient_norm)
    return found


def _draw(
    block: SubFigure, series: Series, operator: OperatorSeries, panels: Sequence[Panel]
) -> None:
    rows, density = len(panels) // 2, bool(len(operator.log_lambda))
    grid = block.add_gridspec(rows + density, 2, height_ratios=[2.1] * rows + [3.0] * density)
    lowest: list[Axes] = []
    for index, panel in enumerate(panels):
        axes = block.add_subplot(grid[divmod(index, 2)])
        panel(axes, series, operator)
        axes.yaxis.label.set_fontsize(8)
        lowest.append(axes)
        step_axis(axes, series)
    if density:
        lowest.append(_density(block, grid[rows, :], series, operator))
    for axes in lowest:
        axes.set_xlabel("training step" if series.numbered else "checkpoint, by name", fontsize=8)


def _value_axis(axes: Axes, values: Any) -> None:
    """Logarithmic where positive values span more than a decade, signed where they change sign."""
    shown = np.asarray(values, dtype=np.float64)
    shown = shown[np.isfinite(shown)]
    if not len(shown):
        return
    size = np.abs(shown[shown != 0])
    if not len(size) or size.max() < _DECADE * size.min():
        return
    if (shown > 0).all():
        axes.set_yscale("log")
        axes.set_ylim(bottom=shown.min() / 1.5)
    elif (shown < 0).any() and size.max() > _DECADE * np.median(size):
        exponent = np.floor(np.log10(max(np.median(size) / 10, size.max() / 1e4)))
        axes.set_yscale("symlog", linthresh=10.0**exponent)
        axes.axhline(0, color=_GREY, lw=0.6)


def _line(
    axes: Axes,
    x: Any,
    y: FloatArray,
    solid: NDArray[np.bool_],
    colour: Any,
    label: str | None = None,
    **style: Any,
) -> None:
    """A line whose markers are hollow where the value is not converged."""
    axes.plot(x, y, color=colour, lw=1.0, label=label, marker="o", ms=3, mec="none", **style)
    hollow: dict[str, Any] = {"mfc": "white", "mec": colour, "mew": 0.8, "zorder": 3}
    axes.plot(x[~solid], y[~solid], "o", ms=3.5, **hollow)


def _eigenvalues(axes: Axes, series: Series, operator: OperatorSeries) -> None:
    from matplotlib import colormaps

    count = min(operator.eigenvalues.shape[1], _SHOWN)
    values, solid = operator.eigenvalues[:, :count], operator.converged[:, :count]
    colours = colormaps["viridis"](np.linspace(0.0, 0.88, max(count, 2)))
    for rank in range(count):
        label = f"$\\lambda_{{{rank + 1}}}$" if rank in (0, count - 1) else None
        _line(axes, series.step, values[:, rank], solid[:, rank], colours[rank], label)
        off = ~solid[:, rank]
        axes.errorbar(
            series.step[off],
            values[off, rank],
            yerr=operator.residuals[off, rank],
            fmt="none",
            ecolor=colours[rank],
            elinewidth=0.8,
        )
    shown, errors = [values.ravel()], [operator.residuals[:, :count].ravel()]
    if operator.smallest.shape[1]:
        least, known = operator.smallest[:, 0], operator.smallest_converged[:, 0]
        shown.append(least)
        errors.append(operator.smallest_residuals[:, 0])
        _line(axes, series.step, least, known, ORANGE, "smallest", ls="--")
    # Rounding noise of an exact zero chooses no scale.
    sizes = np.concatenate(shown)
    _value_axis(axes, sizes[np.abs(sizes) > np.concatenate(errors)])
    axes.set_ylabel(f"eigenvalue [{_unit(series)} / parameter²]")
    entries, labels = axes.get_legend_handles_labels()
    heading = "open: not converged" if not solid.all() else None
    style: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": 3}
    axes.legend(entries, labels, fontsize=7, title=heading, title_fontsize=7, **style)


def _unit(series: Series) -> str:
    return plain(str(series.config.get("units", "loss units")))


def _banded(
    axes: Axes, series: Series, band: Band, colour: str, label: str | None, note: str | None = None
) -> None:
    """A line with its 95% interval; one probe has no interval."""
    _line(axes, series.step, band.value, np.isfinite(band.value), colour, label)
    known = np.isfinite(band.lower) & np.isfinite(band.upper)
    lower, upper = (np.where(known, side, np.nan) for side in (band.lower, band.upper))
    axes.fill_between(series.step, lower, upper, color=colour, alpha=0.25, lw=0, label=note)


def _trace(axes: Axes, series: Series, operator: OperatorSeries) -> None:
    band = operator.trace
    exact = bool((operator.n_probes[operator.n_probes >= 0] == 0).all())
    note = None if exact else "95% interval over probes"
    _banded(axes, series, band, BLUE, "exact" if exact else None, note)
    _value_axis(axes, np.concatenate([band.value, band.lower, band.upper]))
    axes.set_ylabel(f"trace [{_unit(series)} / parameter²]")
    axes.legend(fontsize=7)


def _negative_mass(axes: Axes, series: Series, operator: OperatorSeries) -> None:
    _banded(axes, series, operator.negative_mass, BLUE, "negative")
    _banded(axes, series, operator.near_zero_mass, _GREY, "not separable from 0")
    axes.set_ylabel("fraction of the eigenvalues")
    axes.set_ylim(0, None)
    axes.legend(fontsize=7)


def _overlap(axes: Axes, series: Series, operator: OperatorSeries) -> None:
    _line(axes, series.step, operator.overlap, operator.overlap_converged, BLUE)
    chance = operator.overlap_size / operator.n
    axes.axhline(chance, color=_GREY, lw=0.8, ls=":", label=f"random spaces: {chance:.2g}")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel(f"overlap of top-{operator.overlap_size} space\nwith previous checkpoint's")
    axes.legend(fontsize=7)


def _loss(axes: Axes, series: Series, operator: OperatorSeries) -> None:
    _line(axes, series.step, series.loss, np.isfinite(series.loss), "black")
    _value_axis(axes, series.loss)
    axes.set_ylabel(f"loss [{_unit(series)}]")


def _gradient_norm(axes: Axes, series: Series, operator: OperatorSeries) -> None:
    _line(axes, series.step, series.gradient_norm, np.isfinite(series.gradient_norm), "black")
    _value_axis(axes, series.gradient_norm)
    axes.set_ylabel(f"gradient norm [{_unit(series)} / parameter]")


def _density(block: SubFigure, place: Any, series: Series, operator: OperatorSeries) -> Axes:
    """Positive eigenvalues above, negative ones below with their size growing downwards."""
    from matplotlib.colors import LogNorm

    both = [np.nan_to_num(part) for part in (operator.positive, operator.negative)]
    peak = max(float(part.max()) for part in both)
    signs = [sign for sign, part in enumerate(both) if part.max() >= _LEAST] or [0]
    inner = place.subgridspec(len(signs), 1, hspace=0)
    norm = LogNorm(vmin=_LEAST, vmax=max(peak, 10 * _LEAST))
    edges, grid = step_edges(series), operator.log_lambda
    half = (grid[1] - grid[0]) / 2
    borders = 10.0 ** np.append(grid - half, grid[-1] + half)
    seen = grid[(np.maximum(*both) >= _LEAST).any(0)]
    low, high = (seen.min(), seen.max()) if len(seen) else (grid[0], grid[-1])
    ends = (10.0 ** max(low, high - _SPAN), 10.0**high)
    floor = np.append(operator.resolution, operator.resolution[-1])
    drawn: list[Axes] = []
    mesh: Any = None
    for row, sign in enumerate(signs):
        axes: Axes = block.add_subplot(inner[row, 0])
        cells = np.ma.masked_less(both[sign], _LEAST)
        mesh = axes.pcolormesh(edges, borders, cells.T, norm=norm, cmap="cividis", rasterized=True)
        style: dict[str, Any] = {"where": "post", "color": ORANGE, "lw": 1.0, "ls": "--"}
        axes.step(edges, floor, label="resolution of zero", **style)
        axes.set_yscale("log")
        axes.set_ylim(*(ends if sign == 0 else ends[::-1]))
        axes.set_ylabel("λ" if sign == 0 else "−λ")
        axes.grid(visible=False)
        step_axis(axes, series)
        axes.tick_params(labelbottom=row == len(signs) - 1)
        if row == 0:
            text = f"density of the eigenvalues λ [{_unit(series)} / parameter²]"
            axes.set_title(text, fontsize=8, loc="left")
        if row == 0 and np.nanmax(floor, initial=0.0) > ends[0]:
            axes.legend(fontsize=7, loc="lower left", frameon=True)
        drawn.append(axes)
    bar = block.colorbar(mesh, ax=drawn, pad=0.02, aspect=25)
    bar.set_label("eigenvalues per decade", fontsize=8)
    return drawn[-1]
