"""The Markdown table and the figure of a saved measurement.

Usage: python benchmarks/report.py benchmarks/results/hessian_speed.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figure import KNOWN, draw, judge, judged_by, reached, seconds, worst

GOALS = {"float32": 1e-6, "float64": 1e-6}
PEERS = ("curvlinops", "hessian-eigenthings", "PyHessian")
SPEEDUP = {"mlp": 3.0, "transformer": 3.0, "convnet": 1.4}
Runs = list[dict[str, Any]]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _ratio(theirs: Runs, ours: Runs, key: str = "time") -> float:
    """Median of the ratios of runs of the same round."""
    pairs = zip(theirs, ours, strict=False)
    return statistics.median(a[key] / b[key] for a, b in pairs if a.get(key) and b.get(key))


def _median(runs: Runs, key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def _ran(runs: Runs) -> bool:
    return bool(runs) and "wall" in runs[0]


def _verdict(met: bool, /) -> str:
    return "met" if met else "**not met**"


def _opted(entries: dict[str, Runs], dtype: str) -> dict[str, Runs]:
    """Our runs with options that a user must ask for, where they reach the residual."""
    return {
        k: r
        for k, r in entries.items()
        if k.startswith("landscape, ") and "to 1e" not in k and _ran(r) and reached(r, GOALS[dtype])
    }


def _top_target(cell: str, entries: dict[str, Runs], peer: str) -> list[str]:
    """How much faster we reach the residual than the peer's fastest way of reaching it."""
    problem, dtype = cell.split()
    target = f"top 10, {cell}: {SPEEDUP[problem]:g} times faster than {peer}"
    ours = entries["landscape"]
    ways = {k: r for k, r in entries.items() if k.startswith(peer) and _ran(r)}
    # A run with foreknowledge of the steps it takes is shown, but it is no whole task.
    known = [k for k in ways if k.endswith(KNOWN)]
    also = "".join(f"; {_ratio(ways.pop(k), ours):.2f} with {k}" for k in known)
    if not ways or not _ran(ours):
        tried = any(k.startswith(peer) for k in entries)
        return [target, "does not run" if tried else "not measured", "–"]
    good = {k: r for k, r in ways.items() if reached(r, GOALS[dtype])}
    if good and reached(ours, GOALS[dtype]):
        name = min(good, key=lambda k: seconds(good[k]))
        ratio = _ratio(good[name], ours)
        opted = {k: _ratio(good[name], r) for k, r in _opted(entries, dtype).items()}
        also = "".join(f"; {v:.2f} by {k}" for k, v in opted.items()) + also
        verdict = _verdict(ratio >= SPEEDUP[problem])
        enough = [k for k, v in opted.items() if v >= SPEEDUP[problem]]
        if ratio < SPEEDUP[problem] and enough:
            verdict += f"; met by {enough[0]}"
        return [target, f"{ratio:.2f} ({name}){also}", verdict]
    name = min(ways, key=lambda k: worst(ways[k]))
    ratio = _ratio(ways[name], ours)
    found = f"{ratio:.2f} ({name}); residuals {worst(ways[name]):.0e}, ours {worst(ours):.0e}{also}"
    if reached(ours, GOALS[dtype]):
        return [target, found, "peer does not reach the residual"]
    if good:
        return [target, found, "ours does not reach the residual; " + _verdict(False)]
    met = ratio >= SPEEDUP[problem] and worst(ours) <= worst(ways[name])
    return [target, found, "neither reaches the residual; " + _verdict(met)]


