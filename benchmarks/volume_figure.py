"""The figure: errors and effective rays on the quadratic problems, and tilts on the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# A method by the start of its name, so that the first match counts.
_LOOKS = {
    "quadratic, dense": ("#000000", "s"),
    "quadratic": ("#0072B2", "D"),
    "radial, 400": ("#56B4E9", "o"),
    "radial, 100": ("#56B4E9", "o"),
    "radial, 200": ("#009E73", "o"),
    "radial, 50 rays": ("#009E73", "o"),
    "radial, 50 pairs": ("#F0E442", "P"),
    "symmetric, exact": ("#E69F00", "^"),
    "symmetric": ("#D55E00", "v"),
}


def look(method: str) -> tuple[str, str]:
    """Colour and marker."""
    return next(found for start, found in _LOOKS.items() if method.startswith(start))


def _errors(axes: Axes, problems: list[dict[str, Any]], methods: list[str]) -> None:
    for place, problem in enumerate(problems):
        for slot, method in enumerate(methods):
            runs = problem["methods"].get(method)
            if not runs:
                continue
            errors = [run["value"] - problem["truth"] for run in runs]
            colour, marker = look(method)
            x = place + 0.78 * ((slot + 0.5) / len(methods) - 0.5)
            axes.plot([x, x], [min(errors), max(errors)], color=colour, lw=1.5)
            mean = sum(errors) / len(errors)
            axes.plot(x, mean, marker, color=colour, ms=6, mec="black", mew=0.4)
    axes.set_yscale("symlog", linthresh=0.01, linscale=0.5)
    axes.set_yticks([-1e4, -1e2, -1, -0.01, 0, 0.01, 1, 1e2])
    axes.set_ylim(-2e5, 2e2)
    axes.axhspan(-0.2, 0.2, color="black", alpha=0.06, lw=0)
    axes.set_ylabel("error of log V, nats\n(mean and range over seeds)")


def _effective(axes: Axes, problems: list[dict[str, Any]], methods: list[str]) -> None:
    for place, problem in enumerate(problems):
        for slot, method in enumerate(methods):
            runs = problem["methods"].get(method)
            if not runs or "ess" not in runs[0]:
                continue
            parts = [run["ess"] / run["rays"] for run in runs]
            colour, marker = look(method)
            x = place + 0.78 * ((slot + 0.5) / len(methods) - 0.5)
            axes.plot([x, x], [min(parts), max(parts)], color=colour, lw=1.5)
            middle = sorted(parts)[len(parts) // 2]
            axes.plot(x, middle, marker, color=colour, ms=6, mec="black", mew=0.4)
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 1.5)
    axes.axhline(0.2, color="black", lw=0.8, ls="--")
    axes.set_ylabel("ESS / rays\n(median and range)")


def _tilts(axes: Axes, network: dict[str, Any]) -> None:
    colours = ("#0072B2", "#009E73", "#D55E00")
    for tilt, colour in zip(network["tilts"], colours, strict=False):
        factors = [row["factor"] for row in tilt["rows"]]
        bounds = [row["value"] - tilt["quadratic"] for row in tilt["rows"]]
        axes.plot(factors, bounds, "o-", color=colour, label=f"cutoff {tilt['cutoff']:g}")
        other = tilt["symmetric"]["value"] - tilt["quadratic"]
        axes.axhline(other, color=colour, ls=":", lw=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("tilt, in units of the quadratic model's")
    axes.set_ylabel("bound, less the quadratic log V")
    axes.set_title(
        f"{network['name']}, n = {network['n']} (dotted: symmetric, exact Hessian)", fontsize=9
    )
    axes.legend(fontsize=8, framealpha=0.95)
    axes.grid(alpha=0.3)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw and save."""
    problems = results["problems"]
    named = dict.fromkeys(name for p in problems for name in p["methods"])
    order = list(_LOOKS)
    methods = sorted(named, key=lambda m: next(i for i, s in enumerate(order) if m.startswith(s)))
    figure = plt.figure(figsize=(14, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    upper, lower = left.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    _errors(upper, problems, methods)
    _effective(lower, problems, methods)
    for axes in (upper, lower):
        axes.grid(alpha=0.3, axis="y")
        axes.set_xlim(-0.5, len(problems) - 0.5)
        for place in range(1, len(problems)):
            axes.axvline(place - 0.5, color="black", alpha=0.5 if place % 3 == 0 else 0.15, lw=0.8)
    upper.tick_params(labelbottom=False)
    labels = [f"n = {p['n']}\n{p['spectrum']}" for p in problems]
    lower.set_xticks(range(len(problems)), labels, fontsize=8)
    handles = [
        plt.Line2D([], [], color=look(m)[0], marker=look(m)[1], mec="black", mew=0.4, label=m)
        for m in methods
    ]
    upper.legend(handles=handles, fontsize=8, loc="lower left", ncols=2, framealpha=0.95)
    upper.set_title(
        f"Quadratic problems, {results['settings']['seeds']} seeds (grey: 0.2 nats; dashed: a "
        "fifth of the rays)",
        fontsize=10,
    )
    for axes, network in zip(
        right.subplots(len(results["networks"]), 1, squeeze=False)[:, 0],
        results["networks"],
        strict=True,
    ):
        _tilts(axes, network)
    figure.savefig(path, dpi=130)
    plt.close(figure)
