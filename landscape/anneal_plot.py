"""Panels of an annealed log-volume: its path, both starts over the radius, and its islands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as t_law

from landscape.plotting import ABOVE, ORANGE
from landscape.volume.anneal_records import Annealing, Curve
from landscape.volume.anneal_summary import at_radius, judgement
from landscape.volume.islands import Islands, evaluated, integrated, volumes
from landscape.volume.records import VolumeEstimate, VolumeResult
from landscape.volume_plot import (
    PURPLE,
    UNCLIPPED,
    evenly,
    interval_line,
    method_colour,
    no_smaller,
    unit_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["anneal_panels", "curve_panel", "islands_panel", "loss_panel", "partition_panels"]

_GREY = "0.45"
_GREEN = method_colour("anneal")
_POINTS = 25  # Levels with error bars.
_CUTOFFS = 5  # That an axis names.
_ROOM = 0.12  # Part of an axis that the name of a radius takes.
_SMALL: dict[str, Any] = {"fontsize": 7, "title_fontsize": 7}
_ABOVE: dict[str, Any] = {**_SMALL, **ABOVE}
_ABOVE |= {"handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.2}

FloatArray = NDArray[np.float64]


def anneal_panels(figure: FigureBase, result: VolumeResult) -> None:
    """Draw everything that ``anneal`` rests on.

    Left the mean excess loss against the inverse temperature, log Z by integration and by the
    weights below it, and the difference of the two; right log V over the radius from both starts,
    and the log-volumes of the islands.

    Args:
        figure: figure, or part of one, to fill.
        result: with an annealed estimate and what it rests on.
    """
    annealing = result.annealing
    if annealing is None:
        raise ValueError("the result has no annealed estimate to draw")
    estimate, unit = result.estimates["anneal"], unit_of(result.info.config)
    parts: Any = figure.subfigures(1, 2)
    left, right = parts
    loss, partition, difference = left.subplots(3, 1, sharex=True, height_ratios=(5, 4, 3))
    over_radius, spread = right.subplots(2, 1)
    loss_panel(loss, annealing, unit)
    partition_panels(partition, difference, annealing.ladder)
    curve_panel(over_radius, annealing, f"{estimate.cutoff.min():.3g} {unit}")
    reach = annealing.radius * math.sqrt(result.info.n_parameters)
    islands_panel(spread, annealing, estimate, reach, unit)
    colour = "black" if annealing.converged else ORANGE
    figure.suptitle(f"anneal {judgement(annealing)}", fontsize=9, color=colour)


def _spread(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean over the last axis and half its 95% t-interval; NaN where a value is not finite."""
    known = np.where(np.isfinite(values), values, np.nan)
    count = values.shape[-1]
    if count < 2:
        return known.mean(-1), np.full(values.shape[:-1], np.nan)
    half = t_law.ppf(0.975, count - 1) * known.std(-1, ddof=1) / math.sqrt(count)
    return known.mean(-1), half


class _Levels(NamedTuple):
    """A path's levels along an axis."""

    x: FloatArray
    scale: str
    label: str
    some: NDArray[np.int64]  # Levels with error bars.

    @staticmethod
    def of(ladder: Islands) -> _Levels:
        """By inverse temperature; by number where that is 0 all along, so that only k changes."""
        beta, count = ladder.beta, len(ladder.beta)
        first, last = float(ladder.tether[0]), float(ladder.tether[-1])
        moves = f"tether k {first:.3g} → {last:.3g}"
        hot = np.flatnonzero(beta > 0)
        if not len(hot):
            some = np.linspace(0, count - 1, min(count, _POINTS)).round().astype(np.int64)
            return _Levels(np.arange(float(count)), "linear", f"level, at β = 0; {moves}", some)
        label = "inverse temperature β"
        if first != last:
            label += f"; {moves} where it stands still"
        some = hot
        if len(hot) > _POINTS:
            marks = np.geomspace(beta[hot].min(), beta.max(), _POINTS)
            places = np.searchsorted(np.maximum.accumulate(beta), marks)
            some = np.unique(np.append(places, count - 1).clip(0, count - 1))
        return _Levels(np.where(beta > 0, beta, np.nan), "log", label, some)


