"""Log-volumes as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from landscape.flat.learning import coefficient_of
from landscape.flat.records import LearningCoefficient
from landscape.volume.records import (
    CLASSES,
    Directions,
    VolumeEstimate,
    VolumeResult,
)
from landscape_cli.render import number, report_run, run_summary
from landscape_cli.render_anneal import anneal_tables, anneal_values
from landscape_cli.render_prior import prior_line
from landscape_cli.reporting import Report, printable

if TYPE_CHECKING:
    from landscape.volume_runs import VolumeRun

__all__ = [
    "anneal_allowance",
    "coefficient_line",
    "report_volume",
    "volume_plan",
    "volume_tables",
    "volume_values",
]

_ROUTES = {
    "dense": "exact: explicit matrix",
    "gram": "exact: factor of the GGN",
    "lanczos": "matrix-free: Lanczos and probes",
}
_ARRAYS = (
    "log_volume",
    "stderr",
    "lower",
    "upper",
    "lower_bound",
    "width",
    "location",
    "remainder",
    "effective_dimension",
    "tilt",
    "n_samples",
    "ess",
    "largest_share",
)


def report_volume(report: Report, file: Path, result: VolumeResult, *, new: bool = True) -> None:
    """Hand a result to the report: its warnings, its JSON entry and its tables."""
    report_run(report, file, result.info, values=volume_values(result), new=new)
    report.table(*volume_tables(result, file))


def volume_tables(result: VolumeResult, file: Path) -> list[Any]:
    """A summary, a table of log-volumes and one of directions."""
    info = result.info
    config = info.config
    unit = printable(config.get("units", "loss units"))
    summary = run_summary(file, info)
    summary.add_row("prior", prior_line(config, result.prior))
    if config.get("tether") is not None:
        summary.add_row("tether", f"within {printable(config['tether'])} prior standard deviations")
    for name, found in result.estimates.items():
        summary.add_row(name, _how(found))
    for name, found in result.estimates.items():
        fit = coefficient_of(found)
        if not math.isnan(fit.value):
            summary.add_row("learning coefficient", f"{coefficient_line(fit)} ({printable(name)})")
    summary.add_row(
        "cost",
        f"{info.n_matvecs} products, {info.n_forward} forward passes, {info.n_gradient} gradients, "
        f"{info.wall_seconds:.2f} s on {printable(info.device)}",
    )
    tables: list[Any] = [summary, _volumes(result, unit), *anneal_tables(result)]
    if "quadratic" in result.estimates:
        tables.append(_terms(result.estimates["quadratic"]))
    if result.directions is not None:
        tables.append(_classes(result.directions))
    return tables


def coefficient_line(found: LearningCoefficient) -> str:
    """A learning coefficient in one line, with the cutoffs that it rests on."""
    line = (
        f"{found.value:.4g} ± {found.stderr:.2g}, m = {found.multiplicity}, from "
        f"{found.n_cutoffs} cutoffs {found.lowest:g} to {found.highest:g}"
    )
    # The law holds as the cutoff goes to 0 only.
    return f"{line}; not settled, try smaller cutoffs" if found.stderr > found.value / 2 else line


def _how(found: VolumeEstimate) -> str:
    if found.method_name == "quadratic":
        how = _ROUTES.get(found.path, found.path)
        probes = int(found.n_samples.max(initial=0))
        return f"{how}, {found.n_matvecs} products" + (f", {probes} probes" if probes else "")
    if found.method_name == "anneal":
        return printable(found.path)
    rays = int(found.n_samples.max(initial=0))
    return f"{rays} rays, {printable(found.path)}, {found.n_forward} forward passes"


def _interval(found: VolumeEstimate, c: int) -> str:
    certain = found.stderr[c] == 0 and found.lower[c] == found.upper[c]
    if certain and found.method_name == "quadratic":
        return "exact"
    upper = number(found.upper[c]) if math.isfinite(found.upper[c]) else "∞"
    return f"{number(found.lower[c])} to {upper}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else number(value)


def _volumes(result: VolumeResult, unit: str) -> Table:
    table = Table(title=f"log V, cutoff in {unit}", title_justify="left")
    table.add_column("cutoff", justify="right")
    table.add_column("method")
    for column in ("nats", "bits", "95%", "ESS"):
        table.add_column(column, justify="right")
    table.add_column("")
    for c, cutoff in enumerate(next(iter(result.estimates.values())).cutoff):
        for name, found in result.estimates.items():
            table.add_row(
                f"{cutoff:g}",
                name,
                number(found.log_volume[c]),
                number(found.log_volume[c] / math.log(2)),
                _interval(found, c),
                "" if math.isnan(found.ess[c]) else f"{found.ess[c]:.1f}/{found.n_samples[c]}",
                "[yellow]lower bound[/yellow]" if found.lower_bound[c] else "",
            )
    return table


def _terms(found: VolumeEstimate) -> Table:
    table = Table(title="Terms of log V in nats (quadratic)", title_justify="left")
    for column in ("cutoff", "width", "location", "remainder", "effective dimension"):
        table.add_column(column, justify="right")
    for c, cutoff in enumerate(found.cutoff):
        terms = (found.width[c], found.location[c], found.remainder[c])
        table.add_row(f"{cutoff:g}", *map(_cell, terms), f"{found.effective_dimension[c]:.4g}")
    return table


def _classes(directions: Directions) -> Table:
    table = Table(
        title="Directions by width over the prior's: number and nats of -log V (quadratic)",
        title_justify="left",
    )
    table.add_column("cutoff", justify="right")
    for label in ("steep (< 0.1)", "intermediate", "flat (> 2)", "remainder"):
        table.add_column(label, justify="right")
    counts, shares = directions.counts(), directions.shares()
    for c, cutoff in enumerate(directions.cutoff):
        cells = [f"{counts[c, k]:.0f}: {shares[c, k]:.4g}" for k in range(len(CLASSES))]
        table.add_row(f"{cutoff:g}", *cells, f"{directions.remainder[c]:.4g}")
    return table


def volume_values(result: VolumeResult) -> dict[str, Any]:
    """The numbers of a result, for JSON."""
    info = result.info
    values: dict[str, Any] = {
        "loss": info.loss,
        "n_parameters": info.n_parameters,
        "n_examples": info.n_examples,
        "n_matvecs": info.n_matvecs,
        "n_forward": info.n_forward,
        "wall_seconds": info.wall_seconds,
    }
    for name, found in result.estimates.items():
        values[name] = {"path": found.path, "cutoff": found.cutoff}
        values[name] |= {field: getattr(found, field) for field in _ARRAYS}
        values[name]["learning"] = dataclasses.asdict(coefficient_of(found))
    if result.annealing is not None:
        values["anneal"] |= anneal_values(result)
    if result.directions is not None:
        counts, shares = result.directions.counts(), result.directions.shares()
        values["directions"] = {
            "cutoff": result.directions.cutoff,
            "remainder": result.directions.remainder,
            **{
                label: {"count": counts[:, k], "nats": shares[:, k]}
                for k, label in enumerate(CLASSES)
            },
        }
    return values


def volume_plan(run: VolumeRun, n: int) -> list[tuple[str, str]]:
    """What a run on n parameters would do, as rows of a table."""
    options = run.options
    cost = {
        "dense": f"{n} products",
        "gram": "a vector-Jacobian product per row of the factor",
        "lanczos": f"about {3 * options.top + (options.probes + 1) * options.steps} products",
    }[run.route]
    rays = options.samples * len(options.cutoffs)
    radial = f"{rays} rays, about {10 * rays} forward passes"
    near = "no limit"
    if options.tether is not None:
        near = f"within {options.tether:g} prior standard deviations"
    return [
        ("curvature", f"{run.curvature}, {_ROUTES[run.route]}"),
        ("quadratic", cost if "quadratic" in options.chosen else "no"),
        ("radial", radial if "radial" in options.chosen else "no"),
        ("anneal", _anneal_plan(run)),
        ("tether", near),
        ("cutoffs", ", ".join(f"{cutoff:g}" for cutoff in options.cutoffs)),
    ]


def anneal_allowance(run: VolumeRun) -> dict[str, Any] | None:
    """What ``anneal`` may take, as far as that is known before its pilots; None without it.

    ``gradients`` or ``seconds`` is None where it is no limit; where more gradients than
    ``left_out_above`` are predicted it is left out, unless that is None.
    """
    from landscape.volume_anneal import AUTO, anneal_limit

    options, budget = run.options, run.settings.budget
    if "anneal" not in options.chosen or options.shard is not None:
        return None
    explicit = "anneal" in options.methods
    timed = explicit and budget.seconds is not None and budget.gradients is None
    return {
        "chains": options.chains,
        "gradients": None if timed else anneal_limit(run.settings, explicit=explicit),
        "seconds": budget.seconds,
        "left_out_above": None if explicit else AUTO,
    }


def _anneal_plan(run: VolumeRun) -> str:
    found = anneal_allowance(run)
    if found is None:
        return "no"
    most = [
        f"at most {found[name]:g} {unit}" if unit == "s" else f"at most {found[name]} {unit}"
        for name, unit in (("gradients", "gradients"), ("seconds", "s"))
        if found[name] is not None
    ]
    above = found["left_out_above"]
    where = "" if above is None else f"; left out where more than {above} are predicted"
    return f"{found['chains']} particles a run, from both starts, {', '.join(most)}{where}"
