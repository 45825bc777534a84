"""Figures of log-volumes over the training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.plotting import ABOVE, BLUE, ORANGE, plain, step_colours
from landscape.step_axis import step_axis
from landscape.volume.records import CLASSES
from landscape.volume_plot import (
    CLASS_COLOURS,
    UNCLIPPED,
    cutoff_panels,
    has_dimension,
    interval_legend,
    interval_line,
    method_colour,
    middle,
    unit_of,
)
from landscape.volume_series import VolumeSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["volume_series_figure"]

_GREY = "0.45"
_TERMS = (("width", BLUE), ("location", ORANGE), ("remainder", _GREY))
_LINE: Mapping[str, Any] = {"marker": "o", "ms": 3, "lw": 1.2, **UNCLIPPED}
_TICKS = 6  # Steps that the scale of colours names, at most.


def volume_series_figure(series: VolumeSeries) -> Figure:
    """Log V, its terms and what follows from it over the training step, at one cutoff.

    Where there are several cutoffs, log V and the effective dimension over them stand beside it,
    with a colour for every step.
    """
    from matplotlib.figure import Figure

    several = len(series.cutoff) > 1
    panels: list[Any] = []
    for panel in [_log_volume, *[_dimension] * has_dimension(series)]:
        panels += [panel, *["cutoffs"] * several]
    terms = any(bool(np.isfinite(method.width).any()) for method in series.methods.values())
    panels += [_terms] * terms + [_classes] * bool(np.isfinite(series.counts).any())
    columns = min(len(panels), 2)
    rows = (len(panels) + 1) // 2
    size = (7.2 if columns == 2 else 4.2, 2.2 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    beside: list[Axes] = []
    for index, panel in enumerate(panels):
        if panel == "cutoffs":
            # The same quantity on the same scale as in the panel to the left.
            axes = figure.add_subplot(rows, columns, index + 1, sharey=figure.axes[-1])
            beside.append(axes)
            continue
        axes = figure.add_subplot(rows, columns, index + 1)
        panel(axes, series, middle(series.cutoff))
        step_axis(axes, series)
        axes.set_xlabel("training step" if series.numbered else "checkpoint, by name", fontsize=8)
        axes.yaxis.label.set_fontsize(8)
    if beside:
        cutoff_panels(beside, series)
        for axes in beside:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
            axes.xaxis.label.set_fontsize(8)
        _scale_of_steps(figure, beside, series)
    shown = f"{series.cutoff[middle(series.cutoff)]:.3g} {unit_of(series.config)}"
    figure.suptitle(f"over the training step at cutoff {shown}", fontsize=9)
    return figure


def _log_volume(axes: Axes, series: VolumeSeries, place: int) -> None:
    for name, method in series.methods.items():
        colour = method_colour(name)
        for other in range(len(series.cutoff)):
            if other != place:
                axes.plot(series.step, method.log_volume[:, other], color=colour, lw=0.7, alpha=0.4)
        parts = (method.log_volume, method.lower, method.upper, method.lower_bound)
        curve: list[Any] = [part[:, place] for part in parts]
        interval_line(axes, series.step, *curve, color=colour, label=plain(name))
    if len(series.cutoff) > 1:
        axes.plot([], [], color=_GREY, lw=0.7, alpha=0.6, label="other cutoffs")
    axes.set_ylabel("log V [nats]")
    interval_legend(axes, series)


def _dimension(axes: Axes, series: VolumeSeries, place: int) -> None:
    for name, method in series.methods.items():
        size = method.effective_dimension[:, place]
        axes.plot(series.step, size, **_LINE, color=method_colour(name))
    axes.axhline(0, color=_GREY, lw=0.6)
    axes.set_ylabel("effective dimension")


def _terms(axes: Axes, series: VolumeSeries, place: int) -> None:
    for method in series.methods.values():
        for term, colour in _TERMS:
            value = getattr(method, term)[:, place]
            if np.isfinite(value).any():
                axes.plot(series.step, value, **_LINE, color=colour, label=term)
    axes.axhline(0, color=_GREY, lw=0.6)
    axes.set_ylabel("terms of log V [nats]")
    axes.legend(fontsize=7, ncols=3, **ABOVE)


def _classes(axes: Axes, series: VolumeSeries, place: int) -> None:
    for index, (label, colour) in enumerate(zip(CLASSES, CLASS_COLOURS, strict=True)):
        count = series.counts[:, place, index]
        axes.plot(series.step, count, **_LINE, color=colour, label=label)
    # None of a class is a finding too: a logarithmic axis that has a zero.
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set_ylim(-0.2, 2 * series.n_parameters)
    axes.set_ylabel("number of directions")
    axes.legend(fontsize=7, ncols=3, **ABOVE)


def _scale_of_steps(figure: Figure, panels: Sequence[Axes], series: VolumeSeries) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    count = len(series.step)
    colours = ListedColormap(step_colours(count))
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count) if count > 1 else None
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), pad=0.02, aspect=30)
    named = np.unique(np.linspace(0, count - 1, min(count, _TICKS)).round().astype(int))
    labels = [
        str(series.step[row]) if series.numbered else plain(Path(series.checkpoint[row]).stem)
        for row in named
    ]
    bar.set_ticks(list(named), labels=labels)
    bar.minorticks_off()
    bar.set_label("training step" if series.numbered else "checkpoint", fontsize=8)
