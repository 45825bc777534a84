"""The axis of training steps: linear, or logarithmic with room for step 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landscape.series_records import TrainingSeries
from landscape.text import escape_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["step_axis", "step_edges"]

FloatArray = NDArray[np.float64]
Map = Callable[[FloatArray], FloatArray]

_RATIO = 20.0  # Of the last to the first positive step, from which the axis can be logarithmic.


def _scale(step: FloatArray) -> tuple[str, float]:
    """``log``, ``symlog`` or ``linear``, and the smallest positive step."""
    positive = step[step > 0]
    least = float(positive.min()) if len(positive) else 1.0
    if len(positive) < 3 or positive.max() < _RATIO * least:
        return "linear", least
    # Which spacing is the more even one: of the steps, or of their logarithms?
    even, log_even = (np.diff(x) / np.diff(x).mean() for x in (positive, np.log(positive)))
    if even.std() <= log_even.std():
        return "linear", least
    return ("symlog" if len(positive) < len(step) else "log"), least


def step_edges(series: TrainingSeries) -> FloatArray:
    """Borders between steps, halfway on the step axis, and beyond both ends, (t + 1,)."""
    step = series.step.astype(np.float64)
    kind, least = _scale(step)
    place, back = _transform(kind, least)
    x = place(step)
    if len(x) == 1:
        return back(np.array([x[0] - 0.5, x[0] + 0.5]))
    middle = (x[1:] + x[:-1]) / 2
    return back(np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]]))


def _transform(kind: str, least: float) -> tuple[Map, Map]:
    """To where a step stands on the axis, in decades where that is logarithmic; and back."""
    if kind == "linear":
        return (lambda s: s), (lambda x: x)
    if kind == "log":
        return np.log10, lambda x: 10.0**x

    # One unit from 0 to the smallest positive step, as the symlog scale draws it.
    def place(s: FloatArray) -> FloatArray:
        size = np.abs(s) / least
        return np.sign(s) * np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))

    def back(x: FloatArray) -> FloatArray:
        size = np.abs(x)
        return np.sign(x) * least * np.where(size <= 1, size, 10.0 ** (size - 1))

    return place, back


def step_axis(axes: Axes, series: TrainingSeries) -> None:
    """Scale, limits and ticks of the horizontal axis."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    step = series.step.astype(np.float64)
    kind, least = _scale(step)
    if kind == "symlog":
        axes.set_xscale("symlog", linthresh=least, linscale=0.9, subs=range(2, 10))
    else:
        axes.set_xscale(kind)
    edges = step_edges(series)
    axes.set_xlim(edges[0], edges[-1])
    if not series.numbered:
        names = [
            escape_name(name.rpartition("/")[2]).replace("$", r"\$") for name in series.checkpoint
        ]
        if len(names) <= 6:
            axes.xaxis.set_major_locator(FixedLocator(list(step)))
            axes.set_xticklabels(names, rotation=20, ha="right", fontsize=7)
    elif kind == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
