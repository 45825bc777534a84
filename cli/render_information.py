"""Results of ``landscape information`` as tables and as values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from landscape.information.records import EffectiveRank, InformationResult, SplitNorms
from landscape_cli.render import number, report_run, run_summary
from landscape_cli.reporting import Report, printable

__all__ = ["information_tables", "information_values", "report_information"]


def report_information(
    report: Report, file: Path, result: InformationResult, *, new: bool = True
) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=information_values(result), new=new)
    report.table(*information_tables(result, file))


def information_values(result: InformationResult) -> dict[str, Any]:
    """The numbers of a result; spectrum, kernel and probes are in the file only."""
    found, split = result.gradients, result.split
    return {
        "loss": result.info.loss,
        "gradient_norm": result.info.gradient_norm,
        "gradients": {**_plain(found), "ranks": _records(found.ranks)},
        "activations": _records(result.activations),
        "split": {**_plain(split), "norms": _records(split.norms)},
        "self_test": result.self_test,
    }


def _plain(record: Any) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {n: v for n, v in values.items() if not isinstance(v, np.ndarray | tuple)}


def _records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in rows]


def information_tables(result: InformationResult, file: Path) -> list[Any]:
    """A summary, and tables of ranks and of norms by layer."""
    info, found, split = result.info, result.gradients, result.split
    unit = printable(info.config.get("units", "loss units"))
    behaviour = info.config.get("loss") == "behaviour"
    whole = found.ranks[0]
    summary = run_summary(file, info)
    summary.add_row(
        "loss", f"{number(info.loss)} {unit}, gradient norm {number(info.gradient_norm)}"
    )
    summary.add_row(
        "examples",
        f"{info.n_examples}, {found.distinct_examples} distinct; {found.distinct_gradients} "
        f"distinct {'parts of the GGN' if behaviour else 'gradients'}",
    )
    rows = (
        f"{found.n_rows} rows of the factor of the GGN"
        if behaviour
        else (f"{found.n_rows} gradients")
    )
    summary.add_row(
        "Gram matrix",
        f"rank {whole.rank} of {rows} and {whole.size} parameters (singular values above "
        f"{found.tolerance:g} of the largest), entropy {number(whole.entropy)}, participation "
        f"{number(whole.participation)}",
    )
    norms = split.norms[0]
    how = "exact" if split.exact else f"{split.n_probes} probes"
    summary.add_row(
        "H = GGN + R",
        f"|R|/|H| = {_with_error(norms.ratio, norms.ratio_stderr)} in Frobenius norm ({how})",
    )
    if not math.isnan(norms.negative):
        least = "at least " if split.at_least else ""
        reach = "Ritz values" if not split.exact else "eigenvalues"
        summary.add_row(
            "negative",
            f"{least}{norms.negative:.0f} of {norms.size} eigenvalues of H ({reach} from "
            f"{number(split.smallest)} to {number(split.largest)})",
        )
    if behaviour:
        summary.add_row(
            "self-test", f"R is 0 for behaviour; measured |R|/|H| = {result.self_test:.1e}"
        )
    summary.add_row(
        "cost",
        f"{found.n_rows} gradients, {info.n_matvecs} products, {info.wall_seconds:.2f} s on "
        f"{printable(info.device)}",
    )
    tables: list[Any] = [summary]
    title = "Rows of the factor of the GGN" if behaviour else "Gradients of examples"
    tables.append(_ranks(title, "parameters", found.ranks))
    if result.activations:
        table = _ranks("Activations, centred over the examples", "values", result.activations)
        tables.append(table)
    tables.append(_norms(split.norms, exact=split.exact))
    return tables


def _with_error(value: float, stderr: float) -> str:
    return number(value) if stderr == 0 else f"{number(value)} ± {stderr:.2g}"


def _layer(name: str) -> str:
    return printable(name) if name else "all"


def _ranks(title: str, columns: str, rows: Sequence[EffectiveRank]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    for column in (columns, "rank", "entropy", "participation", "trace", "last kept, dropped"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            _layer(row.layer),
            str(row.size),
            f"{row.rank}{'' if row.clear else f' ({row.tighter} to {row.looser})'}",
            number(row.entropy),
            number(row.participation),
            number(row.trace),
            f"{row.last_kept:.1e}, {row.first_dropped:.1e}",
        )
    return table


def _norms(rows: Sequence[SplitNorms], *, exact: bool) -> Table:
    table = Table(title="Frobenius norms of H = GGN + R", title_justify="left")
    table.add_column("layer")
    for column in ("parameters", "|H|", "|GGN|", "|R|", "|R|/|H|", *["negative"] * exact):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            _layer(row.layer),
            str(row.size),
            *(
                _with_error(getattr(row, name), getattr(row, f"{name}_stderr"))
                for name in ("hessian", "ggn", "residual", "ratio")
            ),
            *[f"{row.negative:.0f}"] * exact,
        )
    if not exact:
        table.caption = "± one standard error (jackknife over probes)"
    return table
