"""A series as a table with a row per step, and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape_cli.reporting import Report, printable

if TYPE_CHECKING:
    from rich.table import Table

    from landscape.flat_series import FlatSeries
    from landscape.series_records import Band, OperatorSeries, Series, TrainingSeries
    from landscape.sweep_store import SweepSeries
    from landscape.volume_series import VolumeSeries

__all__ = ["report_series", "report_sweep"]

_SHOWN = 3  # Largest eigenvalues in the table.


def report_sweep(
    report: Report, file: Path, sweep: SweepSeries, *, run: int | None = None, new: bool = False
) -> None:
    """Hand the series of a sweep to the report, or that of one run."""
    for number, series in sweep.only(run).items():
        title = f"{file}, run {number}: {sweep.label(number)}"
        report_series(report, file, series, new=new, title=title, run=number)


def report_series(
    report: Report,
    file: Path,
    series: Series | VolumeSeries | FlatSeries,
    *,
    new: bool = False,
    title: str | None = None,
    run: int | None = None,
) -> None:
    """Hand a series to the report: its warnings, its JSON entry and its tables."""
    from landscape.flat_series import FlatSeries
    from landscape.series_records import Series
    from landscape_cli.render_flat_series import flat_parts
    from landscape_cli.render_volume_series import volume_parts

    for warning in series.warnings:
        report.warn(warning)
    if isinstance(series, Series):
        rows, tables, values = _parts(series)
    elif isinstance(series, FlatSeries):
        rows, tables, values = flat_parts(series)
    else:
        rows, tables, values = volume_parts(series)
    report.add(
        {
            "file": str(file),
            **({} if run is None else {"run": run}),
            "checkpoint": None,
            "step": None,
            "status": "complete",
            "new": new,
            "config": dict(series.config),
            "values": {**_shared_values(series), **values},
            "warnings": list(series.warnings),
        }
    )
    report.table(_summary(series, title or str(file), rows), *tables)


def _summary(series: TrainingSeries, title: str, rows: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table

    unit = printable(series.config.get("units", "loss units"))
    summary = Table(title=printable(title), show_header=False, title_justify="left", box=None)
    summary.add_column(style="bold")
    summary.add_column()
    count = len(series.step)
    span = f", steps {series.step[0]} to {series.step[-1]}" if series.numbered and count else ""
    summary.add_row("series", f"{count} checkpoints{span}")
    summary.add_row(
        "task", f"{printable(series.task)}, loss {printable(series.config.get('loss'))} in {unit}"
    )
    summary.add_row("size", f"{series.n_parameters} parameters, {series.n_examples} examples")
    for row in rows:
        summary.add_row(*row)
    return summary


def _parts(series: Series) -> tuple[list[tuple[str, str]], list[Table], dict[str, Any]]:
    """Rows of the summary, a table for every operator (without modules), and values for JSON."""
    from landscape.results import MODULES

    seconds = series.wall_seconds.sum()
    rows = [("cost", f"{series.n_matvecs.sum()} products, {seconds:.2f} s in all")]
    modules = [name for name in series.operators if MODULES in name]
    if modules:
        rows.append(("modules", f"{len(modules)} diagonal blocks; --json shows them"))
    shown = [o for name, o in series.operators.items() if name not in modules]
    return rows, [_table(series, operator) for operator in shown], _values(series)


def _table(series: Series, operator: OperatorSeries) -> Table:
    from rich.table import Table

    k = min(operator.eigenvalues.shape[1], _SHOWN)
    known = bool((operator.overlap == operator.overlap).any())
    least = operator.smallest.shape[1] > 0
    columns = ["step" if series.numbered else "checkpoint", "loss", "gradient"]
    columns += [f"λ{rank + 1}" for rank in range(k)] + ["smallest"] * least
    columns += ["trace", "negative mass", "mass near 0"] + ["overlap"] * known
    table = Table(title=f"{printable(operator.operator)} over training", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for row in range(len(series.step)):
        name = series.step[row] if series.numbered else Path(series.checkpoint[row]).name
        cells = [printable(name), _short(series.loss[row]), _short(series.gradient_norm[row])]
        for rank in range(k):
            value = _short(operator.eigenvalues[row, rank])
            cells.append(value if operator.converged[row, rank] else _flagged(value))
        if least:
            value = _short(operator.smallest[row, 0])
            cells.append(value if operator.smallest_converged[row, 0] else _flagged(value))
        exact = operator.n_probes[row] == 0
        for band in (operator.trace, operator.negative_mass, operator.near_zero_mass):
            cells.append(_estimate(band, row, exact=exact))
        if known:
            value = _short(operator.overlap[row])
            unsure = value != "" and not operator.overlap_converged[row]
            cells.append(_flagged(value) if unsure else value)
        table.add_row(*cells)
    flags = [operator.converged[:, :k].all(), operator.smallest_converged.all()]
    if not all(flags):
        table.caption = "* not converged"
        table.caption_justify = "left"
    return table


def _short(value: float) -> str:
    return "" if value != value else f"{value:.4g}"


def _flagged(value: str) -> str:
    return f"[yellow]{value}*[/yellow]"


def _estimate(band: Band, row: int, *, exact: bool) -> str:
    value, stderr = band.value[row], band.stderr[row]
    if exact or value != value or stderr != stderr:
        return _short(value)
    return f"{value:.4g} ± {stderr:.1g}"


def _shared_values(series: TrainingSeries) -> dict[str, Any]:
    return {
        "step": series.step,
        "checkpoint": series.checkpoint,
        "source": series.source,
        "loss": series.loss,
        "gradient_norm": series.gradient_norm,
        "n_matvecs": series.n_matvecs,
        "wall_seconds": series.wall_seconds,
        "n_parameters": series.n_parameters,
        "n_examples": series.n_examples,
    }


def _values(series: Series) -> dict[str, Any]:
    """The numbers of every operator, for JSON: lists over the steps, without densities."""
    left_out = ("operator", "log_lambda", "positive", "negative", "bandwidth")
    return {
        name: {
            key: value for key, value in dataclasses.asdict(operator).items() if key not in left_out
        }
        for name, operator in series.operators.items()
    }
