"""Comparisons of two networks as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from landscape.compare.records import CompareResult, Eigenspaces, Volumes, WeightPath
from landscape.results import Estimate
from landscape_cli.render import number, report_run, run_summary
from landscape_cli.reporting import Report, printable

__all__ = ["compare_tables", "compare_values", "report_compare"]

_ROWS = {
    "kl_ab": "KL(A || B)",
    "kl_ba": "KL(B || A)",
    "js": "Jensen-Shannon",
    "agreement": "agreement",
    "excess_loss": "excess task loss",
}
_SHARES = (50, 90, 99, 100)  # Percentiles over examples.


def report_compare(report: Report, file: Path, result: CompareResult, *, new: bool = True) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=compare_values(result), new=new)
    report.table(*compare_tables(result, file))


def compare_values(result: CompareResult) -> dict[str, Any]:
    """The numbers of a result; those of single examples are in the file only."""
    found = result.behaviour
    plain = {
        f.name: value
        for f in dataclasses.fields(found)
        if not isinstance(value := getattr(found, f.name), np.ndarray | Estimate)
    }
    return {
        **plain,
        **{name: dataclasses.asdict(getattr(found, name)) for name in _ROWS},
        "percentiles": {
            name: {str(s): float(np.percentile(_of(result, name), s)) for s in _SHARES}
            for name in _ROWS
            if name != "agreement"
        },
        "path": _path_values(result.path),
        "aligned": _path_values(result.aligned),
        "eigenspaces": _space_values(result.eigenspaces),
        "volume": _volume_values(result.volume),
        "matching": [dataclasses.asdict(entry) for entry in result.matching],
    }


def _of(result: CompareResult, name: str) -> Any:
    return getattr(result.behaviour, f"example_{name}")


def _space_values(found: Eigenspaces | None) -> dict[str, Any] | None:
    if found is None:
        return None
    values = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}


def _volume_values(found: Volumes | None) -> dict[str, Any] | None:
    if found is None:
        return None
    names = ("log_volume", "stderr", "lower", "upper", "width", "location", "effective_dimension")
    return {
        "loss": found.loss,
        "gradient_norm_b": found.gradient_norm,
        "cutoff": found.a.cutoff.tolist(),
        **{n: getattr(found, n).tolist() for n in ("difference", "stderr", "lower", "upper")},
        **{
            which: {"path": one.path, **{n: getattr(one, n).tolist() for n in names}}
            for which, one in (("a", found.a), ("b", found.b))
        },
    }


def _path_values(path: WeightPath | None) -> dict[str, Any] | None:
    if path is None:
        return None
    return {**dataclasses.asdict(path), "t": path.t.tolist(), "loss": path.loss.tolist()}


def compare_tables(result: CompareResult, file: Path) -> list[Any]:
    """A summary, and a table of divergences."""
    info, found = result.info, result.behaviour
    unit = printable(info.config.get("units", "loss units"))
    summary = run_summary(file, info)
    other = info.config.get("other")
    ablations = info.config.get("ablate") or ()
    summary.add_row("B", printable(other) if other else "the same checkpoint")
    for text in ablations:
        summary.add_row("ablated", printable(text))
    summary.add_row("law of outputs", f"{printable(found.law)}, {found.n_terms} terms")
    summary.add_row(
        "identity",
        f"CE(A, B) {number(found.cross_entropy)} = H(A) {number(found.entropy)} + KL(A || B), off "
        f"by {found.identity:.1e}",
    )
    for path, name in ((result.path, "barrier"), (result.aligned, "after matching")):
        if path is not None:
            summary.add_row(
                name, f"{number(path.barrier)} {unit}, distance {number(path.distance)}"
            )
    if result.matching:
        moved = ", ".join(
            f"{m.moved} of {m.units} units of {printable(m.layer)}" for m in result.matching
        )
        summary.add_row("matched", moved)
    if result.eigenspaces is not None:
        spaces = result.eigenspaces
        text = f"overlap {number(spaces.overlap)} of {len(spaces.eigenvalues_a)} dimensions"
        if not np.isnan(spaces.aligned):
            text += f", {number(spaces.aligned)} after matching"
        summary.add_row("top eigenspaces", f"{text} (by chance {number(spaces.chance)})")
    summary.add_row(
        "cost",
        f"{info.n_forward} forward passes, {info.wall_seconds:.2f} s on {printable(info.device)}",
    )
    table = Table(title="B against A", title_justify="left")
    table.add_column("")
    for column in ("mean", "95% interval", "median", "90%", "99%", "largest"):
        table.add_column(column, justify="right")
    for name, label in _ROWS.items():
        estimate: Estimate = getattr(found, name)
        if np.isnan(estimate.value):
            continue
        spread = (
            [""] * len(_SHARES)
            if name == "agreement"
            else [number(float(np.percentile(_of(result, name), share))) for share in _SHARES]
        )
        interval = f"{number(estimate.lower)} to {number(estimate.upper)}"
        table.add_row(label, number(estimate.value), interval, *spread)
    units = "all in nats" if unit == "nats" else f"excess loss in {unit}, others in nats"
    table.caption = f"Means over {found.n_terms} terms, {units}; percentiles over examples."
    tables = [summary, table]
    if result.volume is not None:
        tables.append(_volume_table(result.volume, info.gradient_norm))
    return tables


def _volume_table(found: Volumes, slope: float) -> Table:
    table = Table(title=f"log V by the quadratic model, {found.loss} loss", title_justify="left")
    heads = ("cutoff", "A", "B", "B less A", "stderr", "95% interval", "by width", "by location")
    for column in heads:
        table.add_column(column, justify="right")
    for c, cutoff in enumerate(found.a.cutoff):
        table.add_row(
            number(float(cutoff)),
            number(float(found.a.log_volume[c])),
            number(float(found.b.log_volume[c])),
            number(float(found.difference[c])),
            number(float(found.stderr[c])),
            f"{number(float(found.lower[c]))} to {number(float(found.upper[c]))}",
            number(float(found.b.width[c] - found.a.width[c])),
            number(float(found.b.location[c] - found.a.location[c])),
        )
    table.caption = (
        f"In nats, under one prior. Gradient of the task loss: {number(slope)} at A, "
        f"{number(found.gradient_norm)} at B."
    )
    return table
