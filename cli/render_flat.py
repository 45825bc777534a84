"""Counts of flat directions as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from landscape.flat.records import (
    ExampleSweep,
    FlatResult,
    LearningCoefficient,
    NullWalk,
    PriorCounts,
    RankCount,
    SymmetryTable,
)
from landscape_cli.render import report_run, run_summary
from landscape_cli.render_prior import prior_line
from landscape_cli.render_volume import coefficient_line
from landscape_cli.reporting import Report, printable

__all__ = ["flat_tables", "flat_values", "report_flat"]

_MATRICES = {
    "jacobian": ("Jacobian of the outputs", "singular values"),
    "ggn": ("factor of the GGN", "singular values"),
    "hessian": ("Hessian", "|eigenvalues|"),
}
_LAYERS = 6  # Whose share of what is unexplained is shown.


def report_flat(report: Report, file: Path, result: FlatResult, *, new: bool = True) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=flat_values(result), new=new)
    report.table(*flat_tables(result, file))


def flat_tables(result: FlatResult, file: Path) -> list[Any]:
    """A summary and a table for every kind of count."""
    info = result.info
    unit = printable(info.config.get("units", "loss units"))
    summary = run_summary(file, info)
    if result.prior is not None:
        summary.add_row("prior", prior_line(info.config, result.prior))
    summary.add_row("null directions", _headline(result.symmetries))
    for name, value in result.participation.items():
        label = "GGN" if name == "ggn" else _MATRICES[name][0]
        ratio = f"{value:.4g} = (tr H)²/tr H² of the {label}"
        summary.add_row("participation", f"{ratio}, about its steep end only")
    if result.learning is not None:
        summary.add_row("learning coefficient", _learning(result.learning))
    if result.discrete:
        summary.add_row("discrete symmetries", _discrete(result))
    summary.add_row(
        "cost",
        f"{info.n_matvecs} products, {info.wall_seconds:.2f} s on {printable(info.device)}",
    )
    tables: list[Any] = [summary, _ranks(result), *_symmetries(result.symmetries)]
    if result.counts is not None:
        tables.append(_by_prior(result.counts, unit))
    if result.walk is not None:
        tables.append(_walk(result.walk, unit))
    if result.sweep is not None:
        tables.append(_sweep(result.sweep))
    return tables


def _headline(table: SymmetryTable) -> str:
    return (
        f"{table.null}: {table.symmetry_total} by symmetries, {table.data_total} more by the data, "
        f"{table.unexplained} unexplained"
    )


def _learning(found: LearningCoefficient) -> str:
    if math.isnan(found.value):
        return f"not fitted: {printable(found.reason)} (--cutoff LO:HI:COUNT)"
    return f"{coefficient_line(found)} (quadratic model: half the rank for small cutoffs)"


def _discrete(result: FlatResult) -> str:
    total = math.fsum(entry.log_order for entry in result.discrete)
    parts = [
        f"{printable(entry.name)} of {printable(entry.layer)} ({entry.units})"
        for entry in result.discrete
    ]
    return f"{total:.4g} nats of copies: {', '.join(parts)}"


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right")
    return table


def _gap(rank: RankCount) -> str:
    if math.isnan(rank.gap):
        return ""
    return "∞" if math.isinf(rank.gap) else f"{rank.gap:.2g}"


def _ranks(result: FlatResult) -> Table:
    columns = ("matrix", "counted", "rank", "null", "tolerance", "gap", "rank at ÷10, ×10", "rows")
    table = _table(
        "Directions by rank: values above the tolerance times the largest", *columns, left=2
    )
    for name, rank in result.ranks.items():
        moved = f"{rank.looser}, {rank.tighter}"
        table.add_row(
            *_MATRICES[name],
            str(rank.rank),
            str(rank.null),
            f"{rank.tolerance:g}",
            _gap(rank),
            moved if rank.clear else f"[yellow]{moved}[/yellow]",
            str(rank.n_rows),
        )
    negative = {name: r.negative for name, r in result.ranks.items() if r.negative}
    table.caption = "gap: last value kept / first one dropped"
    if negative:
        table.caption += f"; {sum(negative.values())} eigenvalues of the Hessian are negative"
    table.caption_justify = "left"
    return table


def _symmetries(found: SymmetryTable) -> list[Table]:
    title = "Null directions of the Jacobian, and why"
    table = _table(title, "because of", "layer", "null", "new", "change of outputs", left=2)
    for place, entry in enumerate(found.entries):
        if place and entry.by_data != found.entries[place - 1].by_data:
            table.add_section()
        table.add_row(
            printable(entry.name),
            printable(entry.layer) or "(model)",
            str(entry.count),
            str(entry.added),
            f"{entry.change:.1e}",
        )
    table.add_section()
    table.add_row("explained", "", "", str(found.null - found.unexplained), "")
    rest = str(found.unexplained)
    table.add_row(
        "unexplained", "", "", f"[yellow]{rest}[/yellow]" if found.unexplained else rest, ""
    )
    notes = list(map(printable, found.notes))
    caused = ["below the line: because of the data"] if found.data_total else []
    table.caption = "\n".join(
        [
            "new: not explained by the rows above; change: under a random finite element",
            *caused,
            *notes,
        ]
    )
    table.caption_justify = "left"
    return [table, *([_layers(found)] if found.unexplained else [])]


def _layers(found: SymmetryTable) -> Table:
    table = _table("Unexplained by layer", "layer", "share", "directions")
    order = sorted(range(len(found.layers)), key=lambda i: -found.share[i])
    for place in order[:_LAYERS]:
        share = float(found.share[place])
        table.add_row(
            printable(found.layers[place]), f"{share:.1%}", f"{share * found.unexplained:.1f}"
        )
    if len(order) > _LAYERS:
        rest = float(sum(found.share[i] for i in order[_LAYERS:]))
        table.add_row(
            f"{len(order) - _LAYERS} more", f"{rest:.1%}", f"{rest * found.unexplained:.1f}"
        )
    return table


def _by_prior(counts: PriorCounts, unit: str) -> Table:
    columns = ("steep (< 0.1)", "intermediate", "flat (> 2)", "N_eff", "effective dimension")
    table = _table(
        f"Directions by width over the prior's (quadratic model), cutoff in {unit}",
        "cutoff",
        *columns,
        left=0,
    )
    for c, cutoff in enumerate(counts.cutoff):
        table.add_row(
            f"{cutoff:g}",
            *(f"{values[c]:.0f}" for values in (counts.steep, counts.intermediate, counts.flat)),
            *(_cell(values[c]) for values in (counts.n_eff, counts.effective_dimension)),
        )
    return table


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def _walk(walk: NullWalk, unit: str) -> Table:
    table = _table(
        f"Walks along null directions within {walk.cutoff:g} {unit}",
        "walk",
        "distance",
        "arc",
        "largest excess loss",
        "null there",
        "ended",
        left=0,
    )
    for w, distance in enumerate(walk.distance):
        table.add_row(
            str(w + 1),
            f"{distance:.3g}",
            f"{walk.arc[w]:.3g}",
            f"{walk.largest_excess[w]:.2g}",
            str(walk.null[w]) if walk.null[w] >= 0 else "",
            walk_end(walk, w),
        )
    here = f"{walk.start_null} null directions at the checkpoint"
    units = f"lengths in prior standard deviations, limit {walk.limit:g}; {here}"
    table.caption = units if len(walk.distance) else f"{here}: nothing to walk along"
    table.caption_justify = "left"
    return table


def walk_end(walk: NullWalk, w: int) -> str:
    """Why a walk ended."""
    if walk.left[w]:
        return "[yellow]left the basin[/yellow]"
    if walk.distance[w] >= walk.limit:
        return "at the limit"
    return "[yellow]could go no further[/yellow]"


def _sweep(sweep: ExampleSweep) -> Table:
    table = _table(
        "Null directions by number of examples",
        "examples",
        "rank",
        "null",
        "last kept",
        "first dropped",
        left=0,
    )
    for e, examples in enumerate(sweep.examples):
        table.add_row(
            str(examples),
            str(sweep.rank[e]),
            str(sweep.null[e]),
            f"{sweep.last_kept[e]:.1e}",
            f"{sweep.first_dropped[e]:.1e}",
        )
    return table


def flat_values(result: FlatResult) -> dict[str, Any]:
    """The numbers of a result, for JSON."""
    info = result.info
    values: dict[str, Any] = {
        "loss": info.loss,
        "n_parameters": info.n_parameters,
        "n_examples": info.n_examples,
        "n_matvecs": info.n_matvecs,
        "wall_seconds": info.wall_seconds,
        "participation": dict(result.participation),
    }
    derived = ("null", "gap", "clear", "resolution", "near_zero")
    for name, rank in result.ranks.items():
        values[name] = dataclasses.asdict(rank) | {key: getattr(rank, key) for key in derived}
        values[name]["definition"] = f"{_MATRICES[name][1]} above tolerance times the largest"
    values["discrete"] = [dataclasses.asdict(entry) for entry in result.discrete]
    parts = ("symmetries", "counts", "learning", "walk", "sweep")
    values |= {
        part: None if getattr(result, part) is None else dataclasses.asdict(getattr(result, part))
        for part in parts
    }
    return values
