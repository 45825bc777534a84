"""Sweep files: the series of every run of a sweep in one file, with a table of all units.

``/series/<run>-<command>/`` holds what a series file holds, by real copies; ``/table/`` has a row
for every checkpoint, command and combination of options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from landscape.errors import ResultFileError, UsageError
from landscape.flat_series import FlatSeries
from landscape.record_store import read_rows, write_rows
from landscape.series_records import Series
from landscape.series_store import content, read_series, write_series
from landscape.store import SCHEMA, atomic_h5, group_at, open_untrusted
from landscape.volume_series import VolumeSeries

__all__ = ["SweepRow", "SweepSeries", "load_sweep", "row_values", "save_sweep", "sweep_content"]


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One unit of a sweep.

    Attributes:
        run: number of the command with its options, from 1 in the order of the sweep file.
        command: such as ``hessian``.
        options: of the command.
        checkpoint: file of the weights.
        complete: whether there is a result; else what follows is NaN, -1 and empty.
        step: training step, or place in the order of the names.
        loss: of the checkpoint.
        quantity: what ``value`` is, such as ``largest eigenvalue of hessian``; empty for results
            that no series holds.
        value: the first number of the result; NaN there.
        n_matvecs: matrix-vector products over the whole data set.
        wall_seconds: of the analysis.
        source: the result file, as it was named.
    """

    run: int
    command: str
    options: str
    checkpoint: str
    complete: bool
    step: int
    loss: float
    quantity: str
    value: float
    n_matvecs: int
    wall_seconds: float
    source: str


@dataclass(frozen=True, kw_only=True)
class SweepSeries:
    """All results of a sweep.

    Attributes:
        series: of every run with results that a series can hold, by its number.
        table: a row for every unit, run by run.
    """

    series: Mapping[int, Series | VolumeSeries | FlatSeries]
    table: tuple[SweepRow, ...]

    def only(self, run: int | None) -> Mapping[int, Series | VolumeSeries | FlatSeries]:
        """The series of one run, or all where none is named.

        Raises:
            UsageError: there is no such run, or it has no results.
        """
        if run is None:
            return self.series
        if run not in self.series:
            known = ", ".join(f"{n} ({self.label(n)})" for n in self.series)
            raise UsageError(f"--run {run}: no series of such a run; expected one of {known}")
        return {run: self.series[run]}

    def label(self, run: int) -> str:
        """The command and the options of a run."""
        row = next(row for row in self.table if row.run == run)
        return f"{row.command} {row.options}".strip()


def row_values(series: Series | VolumeSeries | FlatSeries) -> tuple[str, tuple[float, ...]]:
    """The first number of every step of a series, and what it is."""
    if isinstance(series, VolumeSeries):
        name, method = next(iter(series.methods.items()))
        return f"log V at cutoff {series.cutoff[0]:g}, {name}", tuple(method.log_volume[:, 0])
    if isinstance(series, FlatSeries):
        return "null directions of jacobian", tuple(map(float, series.operators["jacobian"].null))
    name, operator = next(iter(series.operators.items()))
    if operator.eigenvalues.shape[1] == 0:
        return f"trace of {name}", tuple(operator.trace.value)
    return f"largest eigenvalue of {name}", tuple(operator.eigenvalues[:, 0])


def sweep_content(sweep: SweepSeries) -> str:
    """SHA-256 of everything in a sweep but the names of the result files."""
    rows = [asdict(replace(row, source="", wall_seconds=0.0)) for row in sweep.table]
    parts = [[number, content(series)] for number, series in sweep.series.items()]
    return hashlib.sha256(json.dumps([SCHEMA, parts, rows]).encode()).hexdigest()


def save_sweep(path: Path, sweep: SweepSeries) -> None:
    """Write a sweep file atomically.

    Raises:
        ResultFileError: the folder cannot be written, or the disk is full.
    """
    with atomic_h5(path) as file:
        for name, value in (
            ("schema", SCHEMA),
            ("kind", "sweep"),
            ("command", "collect"),
            ("content", sweep_content(sweep)),
        ):
            file.attrs[name] = value
        for number, series in sweep.series.items():
            command = sweep.label(number).partition(" ")[0]
            group = group_at(file, f"series/{number}-{command}")
            group.attrs["run"] = number
            group.attrs["label"] = sweep.label(number)
            write_series(group, series)
        write_rows(group_at(file, "table"), sweep.table, SweepRow, "row")


def load_sweep(path: Path | str) -> SweepSeries:
    """Load a sweep file.

    Raises:
        ResultFileError: it is no sweep file, or damaged.
    """
    with open_untrusted(path) as file:
        if file.attrs.get("kind") != "sweep":
            raise ResultFileError(
                f"{path} is no sweep file; expected a file of landscape batch collect"
            )
        series: dict[int, Any] = {
            int(node.attrs["run"]): read_series(node) for node in file["series"].values()
        }
        return SweepSeries(series=series, table=read_rows(file["table"], SweepRow, "row"))
