"""The complete results of a sweep in one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import UsageError
from landscape.jobs import Unit
from landscape.series import APART
from landscape.series_store import collect_files
from landscape.store import load
from landscape.sweep_file import Run
from landscape.sweep_store import (
    SweepRow,
    SweepSeries,
    load_sweep,
    row_values,
    save_sweep,
    sweep_content,
)
from landscape_cli.collect import write_new
from landscape_cli.render_series import report_sweep
from landscape_cli.reporting import REPORT, printable

__all__ = ["collect_units"]


def collect_units(sweep_file: Path, units: Sequence[Unit], out: Path, *, overwrite: bool) -> None:
    """Write the series of every run and the table of all units, and show them."""
    runs: dict[Run, dict[Path, Unit]] = {}
    for unit in units:
        runs.setdefault(unit.run, {})[unit.result or unit.folder] = unit
    complete = sum(unit.result is not None for unit in units)
    if not complete:
        raise UsageError(
            f"{sweep_file}: no unit is complete. Run landscape batch run {sweep_file} first"
        )
    if complete < len(units):
        REPORT.warn(
            f"{len(units) - complete} units are not complete and left out; see landscape batch "
            "status"
        )
    collected = {}
    table: list[SweepRow] = []
    for number, (run, found) in enumerate(runs.items(), 1):
        files = [path for path, unit in found.items() if unit.result is not None]
        rows: dict[str, SweepRow] = {}
        if files and run.command in APART:
            rows = {str(file): _alone(number, run, file) for file in files}
            _, together = APART[run.command]
            REPORT.say(printable(f"run {number}: is in the table only. Draw {together}"))
        elif files:
            series = collected[number] = collect_files(files)
            for notice in series.notices:
                REPORT.say(printable(f"run {number}: {notice}"))
            quantity, values = row_values(series)
            rows = {
                source: _row(
                    number,
                    run,
                    series.checkpoint[i],
                    complete=True,
                    step=int(series.step[i]),
                    loss=float(series.loss[i]),
                    quantity=quantity,
                    value=values[i],
                    n_matvecs=int(series.n_matvecs[i]),
                    wall_seconds=float(series.wall_seconds[i]),
                    source=source,
                )
                for i, source in enumerate(series.source)
            }
        table += rows.values()
        table += [
            _row(number, run, str(unit.checkpoint), complete=unit.result is not None)
            for path, unit in found.items()
            if str(path) not in rows
        ]
    if not collected:
        raise UsageError(
            f"{sweep_file}: no complete result of a command that gives series; expected those of "
            "landscape hessian, volume or flat. Draw the others with landscape plot"
        )
    sweep = SweepSeries(series=collected, table=tuple(table))
    new = write_new(
        out,
        kind="sweep",
        same=lambda: sweep_content(load_sweep(out)) == sweep_content(sweep),
        save=lambda: save_sweep(out, sweep),
        overwrite=overwrite,
    )
    report_sweep(REPORT, out, sweep, new=new)
    text = f"series: {printable(out)} ({len(collected)} runs, {complete} results)"
    REPORT.say(text if new else f"{printable(out)} is up to date; nothing to do")


def _alone(number: int, run: Run, file: Path) -> SweepRow:
    """A result that no series holds."""
    info = load(file).info
    return _row(
        number,
        run,
        info.checkpoint,
        complete=True,
        step=-1 if info.step is None else info.step,
        loss=info.loss,
        n_matvecs=info.n_matvecs,
        wall_seconds=info.wall_seconds,
        source=str(file),
    )


def _row(
    number: int,
    run: Run,
    checkpoint: str,
    *,
    complete: bool,
    step: int = -1,
    loss: float = math.nan,
    quantity: str = "",
    value: float = math.nan,
    n_matvecs: int = -1,
    wall_seconds: float = math.nan,
    source: str = "",
) -> SweepRow:
    return SweepRow(
        run=number,
        command=run.command,
        options=" ".join(run.arguments),
        checkpoint=checkpoint,
        complete=complete,
        step=step,
        loss=loss,
        quantity=quantity,
        value=value,
        n_matvecs=n_matvecs,
        wall_seconds=wall_seconds,
        source=source,
    )
