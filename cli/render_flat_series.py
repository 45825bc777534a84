"""Counts of directions over the training step as tables and as plain values; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from landscape_cli.reporting import printable

if TYPE_CHECKING:
    from landscape.flat_series import FlatSeries

__all__ = ["flat_parts"]

_SHORT = {"jacobian": "Jacobian", "ggn": "GGN", "hessian": "Hessian"}
_ARRAYS = (
    "symmetry",
    "by_data",
    "explained",
    "symmetry_total",
    "data_total",
    "unexplained",
    "layer",
    "share",
    "cutoff",
    "steep",
    "intermediate",
    "flat",
    "n_eff",
    "effective_dimension",
    "learning",
    "learning_stderr",
    "walked",
    "walks_left",
)


def flat_parts(
    series: FlatSeries,
) -> tuple[list[tuple[str, str]], list[Table], dict[str, Any]]:
    """Rows of the summary, tables with a row per step, and values for JSON."""
    config = series.config
    rows = [
        ("prior", f"{printable(config.get('prior'))}, mean {printable(config.get('mean'))}"),
        ("tolerance", printable(config.get("tol"))),
        ("explained by", _causes(series)),
        ("cost", f"{series.n_matvecs.sum()} products, {series.wall_seconds.sum():.2f} s in all"),
    ]
    places = range(len(series.cutoff))
    tables = [_nulls(series), *(_by_prior(series, place) for place in places)]
    return rows, tables, _values(series)


def _causes(series: FlatSeries) -> str:
    """Every symmetry, and what the data cause, with the fewest and the most null directions."""
    found = []
    for place, name in enumerate(series.symmetry):
        low, high = series.explained[:, place].min(), series.explained[:, place].max()
        found.append(f"{printable(name)} {low}" + f" to {high}" * bool(high > low))
    return ", ".join(found) or "nothing"


def _named(series: FlatSeries, title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("step" if series.numbered else "checkpoint", justify="right")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _name(series: FlatSeries, row: int) -> str:
    return printable(series.step[row] if series.numbered else Path(series.checkpoint[row]).name)


def _nulls(series: FlatSeries) -> Table:
    matrices = [_SHORT[name] for name in filter(series.operators.get, _SHORT)]
    columns = [*matrices, "by symmetries", "by data", "unexplained"]
    table = _named(series, "Null directions, and what explains those of the Jacobian", columns)
    unclear = False
    for row in range(len(series.step)):
        cells = [_name(series, row)]
        for name in filter(series.operators.get, _SHORT):
            ranks = series.operators[name]
            clear = ranks.looser[row] == ranks.rank[row] == ranks.tighter[row]
            unclear |= not clear
            cells.append(str(ranks.null[row]) if clear else f"[yellow]{ranks.null[row]}*[/yellow]")
        totals = (series.symmetry_total, series.data_total, series.unexplained)
        table.add_row(*cells, *(str(total[row]) for total in totals))
    if unclear:
        table.caption = "* another count at ten times more or less tolerance"
        table.caption_justify = "left"
    return table


def _by_prior(series: FlatSeries, place: int) -> Table:
    unit = printable(series.config.get("units", "loss units"))
    title = f"Directions by width over the prior's, cutoff {series.cutoff[place]:g} {unit}"
    columns = ["steep", "intermediate", "flat", "N_eff", "effective dimension"]
    table = _named(series, title, columns)
    for row in range(len(series.step)):
        classes = (series.steep, series.intermediate, series.flat)
        sizes = (series.n_eff, series.effective_dimension)
        table.add_row(
            _name(series, row),
            *(_cell(values[row, place], "{:.0f}") for values in classes),
            *(_cell(values[row, place], "{:.4g}") for values in sizes),
        )
    return table


def _cell(value: float, how: str) -> str:
    return "" if math.isnan(value) else how.format(value)


def _values(series: FlatSeries) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(series, name) for name in _ARRAYS}
    for name, ranks in series.operators.items():
        values[name] = {k: v for k, v in dataclasses.asdict(ranks).items() if k != "operator"}
    return values
