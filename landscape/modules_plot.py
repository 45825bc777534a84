"""The figure of ``landscape modules``: coupling of every pair, and extreme eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.modules.records import ModulesResult
from landscape.plotting import BLUE, ORANGE, plain
from landscape.results import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["modules_figure"]

_DECADES = 6.0  # Below the largest coupling that colours reach over.
_WRITTEN = 8  # Groups up to which every number is written into its cell.
_NAMED = 40  # Groups up to which every one is named.


def modules_figure(results: Sequence[ModulesResult]) -> Figure:
    """One result: the pairs' coupling in nats (left) and the largest eigenvalues (right).

    Several: the total coupling (left) and the largest eigenvalues (right) over their order.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1) if len(results) == 1 else (1, 1))
    if len(results) == 1:
        _heat_map(figure, left, results[0])
        _group_extremes(right, results[0])
    else:
        _over_steps(left, right, results)
    return figure


def _shown(result: ModulesResult) -> tuple[FloatArray, str]:
    """What the heat map shows, and its unit: coupling, or norms where pairs were not measured."""
    found = result.modules
    off = ~np.eye(len(found.size), dtype=bool)
    values, unit = found.coupling, "coupling (nats)"
    if not np.isfinite(values[off]).all():
        values, unit = found.norm, "norm of the block of A"
    return np.where(off, values, np.nan), unit


def _heat_map(figure: Figure, axes: Axes, result: ModulesResult) -> None:
    from matplotlib.colors import LogNorm

    values, unit = _shown(result)
    count = len(result.names)
    positive = values[np.isfinite(values) & (values > 0)]
    axes.grid(False)
    axes.set_facecolor("0.92")
    if len(positive):
        high = float(positive.max())
        # At least a decade, so that pairs of about the same coupling look alike.
        low = min(max(float(positive.min()), high * 10**-_DECADES), high / 10)
        norm = LogNorm(low, high)
        # Light is little, dark is much, also in grey.
        drawn = np.ma.masked_invalid(np.where(np.isnan(values), np.nan, np.maximum(values, 0)))
        image: Any = axes.imshow(np.ma.masked_less_equal(drawn, 0), norm=norm, cmap="viridis_r")
        figure.colorbar(image, ax=axes, label=unit, shrink=0.85)
        if count <= _WRITTEN:
            middle = np.sqrt(low * high)
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "white" if value > middle else "black"
                    text = f"{value:.3g}" if value > 0 else "0"
                    axes.text(j, i, text, ha="center", va="center", fontsize=6, color=colour)
    else:
        axes.imshow(np.zeros_like(values), cmap="Greys")
        axes.text(0.5, 0.5, "nothing is coupled", transform=axes.transAxes, ha="center")
    if count <= _NAMED:
        names = [plain(name) for name in result.names]
        size = 7 if count <= 16 else 4
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    total = result.modules.total
    error = f" ± {total.stderr:.2g}" if total.stderr > 0 else ""
    axes.set_title(f"total {total.value:.4g}{error} nats", fontsize=9)


def _group_extremes(axes: Axes, result: ModulesResult) -> None:
    """The largest eigenvalue of every group, beside that of the whole."""
    found = result.modules
    place = np.arange(len(result.names))
    axes.barh(place, found.highest_groups, color=BLUE, height=0.7, label="group alone")
    axes.axvline(found.highest, color=ORANGE, lw=1.2, label=f"whole {found.highest:.4g}")
    axes.axvline(
        found.highest_diagonal,
        color="black",
        lw=1.0,
        ls="--",
        label=f"block-diagonal {found.highest_diagonal:.4g}",
    )
    axes.set_ylim(len(place) - 0.5, -0.5)
    axes.set_yticks(place, [str(i) if len(place) <= _NAMED else "" for i in place], fontsize=6)
    if len(place) <= _NAMED:
        names = [plain(name) for name in result.names]
        axes.set_yticks(place, names, fontsize=7 if len(place) <= 16 else 4)
    axes.set_xlabel("largest eigenvalue of whitened A")
    title = f"smallest {found.lowest:.2g}\nof the block-diagonal part {found.lowest_diagonal:.2g}"
    axes.set_title(title, fontsize=8)
    axes.legend(fontsize=7, loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")


def _over_steps(left: Axes, right: Axes, results: Sequence[ModulesResult]) -> None:
    steps = [result.info.step for result in results]
    known = all(step is not None for step in steps) and len(set(steps)) == len(steps)
    place: Any = np.array(steps if known else range(len(results)), dtype=float)
    found = [result.modules for result in results]
    total = np.array([(m.total.value, m.total.lower, m.total.upper) for m in found])
    value = total[:, 0]
    # One probe has an infinite interval, which no bar can show.
    bars = np.abs(np.nan_to_num(total[:, 1:] - value[:, None], posinf=0, neginf=0))
    left.errorbar(place, value, yerr=bars.T, fmt="o-", ms=3, lw=1, color=BLUE)
    left.set_ylabel("total coupling (nats)")
    right.plot(place, [m.highest for m in found], "o-", ms=3, color=ORANGE, label="whole")
    right.plot(
        place, [m.highest_diagonal for m in found], "s--", ms=3, color=BLUE, label="block-diagonal"
    )
    right.set_ylabel("largest eigenvalue of whitened A")
    right.legend(fontsize=7)
    for axes in (left, right):
        if known:
            axes.set_xlabel("training step")
            continue
        labels = [plain(Path(result.info.checkpoint).stem) for result in results]
        axes.set_xticks(place, labels, rotation=45, ha="right", fontsize=6)
