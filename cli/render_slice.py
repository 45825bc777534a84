"""Slices of the loss as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from landscape.slices.records import Direction, SliceResult
from landscape_cli.render import number, report_run, run_summary
from landscape_cli.reporting import Report, printable

__all__ = ["report_slice", "slice_tables", "slice_values"]

_ORTHOGONAL = 1e-6  # Cosines below are rounding.
_ROWS = 11  # Points of a line in a table.


def report_slice(report: Report, file: Path, result: SliceResult, *, new: bool = True) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=slice_values(result), new=new)
    report.table(*slice_tables(result, file))


def slice_values(result: SliceResult) -> dict[str, Any]:
    """The numbers of a result, but for eigenvectors and points of earlier grids."""
    return {
        "directions": [dataclasses.asdict(direction) for direction in result.directions],
        "mixed": result.mixed,
        "x": result.x.tolist(),
        "y": None if result.y is None else result.y.tolist(),
        "loss": result.loss.tolist(),
        "excess_loss": result.excess_loss.tolist(),
        "quadratic": result.quadratic.tolist(),
        "n_known": len(result.known.loss),
        "trajectory": [dataclasses.asdict(position) for position in result.trajectory],
    }


def slice_tables(result: SliceResult, file: Path) -> list[Any]:
    """A summary, the directions, and for a line some of its points."""
    info = result.info
    unit = printable(info.config.get("units", "loss units"))
    summary = run_summary(file, info)
    summary.add_row(
        "loss", f"{number(info.loss)} {unit}, gradient norm {number(info.gradient_norm)}"
    )
    shape = " x ".join(str(size) for size in result.excess_loss.shape)
    more = len(result.known.loss) - result.excess_loss.size
    kept = f", {more} more of other grids kept" if more > 0 else ""
    summary.add_row("grid", f"{shape} points{kept}")
    finite = np.isfinite(result.excess_loss)
    if not finite.all():
        summary.add_row("not finite", f"{int((~finite).sum())} points")
    if finite.any():
        for label, place in (
            ("lowest excess", int(np.nanargmin(np.where(finite, result.excess_loss, np.nan)))),
            ("highest excess", int(np.nanargmax(np.where(finite, result.excess_loss, np.nan)))),
        ):
            at = np.unravel_index(place, result.excess_loss.shape)
            axes = (result.x,) if result.y is None else (result.x, result.y)
            where = ", ".join(number(axis[i]) for axis, i in zip(axes, at, strict=True))
            summary.add_row(label, f"{number(result.excess_loss[at])} {unit} at ({where})")
    if result.y is not None:
        summary.add_row("mixed curvature", number(result.mixed))
    if result.trajectory:
        off = max(position.off for position in result.trajectory)
        summary.add_row(
            "trajectory", f"{len(result.trajectory)} checkpoints, at most {number(off)} off"
        )
    summary.add_row(
        "cost",
        f"{info.n_forward} forward passes, {info.n_matvecs} products, {info.wall_seconds:.2f} s on "
        f"{printable(info.device)}",
    )
    tables: list[Any] = [summary, _directions(result.directions)]
    if result.y is None:
        tables.append(_line(result, unit))
    return tables


def _directions(directions: tuple[Direction, ...]) -> Table:
    table = Table(title="Directions", title_justify="left")
    table.add_column("along")
    for column in ("from", "to", "length of a unit", "slope", "curvature", ""):
        table.add_column(column, justify="right" if column else "left")
    for one in directions:
        note = ""
        if one.kind == "eigen":
            note = f"eigenvalue, residual {one.residual:.1e}"
            note += "" if one.converged else ", [yellow]not converged[/yellow]"
        elif one.kind == "pca":
            note = f"{one.share:.1%} of the variance"
        if abs(one.cosine) > _ORTHOGONAL:
            note += f"{', ' if note else ''}made orthogonal (the cosine was {one.cosine:.2g})"
        table.add_row(
            printable(one.name),
            number(one.low),
            number(one.high),
            number(one.length),
            number(one.slope),
            number(one.curvature),
            note,
        )
    return table


def _line(result: SliceResult, unit: str) -> Table:
    table = Table(title=f"Excess loss ({unit})", title_justify="left")
    for column in ("at", "loss", "excess", "quadratic prediction"):
        table.add_column(column, justify="right")
    chosen = np.unique(np.linspace(0, len(result.x) - 1, _ROWS).round().astype(int))
    for place in chosen:
        row = (result.x, result.loss, result.excess_loss, result.quadratic)
        table.add_row(*(number(values[place]) for values in row))
    return table
