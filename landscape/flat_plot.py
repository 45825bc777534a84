"""Figures of counts of directions: stacked bars, counts over training, walks and sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.flat.records import ExampleSweep, NullWalk
from landscape.flat_series import FlatSeries
from landscape.plotting import BLUE, ORANGE, plain
from landscape.step_axis import step_axis
from landscape.volume_plot import CLASS_COLOURS, PURPLE, UNCLIPPED, middle, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["flat_figure"]

FloatArray = NDArray[np.float64]

_GREY, _DARK, _LIGHT = "0.45", "0.15", "0.8"
_GREEN, _SKY, _YELLOW, _AMBER = CLASS_COLOURS[2], "#56b4e9", "#f0e442", "#e69f00"
_SYMMETRY_COLOURS = (PURPLE, _SKY, _YELLOW, _AMBER)
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
_BESIDE: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "fontsize": 7}
_LINE: Mapping[str, Any] = {"marker": "o", "ms": 3, "lw": 1.2, **UNCLIPPED}
_RANKS = {"jacobian": ("Jacobian", _DARK), "ggn": ("GGN", BLUE), "hessian": ("Hessian", ORANGE)}
_CROWDED = 8  # Names of bars from which they are turned.


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of every bar."""

    label: str
    size: FloatArray
    colour: str
    hatch: str = ""


def flat_figure(
    series: FlatSeries, *, walk: NullWalk | None = None, sweep: ExampleSweep | None = None
) -> Figure:
    """A stacked bar for every checkpoint, and what the counts do over training or over the cutoff.

    Args:
        series: of one checkpoint or more.
        walk: of one checkpoint.
        sweep: of one checkpoint.
    """
    from matplotlib.figure import Figure

    panels: list[tuple[Callable[[Axes], None], float]] = [(lambda axes: _bars(axes, series), 3.0)]
    if len(series.step) > 1:
        panels.append((lambda axes: _over_steps(axes, series), 2.6))
        if np.isfinite(series.walked).any():
            panels.append((lambda axes: _walked(axes, series), 1.8))
    elif len(series.cutoff) > 1:
        panels.append((lambda axes: _over_cutoffs(axes, series), 2.2))
    if walk is not None and len(walk.distance):
        panels.append((lambda axes: _walks(axes, walk), 0.6 + 0.25 * len(walk.distance)))
    if sweep is not None:
        panels.append((lambda axes: _sweep(axes, sweep), 2.0))
    heights = [height for _, height in panels]
    figure = Figure(figsize=(7.2, sum(heights) + 0.3 * len(heights)), layout="constrained")
    grid: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for (draw, _), axes in zip(panels, grid[:, 0], strict=True):
        draw(axes)
    return figure


def _parts(series: FlatSeries) -> list[_Part]:
    """What every direction counts as, from the flattest to the steepest."""
    parts, order = [], 0
    for place, (name, data) in enumerate(zip(series.symmetry, series.by_data, strict=True)):
        size = series.explained[:, place].astype(np.float64)
        if data:
            hatch = _HATCHES[place % len(_HATCHES)]
            parts.append(_Part(label=plain(name), size=size, colour=_LIGHT, hatch=hatch))
            continue
        turn, colour = divmod(order, len(_SYMMETRY_COLOURS))
        colours, hatch = _SYMMETRY_COLOURS[colour], _HATCHES[turn % len(_HATCHES)]
        parts.append(_Part(label=plain(name), size=size, colour=colours, hatch=hatch))
        order += 1
    unexplained = series.unexplained.astype(np.float64)
    parts.append(_Part(label="null, unexplained", size=unexplained, colour=_DARK))
    null = series.operators["jacobian"].null
    if not np.isfinite(series.flat).any():
        rest = series.n_parameters - null.astype(np.float64)
        return [*parts, _Part(label="not null", size=rest, colour=BLUE)]
    place = middle(series.cutoff)
    steep, between, flat = (
        np.nan_to_num(values[:, place])
        for values in (series.steep, series.intermediate, series.flat)
    )
    wide = np.maximum(flat - null, 0.0)
    return [
        *parts,
        _Part(label="flat, but not null", size=wide, colour=_GREEN),
        _Part(label="intermediate", size=between, colour=BLUE),
        _Part(label="steep", size=steep, colour=ORANGE),
    ]


