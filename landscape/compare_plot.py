"""The figure of ``landscape compare``: divergences of single examples, and the paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.compare.records import CompareResult
from landscape.plotting import BLUE, ORANGE, plain, step_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compare_figure"]


def compare_figure(results: Sequence[CompareResult]) -> Figure:
    """Share of examples above a divergence (left) and the loss between the weights (right)."""
    from matplotlib.figure import Figure

    paths = any(result.path is not None for result in results)
    figure = Figure(figsize=(7.2 if paths else 4.2, 3.0), layout="constrained")
    axes: Any = figure.subplots(1, 2 if paths else 1, squeeze=False)[0]
    _divergences(axes[0], results)
    if paths:
        _paths(axes[1], results)
    return figure


def _names(result: CompareResult) -> tuple[str, str]:
    a = Path(result.info.checkpoint).stem or "A"
    other = result.info.config.get("other")
    ablated = " ablated" if result.info.config.get("ablate") else ""
    return plain(a), plain((Path(str(other)).stem if other else a) + ablated)


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
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("divergence of an example (nats)")
    axes.set_ylabel("share of examples at or above")
    axes.legend(fontsize=7)


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
    axes.legend(fontsize=7)
