"""The figure: wall time by tool and problem, and how cost grows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

KNOWN = "known beforehand"
"""Ends the name of a run that was told how many steps it needs."""

_COLOURS = {
    "landscape": "#0072B2",
    "curvlinops": "#E69F00",
    "hessian-eigenthings": "#009E73",
    "PyHessian": "#CC79A7",
}


def _bars(axes: Axes, cells: dict[str, Any], goals: dict[str, float], title: str) -> None:
    """The fastest run of every tool that reaches the residual; else its most accurate, hatched."""
    groups = list(cells)
    for place, (tool, colour) in enumerate(_COLOURS.items()):
        for group, cell in enumerate(groups):
            named = {k: r for k, r in cells[cell].items() if not k.endswith(KNOWN)}
            # Our bar is the plain run; what is opted into is in the tables.
            ours = tool == "landscape"
            runs = [
                r
                for name, r in named.items()
                if (name == tool if ours else name.startswith(tool)) and _ran(r)
            ]
            if not runs:
                continue
            good = [r for r in runs if reached(r, goals[cell.split()[1]])]
            chosen = min(good, key=seconds) if good else min(runs, key=worst)
            axes.bar(
                group + 0.2 * place - 0.3,
                seconds(chosen),
                0.19,
                color=colour,
                hatch=None if good else "////",
                edgecolor="white",
                label=tool if group == 0 else None,
            )
    axes.set_yscale("log")
    axes.set_xticks(range(len(groups)), [g.replace(" ", "\n") for g in groups], fontsize=8)
    axes.set_ylabel("seconds")
    axes.set_title(title, fontsize=10)


def _ran(runs: list[dict[str, Any]]) -> bool:
    return any("wall" in run for run in runs)


def judged_by(results: dict[str, Any]) -> str:
    """``cpu`` time where one CPU thread computes, which other programs do not lengthen."""
    settings = results["settings"]
    return "cpu" if settings["device"] == "cpu" and settings["threads"] == 1 else "wall"


def judge(results: dict[str, Any]) -> None:
    """Give every run the ``time`` that it is judged by."""
    key = judged_by(results)
    for task in ("top", "slq"):
        for entries in results[task].values():
            for run in (run for runs in entries.values() for run in runs if "wall" in run):
                run["time"] = run[key]


def seconds(runs: list[dict[str, Any]]) -> float:
    """Median of the time that runs are judged by."""
    return statistics.median(run["time"] for run in runs if "time" in run)


def worst(runs: list[dict[str, Any]]) -> float:
    """Largest true residual over the largest eigenvalue; zero where there are no pairs."""
    for run in runs:
        if "residuals" in run:
            return max(run["residuals"]) / max(abs(v) for v in run["values"])
    return 0.0


def reached(runs: list[dict[str, Any]], goal: float) -> bool:
    """Whether every returned pair has a true residual within the goal."""
    return worst(runs) <= goal


def draw(results: dict[str, Any], goals: dict[str, float], path: Path) -> None:
    """Draw bars for the ten largest eigenvalues and the density, and the growth curves."""
    judge(results)
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    title = "Ten largest eigenvalues (hatched: residual not reached)"
    _bars(panels[0, 0], results["top"], goals, title)
    _bars(panels[0, 1], results["slq"], goals, "Density: 100 Lanczos steps, one probe")
    tools = [mpl.patches.Patch(color=c, label=t) for t, c in _COLOURS.items()]
    panels[0, 0].legend(handles=tools, fontsize=8, frameon=False)
    for axes, kind, key, label in (
        (panels[1, 0], "parameters", "n", "parameters (256 examples)"),
        (panels[1, 1], "examples", "examples", "examples (26 122 parameters)"),
    ):
        rows = [row for row in results["growth"][kind] if "top1" in row]
        for quantity, name, marker in (
            ("gradient", "one gradient", "s"),
            ("product", "one product, graph kept", "o"),
            ("top1", "largest eigenvalue, everything included", "^"),
        ):
            x, y = [row[key] for row in rows], [row[quantity] for row in rows]
            axes.loglog(x, y, marker=marker, label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("wall seconds")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, frameon=False)
    hardware, settings = results["hardware"], results["settings"]
    figure.suptitle(
        f"{hardware['cpu']}, {settings['threads']} thread(s), {settings['device']}", fontsize=10
    )
    figure.savefig(path, dpi=130)
