"""Figures of log-volumes: the directions of one checkpoint, and log V against the cutoff."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.plotting import BLUE, ORANGE, plain, step_colours
from landscape.volume.records import CLASSES, Directions, VolumeResult
from landscape.volume_series import VolumeSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CLASS_COLOURS",
    "METHOD_COLOURS",
    "cutoff_panels",
    "directions_panel",
    "interval_line",
    "middle",
    "unit_of",
    "volume_figure",
]

_GREEN, _PURPLE, _GREY = "#009e73", "#cc79a7", "0.45"
CLASS_COLOURS = (ORANGE, BLUE, _GREEN)
METHOD_COLOURS = {"quadratic": BLUE, "radial": ORANGE, "anneal": _GREEN}
_BORDERS = (0.1, 2.0)  # Between the classes.
_WIDEST = 1e3  # Largest ratio that is drawn: beyond it is rounding noise of exact zeros.
_LONG = 60  # Directions from which their axis is logarithmic.

FloatArray = NDArray[np.float64]


def middle(cutoff: FloatArray) -> int:
    """Index of the cutoff that is shown where only one is: the middle one by size."""
    return int(np.argsort(cutoff)[len(cutoff) // 2])


def unit_of(config: Any) -> str:
    """Units of the loss, for a label."""
    return plain(str(config.get("units", "loss units")))


def volume_figure(result: VolumeResult, series: VolumeSeries) -> Figure:
    """Directions (left, where known), log V and effective dimension against the cutoff (right).

    Args:
        result: of one checkpoint.
        series: the same as a series of one row.
    """
    from matplotlib.figure import Figure

    wide = result.directions is not None
    figure = Figure(figsize=(7.2 if wide else 4.2, 4.6), layout="constrained")
    rows = 2 if has_dimension(series) else 1
    grid = figure.add_gridspec(rows, 2 if wide else 1)
    if result.directions is not None:
        directions_panel(figure.add_subplot(grid[:, 0]), result.directions, unit_of(series.config))
    first = figure.add_subplot(grid[0, -1])
    panels = [first, *(figure.add_subplot(grid[row, -1], sharex=first) for row in range(1, rows))]
    cutoff_panels(panels, series)
    return figure


def has_dimension(series: VolumeSeries) -> bool:
    """Whether some method tells the effective dimension."""
    return any(bool(np.isfinite(m.effective_dimension).any()) for m in series.methods.values())


def directions_panel(axes: Axes, directions: Directions, unit: str) -> None:
    """Width of the tilted law over the prior's, steepest direction first, at one cutoff."""
    place = middle(directions.cutoff)
    ratio, kind = directions.ratio[place], directions.kind[place]
    edges = np.concatenate([[0.0], np.cumsum(directions.multiplicity)])
    total = float(edges[-1])
    axes.set_yscale("log")
    axes.set_title(f"directions at cutoff {directions.cutoff[place]:.3g} {unit}", fontsize=9)
    if total > _LONG:
        axes.set_xscale("log")
        edges[0] = 0.5
    axes.set_xlim(edges[0], total)
    drawn = np.isfinite(ratio) & (ratio <= _WIDEST)
    counts, nats = directions.counts()[place], directions.shares()[place]
    for index, (label, colour) in enumerate(zip(CLASSES, CLASS_COLOURS, strict=True)):
        chosen = np.where(drawn & (kind == index), ratio, np.nan)
        text = f"{label}: {_number(counts[index])} directions, {_nats(nats[index])}"
        axes.stairs(chosen, edges, baseline=None, color=colour, lw=1.6, label=text)
    for border in _BORDERS:
        axes.axhline(border, color=_GREY, lw=0.8, ls=":", zorder=0)
    shown = ratio[drawn]
    low = min(float(shown.min(initial=math.inf)), _BORDERS[0])
    high = max(float(shown.max(initial=0.0)), _BORDERS[1])
    # Room for the strip at the top.
    axes.set_ylim(low / 1.5, high * (high / low) ** 0.12 * 1.5)
    beyond = float(directions.multiplicity[~drawn].sum())
    if beyond > 0:
        first = max(total - beyond, edges[0])
        strip: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "lw": 0}
        axes.fill_between([first, total], 0.95, 1.0, color=_GREEN, alpha=0.5, **strip)
        axes.text(
            0.98,
            0.94,
            f"{_number(beyond)} directions that the loss does not limit",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7,
        )
    axes.set_xlabel("direction, steepest first")
    axes.set_ylabel("width of the tilted law / prior's width")
    remainder = directions.remainder[place]
    heading = f"parts of −log V; remainder {_nats(remainder)}"
    axes.legend(fontsize=7, title=heading, title_fontsize=7, loc="lower right")