def _bars(axes: Axes, x: FloatArray, y: FloatArray, ends: Any, **style: Any) -> None:
    """Points with 95% intervals; an end that is unknown or infinite is left out."""
    ends = np.maximum(np.where(np.isfinite(ends), ends, 0.0), 0.0)
    kind: dict[str, Any] = {"fmt": "o", "ms": 2.5, "elinewidth": 1.0, "capsize": 2}
    axes.errorbar(x, y, yerr=ends, **kind, **style)


def loss_panel(axes: Axes, annealing: Annealing, unit: str) -> None:
    """Mean excess loss of every level against its inverse temperature.

    Args:
        axes: to draw into.
        annealing: the record.
        unit: of the loss.
    """
    ladder = annealing.ladder
    levels = _Levels.of(ladder)
    x, (mean, half) = levels.x, _spread(ladder.loss)
    shown = np.isfinite(x) & (mean > 0)
    axes.set_xscale(levels.scale)
    axes.set_yscale("log")
    axes.plot(x, np.where(shown, mean, np.nan), color=_GREEN, lw=1.2)
    some = levels.some[shown[levels.some]]
    # A bar must not reach zero on a logarithmic axis.
    below = np.minimum(half[some], 0.999 * mean[some])
    _bars(axes, x[some], mean[some], np.stack([below, half[some]]), color=_GREEN)
    ends = ladder.marks[np.unique(annealing.marks)]
    ends = ends[shown[ends]]
    ring: dict[str, Any] = {"mfc": "none", "mec": "black", "ms": 7, "ls": "none", "zorder": 4}
    axes.plot(x[ends], mean[ends], "o", **ring, label="where volumes are taken")
    axes.set_ylabel(f"E[ΔL] [{unit}]", fontsize=8)
    axes.legend(title="bars: 95% over islands", **_SMALL)


def partition_panels(axes: Axes, below: Axes, ladder: Islands) -> None:
    """Log Z by integration of the mean excess loss and by the weights, and their difference.

    Args:
        axes: for both over the inverse temperature.
        below: for the weights less the integral.
        ladder: islands of the path.
    """
    mean, half = _spread(integrated(ladder))
    levels = _Levels.of(ladder)
    x, some = levels.x, levels.some
    found = [evaluated(ladder, int(level)) for level in some]
    value, lower, upper = (
        np.array([getattr(one, name) for one in found]) for name in ("value", "lower", "upper")
    )
    with np.errstate(invalid="ignore"):
        ends, gap = np.stack([value - lower, upper - value]), value - mean[some]
    still = bool((ladder.tether == ladder.tether[0]).all())
    integral = "−∫ E[ΔL] dβ" if still else "integrated means"  # Of both, where the tether moves.
    for panel, line, points in ((axes, mean, value), (below, mean - mean, gap)):
        panel.set_xscale(levels.scale)
        panel.fill_between(x, line - half, line + half, color=_GREEN, alpha=0.25, lw=0)
        panel.plot(x, line, color=_GREEN, lw=1.2, label=integral)
        known = np.isfinite(points)
        style: dict[str, Any] = {"color": "black", "zorder": 3, "label": "weights"}
        _bars(panel, x[some][known], points[known], ends[:, known], **style)
    axes.set_ylabel("log Z [nats]", fontsize=8)
    axes.legend(**_SMALL)
    below.set_ylabel("weights −\nintegral [nats]", fontsize=8)
    below.set_xlabel(levels.label, fontsize=8)


def curve_panel(axes: Axes, annealing: Annealing, cutoff: str) -> None:
    """Log V over the radius from both starts; shaded where they agree, R = ∞ at the right end.

    Args:
        axes: to draw into.
        annealing: the record.
        cutoff: the smallest one, in words.
    """
    curve = annealing.curve
    x = _positions(curve.radius)
    axes.set_xscale("log")
    edges = _edges(x)
    turns = np.flatnonzero(np.diff(np.concatenate([[0], curve.agrees, [0]])))
    for number, (low, high) in enumerate(turns.reshape(-1, 2)):
        label = None if number else "both agree"
        axes.axvspan(edges[low], edges[high], color="0.9", lw=0, zorder=0, label=label)
    for name, label, colour in (
        ("ladder", "from the prior", _GREEN),
        ("outward", "from the checkpoint", PURPLE),
    ):
        value, lower, upper = (getattr(curve, f"{name}{end}") for end in ("", "_lower", "_upper"))
        if np.isfinite(value).any():
            bound = np.isfinite(value) & np.isposinf(upper)
            interval_line(axes, x, value, lower, upper, bound, color=colour, label=label)
            if name == "ladder":
                # Seen around the other start's points too.
                rings = np.where(bound, lower, value)
                axes.plot(x, rings, "o", ms=7, mfc="none", mec=colour, zorder=4, **UNCLIPPED)
    axes.set_xlim(edges[0], edges[-1])
    _name_radii(axes, x, curve)
    axes.set_xlabel("radius R [prior standard deviations, rms]", fontsize=8)
    axes.set_ylabel("log V [nats]", fontsize=8)
    axes.legend(title=f"within R at cutoff {cutoff}, with 95% intervals", ncols=3, **_ABOVE)