def _targets(results: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    key = judged_by(results)
    for cell, entries in results["top"].items():
        rows += [_top_target(cell, entries, peer) for peer in PEERS]
    for cell, entries in results["top"].items():
        ours = entries["landscape"]
        arpack = [r for k, r in entries.items() if k.startswith("curvlinops") and _ran(r)]
        if arpack and _ran(ours):
            goal = GOALS[cell.split()[1]]
            arpack = [r for r in arpack if reached(r, goal)] or arpack
            needed = min(r[0]["products"] for r in arpack)
            cost = statistics.median(r["time"] / (r["unit"][key] * needed) for r in ours)
            text = f"top 10, {cell}: 1.2 × kept-graph product × ARPACK's {needed} products"
            rows.append([text, f"{cost:.2f}", _verdict(cost <= 1.2)])
    for cell, entries in results["slq"].items():
        ours = entries["landscape"]
        if _ran(ours):
            cost = statistics.median(r["time"] / (r["unit"][key] * r["products"]) for r in ours)
            text = f"density, {cell}: 1.15 × products × kept-graph product"
            rows.append([text, f"{cost:.3f}", _verdict(cost <= 1.15)])
    for task in ("top", "slq"):
        for cell, entries in results[task].items():
            goal = GOALS[cell.split()[1]]
            peaks = {
                k: _median(r, "peak")
                for k, r in entries.items()
                # curvlinops' density keeps no basis: it does not reorthogonalise.
                if not k.startswith("landscape")
                and _ran(r)
                and reached(r, goal)
                and not (task == "slq" and k.startswith("curvlinops"))
            }
            known = {k: v for k, v in peaks.items() if v}
            mine = _median(entries["landscape"], "peak")
            if known and mine:
                leanest = min(known, key=lambda k: known[k])
                text = f"peak memory, {'top 10' if task == 'top' else 'density'}, {cell}"
                found = f"{mine / 1e6:.0f} MB; {leanest}: {known[leanest] / 1e6:.0f} MB"
                rows.append([text, found, _verdict(mine <= known[leanest])])
    return table(["target", "measured", ""], rows)


def _products(results: dict[str, Any]) -> str:
    cells = list(results["products"])
    names = list(dict.fromkeys(name for c in cells for name in results["products"][c]))
    names = ["gradient", *sorted(name for name in names if not name.startswith("gradient"))]
    rows = []
    for name in names:
        row = [name]
        for cell in cells:
            ways = results["products"][cell]
            times = ways.get(name, {})
            beside = "gradient beside PyHessian" if name == "PyHessian" else "gradient"
            if not times.get("wall"):
                row.append("fails" if "error" in times else "–")
                continue
            key = judged_by(results)
            spent = statistics.median(times[key])
            cost = spent / statistics.median(ways[beside][key])
            text = f"{1e3 * spent:.2f} ms, {cost:.2f}"
            if "compile" in times:
                text += f" (compiled in {times['compile']:.0f} s)"
            error = times.get("error_of_product")
            if error is not None and error > 1e-4:
                text += f", **wrong by {error:.0e}**"
            row.append(text)
        rows.append(row)
    return table(["way", *cells], rows)


def _runs(task: str, cell: str, entries: dict[str, Runs], truth: list[float] | None) -> str:
    goal = GOALS[cell.split()[1]]
    head = ["tool", "wall s", "CPU s", "time / ours", "compile s", "products", "peak MB"]
    head += (
        ["worst residual / λ1", "reached", "claims", "worst error of λ"] if task == "top" else []
    )
    rows = []
    for name, runs in entries.items():
        if not _ran(runs):
            error = runs[0].get("error", "?") if runs else "?"
            rows.append([name, f"fails: {error.partition(':')[0]}", *["–"] * (len(head) - 2)])
            continue
        ratio = _ratio(runs, entries["landscape"])
        cpu, peak = _median(runs, "cpu") or 0.0, _median(runs, "peak")
        compilation = max((run.get("compile", 0.0) for run in runs), default=0.0)
        row = [name, f"{_median(runs, 'wall'):.3f}", f"{cpu:.3f}", f"{ratio:.2f}"]
        row.append(f"{compilation:.1f}" if compilation else "–")
        row += [str(runs[0]["products"]), "–" if peak is None else f"{peak / 1e6:.1f}"]
        if task == "top":
            claimed = runs[0]["claimed"]
            row += [f"{worst(runs):.1e}", "yes" if reached(runs, goal) else "no"]
            row.append("–" if claimed is None else f"{claimed} of 10")
            pairs = zip(runs[0]["values"], truth or [], strict=False)
            errors = [abs(value / exact - 1) for value, exact in pairs]
            row.append(f"{max(errors):.1e}" if errors else "–")
        rows.append(row)
    return f"### {cell}\n\n" + table(head, rows)


def _growth(rows: list[dict[str, Any]]) -> str:
    head = ["parameters", "examples", "gradient ms", "product ms", "largest eigenvalue s"]
    cells = []
    for row in rows:
        if "top1" not in row:
            cells.append([f"width {row['width']}", str(row["examples"]), row["error"], "–", "–"])
            continue
        cells.append([f"{row['n']:,}", f"{row['examples']:,}", f"{1e3 * row['gradient']:.2f}"])
        cells[-1] += [f"{1e3 * row['product']:.2f}", f"{row['top1']:.3f}"]
        peak = "–" if row["peak"] is None else f"{row['peak'] / 1e6:.0f}"
        cells[-1] += [str(row["products"]), peak]
    return table([*head, "products", "peak MB"], [c + ["–"] * (7 - len(c)) for c in cells])


def _failures(results: dict[str, Any]) -> str:
    rows = [[f"`{command}`", message] for command, message in results["failures"]]
    for name, versions in results["versions"].items():
        rows += [[f"`import {k}` ({name})", v] for k, v in versions.items() if "Error: " in v]
    found: dict[tuple[str, str], list[str]] = {}
    for cell, ways in results["products"].items():
        for way, times in ways.items():
            if "error" in times:
                found.setdefault((f"one product, {way}", times["error"]), []).append(cell)
    for task in ("top", "slq"):
        for cell, entries in results[task].items():
            for name, runs in entries.items():
                if runs and "error" in runs[0]:
                    label = "top 10" if task == "top" else "density"
                    found.setdefault((f"{label}, {name}", runs[0]["error"]), []).append(cell)
    rows += [[f"{what}: {', '.join(cells)}", message] for (what, message), cells in found.items()]
    return table(["what", "message"], rows) if rows else "Nothing failed."


def _agreement(results: dict[str, Any], problem: str) -> str:
    """How far the float64 references are from curvlinops' float64 eigenvalues."""
    truth = results["reference"][problem]["values"]
    gaps = [
        max(abs(value / exact - 1) for value, exact in zip(runs[0]["values"], truth, strict=True))
        for name, runs in results["top"].get(f"{problem} float64", {}).items()
        if name.startswith("curvlinops") and _ran(runs)
    ]
    return f", references confirmed to {min(gaps):.0e}" if gaps else ""


def _disturbance(results: dict[str, Any]) -> str:
    """How much other programs got in the way: 1.0 where nothing did, on one CPU thread."""
    runs = [
        run["wall"] / run["cpu"]
        for task in ("top", "slq")
        for entries in results[task].values()
        for found in entries.values()
        for run in found
        if run.get("cpu")
    ]
    return f"{statistics.median(runs):.2f} (median of runs), {max(runs):.2f} (worst)"


def _head(results: dict[str, Any]) -> str:
    hardware, settings = results["hardware"], results["settings"]
    versions = {
        k: v for v in results["versions"].values() for k, v in v.items() if "Error" not in v
    }
    size = "tiny problems (`--quick`): the times mean nothing" if settings["quick"] else "full size"
    sizes = [
        f"{name} {found['n']:,} parameters, loss {found['loss']:.3f}, float32 rounding "
        f"{found['rounding']:.0e} λ1{_agreement(results, name)}"
        for name, found in results["reference"].items()
        if "n" in found
    ]
    return f"""# Hessian products, top eigenvalues and densities: this library and its peers

{hardware["cpu"]}, {hardware["cores"]} cores, {hardware["memory"] / 1e9:.0f} GB; device \
{settings["device"]}; {settings["threads"]} thread(s); load average before \
{hardware["load"]:.1f}; wall time over CPU time {_disturbance(results)}; {size}; measured in \
{results["seconds"]:.0f} s. Versions: \
{", ".join(f"{k} {v}" for k, v in versions.items())}.

Problems: {"; ".join(sizes)}. What each column means is in [README](../README.md)."""


def render(results: dict[str, Any], picture: str) -> str:
    """The whole report."""
    judge(results)
    parts = [_head(results), f"![wall times and growth]({picture})"]
    times = "CPU" if judged_by(results) == "cpu" else "wall"
    parts += ["## Targets", f"Ratios are of {times} times.", _targets(results)]
    parts += ["## One product: CPU time, and as a multiple of one gradient"]
    parts += [_products(results)]
    for task, title in (
        ("top", "Ten largest eigenvalues"),
        ("slq", "Density, 100 steps × 1 probe"),
    ):
        parts.append(f"## {title}")
        for cell, entries in results[task].items():
            truth = results["reference"][cell.split()[0]].get("values")
            parts.append(_runs(task, cell, entries, truth))
    parts += ["## Growth (ours, float32 MLP)"]
    parts += [_growth(rows) for rows in results["growth"].values()]
    parts += ["## What could not run", _failures(results)]
    if results.get("omitted"):
        parts.append("Left out of this run to save time: " + "; ".join(results["omitted"]) + ".")
    return "\n\n".join(parts) + "\n"


def write_report(
    draw: Callable[[dict[str, Any], Path], None], render: Callable[[dict[str, Any], str], str]
) -> None:
    """Draw and render the results file that is named on the command line, beside it."""
    source = Path(sys.argv[1])
    results = json.loads(source.read_text())
    picture = source.with_suffix(".png")
    draw(results, picture)
    source.with_suffix(".md").write_text(render(results, picture.name))
    print(source.with_suffix(".md"))


if __name__ == "__main__":
    write_report(lambda results, picture: draw(results, GOALS, picture), render)
