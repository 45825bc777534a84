"""Results as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from landscape.errors import UsageError
from landscape.results import MODULES, Estimate, HessianResult, RunInfo, Spectrum, block_size
from landscape.sums import count_above, log_det
from landscape_cli.reporting import Report, printable

__all__ = [
    "Sums",
    "hessian_tables",
    "hessian_values",
    "report_result",
    "report_run",
    "run_summary",
]

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


@dataclass(frozen=True)
class Sums:
    """Sums over the spectrum that are derived from a stored density when it is shown.

    Attributes:
        scales: s of ``log det(I + s A)``.
        thresholds: count the eigenvalues above each.
    """

    scales: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()

    @staticmethod
    def of(log_det: list[float] | None, threshold: list[float] | None) -> Sums:
        """From the options ``--log-det`` and ``--threshold``.

        Raises:
            UsageError: a scale that is not positive, or a number that is not finite.
        """
        for scale in log_det or []:
            if not 0 < scale < math.inf:
                raise UsageError(f"--log-det {scale}: expected a positive number")
        for value in threshold or []:
            if not math.isfinite(value):
                raise UsageError(f"--threshold {value}: expected a number")
        return Sums(tuple(log_det or ()), tuple(threshold or ()))

    def evaluate(self, result: HessianResult, name: str) -> dict[str, Estimate]:
        """The sums for one operator, by their labels."""
        density = result.densities.get(name)
        if density is None:
            return {}
        # Every weight of a probe belongs to one of n eigenvalues; blocks have their own n.
        n = block_size(result, name)
        found = {f"log det(I + {s:g} A)": log_det(density, n=n, scale=s) for s in self.scales}
        for t in self.thresholds:
            found[f"eigenvalues above {t:g}"] = count_above(density, n=n, threshold=t)
        return found


def report_result(
    report: Report,
    file: Path,
    result: HessianResult,
    *,
    new: bool = True,
    sums: Sums = Sums(),
) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=hessian_values(result, sums), new=new)
    report.table(*hessian_tables(result, file, sums))


def report_run(
    report: Report, file: Path, info: RunInfo, *, values: dict[str, Any], new: bool
) -> None:
    """Hand a run's warnings and its JSON entry to the report."""
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
            "values": values,
            "warnings": list(info.warnings),
        }
    )


def run_summary(file: Path, info: RunInfo) -> Table:
    """The first rows of a result's summary: what was measured."""
    summary = Table(title=printable(file), show_header=False, title_justify="left", box=None)
    summary.add_column(style="bold")
    summary.add_column()
    step = "" if info.step is None else f" (step {info.step})"
    summary.add_row("checkpoint", printable(info.checkpoint) + step)
    summary.add_row("task", f"{printable(info.task)}, loss {printable(info.config.get('loss'))}")
    summary.add_row("size", f"{info.n_parameters} parameters, {info.n_examples} examples")
    return summary


def hessian_tables(result: HessianResult, file: Path, sums: Sums) -> list[Any]:
    """One summary and, for every operator, its eigenvalues."""
    info = result.info
    unit = printable(info.config.get("units", "loss units"))
    summary = run_summary(file, info)
    summary.add_row(
        "loss", f"{number(info.loss)} {unit}, gradient norm {number(info.gradient_norm)}"
    )
    tables: list[Any] = [summary]
    modules = [name for name in result.spectra if MODULES in name]
    for name, spectrum in result.spectra.items():
        if name in modules:
            continue
        found = result.moments.get(name)
        shown = printable(name)
        how = _HOW[spectrum.method].format(spectrum.n_matvecs, len(spectrum.eigenvalues))
        summary.add_row(shown, f"{how}, {printable(info.dtype)}")
        if found is not None:
            below, near = f" below -{found.resolution:.2g}", f" within ±{found.resolution:.2g}"
            for label, value, remark in (
                ("trace", found.trace, ""),
                ("trace of square", found.trace_square, ""),
                ("negative mass", found.negative_mass, below),
                ("mass near 0", found.near_zero_mass, near + ", not separable from exact zeros"),
                *((label, value, "") for label, value in sums.evaluate(result, name).items()),
            ):
                summary.add_row(f"{shown} {label}", _estimate(value, found.n_probes) + remark)
        tables.append(_eigenvalues(shown, spectrum))
    if modules:
        tables.append(_blocks(result, modules))
    summary.add_row(
        "cost", f"{info.n_matvecs} products, {info.wall_seconds:.2f} s on {printable(info.device)}"
    )
    return tables


def _blocks(result: HessianResult, names: list[str]) -> Table:
    """One row per module: its diagonal block's size, extreme eigenvalues and trace."""
    table = Table(title="Diagonal blocks of modules", title_justify="left")
    table.add_column("operator / module")
    for column in ("parameters", "largest", "smallest", "trace", ""):
        table.add_column(column, justify="right")
    for name in names:
        spectrum, found = result.spectra[name], result.moments.get(name)
        values = spectrum.eigenvalues
        ends = spectrum.exact or spectrum.bottom > 0
        table.add_row(
            printable(name.replace(MODULES, " / ")),
            "" if found is None else str(block_size(result, name)),
            number(values[0]) if len(values) else "",
            number(values[-1]) if len(values) and ends else "",
            "" if found is None else f"{number(found.trace.value)} ± {found.trace.stderr:.1g}",
            "" if spectrum.converged.all() else "[yellow]not converged[/yellow]",
        )
    return table


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


def hessian_values(result: HessianResult, sums: Sums) -> dict[str, Any]:
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
            entry["sums"] = {
                label: dataclasses.asdict(value)
                for label, value in sums.evaluate(result, name).items()
            }
        values[name] = entry
    return values
