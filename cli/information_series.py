"""``landscape information`` of several checkpoints: a table over them, and rank correlations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from landscape.errors import UsageError
from landscape.folders import expand_checkpoints
from landscape.information.records import InformationResult
from landscape.information_series import (
    LEAST,
    Correlation,
    aligned,
    information_columns,
    rank_correlations,
)
from landscape.paths import expand_paths
from landscape.series_records import TrainingSeries
from landscape.series_store import collect_files, kind_of
from landscape.store import load
from landscape_cli.measuring import read_named
from landscape_cli.options import Common
from landscape_cli.reporting import REPORT, printable

__all__ = ["Against", "show_series"]

_SHOWN = ("gradients: rank", "gradients: entropy", "gradients: participation", "|R|/|H|")


class Against:
    """Other results of the checkpoints that are measured; read before anything is computed.

    Args:
        patterns: result files.
        checkpoints: what will be measured.
        common: the options that all commands share.

    Raises:
        UsageError: fewer than 4 checkpoints, or results of commands that cannot be set against
            these, of several series, or of other checkpoints.
        ResultFileError: a file is no result.
    """

    def __init__(self, patterns: Sequence[str], checkpoints: Sequence[str], common: Common) -> None:
        paths = expand_checkpoints(checkpoints)
        if len(paths) < LEAST:
            raise UsageError(
                f"--against with {len(paths)} checkpoint{'s' * (len(paths) > 1)}: a correlation "
                f"needs at least {LEAST}. Give more checkpoints, or a glob such as 'runs/*'"
            )
        self._seed = common.seed
        self.series = self._read(patterns)
        known = {sha for series in self.series for sha in series.checkpoint_sha256}
        common_to_both = [path for path in paths if read_named(path, common).sha256 in known]
        if len(common_to_both) < LEAST:
            raise UsageError(
                f"--against: {len(common_to_both)} of {len(paths)} checkpoints are among those of "
                f"the other results; expected at least {LEAST}. Measure the same checkpoints with "
                "both commands"
            )

    def _read(self, patterns: Sequence[str]) -> list[TrainingSeries]:
        groups: dict[str, list[Path]] = {}
        for path in expand_paths(
            patterns, what="result", expected="a .h5 file of landscape volume, flat or hessian"
        ):
            if kind_of(path) != "result":
                raise UsageError(
                    f"--against {path}: it is a series; expected results of single checkpoints"
                )
            command = load(path).info.command
            if command not in ("volume", "flat", "hessian"):
                raise UsageError(
                    f"--against {path}: a result of landscape {command}; expected one of volume, "
                    "flat or hessian"
                )
            groups.setdefault(command, []).append(path)
        return [collect_files(files) for files in groups.values()]

    def report(self, results: Sequence[InformationResult], files: Sequence[Path]) -> None:
        """Show the table over checkpoints and the correlations.

        Raises:
            UsageError: too few checkpoints have numbers of both kinds.
        """
        columns = information_columns(results)
        others: dict[str, Any] = {}
        for series in self.series:
            others |= aligned(results, series)
        found = rank_correlations(columns, others, seed=self._seed)
        steps = [result.info.step for result in results]
        REPORT.add(
            {
                "file": None,
                "checkpoint": None,
                "step": None,
                "status": "complete",
                "config": {"results": [str(file) for file in files]},
                "values": {
                    "step": steps,
                    "checkpoint": [result.info.checkpoint for result in results],
                    "series": {n: v.tolist() for n, v in {**columns, **others}.items()},
                    "correlations": [dataclasses.asdict(entry) for entry in found],
                },
                "warnings": [],
            }
        )
        REPORT.table(_over_checkpoints(results, columns, others), _correlations(found))


def show_series(results: Sequence[InformationResult]) -> None:
    """Show the table over checkpoints."""
    REPORT.table(_over_checkpoints(results, information_columns(results), {}))


def _over_checkpoints(
    results: Sequence[InformationResult], columns: dict[str, Any], others: dict[str, Any]
) -> Table:
    table = Table(title="Over the checkpoints", title_justify="left")
    shown = {name: columns[name] for name in _SHOWN} | others
    table.add_column("step", justify="right")
    for name in shown:
        table.add_column(printable(name), justify="right")
    for row, result in enumerate(results):
        info = result.info
        label = printable(Path(info.checkpoint).stem) if info.step is None else str(info.step)
        table.add_row(label, *(_cell(values[row]) for values in shown.values()))
    return table


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.5g}"


def _correlations(found: Sequence[Correlation]) -> Table:
    table = Table(title="Spearman's rank correlation over checkpoints", title_justify="left")
    table.add_column("")
    table.add_column("with")
    for column in ("rho", "95% interval", "checkpoints"):
        table.add_column(column, justify="right")
    known = [entry for entry in found if not math.isnan(entry.rho)]
    for entry in known:
        interval = f"{entry.lower:.2f} to {entry.upper:.2f}"
        table.add_row(
            printable(entry.information),
            printable(entry.other),
            _cell(entry.rho),
            interval,
            str(entry.n),
        )
    left_out = len(found) - len(known)
    more = f" {left_out} pairs are left out, of which one does not vary." if left_out else ""
    table.caption = (
        "Bootstrap over checkpoints. Those of one training run are not independent: both "
        f"quantities may follow the training step, and the interval is too narrow.{more}"
    )
    return table
