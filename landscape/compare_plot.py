"""The figure of ``landscape compare``: divergences of single examples, and the paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.compare.records import CompareResult
from landscape.plotting import ABOVE, BLUE, ORANGE, plain, step_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compare_figure"]


def compare_figure(results: Sequence[CompareResult]) -> Figure:
    """Share of examples above a divergence, the loss between the weights, and log V."""
    from matplotlib.figure import Figure

    paths = any(result.path is not None for result in results)
    drawn = [_divergences]
    drawn += [_paths] if paths else []
    drawn += [_volumes] if any(result.volume is not None for result in results) else []
    width = 4.2 if len(drawn) == 1 else 3.6 * len(drawn)
    figure = Figure(figsize=(width, 3.0), layout="constrained")
    axes: Any = figure.subplots(1, len(drawn), squeeze=False)[0]
    for draw, place in zip(drawn, axes, strict=True):
        draw(place, results)
    return figure


def _names(result: CompareResult) -> tuple[str, str]:
    first, other = Path(result.info.checkpoint), result.info.config.get("other")
    second = Path(str(other)) if other else first
    a, b = first.stem or "A", second.stem or "A"
    if a == b and first != second:
        # Of one step of two runs, say.
        a, b = (str(Path(path.parent.name, path.stem)) for path in (first, second))
    return plain(a), plain(b + (" ablated" if result.info.config.get("ablate") else ""))


def _divergences(axes: Axes, results: Sequence[CompareResult]) -> None:
    for result, colour in zip(results, step_colours(len(results)), strict=True):
        a, b = _names(result)
        found = result.behaviour
        drawn = [(found.example_kl_ab, "-", f"KL({a} || {b})")]
        if len(results) == 1:
            drawn += [
                (found.example_kl_ba, "--", f"KL({b} || {a})"),
                (found.example_js, ":", "Jensen-Shannon"),
            ]
        for values, style, label in drawn:
            values = np.sort(values[values > 0])[::-1]
            share = np.arange(1, len(values) + 1) / max(len(found.example_js), 1)
            axes.plot(values, share, style, color=colour, label=label)
    if any((r.behaviour.example_kl_ab > 0).any() for r in results):
        axes.set_xscale("log")
        _label_few(axes)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("divergence of an example (nats)")
    axes.set_ylabel("share of examples at or above")
    axes.legend(fontsize=7, **ABOVE)


def _label_few(axes: Axes) -> None:
    """Few and short labels below two decades, where Matplotlib's of 2, 3, 4, ... overlap."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    if high < 100 * low:
        many = high > 10 * low
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if many else MaxNLocator(4))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _paths(axes: Axes, results: Sequence[CompareResult]) -> None:
    for result, colour in zip(results, step_colours(len(results)), strict=True):
        a, b = _names(result)
        if result.path is not None:
            colour = BLUE if len(results) == 1 else colour
            label = f"{a} to {b}, barrier {result.path.barrier:.3g}"
            axes.plot(result.path.t, result.path.loss, "o-", ms=3, color=colour, label=label)
        if result.aligned is not None and result.aligned is not result.path:
            colour = ORANGE if len(results) == 1 else colour
            label = f"matched, barrier {result.aligned.barrier:.3g}"
            axes.plot(result.aligned.t, result.aligned.loss, "s--", ms=3, color=colour, label=label)
    units = results[0].info.config.get("units", "loss units")
    axes.set_xlabel("position t between the weights")
    axes.set_ylabel(f"task loss ({plain(str(units))})")
    axes.legend(fontsize=7, **ABOVE)


def _volumes(axes: Axes, results: Sequence[CompareResult]) -> None:
    for result, colour in zip(results, step_colours(len(results)), strict=True):
        found = result.volume
        if found is None:
            continue
        value = found.difference
        known = np.isfinite(value)
        ends = np.abs(np.stack([value - found.lower, found.upper - value]))
        a, b = _names(result)
        colour = BLUE if len(results) == 1 else colour
        axes.errorbar(
            found.a.cutoff[known],
            value[known],
            yerr=np.where(np.isfinite(ends), ends, 0.0)[:, known],
            fmt="o-",
            ms=3,
            capsize=2,
            color=colour,
            label=f"{b} less {a}",
        )
    axes.axhline(0, color="0.7", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel("cutoff (excess loss)")
    axes.set_ylabel("difference of log V (nats)")
    axes.legend(fontsize=7, **ABOVE)
