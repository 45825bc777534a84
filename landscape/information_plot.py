"""The figure of ``landscape information``: the Gram matrix, its spectrum, and ranks by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.information.records import GradientGram, InformationResult
from landscape.plotting import ABOVE, BLUE, ORANGE, plain, step_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["information_figure"]

_LABELS = 8  # Checkpoints that are all named.


def information_figure(results: Sequence[InformationResult]) -> Figure:
    """The kernel (or, of several checkpoints, ranks over them), its spectrum, ranks by layer."""
    from matplotlib.figure import Figure

    ordered = sorted(results, key=lambda r: math.inf if r.info.step is None else float(r.info.step))
    figure = Figure(figsize=(10.4, 3.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    if len(ordered) == 1:
        _kernel(figure, first, ordered[0].gradients, behaviour=_behaviour(ordered[0]))
    else:
        _over_steps(first, ordered)
    _spectra(second, ordered)
    if len(ordered) == 1:
        _layers(third, ordered[0])
    else:
        _parts(third, ordered)
    return figure


def _behaviour(result: InformationResult) -> bool:
    return result.info.config.get("loss") == "behaviour"


def _kernel(figure: Figure, axes: Axes, found: GradientGram, *, behaviour: bool) -> None:
    """Cosines of the gradients: of K alone the few largest gradients would be all that is seen."""
    size = np.sqrt(np.maximum(np.diag(found.kernel), 0))
    scale = np.outer(size, size)
    cosine = np.divide(found.kernel, scale, out=np.zeros_like(scale), where=scale > 0)
    image = axes.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    label = r"$K_{ij} / \sqrt{K_{ii} K_{jj}}$"
    figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    labels = found.kernel_label
    sorted_by_label = bool((labels >= 0).all()) and len(labels) > 0
    for border in np.flatnonzero(np.diff(labels)) + 0.5 if sorted_by_label else ():
        axes.axhline(border, color="0.3", lw=0.4)
        axes.axvline(border, color="0.3", lw=0.4)
    order = "sorted by label" if sorted_by_label else "in their order"
    axes.set_xlabel(f"{len(labels)} examples, {order}")
    axes.set_title("kernel of the GGN" if behaviour else "kernel of the gradients", fontsize=9)


def _name(result: InformationResult) -> str:
    step = result.info.step
    own = plain(Path(result.info.checkpoint).stem) or "the model"
    return own if step is None else f"step {step}"


def _spectra(axes: Axes, results: Sequence[InformationResult]) -> None:
    """Eigenvalues of K above the tolerance, with the numerical rank and the entropy rank."""
    for result, colour in zip(results, step_colours(len(results)), strict=True):
        found, whole = result.gradients, result.gradients.ranks[0]
        values = found.eigenvalues[: whole.rank]
        ends = len(results) <= _LABELS or result is results[0] or result is results[-1]
        label = _name(result) if len(results) > 1 and ends else None
        x = np.arange(1, len(values) + 1)
        axes.plot(x, values, ".-", ms=3, color=colour, lw=0.8, label=label)
        if len(results) == 1 and len(values):
            for rank, style, text in (
                (whole.rank, ":", f"rank {whole.rank}"),
                (whole.entropy, "--", f"entropy {whole.entropy:.3g}"),
                (whole.participation, "-.", f"participation {whole.participation:.3g}"),
            ):
                axes.axvline(rank, ls=style, color="0.4", lw=0.9, label=text)
    if any(result.gradients.ranks[0].rank for result in results):
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("rank order")
    unit = plain(str(results[0].info.config.get("units", "loss units")))
    power = "" if _behaviour(results[0]) else "²"
    axes.set_ylabel(f"eigenvalue [{unit}{power} / parameter²]")
    if any(result.gradients.ranks[0].rank for result in results):
        axes.legend(fontsize=7)


def _layers(axes: Axes, result: InformationResult) -> None:
    """Entropy ranks by layer, of gradients and of activations, beside the numerical ranks."""
    layers = [row.layer for row in result.gradients.ranks[1:]]
    gradients = {row.layer: row for row in result.gradients.ranks[1:]}
    activations = {row.layer: row for row in result.activations}
    x = np.arange(len(layers))
    for rows, shift, colour, name in (
        (gradients, -0.2, BLUE, "gradients"),
        (activations, 0.2, ORANGE, "activations"),
    ):
        own = [(i, rows[layer]) for i, layer in enumerate(layers) if layer in rows]
        place: Any = [i + shift for i, _ in own]
        axes.bar(place, [r.entropy for _, r in own], 0.38, color=colour, label=f"{name}: entropy")
        axes.plot(place, [r.rank for _, r in own], "_", ms=9, color="black")
    axes.plot([], [], "_", ms=9, color="black", label="numerical rank")
    if any(row.rank for row in (*gradients.values(), *activations.values())):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
    axes.set_xticks(x, [plain(layer) for layer in layers], rotation=30, ha="right", fontsize=7)
    axes.set_ylabel("effective rank")
    axes.legend(fontsize=7, ncols=3, columnspacing=1, handlelength=1.2, **ABOVE)


def _places(results: Sequence[InformationResult]) -> tuple[Any, str]:
    steps = [result.info.step for result in results]
    if all(step is not None for step in steps):
        return np.array(steps, dtype=np.float64), "training step"
    return np.arange(len(results), dtype=np.float64), "checkpoint"


def _over_steps(axes: Axes, results: Sequence[InformationResult]) -> None:
    x, label = _places(results)
    for name, marker in (("rank", "s"), ("entropy", "o"), ("participation", "^")):
        values = [getattr(result.gradients.ranks[0], name) for result in results]
        axes.plot(x, values, f"{marker}-", ms=3, label=name)
    _step_scale(axes, x)
    if any(result.gradients.ranks[0].rank for result in results):
        axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("effective rank of the gradients")
    axes.legend(fontsize=7)


def _parts(axes: Axes, results: Sequence[InformationResult]) -> None:
    x, label = _places(results)
    for name, text in (("hessian", "|H|"), ("ggn", "|GGN|"), ("residual", "|R|")):
        values = [getattr(result.split.norms[0], name) for result in results]
        errors = [getattr(result.split.norms[0], f"{name}_stderr") for result in results]
        axes.errorbar(x, values, yerr=errors, fmt="o-", ms=3, lw=1, label=text)
    _step_scale(axes, x)
    if any(result.split.norms[0].hessian > 0 for result in results):
        axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("Frobenius norm (± standard error)")
    axes.legend(fontsize=7)


def _step_scale(axes: Axes, x: Any) -> None:
    positive = x[x > 0]
    if len(positive) > 1 and positive.max() >= 20 * positive.min():
        axes.set_xscale("symlog", linthresh=float(positive.min()))