def _number(count: float) -> str:
    return f"{count:.0f}" if count >= 10 or count == round(count) else f"{count:.1f}"


def _nats(value: float) -> str:
    return "nats unknown" if math.isnan(value) else f"{value:.4g} nats".replace("-", "−")


def cutoff_panels(panels: Sequence[Axes], series: VolumeSeries) -> None:
    """Log V and, on the second panel, effective dimension: against the cutoff, or at the only one.

    Colours tell the methods apart, or the steps where there are several.
    """
    if len(series.cutoff) == 1:
        _points(panels, series)
        return
    order = np.argsort(series.cutoff)
    x, several = series.cutoff[order], len(series.step) > 1
    shades = step_colours(len(series.step))
    for row, shade in enumerate(shades):
        for index, (name, method) in enumerate(series.methods.items()):
            colour = shade if several else METHOD_COLOURS.get(name, _PURPLE)
            style = {"color": colour, "ls": ("-", "--", ":")[index % 3] if several else "-"}
            interval_line(
                panels[0],
                x,
                *(part[row, order] for part in (method.log_volume, method.lower, method.upper)),
                method.lower_bound[row, order],
                label=plain(name) if not several else None,
                **style,
            )
            if len(panels) > 1:
                size = method.effective_dimension[row, order]
                panels[1].plot(x, size, marker="o", ms=3, lw=1.2, **style)
    for axes in panels:
        axes.set_xscale("log")
    panels[0].set_ylabel("log V [nats]")
    if len(panels) > 1:
        panels[1].set_ylabel("effective dimension")
        panels[1].set_ylim(bottom=0)
    panels[-1].set_xlabel(f"cutoff [{unit_of(series.config)}]")
    if not several:
        panels[0].legend(fontsize=7)


def _points(panels: Sequence[Axes], series: VolumeSeries) -> None:
    """One column for every method, with its numbers beside the point."""
    row, place = 0, 0
    names = list(series.methods)
    for index, (name, method) in enumerate(series.methods.items()):
        colour = METHOD_COLOURS.get(name, _PURPLE)
        at = np.array([float(index)])
        parts = (method.log_volume, method.lower, method.upper)
        value, lower, upper = (part[row, place : place + 1] for part in parts)
        bound = method.lower_bound[row, place : place + 1]
        interval_line(panels[0], at, value, lower, upper, bound, color=colour)
        text = f"{'≥ ' if bound[0] else ''}{value[0]:.6g}".replace("-", "−")
        _beside(panels[0], index, value[0], text)
        if len(panels) > 1:
            size = method.effective_dimension[row, place]
            panels[1].plot(at, [size], "o", color=colour, ms=4)
            _beside(panels[1], index, size, f"{size:.4g}")
    for axes in panels:
        axes.set_xlim(-0.5, len(names))
        axes.set_xticks(range(len(names)), [plain(name) for name in names])
        axes.margins(y=0.2)
    unit = unit_of(series.config)
    panels[0].set_title(f"at cutoff {series.cutoff[place]:.3g} {unit}", fontsize=9)
    panels[0].set_ylabel("log V [nats]")
    if len(panels) > 1:
        panels[1].set_ylabel("effective dimension")


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    if math.isfinite(y):
        axes.annotate(
            text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=7
        )


def interval_line(
    axes: Axes,
    x: Any,
    value: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    bound: NDArray[np.bool_],
    *,
    color: Any,
    label: str | None = None,
    ls: str = "-",
) -> None:
    """A line with 95% intervals; lower bounds are triangles without an upper end."""
    value, lower, upper = (np.where(np.isfinite(v), v, np.nan) for v in (value, lower, upper))
    axes.plot(x, value, color=color, lw=1.2, ls=ls, label=label)
    axes.plot(x[~bound], value[~bound], "o", color=color, ms=3)
    axes.plot(x[bound], value[bound], "^", color=color, ms=5, mec="none")
    above = np.where(bound, 0.0, upper - value)
    ends = np.maximum(np.nan_to_num(np.stack([value - lower, above])), 0.0)
    axes.errorbar(x, value, yerr=ends, fmt="none", ecolor=color, elinewidth=1.0, capsize=2)
