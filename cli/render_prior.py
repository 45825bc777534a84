"""A prior in one line, and beside the weights of every tensor; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from landscape.volume.records import PriorTable
from landscape_cli.reporting import Report, printable

__all__ = ["prior_line", "report_plan"]

_COLUMNS = ("mean", "scale", "anchor", "location")


def prior_line(config: Mapping[str, Any], table: PriorTable) -> str:
    """A prior in one line, from a run's options and the prior's table."""
    total = sum(table.sizes) or 1
    scale = math.sqrt(sum(s * s * k for s, k in zip(table.scale, table.sizes, strict=True)) / total)
    distance = math.sqrt(sum(table.location) / total)
    if config.get("prior") == "uniform":
        shape = config.get("uniform") or "box"
        return f"uniform {shape}, half-width {scale:.4g} about {printable(config.get('mean'))}"
    even = max(table.scale) - min(table.scale) <= 1e-9 * scale
    spread = "" if even else " (rms over parameters)"
    return (
        f"gaussian, mean {printable(config.get('mean'))}, sigma {scale:.4g}{spread}; the "
        f"checkpoint is {distance:.3g} sigma away (rms)"
    )


def report_plan(
    report: Report,
    checkpoint: Path,
    step: int | None,
    config: Mapping[str, Any],
    table: PriorTable,
    *,
    values: Mapping[str, Any],
    rows: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    """Hand what a run would do to the report, and the prior of every tensor."""
    for note in notes:
        report.warn(note)
    columns = {
        name: dict(zip(table.names, getattr(table, name), strict=True))
        for name in ("sizes", *_COLUMNS)
    }
    report.add(
        {
            "file": None,
            "checkpoint": str(checkpoint),
            "step": step,
            "status": "dry run",
            "config": dict(config),
            "values": {**values, "prior": columns},
            "warnings": list(notes),
        }
    )
    summary = Table(title=printable(checkpoint), show_header=False, title_justify="left", box=None)
    summary.add_column(style="bold")
    summary.add_column()
    for row in rows:
        summary.add_row(*row)
    report.table(summary, _tensors(table, uniform=config.get("prior") == "uniform"))


def _tensors(table: PriorTable, *, uniform: bool) -> Table:
    rows = Table(title="prior", title_justify="left")
    rows.add_column("tensor")
    for column in ("size", "mean", "half-width" if uniform else "sigma", "weights", "|z*|²"):
        rows.add_column(column, justify="right")
    for index, name in enumerate(table.names):
        cells = (f"{getattr(table, column)[index]:.4g}" for column in _COLUMNS)
        rows.add_row(printable(name), str(table.sizes[index]), *cells)
    return rows