def _positions(radius: FloatArray) -> FloatArray:
    """Places on a logarithmic axis: the radii themselves, and infinity beyond the largest."""
    finite = radius[np.isfinite(radius)]
    if not len(finite):
        return np.ones(len(radius))
    beyond = float(finite[-1] * max((finite[-1] / finite[0]) ** 0.25, 1.3))
    return np.where(np.isfinite(radius), radius, beyond)


def _edges(x: FloatArray) -> FloatArray:
    """Borders half way between places on a logarithmic axis, and as far beyond the ends."""
    between = np.sqrt(x[1:] * x[:-1])
    pad = float((x[-1] / x[0]) ** 0.08) if x[-1] > x[0] else 1.3
    return np.concatenate([[x[0] / pad], between, [x[-1] * pad]])


def _name_radii(axes: Axes, x: FloatArray, curve: Curve) -> None:
    from matplotlib.ticker import NullLocator

    named = [len(x) - 1]  # The radius that was asked for, and those before it that have room.
    for place in range(len(x) - 2, -1, -1):
        if math.log(x[named[0]] / x[place]) > _ROOM * math.log(x[-1] / x[0]):
            named.insert(0, place)
    labels = ["∞" if math.isinf(r) else f"{r:.2g}" for r in curve.radius[named]]
    axes.set_xticks(x[named], labels)
    axes.xaxis.set_minor_locator(NullLocator())


def islands_panel(
    axes: Axes, annealing: Annealing, estimate: VolumeEstimate, reach: float, unit: str
) -> None:
    """Log-volume of every island less the estimate, in a column for every cutoff.

    Args:
        axes: to draw into.
        annealing: the record.
        estimate: log V at every cutoff.
        reach: largest distance from the checkpoint, ``R sqrt(n)``.
        unit: of the loss.
    """
    order = np.argsort(estimate.cutoff)
    empty = 0
    for column, c in enumerate(order):
        value = estimate.log_volume[c]
        if not math.isfinite(value):
            continue
        mark, cutoff = int(annealing.marks[c]), float(estimate.cutoff[c])
        logs = volumes(annealing.ladder, mark, cutoff, reach)
        shift = np.linspace(-0.25, 0.25, len(logs)) if len(logs) > 1 else np.zeros(1)
        seen = np.isfinite(logs)
        empty += int((~seen).sum())
        dots: dict[str, Any] = {"color": _GREEN, "ls": "none", "alpha": 0.6, "mec": "none"}
        label = None if column else "island"
        axes.plot(column + shift[seen], logs[seen] - value, "o", ms=4, **dots, label=label)
        lower, upper = (end[c : c + 1] - value for end in (estimate.lower, estimate.upper))
        bound, x = estimate.lower_bound[c : c + 1], np.array([column + 0.36])
        interval_line(axes, x, np.zeros(1), lower, upper, bound, color="black")
    axes.plot([], [], "o", color="black", ms=3, label="estimate, 95% interval")
    if estimate.lower_bound.any():
        axes.plot([], [], "^", color="black", ms=5, mec="none", label="lower bound")
    if empty:
        axes.plot([], [], " ", label=f"{empty} found nothing inside")
    axes.axhline(0, color=_GREY, lw=0.6)
    axes.set_xlim(-0.5, len(order) - 0.3)
    named = evenly(len(order), _CUTOFFS)
    axes.set_xticks(named, [f"{estimate.cutoff[order[place]]:.2g}" for place in named])
    axes.margins(y=0.15)
    no_smaller(axes)
    axes.set_xlabel(f"cutoff [{unit}]", fontsize=8)
    axes.set_ylabel("log V less the estimate [nats]", fontsize=8)
    axes.legend(title=f"islands at {at_radius(annealing.radius)}", ncols=3, **_ABOVE)
