"""Coupling between modules as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from landscape.modules.records import ModuleCoupling, ModulesResult
from landscape.results import Estimate
from landscape_cli.render import number, report_run, run_summary
from landscape_cli.render_prior import prior_line
from landscape_cli.reporting import Report, printable

__all__ = ["modules_tables", "modules_values", "report_modules"]

_SHOWN = 20  # Pairs in the table, by coupling; the others are in the file.
_PROBES = ("region", "log_det_high", "log_det_low")


def report_modules(report: Report, file: Path, result: ModulesResult, *, new: bool = True) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=modules_values(result), new=new)
    report.table(*modules_tables(result, file))


def modules_values(result: ModulesResult) -> dict[str, Any]:
    """The numbers of a result; those of single probes are in the file only."""
    found = result.modules
    values: dict[str, Any] = {"names": list(result.names)}
    for f in dataclasses.fields(found):
        value = getattr(found, f.name)
        if f.name in _PROBES:
            continue
        if isinstance(value, np.ndarray):
            value = value.tolist()
        values[f.name] = dataclasses.asdict(value) if isinstance(value, Estimate) else value
    return {
        **values,
        "converged": bool(found.converged),
        "n_probes": found.n_probes,
        "lowest_diagonal": found.lowest_diagonal,
        "highest_diagonal": found.highest_diagonal,
        "correlation_bound": found.correlation_bound.tolist(),
    }


def modules_tables(result: ModulesResult, file: Path) -> list[Any]:
    """A summary, a table of groups and one of the most coupled pairs."""
    info, found = result.info, result.modules
    config = info.config
    summary = run_summary(file, info)
    summary.add_row("groups", f"{len(result.names)}, {_kind(config.get('groups'))}")
    summary.add_row("prior", prior_line(config, result.prior))
    how = "given" if config.get("tilt") is not None else f"of cutoff {_cutoff(config)}"
    summary.add_row(
        "tilt",
        f"s {number(found.tilt)} ({how}); M = I + s A, A the whitened "
        f"{printable(config.get('curvature'))}",
    )
    summary.add_row("method", _method(found))
    total = _with_error(found.total)
    if not found.exact:
        total += f" (95%: {found.total.lower:.5g} to {found.total.upper:.5g})"
    summary.add_row("total coupling", f"{total} nats")
    summary.add_row("log det M", f"{_with_error(found.log_det)} nats")
    summary.add_row(
        "largest eigenvalue",
        f"{number(found.highest)}, of the block-diagonal part {number(found.highest_diagonal)}",
    )
    summary.add_row(
        "smallest eigenvalue",
        f"{number(found.lowest)}, of the block-diagonal part {number(found.lowest_diagonal)}",
    )
    summary.add_row(
        "cost",
        f"{info.n_matvecs} products, {info.wall_seconds:.2f} s on {printable(info.device)}",
    )
    return [summary, _groups(result), _pairs(result)]


def _kind(groups: Any) -> str:
    if isinstance(groups, dict):
        return "by patterns of a file"
    return f"by {printable(groups)}"


def _cutoff(config: Any) -> str:
    return ", ".join(f"{value:g}" for value in config.get("cutoffs") or ())


def _method(found: ModuleCoupling) -> str:
    if found.method == "dense":
        return "exact: explicit matrix"
    if found.method == "gram":
        return "exact: factor of the GGN"
    text = f"matrix-free: {found.n_probes} probes of {found.steps} Lanczos steps"
    if found.unresolved:
        return f"{text}, NOT CONVERGED: {found.truncation:.2g} nats left open"
    return text


def _value(value: float, stderr: float) -> str:
    if math.isnan(value):
        return "not measured"
    if stderr == 0:
        return number(value)
    return f"{number(value)} ± {stderr:.2g}"


def _with_error(found: Estimate) -> str:
    return _value(found.value, found.stderr)


def _groups(result: ModulesResult) -> Table:
    found = result.modules
    table = Table(title="groups", title_justify="left")
    table.add_column("group")
    for column in (
        "size",
        "largest eigenvalue",
        "log det M_a",
        "log det of Schur complement",
        "coupling with the rest (nats)",
    ):
        table.add_column(column, justify="right")
    for i, name in enumerate(result.names):
        table.add_row(
            printable(name),
            str(found.size[i]),
            number(found.highest_groups[i]),
            _value(found.log_det_groups[i], found.log_det_groups_stderr[i]),
            _value(found.log_det_schur[i], found.log_det_schur_stderr[i]),
            _value(found.rest[i], found.rest_stderr[i]),
        )
    return table


def _pairs(result: ModulesResult) -> Table:
    """The most coupled pairs, or those of the largest norms where coupling was not measured."""
    found = result.modules
    first, second = np.triu_indices(len(result.names), k=1)
    known = np.isfinite(found.coupling[first, second]).all()
    key = found.coupling if known else found.norm
    order = np.argsort(-key[first, second], kind="stable")[:_SHOWN]
    table = Table(title="pairs of groups", title_justify="left")
    for column in ("a", "b"):
        table.add_column(column)
    for column in ("norm of A_ab", "rank", "largest correlation", "coupling (nats)"):
        table.add_column(column, justify="right")
    for i, j in zip(first[order], second[order], strict=True):
        rank = f"{'at least ' if found.rank_bound[i, j] else ''}{found.rank[i, j]}"
        table.add_row(
            printable(result.names[i]),
            printable(result.names[j]),
            _value(found.norm[i, j], found.norm_stderr[i, j]),
            rank,
            _correlation(found, i, j),
            _value(found.coupling[i, j], found.coupling_stderr[i, j]),
        )
    count = len(first)
    shown = f"The {_SHOWN} of {count} pairs of most coupling. " if count > _SHOWN else ""
    table.caption = (
        f"{shown}Ranks count singular values above {found.tol:g} of the largest eigenvalue of A."
    )
    return table


def _correlation(found: ModuleCoupling, i: int, j: int) -> str:
    if found.correlations.shape[2]:
        return number(found.correlations[i, j, 0])
    bound = found.correlation_bound[i, j]
    return "not measured" if math.isnan(bound) else f"at most {bound:.4g}"
