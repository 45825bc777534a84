"""Results as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape_cli.reporting import Report, printable
from rich.table import Table

from landscape.results import Estimate, HessianResult, Spectrum

__all__ = ["hessian_tables", "hessian_values", "report_result"]

_HOW = {
    "dense": "exact: explicit matrix, all {1} eigenvalues",
    "gram": "exact: Gram matrix of {0} rows, all {1} eigenvalues",
    "lanczos": "Lanczos, {0} products",
}


def number(value: float) -> str:
    """Six significant digits, in the exponent form only where it is shorter."""
    return f"{value:.6g}"


def _estimate(value: Estimate, n_probes: int) -> str:
    if n_probes == 0:
        return f"{number(value.value)} (exact)"
    if value.stderr != value.stderr:
        return f"{number(value.value)} (one probe: no error known)"
    return (
        f"{number(value.value)} ± {value.stderr:.2g} (95%: {value.lower:.5g} to {value.upper:.5g})"
    )


def report_result(report: Report, file: Path, result: HessianResult, *, new: bool = True) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    info = result.info
    for warning in info.warnings:
        report.warn(warning)
    report.add(
        {
            "file": str(file),
            "checkpoint": info.checkpoint,
            "step": info.step,
            "status": info.status,
            "new": new,
            "config": dict(info.config),
            "values": hessian_values(result),
            "warnings": list(info.warnings),
        }
    )
    report.table(*hessian_tables(result, file))


def hessian_tables(result: HessianResult, file: Path) -> list[Any]:
    """One summary and, for every operator, its eigenvalues."""
    info = result.info
    unit = printable(info.config.get("units", "loss units"))
    summary = Table(title=printable(file), show_header=False, title_justify="left", box=None)
    summary.add_column(style="bold")
    summary.add_column()
    step = "" if info.step is None else f" (step {info.step})"
    summary.add_row("checkpoint", printable(info.checkpoint) + step)
    summary.add_row("task", f"{printable(info.task)}, loss {printable(info.config.get('loss'))}")
    summary.add_row("size", f"{info.n_parameters} parameters, {info.n_examples} examples")
    summary.add_row(
        "loss", f"{number(info.loss)} {unit}, gradient norm {number(info.gradient_norm)}"
    )
    tables: list[Any] = [summary]
    for name, spectrum in result.spectra.items():
        found = result.moments.get(name)
        name = printable(name)
        how = _HOW[spectrum.method].format(spectrum.n_matvecs, len(spectrum.eigenvalues))
        summary.add_row(name, f"{how}, {printable(info.dtype)}")
        if found is not None:
            for label, value, remark in (
                ("trace", found.trace, ""),
                ("trace of square", found.trace_square, ""),
                ("negative mass", found.negative_mass, f" below -{found.resolution:.2g}"),
                (
                    "mass near 0",
                    found.near_zero_mass,
                    f" within ±{found.resolution:.2g}, not separable from exact zeros",
                ),
            ):
                summary.add_row(f"{name} {label}", _estimate(value, found.n_probes) + remark)
        tables.append(_eigenvalues(name, spectrum))
    summary.add_row(
        "cost", f"{info.n_matvecs} products, {info.wall_seconds:.2f} s on {printable(info.device)}"
    )
    return tables


def _eigenvalues(name: str, spectrum: Spectrum) -> Table:
    table = Table(title=f"{name} eigenvalues", title_justify="left")
    for column in ("#", "eigenvalue", "residual", ""):
        table.add_column(column, justify="right" if column else "left")
    k = len(spectrum.eigenvalues)
    top, bottom = min(spectrum.top, k), min(spectrum.bottom, k)
    rows = [*range(top), *range(max(k - bottom, top), k)]
    for place, index in enumerate(rows):
        if place and index != rows[place - 1] + 1:
            table.add_row("...", "", "", "")
        from_end = not spectrum.exact and index >= top
        label = index + 1 if not from_end else f"n-{k - 1 - index}" if index < k - 1 else "n"
        table.add_row(
            str(label),
            number(spectrum.eigenvalues[index]),
            f"{spectrum.residuals[index]:.1e}",
            "" if spectrum.converged[index] else "[yellow]not converged[/yellow]",
        )
    return table


def hessian_values(result: HessianResult) -> dict[str, Any]:
    """The numbers of a result, for JSON."""
    info = result.info
    values: dict[str, Any] = {
        "loss": info.loss,
        "gradient_norm": info.gradient_norm,
        "n_parameters": info.n_parameters,
        "n_examples": info.n_examples,
        "n_matvecs": info.n_matvecs,
        "wall_seconds": info.wall_seconds,
    }
    for name, spectrum in result.spectra.items():
        entry: dict[str, Any] = {
            "method": spectrum.method,
            "eigenvalues": spectrum.eigenvalues,
            "residuals": spectrum.residuals,
            "converged": spectrum.converged,
        }
        found = result.moments.get(name)
        if found is not None:
            for quantity in ("trace", "trace_square", "negative_mass", "near_zero_mass"):
                estimate: Estimate = getattr(found, quantity)
                entry[quantity] = {
                    "value": estimate.value,
                    "stderr": estimate.stderr,
                    "lower": estimate.lower,
                    "upper": estimate.upper,
                }
            entry["resolution"] = found.resolution
        values[name] = entry
    return values
