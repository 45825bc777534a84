"""``landscape batch``: many checkpoints by many commands, as a sweep file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import LandscapeError, PartialFailureError, UsageError
from landscape_cli.options import DebugOption, JsonOption, examples
from landscape_cli.reporting import REPORT, printable

if TYPE_CHECKING:
    from landscape.jobs import Unit

__all__ = ["register"]

SweepArgument = Annotated[
    Path, typer.Argument(metavar="SWEEP.toml", help="What to measure, and how.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No notices.")]

group = typer.Typer(
    name="batch",
    help="Measure many checkpoints by several commands and options, as a sweep file says.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@group.command(
    "run", epilog=examples("landscape batch run sweep.toml", "landscape batch run s.toml -j 4")
)
def run(
    sweep: SweepArgument,
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, metavar="N", help="Units at the same time.")
    ] = 1,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Run all units that are not complete on this machine; the same command again retries."""
    from landscape_cli.batch_run import run_units

    units = _units(sweep)
    pending = [unit for unit in units if unit.state != "complete"]
    REPORT.say(f"{len(units)} units, {len(units) - len(pending)} complete already")
    run_units(pending, folder=sweep.absolute().parent, workers=workers, quiet=quiet or json)
    for unit in units:
        REPORT.add(_entry(unit))
    failed = [unit for unit in units if unit.state != "complete"]
    for unit in failed:
        lines = unit.last_lines(3) or ["no output"]
        text = f"{unit.run.label}: exit code {unit.exit_code}: {' / '.join(lines)} (see {unit.log})"
        REPORT.error(text, unit.exit_code or 1, str(unit.checkpoint))
    if len(failed) == len(units):
        error = LandscapeError(f"all {len(units)} units failed; the same command retries them")
        error.exit_code = 3
        raise error
    if failed:
        raise PartialFailureError(
            f"{len(failed)} of {len(units)} units failed; the same command retries them"
        )
    REPORT.say(f"all {len(units)} units are complete")


@group.command("status", epilog=examples("landscape batch status sweep.toml"))
def status(
    sweep: SweepArgument,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """How far every unit is: complete, partial, failed or not started."""
    from rich.table import Table

    table = Table("checkpoint", "run", "state", "exit", "last line")
    for unit in _units(sweep):
        entry = _entry(unit)
        REPORT.add(entry)
        failed = entry["status"] == "failed"
        shown = (str(entry["exit_code"]), entry["last_line"]) if failed else ("", "")
        row = (unit.checkpoint.name, unit.run.label, entry["status"], *shown)
        table.add_row(*map(printable, row))
    REPORT.table(table)


@group.command("collect", epilog=examples("landscape batch collect sweep.toml -o series.h5"))
def collect(
    sweep: SweepArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File to write; one per run.")
    ] = Path("series.h5"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of other content.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Join the complete results to series: one file for each command and its options."""
    from landscape_cli.collect import collect_results

    runs: dict[Any, list[Path]] = {}
    missing = 0
    for unit in _units(sweep):
        found = runs.setdefault(unit.run, [])
        if unit.result is None:
            missing += 1
        else:
            found.append(unit.result)
    if not any(runs.values()):
        raise UsageError(f"{sweep}: no unit is complete. Run landscape batch run {sweep} first")
    if missing:
        REPORT.warn(f"{missing} units are not complete and left out; see landscape batch status")
    for number, (run, files) in enumerate(runs.items(), 1):
        if files:
            # The formats of series hold one command with one set of options.
            name = f"{out.stem}.{number}.{run.command}{out.suffix}"
            REPORT.say(printable(f"run {number}: {run.label}"))
            target = out if len(runs) == 1 else out.with_name(name)
            collect_results(files, target, overwrite=overwrite)


def _units(sweep: Path) -> list[Unit]:
    from landscape.jobs import work_list
    from landscape.sweep_file import COMMANDS, OptionSpec, read_sweep
    from landscape_cli.app import app

    commands: Any = typer.main.get_command(app)
    known = {
        name: {
            option.removeprefix("--"): OptionSpec(
                flag=parameter.is_flag,
                negation=next(iter(parameter.secondary_opts), None),
                repeatable=parameter.multiple,
            )
            for parameter in commands.commands[name].params
            for option in parameter.opts
            if option.startswith("--")
        }
        for name in COMMANDS
    }
    return work_list(read_sweep(sweep, known))


def _entry(unit: Unit) -> dict[str, Any]:
    return {
        "checkpoint": str(unit.checkpoint),
        "run": unit.run.label,
        "status": unit.state,
        "file": unit.result,
        "exit_code": unit.exit_code,
        "log": unit.log,
        "last_line": next(iter(unit.last_lines(1)), ""),
    }


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(group, name="batch")