def _bars(axes: Axes, series: FlatSeries) -> None:
    parts = _parts(series)
    single = len(series.step) == 1
    x = np.arange(len(series.step))
    base = np.zeros(len(x))
    for part in parts:
        label = f"{part.label}: {part.size[0]:.0f}" if single else part.label
        # What is nowhere needs no place in the legend; what is unexplained always has one.
        shown = bool(part.size.any()) or part.label.startswith("null")
        axes.bar(
            x,
            part.size,
            bottom=base,
            width=0.4 if single else 0.8,
            color=part.colour,
            hatch=part.hatch,
            edgecolor="white",
            linewidth=0.3,
            label=label if shown else None,
        )
        base += part.size
    names = [
        str(step) if series.numbered else plain(Path(name).stem)
        for step, name in zip(series.step, series.checkpoint, strict=True)
    ]
    turned = len(names) > _CROWDED or not series.numbered
    axes.set_xticks(x, names, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_xlim(-0.8, len(x) - 0.2)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, series.n_parameters)
    axes.set_ylabel("directions")
    axes.set_xlabel("training step" if series.numbered else "checkpoint")
    if len(series.cutoff):
        shown_at = f"{series.cutoff[middle(series.cutoff)]:.3g} {unit_of(series.config)}"
        axes.set_title(f"all {series.n_parameters} directions, cutoff {shown_at}", fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], **_BESIDE)


def _ranks_lines(axes: Axes, series: FlatSeries) -> None:
    for name, (title, colour) in _RANKS.items():
        if name not in series.operators:
            continue
        ranks = series.operators[name]
        # The first two are often equal.
        style: Any = {**_LINE, "lw": 3.0} if name == "jacobian" else _LINE
        axes.plot(series.step, ranks.null, color=colour, label=f"null: {title}", **style)
        # A tenth and ten times the tolerance.
        low, high = (series.n_parameters - counted for counted in (ranks.looser, ranks.tighter))
        axes.fill_between(series.step, low, high, color=colour, alpha=0.2, lw=0)


def _over_steps(axes: Axes, series: FlatSeries) -> None:
    _ranks_lines(axes, series)
    symmetric = series.symmetry_total
    axes.plot(series.step, symmetric, color=PURPLE, ls="--", label="by symmetries", **_LINE)
    if np.isfinite(series.n_eff).any():
        place = middle(series.cutoff)
        for values, label, style in (
            (series.n_eff, r"$N_\mathrm{eff}$", "-"),
            (series.effective_dimension, "effective dimension", ":"),
        ):
            axes.plot(series.step, values[:, place], color=_GREEN, ls=style, label=label, **_LINE)
    step_axis(axes, series)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("directions")
    axes.set_xlabel("training step" if series.numbered else "checkpoint, by name")
    axes.legend(title="bands: tolerance ÷10, ×10", title_fontsize=7, **_BESIDE)


def _walked(axes: Axes, series: FlatSeries) -> None:
    axes.plot(series.step, series.walked, color=BLUE, **_LINE)
    left = series.walks_left > 0
    axes.plot(
        series.step[left], series.walked[left], "x", color=ORANGE, label="some left the basin"
    )
    step_axis(axes, series)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("walked [prior sd]")
    axes.set_xlabel("training step" if series.numbered else "checkpoint, by name")
    if left.any():
        axes.legend(**_BESIDE)


def _over_cutoffs(axes: Axes, series: FlatSeries) -> None:
    order = np.argsort(series.cutoff)
    x = series.cutoff[order]
    for label, colour, values in (
        ("steep", ORANGE, series.steep),
        ("intermediate", BLUE, series.intermediate),
        ("flat", _GREEN, series.flat),
    ):
        axes.plot(x, values[0, order], color=colour, label=label, **_LINE)
    for label, style, values in (
        (r"$N_\mathrm{eff}$", "--", series.n_eff),
        ("effective dimension", ":", series.effective_dimension),
    ):
        axes.plot(x, values[0, order], color=_DARK, ls=style, label=label, **_LINE)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"cutoff [{unit_of(series.config)}]")
    axes.set_ylabel("directions")
    axes.legend(**_BESIDE)


def _walks(axes: Axes, walk: NullWalk) -> None:
    y = np.arange(len(walk.distance))
    reached = walk.distance >= walk.limit
    for chosen, colour, label in (
        (reached, BLUE, "at the limit"),
        (walk.left, ORANGE, "left the basin"),
        (~reached & ~walk.left, _GREY, "could go no further"),
    ):
        if chosen.any():
            axes.barh(y[chosen], walk.distance[chosen], height=0.6, color=colour, label=label)
    axes.plot(walk.arc, y, "|", color=_DARK, ms=8, label="length of the path")
    axes.axvline(walk.limit, color=_GREY, lw=0.8, ls=":")
    axes.set_yticks(y, [str(w + 1) for w in y])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_ylabel("walk")
    axes.set_xlabel(f"distance along null directions within cutoff {walk.cutoff:.3g} [prior sd]")
    axes.legend(**_BESIDE)


def _sweep(axes: Axes, sweep: ExampleSweep) -> None:
    axes.plot(sweep.examples, sweep.null, color=_DARK, **_LINE)
    axes.set_xscale("log")
    axes.set_xticks(sweep.examples, list(map(str, sweep.examples)))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("examples")
    axes.set_ylabel("null directions\nof the Jacobian")
