"""The tables of the annealing benchmark, one for each section of a saved measurement."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from report import table

Record = dict[str, Any]

STARTS = ("ladder", "outward")
"""Of a curve over R."""
Runs = list[Record]


def grouped(section: Record, *names: str) -> dict[tuple[Any, ...], Runs]:
    """Finished runs by what they have in common; those without an estimate left out."""
    found: dict[tuple[Any, ...], Runs] = {}
    for run in section.values():
        if "value" in run:
            found.setdefault(tuple(run[name] for name in names), []).append(run)
    return found


def covers(run: Record) -> bool:
    """Whether the t-interval holds the truth; one without an end has nothing to say."""
    if run["label"] != "estimate" or run["lower"] is None or run["upper"] is None:
        return False
    return bool(run["lower"] <= run["truth"] <= run["upper"])


def holds(run: Record) -> bool:
    """Whether the interval that the run reports holds the truth."""
    low, high = run["reported"]
    return (low is None or low <= run["truth"]) and (high is None or run["truth"] <= high)


def above(run: Record) -> bool:
    """Whether the Markov bound is above the truth."""
    return run["markov"] is not None and run["markov"] > run["truth"]


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _accuracy(runs: Runs) -> list[str]:
    """The columns that all tables of runs with a truth share."""
    errors = [run["value"] - run["truth"] for run in runs]
    spreads = [run["stderr"] for run in runs if run["stderr"] is not None]
    return [
        str(len(runs)),
        number(statistics.fmean(errors), "+.2f"),
        f"{max(map(abs, errors)):.2f}",
        number(_mean(spreads)),
        number(max(spreads, default=None)),
        f"{sum(map(covers, runs))} of {len(runs)}",
        f"{sum(bool(run['converged']) for run in runs)} of {len(runs)}",
        f"{sum(map(holds, runs))} of {len(runs)}",
    ]


ACCURACY = [
    "seeds",
    "mean error",
    "worst error",
    "stderr",
    "worst stderr",
    "t-interval covers",
    "converged",
    "reported holds",
]


def quadratics(section: Record) -> str:
    """Errors of annealing, with the cheaper methods beside it."""
    rows = []
    for (n, spectrum), runs in grouped(section, "n", "spectrum").items():
        truth = runs[0]["truth"]
        exact = next((run["quadratic"] for run in runs if "quadratic" in run), None)
        radial, symmetric = ([run[kind] for run in runs] for kind in ("radial", "symmetric"))
        rows.append(
            [
                str(n),
                spectrum,
                f"{truth:.2f}",
                *_accuracy(runs),
                f"{sum(map(above, runs))} of {len(runs)}",
                f"{statistics.fmean(run['gradients'] for run in runs):.3g}",
                f"{statistics.fmean(run['cpu_seconds'] for run in runs):.1f}",
                "–" if exact is None else f"{exact['value'] - truth:+.0e}",
                number(_mean(run["value"] - truth for run in radial), "+.2f"),
                number(_mean(run["value"] - truth for run in symmetric), "+.1f"),
                number(_mean(run["maximum"] - truth for run in symmetric), "+.1f"),
            ]
        )
    head = ["n", "spectrum", "log V", *ACCURACY, "Markov above", "gradients", "CPU s"]
    return table([*head, "quadratic", "radial", "symmetric", "symmetric, maximum"], rows)


def failures(section: Record) -> str:
    """Which checks failed, in how many runs."""
    counts: dict[str, int] = {}
    for run in section.values():
        for check in run.get("failed", []):
            counts[check["name"]] = counts.get(check["name"], 0) + 1
    if not counts:
        return "No check failed in any run."
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"Failed checks (runs): {listed}."


def closed(section: Record) -> str:
    """Errors on the losses with closed forms."""
    rows = []
    for (what, form), runs in grouped(section, "what", "form").items():
        rows.append(
            [
                form,
                what,
                f"{statistics.fmean(run['truth'] for run in runs):.3f}",
                *_accuracy(runs),
                f"{sum(map(above, runs))} of {len(runs)}" if what == "log V" else "–",
                f"{statistics.fmean(run['gradients'] for run in runs):.3g}",
            ]
        )
    # The reported interval is that of log V.
    for row in rows:
        if row[1] == "log Z":
            row[10] = "–"
    return table(["loss", "", "truth", *ACCURACY, "Markov above", "gradients"], rows)


def _radius(value: float | str | None, missing: str) -> str:
    if value is None:
        return missing
    return "inf" if value == "inf" else f"{value:.3f}"


def network(section: Record) -> str:
    """What every method says about the network, and the curves over R."""
    cheap = section["quadratic and rays"]
    rows = []
    for name, found in cheap["methods"].items():
        label = "lower bound" if found["lower_bound"] else "estimate"
        interval = f"{number(found['lower'], '.1f')} to {number(found['upper'], '.1f')}"
        row = [name, "inf", number(found["log_volume"], ".1f"), number(found["stderr"])]
        rows.append([*row, label, interval, *["–"] * 4])
    curves = []
    for key, run in section.items():
        if key == "quadratic and rays":
            continue
        if "missing" in run:
            rows.append([f"anneal, {key}", *["–"] * 8, run["missing"]])
            continue
        why = "; ".join(
            f"{c['name']} {number(c['value'], '.3g')} (limit {number(c['limit'], '.3g')})"
            for c in run["failed"]
        )
        low, high = run["reported"]
        rows.append(
            [
                f"anneal, seed {run['seed']}",
                _radius(run["tether"], "inf"),
                number(run["value"], ".1f"),
                number(run["stderr"]),
                "estimate" if run["converged"] else "lower bound",
                f"{number(low, '.1f')} to {number(high, '.1f')}",
                number(run["markov"], ".1f"),
                _radius(run["agreed_radius"], "none"),
                f"{run['gradients']:.3g} ({run['seconds'] / 60:.0f} min)",
                why or "–",
            ]
        )
        curves.append(f"Curve over R, {key}:\n\n" + _curve(run["curve"]))
    head = ["method", "R", "log V", "stderr", "label", "reported interval", "Markov"]
    head += ["agreed R", "gradients", "failed checks"]
    about = (
        f"{cheap['n']} parameters, {cheap['examples']} examples, {cheap['steps']} training steps, "
        f"training loss {cheap['train_loss']:.3f}, test accuracy {cheap['test_accuracy']:.1%}; "
        f"behaviour loss, cutoff {cheap['cutoff']:g} nats, prior N(0, {cheap['sigma']:g}^2 I). No "
        "method knows the truth."
    )
    return "\n\n".join([about, table(head, rows), *curves])


def _curve(curve: Record) -> str:
    rows = [
        [
            "inf" if radius is None else f"{radius:.3f}",
            *(cell for start in STARTS for cell in _of_start(curve, start, place)),
            curve["findings"][place],
        ]
        for place, radius in enumerate(curve["radius"])
    ]
    return table(["R", "ladder", "distance", "outward", "distance", "both starts"], rows)


def _of_start(curve: Record, start: str, place: int) -> list[str]:
    value, error, distance = (
        curve[f"{start}{what}"][place] for what in ("", "_stderr", "_distance")
    )
    if value is None:
        return ["–", "–"]
    return [f"{value:.1f} ± {number(error, '.1f')}", number(distance, ".3f")]


def cost(section: Record) -> str:
    """Time of a gradient of C chains in one call over that of a single one."""
    chains = [row["chains"] for row in max((u["rows"] for u in section.values()), key=len)]
    rows = []
    for unit in section.values():
        ratios = {row["chains"]: row["cpu"] / unit["cpu"] for row in unit["rows"]}
        cells = [f"{ratios[count]:.2f}" if count in ratios else "–" for count in chains]
        head = [unit["name"], str(unit["n"]), str(unit["examples"]), unit["dtype"]]
        how = unit["fallback"] or ("one by one" if unit["chunk"] == 1 else str(unit["chunk"]))
        rows.append([*head, f"{1e3 * unit['cpu']:.2f}", *cells, how])
    head = ["network", "n", "examples", "precision", "single, ms"]
    return table([*head, *(f"C = {count}" for count in chains), "chunk"], rows)


def mixing(section: Record) -> str:
    """Leapfrog steps of an independent draw, level by level."""
    rows = [
        [
            f"{unit['name']}, n = {unit['n']}",
            f"{row['beta']:.3g}",
            f"{row['loss']:.3g}",
            f"{row['steps']:.1f}",
            f"{row['acceptance']:.2f}",
            number(row["per_draw"], ".1f"),
            number(row["per_draw_distance"], ".1f"),
        ]
        for unit in section.values()
        for row in unit["rows"]
    ]
    head = ["problem", "beta", "mean excess loss", "steps of a trajectory", "acceptance"]
    return table([*head, "steps per draw, excess loss", "steps per draw, distance"], rows)


def learning(section: Record) -> str:
    """Learning coefficients of both tools."""
    rows = []
    for unit in section.values():
        start = [unit["case"]]
        if unit["method"] == "ladder":
            for row in unit.get("rows", []):
                exact = f"{row['exact']:.4f}" if row["exact"] is not None else "–"
                value = f"{row['value']:.3f} ± {number(row['stderr'], '.3f')}"
                truth = [exact, f"{unit['lambda']:g}"]
                cells = ["ladder", f"{row['beta']:g}", *truth, value, f"{unit['gradients']:.3g}"]
                verdict = "converged" if unit["converged"] else "not converged"
                rows.append([*start, *cells, f"{unit['cpu_seconds']:.0f}", verdict])
            continue
        name = f"devinterp, lr {unit['rate']:g}"
        if "failures" in unit:
            text = "; ".join(f"`{command}`: {message}" for command, message in unit["failures"])
            rows.append([*start, name, f"{unit['beta']:g}", "–", "–", text, *["–"] * 3])
            continue
        spread = number(unit["spread"], ".3f")
        value = f"{number(unit['value'], '.3f')} (chains spread by {spread})"
        cells = [f"{unit['beta']:g}", "–", "–", value, f"{unit['gradients']:.3g}"]
        rows.append([*start, name, *cells, f"{unit['sampling_seconds']:.0f}", "–"])
    head = ["loss", "method", "beta", "exact at beta", "λ (beta to infinity)", "found"]
    return table([*head, "gradients", "CPU s", "verdict"], rows)
