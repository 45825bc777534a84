"""Figures of log-volumes: the directions of one checkpoint, and log V against the cutoff."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.plotting import BLUE, ORANGE, plain, step_colours
from landscape.volume.records import Directions, VolumeResult
from landscape.volume_series import VolumeSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

__all__ = [
    "CLASS_COLOURS",
    "PURPLE",
    "UNCLIPPED",
    "cutoff_panels",
    "directions_panel",
    "evenly",
    "has_dimension",
    "interval_legend",
    "interval_line",
    "method_colour",
    "middle",
    "no_smaller",
    "unit_of",
    "volume_figure",
]

_GREEN, PURPLE, _GREY = "#009e73", "#cc79a7", "0.45"
CLASS_COLOURS = (ORANGE, BLUE, _GREEN)
_METHOD_COLOURS = {"quadratic": BLUE, "radial": ORANGE, "anneal": _GREEN}
_BORDERS = (0.1, 2.0)  # Between the classes.
_LABELS = (f"steep (< {_BORDERS[0]:g})", "intermediate", f"flat (> {_BORDERS[1]:g})")
_WIDEST = 1e3  # Largest ratio that is drawn: beyond it is rounding noise of exact zeros.
_STYLES = ("-", "--", ":")  # Of methods, where colours tell the steps apart.
UNCLIPPED: Mapping[str, Any] = {"clip_on": False, "in_layout": False}
_ANNEALED = 6.0  # Height of the panels of an annealed result.
_LEAST = 0.01  # Nats that an axis spans at least.
_LONG = 60  # Directions from which their axis is logarithmic.

FloatArray = NDArray[np.float64]


def middle(cutoff: FloatArray) -> int:
    """Index of the cutoff that is shown where only one is: the middle one by size."""
    return int(np.argsort(cutoff)[len(cutoff) // 2])


def method_colour(name: str) -> str:
    """The colour of a method."""
    return _METHOD_COLOURS.get(name, PURPLE)


def unit_of(config: Any) -> str:
    """Units of the loss, for a label."""
    return plain(str(config.get("units", "loss units")))


def volume_figure(result: VolumeResult, series: VolumeSeries) -> Figure:
    """Directions (left, where known), log V and effective dimension against the cutoff (right).

    Below them what an annealed log-volume rests on, where there is one.

    Args:
        result: of one checkpoint.
        series: the same as a series of one row.
    """
    from matplotlib.figure import Figure

    wide, single = result.directions is not None, len(series.cutoff) == 1
    annealed = result.annealing is not None
    rows = 2 if has_dimension(series) and not single else 1
    beside = annealed and not wide  # Over panels that are twice as wide.
    width = 7.2 if wide or annealed else 4.2
    height = 5.2 if wide or (rows == 2 and not beside) else 3.6
    figure = Figure(figsize=(width, height + _ANNEALED * annealed), layout="constrained")
    upper: FigureBase = figure
    if annealed:
        from landscape.anneal_plot import anneal_panels

        parts: Any = figure.subfigures(2, height_ratios=(height, _ANNEALED))
        upper, lower = parts
        anneal_panels(lower, result)
    grid = upper.add_gridspec(1, rows) if beside else upper.add_gridspec(rows, 1 + wide)
    if result.directions is not None:
        directions_panel(upper.add_subplot(grid[:, 0]), result.directions, unit_of(series.config))
    places = [grid[0, row] if beside else grid[row, -1] for row in range(rows)]
    first = upper.add_subplot(places[0])
    panels = [first, *(upper.add_subplot(place, sharex=first) for place in places[1:])]
    if single:
        _points(first, series)
    else:
        cutoff_panels(panels, series)
        first.set_xlabel(panels[-1].get_xlabel() if beside else "")
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
    shown = ratio[drawn]
    low = min(float(shown.min(initial=math.inf)), _BORDERS[0])
    high = max(float(shown.max(initial=0.0)), _BORDERS[1])
    # Room for the strip at the top.
    axes.set_ylim(low / 1.5, high * (high / low) ** 0.12 * 1.5)
    counts, nats = directions.counts()[place], directions.shares()[place]
    for index, (label, colour) in enumerate(zip(_LABELS, CLASS_COLOURS, strict=True)):
        chosen = np.where(drawn & (kind == index), ratio, np.nan)
        text = f"{label}: {_directions(counts[index])}, {_nats(nats[index])}"
        axes.stairs(chosen, edges, baseline=None, color=colour, lw=1.6, label=text)
    for border in _BORDERS:
        axes.axhline(border, color=_GREY, lw=0.8, ls=":", zorder=1)
    beyond = float(directions.multiplicity[~drawn].sum())
    if beyond > 0:
        first = max(total - beyond, edges[0])
        strip: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "lw": 0}
        axes.fill_between([first, total], 0.96, 1.0, color=_GREEN, alpha=0.5, **strip)
        axes.text(
            0.99,
            0.95,
            f"{_directions(beyond)} that the loss does not limit",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7,
            color=_GREEN,
        )
    axes.set_xlabel("direction, steepest first")
    axes.set_ylabel("width at the tilt / prior's width")
    remainder = directions.remainder[place]
    heading = f"parts of −log V; remainder {_nats(remainder)}"
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.13)}
    axes.legend(fontsize=7, title=heading, title_fontsize=7, alignment="left", **below)


def _directions(count: float) -> str:
    number = f"{count:.0f}" if count >= 10 or count == round(count) else f"{count:.1f}"
    return f"{number} direction{'s' * (number != '1')}"


def _nats(value: float) -> str:
    return "nats unknown" if math.isnan(value) else f"{value:.4g} nats".replace("-", "−")


def cutoff_panels(panels: Sequence[Axes], series: VolumeSeries) -> None:
    """Log V and, on the second panel if there is one, effective dimension against the cutoff.

    Colours tell the methods apart, or the steps where there are several.
    """
    order = np.argsort(series.cutoff)
    x, several = series.cutoff[order], len(series.step) > 1
    for row, shade in enumerate(step_colours(len(series.step))):
        for index, (name, method) in enumerate(series.methods.items()):
            colour = shade if several else method_colour(name)
            style = _STYLES[index % len(_STYLES)] if several else "-"
            parts = (method.log_volume, method.lower, method.upper, method.lower_bound)
            label = None if several else plain(name)
            curve = [part[row, order] for part in parts]
            interval_line(panels[0], x, *curve, color=colour, label=label, ls=style)
            if len(panels) > 1:
                size = method.effective_dimension[row, order]
                panels[1].plot(x, size, marker="o", ms=3, lw=1.2, color=colour, ls=style)
    for axes in panels:
        axes.set_xscale("log")
        if x[-1] < 10 * x[0]:
            _name_cutoffs(axes, x)
    panels[0].set_ylabel("log V [nats]")
    if len(panels) > 1:
        panels[1].set_ylabel("effective dimension")
        panels[1].axhline(0, color=_GREY, lw=0.6)
    panels[-1].set_xlabel(f"cutoff [{unit_of(series.config)}]")
    if several:
        for index, name in enumerate(series.methods):
            panels[0].plot([], [], color=_GREY, ls=_STYLES[index % len(_STYLES)], label=plain(name))
    interval_legend(panels[0], series)


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of the places 0 to count - 1, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _name_cutoffs(axes: Axes, cutoff: FloatArray) -> None:
    """Name some cutoffs themselves: within a decade the names of powers of ten overlap."""
    from matplotlib.ticker import NullLocator

    named = evenly(len(cutoff), 4)
    axes.set_xticks(cutoff[named], [f"{cutoff[place]:.2g}" for place in named])
    axes.xaxis.set_minor_locator(NullLocator())


def interval_legend(axes: Axes, series: VolumeSeries) -> None:
    """The legend of a panel of log-volumes, which says what its bars and triangles are."""
    if any(bool(method.lower_bound.any()) for method in series.methods.values()):
        axes.plot([], [], "^", color=_GREY, ms=5, mec="none", label="lower bound")
    above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": 2}
    axes.legend(fontsize=7, title="bars: 95% interval", title_fontsize=7, **above)


def _points(axes: Axes, series: VolumeSeries) -> None:
    """A column for every method at the only cutoff, with its numbers below."""
    captions = []
    for index, (name, method) in enumerate(series.methods.items()):
        parts = (method.log_volume, method.lower, method.upper, method.lower_bound)
        value, lower, upper, bound = (part[0] for part in parts)
        x = np.array([index])
        interval_line(axes, x, value, lower, upper, bound, color=method_colour(name))
        # What is known of a bound is its lower end alone.
        lines = [f"≥ {lower[0]:.6g} nats" if bound[0] else f"{value[0]:.6g} nats"]
        if method.stderr[0, 0] > 0 and not bound[0]:
            lines.append(f"{lower[0]:.5g} to {upper[0]:.5g}")
        if math.isfinite(method.effective_dimension[0, 0]):
            lines.append(f"eff. dim. {method.effective_dimension[0, 0]:.4g}")
        captions.append("\n".join([plain(name), *lines]).replace("-", "−"))
    axes.set_xlim(-0.5, len(captions) - 0.5)
    axes.set_xticks(range(len(captions)), captions, fontsize=8)
    axes.margins(y=0.25)
    no_smaller(axes)
    axes.set_title(f"at cutoff {series.cutoff[0]:.3g} {unit_of(series.config)}", fontsize=9)
    axes.set_ylabel("log V [nats], 95% interval")


def no_smaller(axes: Axes) -> None:
    """Let a scale of nats not magnify what is no difference."""
    low, high = axes.get_ylim()
    if high - low < _LEAST:
        centre = (low + high) / 2
        axes.set_ylim(centre - _LEAST / 2, centre + _LEAST / 2)


def interval_line(
    axes: Axes,
    x: Any,
    value: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    bound: NDArray[Any],
    *,
    color: Any,
    label: str | None = None,
    ls: str = "-",
) -> None:
    """A line with 95% intervals; a lower bound is a triangle at its end, joined to the line."""
    value, lower, upper = (np.where(np.isfinite(v), v, np.nan) for v in (value, lower, upper))
    axes.plot(x, value, color=color, lw=1.2, ls=ls, label=label)
    # Markers of the first and last step stand on the axes' borders.
    marks: dict[str, Any] = {"color": color, "zorder": 3, **UNCLIPPED}
    axes.plot(x[~bound], value[~bound], "o", ms=3, **marks)
    axes.plot(x[bound], lower[bound], "^", ms=5, mec="none", **marks)
    axes.vlines(x[bound], lower[bound], value[bound], color=color, lw=1.0)
    ends = np.maximum(np.nan_to_num(np.stack([value - lower, upper - value])), 0.0)[:, ~bound]
    bars: dict[str, Any] = {"fmt": "none", "ecolor": color, "elinewidth": 1.0, "capsize": 2}
    axes.errorbar(x[~bound], value[~bound], yerr=ends, **bars)
