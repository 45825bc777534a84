"""The figure of the annealing benchmark: a small panel for each section."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from anneal_tables import STARTS, grouped
from matplotlib.axes import Axes

Record = dict[str, Any]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _quadratics(axes: Axes, section: Record) -> None:
    groups = grouped(section, "n", "spectrum")
    labels = []
    for place, ((n, spectrum), runs) in enumerate(groups.items()):
        labels.append(f"{n}, {spectrum}")
        for slot, (kind, colour, marker) in enumerate(
            (("radial", "#009E73", "s"), ("symmetric", "#D55E00", "v"))
        ):
            errors = [run[kind]["value"] - run["truth"] for run in runs]
            mean = sum(errors) / len(errors)
            axes.plot(place + 0.2 + 0.2 * slot, mean, marker, color=colour, ms=5)
        _errors(axes, place - 0.25, runs, 0.3)
    axes.set_yscale("symlog", linthresh=1, linscale=1.5)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=7)
    axes.set_ylabel("error of log V, nats")
    for colour, marker, name, fill in (
        ("#0072B2", "o", "anneal", "full"),
        ("#0072B2", "o", "anneal, not converged", "none"),
        ("#009E73", "s", "radial (mean)", "full"),
        ("#D55E00", "v", "symmetric rays (mean)", "full"),
    ):
        axes.plot([], [], marker, color=colour, label=name, fillstyle=fill, ms=5)
    axes.legend(fontsize=7, loc="lower left")


def _errors(axes: Axes, x: float, runs: list[Record], width: float) -> None:
    """One error bar of a standard error for each seed, hollow where it did not converge."""
    for index, run in enumerate(sorted(runs, key=lambda run: run["seed"])):
        at = x + width * index / max(len(runs) - 1, 1)
        axes.errorbar(
            at,
            run["value"] - run["truth"],
            yerr=run["stderr"],
            fmt="o",
            ms=3,
            lw=0.7,
            color="#0072B2",
            mfc="#0072B2" if run["converged"] else "white",
        )


def _closed(axes: Axes, section: Record) -> None:
    groups = grouped(section, "what", "form")
    labels = []
    for place, ((what, form), runs) in enumerate(groups.items()):
        labels.append(f"{what} {form}")
        _errors(axes, place - 0.35, runs, 0.7)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=7)
    axes.set_ylabel("error, nats (bars: standard error)")


def _network(axes: Axes, section: Record) -> None:
    place = 0
    for key, run in section.items():
        if "curve" not in run:
            continue
        curve, colour = run["curve"], _COLOURS[place % len(_COLOURS)]
        place += 1
        # No limit is drawn at the distance of the particles there.
        for start, form in zip(STARTS, ("o-", "s--"), strict=True):
            places = zip(curve["radius"], curve[f"{start}_distance"], strict=True)
            x = [distance if radius is None else radius for radius, distance in places]
            points = [
                (a, value, error or 0.0)
                for a, value, error in zip(x, curve[start], curve[f"{start}_stderr"], strict=True)
                if value is not None
            ]
            if not points:
                continue
            a, values, errors = zip(*points, strict=True)
            axes.errorbar(
                a, values, yerr=errors, fmt=form, color=colour, ms=4, lw=1, label=f"{key}, {start}"
            )
    cheap = section.get("quadratic and rays")
    for (name, found), colour in zip(
        cheap["methods"].items() if cheap else (), ("#777777", "#56B4E9", "#E69F00"), strict=False
    ):
        axes.axhline(found["log_volume"], color=colour, ls=":", lw=1.2, label=name)
    axes.set_xlabel("R, or rms distance where there is no limit")
    axes.set_ylabel("log V, nats")
    axes.legend(fontsize=6)


def _cost(axes: Axes, section: Record) -> None:
    names = list(dict.fromkeys(unit["name"] for unit in section.values()))
    for unit in section.values():
        axes.plot(
            [row["chains"] for row in unit["rows"]],
            [row["cpu"] / unit["cpu"] for row in unit["rows"]],
            "o-" if unit["dtype"] == "float64" else "s--",
            color=_COLOURS[names.index(unit["name"])],
            ms=4,
            lw=1,
            label=f"{unit['name']}, {unit['dtype']}",
        )
    axes.axhline(1, color="black", lw=0.7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("chains in one call")
    axes.set_ylabel("time of a gradient / single gradient")
    axes.legend(fontsize=6)


def _mixing(axes: Axes, section: Record) -> None:
    for unit, colour in zip(section.values(), _COLOURS, strict=False):
        rows = [row for row in unit["rows"] if row["per_draw"] is not None]
        axes.plot(
            [row["beta"] for row in rows],
            [row["per_draw"] for row in rows],
            "o-",
            color=colour,
            ms=4,
            lw=1,
            label=f"{unit['name']}, n = {unit['n']}",
        )
    axes.axhline(20, color="black", lw=0.7, ls="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("beta")
    axes.set_ylabel("leapfrog steps per draw of the loss")
    axes.legend(fontsize=7)


def _learning(axes: Axes, section: Record) -> None:
    cases = list(dict.fromkeys(unit["case"] for unit in section.values()))
    for place, case in enumerate(cases):
        units = [unit for unit in section.values() if unit["case"] == case]
        ladder = next((u for u in units if u["method"] == "ladder" and u.get("rows")), None)
        if ladder is None:
            continue
        rows = ladder["rows"]
        for slot, row in enumerate(rows):
            truth = row["exact"] if row["exact"] is not None else ladder["lambda"]
            axes.errorbar(
                place - 0.3 + 0.1 * slot,
                row["value"] / truth,
                yerr=row["stderr"] / truth,
                fmt="o",
                color="#0072B2",
                ms=4,
                label="ladder (beta rises to the right)" if not place and not slot else None,
            )
        known = rows[-1]["exact"] if rows[-1]["exact"] is not None else ladder["lambda"]
        for index, unit in enumerate(u for u in units if u["method"] == "devinterp"):
            if unit.get("value") is None or not math.isfinite(unit["value"]):
                continue
            axes.errorbar(
                place + 0.1 + 0.15 * index,
                unit["value"] / known,
                yerr=(unit["spread"] or 0.0) / known,
                fmt="v",
                color="#D55E00",
                ms=4,
                label="devinterp (spread of chains)" if not place and not index else None,
            )
    axes.axhline(1, color="black", lw=0.7)
    axes.set_xticks(range(len(cases)), cases, rotation=20, ha="right", fontsize=7)
    axes.set_ylabel("beta E[dL] / truth")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


_PANELS = (
    ("quadratics", "Quadratics: seeds of annealing, other methods", _quadratics),
    ("closed forms", "Closed forms", _closed),
    ("network", "Digits network: log V against R", _network),
    ("cost", "Cost of C chains in one call", _cost),
    ("mixing", "Mixing along the ladder", _mixing),
    ("learning", "Learning coefficients", _learning),
)


def draw(results: Record, path: Path) -> None:
    """Draw and save."""
    figure, axes = plt.subplots(2, 3, figsize=(16, 9.5), layout="constrained")
    for panel, (name, title, build) in zip(axes.ravel(), _PANELS, strict=True):
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        section = results["sections"].get(name)
        if section:
            if name in ("quadratics", "closed forms"):
                panel.axhline(0, color="black", lw=0.7)
            build(panel, section)
        else:
            panel.text(0.5, 0.5, "not run", ha="center", transform=panel.transAxes)
    figure.savefig(path, dpi=120)
    plt.close(figure)
