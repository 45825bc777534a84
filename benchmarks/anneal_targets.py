"""Whether the annealing benchmark meets its targets."""

from __future__ import annotations

import math
from typing import Any

from anneal_tables import above, covers, grouped, number
from report import table
from scipy import stats

Record = dict[str, Any]

COVERAGE = 17 / 20
"""Part of the seeds whose interval must hold the truth."""

SMALL = 0.25
"""Part of the levels, in log beta from the first, that counts as small beta."""


def _verdict(met: bool, /) -> str:
    return "met" if met else "**not met**"


def targets(sections: Record) -> str:
    """The table."""
    rows = []
    for name, judge in _JUDGES.items():
        section = sections.get(name)
        rows += judge(section) if section else [[name, "not run", "–"]]
    return table(["target", "measured", ""], rows)


def _coverage(target: str, runs: list[Record]) -> list[str]:
    inside = sum(map(covers, runs))
    text = f"{inside} of {len(runs)}"
    return [
        f"{target}: t-interval covers in 17 of 20",
        text,
        _verdict(inside >= COVERAGE * len(runs)),
    ]


def _quadratics(section: Record) -> list[list[str]]:
    rows = []
    for (n, spectrum), runs in grouped(section, "n", "spectrum").items():
        rows.append(_coverage(f"quadratic, n = {n}, {spectrum}", runs))
        beyond = sum(map(above, runs))
        target = f"quadratic, n = {n}, {spectrum}: Markov above in at most 1 of 20"
        rows.append([target, f"{beyond} of {len(runs)}", _verdict(20 * beyond <= len(runs))])
        if n == 1000:
            known = all(run["label"] == "estimate" for run in runs)
            worst = max(run["stderr"] if run["stderr"] is not None else math.inf for run in runs)
            most = max(run["gradients"] for run in runs)
            text = f"{worst:.2f} (worst seed), at most {most:.3g} gradients"
            text += "" if known else "; not every seed has an estimate"
            target = f"quadratic, n = 1000, {spectrum}: stderr below 2 nats within 1e6 gradients"
            # The last level may end a little beyond the limit.
            rows.append([target, text, _verdict(known and worst < 2 and most < 1.01e6)])
    return rows


def _closed(section: Record) -> list[list[str]]:
    return [
        _coverage(f"{what} of {form}", runs)
        for (what, form), runs in grouped(section, "what", "form").items()
    ]


def _network(section: Record) -> list[list[str]]:
    runs = {key: run for key, run in section.items() if "value" in run}
    if not runs:
        return [["network", "no estimate", _verdict(False)]]
    rows = []
    whole = [run for run in runs.values() if run["tether"] is None]
    if whole:
        errors = [run["stderr"] for run in whole]
        text = ", ".join(number(error) for error in errors)
        text += " with " + ", ".join(f"{run['gradients']:.3g}" for run in whole) + " gradients"
        good = all(
            run["label"] == "estimate" and run["stderr"] < 3 and run["gradients"] < 1.01e6
            for run in whole
        )
        rows.append(
            ["network, R = inf: stderr below 3 nats within 1e6 gradients", text, _verdict(good)]
        )
    for radius in dict.fromkeys(run["tether"] for run in runs.values()):
        pair = [run for run in runs.values() if run["tether"] == radius]
        where = "inf" if radius is None else f"{radius:g}"
        rows.append(_agreement(where, pair))
        if len(pair) > 1:
            gap = abs(pair[0]["value"] - pair[1]["value"])
            room = 2 * math.hypot(*(run["stderr"] or math.inf for run in pair[:2]))
            target = f"network, R = {where}: seeds within 2 standard errors of their difference"
            rows.append([target, f"{gap:.2f} of {room:.2f} nats", _verdict(gap <= room)])
    return rows


def _agreement(where: str, pair: list[Record]) -> list[str]:
    """Without a limit the value may be a lower bound, but there must be a radius of agreement."""
    if where == "inf":
        radii = [run["agreed_radius"] for run in pair]
        text = ", ".join("nowhere" if r is None else f"up to R = {float(r):.2g}" for r in radii)
        target = "network, R = inf: both starts agree up to a reported R"
        return [target, text, _verdict(None not in radii)]
    agree = [run["converged"] for run in pair]
    text = ", ".join("yes" if found else "no" for found in agree)
    return [f"network, R = {where}: converged (both starts agree)", text, _verdict(all(agree))]


def _cost(section: Record) -> list[list[str]]:
    rows = []
    for key, unit in section.items():
        last = unit["rows"][-1]
        ratio = last["cpu"] / unit["cpu"]
        target = f"{key}: {last['chains']} chains cost less than as many single gradients"
        rows.append([target, f"{ratio:.2f} of their time", _verdict(ratio < 1)])
    return rows


def _mixing(section: Record) -> list[list[str]]:
    rows = []
    for unit in section.values():
        logs = [math.log(row["beta"]) for row in unit["rows"]]
        end = logs[0] + SMALL * (logs[-1] - logs[0])
        small = [row for row, log in zip(unit["rows"], logs, strict=True) if log <= end]
        worst = max(row["per_draw"] or math.inf for row in small)
        target = (
            f"{unit['name']}, n = {unit['n']}: below 20 leapfrog steps per independent draw at "
            "small beta"
        )
        text = f"{worst:.1f} up to beta = {small[-1]['beta']:.2g}"
        rows.append([target, text, _verdict(worst < 20)])
    return rows


def _learning(section: Record) -> list[list[str]]:
    rows = []
    for unit in section.values():
        if unit["method"] != "ladder" or not unit.get("rows"):
            continue
        row = unit["rows"][-1]
        truth = row["exact"] if row["exact"] is not None else unit["lambda"]
        room = float(stats.t.ppf(0.975, unit["islands"] - 1)) * row["stderr"]
        gap = abs(row["value"] - truth)
        target = f"{unit['case']}: beta E[dL] at beta = {row['beta']:g} within its 95% interval"
        text = f"{row['value']:.3f} ± {row['stderr']:.3f} against {truth:.4g}"
        rows.append([target, text, _verdict(gap <= room)])
    return rows


_JUDGES = {
    "quadratics": _quadratics,
    "closed forms": _closed,
    "network": _network,
    "cost": _cost,
    "mixing": _mixing,
    "learning": _learning,
}
