"""The figures of ``landscape slice``: lines, contours and surfaces of the excess loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import UsageError
from landscape.plotting import ORANGE, plain, step_colours
from landscape.results import FloatArray
from landscape.slices.records import Direction, SliceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["slice_figure"]

_LEVELS = 10


def slice_figure(results: Sequence[SliceResult], *, surface: bool = False) -> Figure:
    """All lines in one panel, every plane in one of its own; dashed is the quadratic prediction.

    Raises:
        UsageError: a surface of a line.
    """
    from matplotlib.figure import Figure

    lines = [result for result in results if result.y is None]
    planes = [result for result in results if result.y is not None]
    if surface and lines:
        raise UsageError(
            "--surface: a line has no surface; expected slices along two directions. Leave it out"
        )
    panels = bool(lines) + len(planes)
    figure = Figure(figsize=(4.6 * panels, 3.6), layout="constrained")
    style: dict[str, Any] = {"projection": "3d"} if surface else {}
    axes: Any = figure.subplots(1, panels, squeeze=False, subplot_kw=style)[0]
    if lines:
        _lines(axes[0], lines)
    for panel, result in zip(axes[panels - len(planes) :], planes, strict=True):
        if surface:
            _surface(panel, result)
        else:
            _contours(figure, panel, result)
        if len(results) > 1:
            panel.set_title(_checkpoint(result), fontsize=9)
    return figure


def _checkpoint(result: SliceResult) -> str:
    return plain(Path(result.info.checkpoint).stem or "anchor")


def _units(result: SliceResult) -> str:
    return plain(str(result.info.config.get("units", "loss units")))


def _label(direction: Direction, axis: int) -> str:
    number = direction.name.rpartition(":")[2]
    if direction.kind == "eigen":
        return f"along eigenvector {number} (λ = {direction.eigenvalue:.3g})"
    if direction.kind == "pca":
        return f"principal component {number} ({direction.share:.0%} of the variance)"
    if direction.kind == "to":
        return f"towards {plain(_target(direction))} (1 is there)"
    return f"random direction {axis + 1} (filter-normalised)"


def _target(direction: Direction) -> str:
    return Path(direction.name.removeprefix("to:")).stem


def _lines(axes: Axes, results: Sequence[SliceResult]) -> None:
    finite = np.concatenate([r.excess_loss[np.isfinite(r.excess_loss)] for r in results])
    for result, colour in zip(results, step_colours(len(results)), strict=True):
        [direction] = result.directions
        label = "excess loss" if len(results) == 1 else f"{_checkpoint(result)}, {direction.name}"
        seen = np.isfinite(result.excess_loss)
        axes.plot(
            result.x,
            np.where(seen, result.excess_loss, np.nan),
            "o-",
            ms=2.5,
            lw=1.2,
            color=colour,
            label=plain(label),
        )
        fine = np.linspace(result.x[0], result.x[-1], 201)
        predicted = direction.slope * fine + 0.5 * direction.curvature * fine**2
        text = "quadratic prediction" if len(results) == 1 else None
        axes.plot(fine, predicted, "--", lw=1.0, color=ORANGE if text else colour, label=text)
        top: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        if not seen.all():
            places = result.x[~seen]
            at = np.full(len(places), 0.98)
            axes.plot(places, at, "x", color=colour, ms=4, label="not finite", **top)
        if result.trajectory:
            places = np.array([p.x for p in result.trajectory])
            at = np.full(len(places), 0.02)
            axes.plot(places, at, "|", color=colour, ms=7, label="trajectory, projected", **top)
    if len(finite):
        # The prediction may leave what is of interest far behind.
        low, high = float(finite.min()), float(finite.max())
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    labels = {_label(r.directions[0], 0) for r in results}
    axes.set_xlabel(labels.pop() if len(labels) == 1 else "coordinate along the direction")
    axes.set_ylabel(f"excess loss ({_units(results[0])})")
    title = None if len(results) == 1 else "dashed: quadratic prediction"
    axes.legend(fontsize=7, title=title, title_fontsize=7)


def _levels(excess: FloatArray) -> FloatArray:
    """Levels whose contours of a paraboloid would be equally far apart."""
    finite = excess[np.isfinite(excess)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if not low < high:
        high = low + (abs(low) or 1.0)
    levels: FloatArray = low + (high - low) * (np.arange(_LEVELS + 1) / _LEVELS) ** 2
    return levels


def _grids(result: SliceResult) -> tuple[FloatArray, FloatArray]:
    assert result.y is not None
    x, y = np.meshgrid(result.x, result.y, indexing="ij")
    return x, y


def _contours(figure: Figure, axes: Axes, result: SliceResult) -> None:
    x, y = _grids(result)
    levels, shown = _levels(result.excess_loss), np.ma.masked_invalid(result.excess_loss)
    if shown.count():
        filled = axes.contourf(x, y, shown, levels=levels, cmap="viridis")
        # Solid below 0, too: dashed is the prediction.
        solid: dict[str, Any] = {"colors": "white", "linewidths": 0.5, "linestyles": "solid"}
        axes.contour(x, y, shown, levels=levels, **solid)
        bar = figure.colorbar(filled, ax=axes, format="%.2g")
        bar.set_label(f"excess loss ({_units(result)})")
        quadratic = result.quadratic
        inside = [v for v in levels if quadratic.min() < v < quadratic.max()]
        if inside:
            axes.contour(
                x,
                y,
                quadratic,
                levels=inside,
                colors=ORANGE,
                linewidths=1.0,
                linestyles="dashed",
                negative_linestyles="dashed",
            )
            axes.plot([], [], "--", color=ORANGE, lw=1.0, label="quadratic prediction")
    bad = ~np.isfinite(result.excess_loss)
    if bad.any():
        axes.plot(x[bad], y[bad], "x", color="black", ms=3, label="not finite")
    _places(axes, result)
    axes.set_xlim(result.x[0], result.x[-1])
    axes.set_ylim(y[0, 0], y[0, -1])
    axes.grid(visible=False)
    axes.set_xlabel(_label(result.directions[0], 0))
    axes.set_ylabel(_label(result.directions[1], 1))
    axes.legend(fontsize=7, loc="upper left", frameon=True, framealpha=0.8)


def _places(axes: Axes, result: SliceResult) -> None:
    """The anchor, other checkpoints and the trajectory."""
    if result.trajectory:
        x, y = np.array([(p.x, p.y) for p in result.trajectory]).T
        style: dict[str, Any] = {"color": "0.85", "mec": "black", "mew": 0.4, "ms": 3, "lw": 0.9}
        axes.plot(x, y, "o-", label="trajectory", **style)
    first, second = result.directions
    if first.kind == "to":
        axes.plot(1, 0, "^", color=ORANGE, ms=5, label=plain(_target(first)))
    if second.kind == "to":
        # Where the first direction's part of it went.
        whole = second.length / math.sqrt(1 - second.cosine**2)
        place = second.cosine * whole / first.length
        axes.plot(place, 1, "v", color=ORANGE, ms=5, label=plain(_target(second)))
    axes.plot(0, 0, "*", color="white", mec="black", mew=0.5, ms=8, label="checkpoint")


def _surface(axes: Any, result: SliceResult) -> None:
    x, y = _grids(result)
    levels = _levels(result.excess_loss)
    seen = np.where(np.isfinite(result.excess_loss), result.excess_loss, np.nan)
    inside = (result.quadratic >= levels[0]) & (result.quadratic <= levels[-1])
    colours: dict[str, Any] = {"cmap": "viridis", "vmin": levels[0], "vmax": levels[-1]}
    axes.plot_surface(
        x, y, seen, rcount=100, ccount=100, linewidth=0, alpha=0.85, label="excess loss", **colours
    )
    axes.plot_wireframe(
        x,
        y,
        np.where(inside, result.quadratic, np.nan),
        rcount=15,
        ccount=15,
        color=ORANGE,
        linewidth=0.6,
        linestyle="dashed",
        label="quadratic prediction",
    )
    axes.set_zlim(levels[0], levels[-1])
    axes.set_box_aspect(None, zoom=0.85)  # Labels need room.
    for axis, direction in enumerate(result.directions):
        # A long line beside a slanted axis would leave the figure.
        text = _label(direction, axis).replace(" (", "\n(")
        (axes.set_xlabel, axes.set_ylabel)[axis](text, fontsize=7, labelpad=8)
    axes.set_zlabel(f"excess loss ({_units(result)})", fontsize=7)
    axes.tick_params(labelsize=6)
    axes.legend(fontsize=7, loc="upper left")
