"""``landscape batch``: many checkpoints by many commands, as a sweep file says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import LandscapeError, PartialFailureError
from landscape_cli.options import DebugOption, JsonOption, QuietOption, examples
from landscape_cli.reporting import REPORT, printable

if TYPE_CHECKING:
    from landscape.jobs import Unit
    from landscape.sweep_file import Sweep
    from landscape.unit_state import Status

__all__ = ["register"]

SweepArgument = Annotated[
    Path, typer.Argument(metavar="SWEEP.toml", help="What to measure, and how.")
]

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
    """Run all units that are not complete on this machine; the same command again retries.

    Units that another process works on, or that wait in Slurm's queue, are left alone.
    """
    from landscape_cli.batch_run import run_units

    units = _units(sweep)
    _say_counts(units, before := _statuses(units))
    todo = [unit for unit in units if before[unit].is_open]
    problems = run_units(todo, folder=sweep.absolute().parent, workers=workers, quiet=quiet or json)
    after = _statuses(units)
    for unit in units:
        REPORT.add(_entry(unit, after[unit]))
    elsewhere = [unit for unit in units if after[unit].state in ("running", "pending")]
    failed = [unit for unit in units if after[unit].is_open]
    for unit in failed:
        said = problems.get(unit) or " / ".join(unit.last_lines(3)) or "no output"
        reason = after[unit].reason or after[unit].state
        text = f"{unit.run.label}: {reason}: {said} (see {unit.log})"
        REPORT.error(text, unit.exit_code or 1, str(unit.checkpoint))
    for unit in elsewhere:
        REPORT.say(printable(f"{unit.folder.name} is left alone: {after[unit].reason}"))
    if len(failed) == len(units):
        error = LandscapeError(f"all {len(units)} units failed; the same command retries them")
        error.exit_code = 3
        raise error
    if failed:
        raise PartialFailureError(
            f"{len(failed)} of {len(units)} units failed; the same command retries them"
        )
    if elsewhere:
        raise PartialFailureError(
            f"{len(elsewhere)} of {len(units)} units are in work elsewhere; see landscape batch "
            "status"
        )
    REPORT.say(f"all {len(units)} units are complete")


@group.command(
    "submit",
    epilog=examples("landscape batch submit sweep.toml", "landscape batch submit s.toml --dry-run"),
)
def submit(
    sweep: SweepArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be submitted; submit nothing.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Submit units that are not complete, in work or in the queue to Slurm, as one array.

    What a unit may use is in the sweep file under [resources]. At its time limit a unit saves its
    state and is requeued. The same command again submits those that failed. Needs submitit (the
    extra "slurm").
    """
    from landscape_cli.batch_slurm import submit_units

    checked = _sweep(sweep)
    submit_units(checked, _work(checked), dry_run=dry_run)


@group.command("cancel", epilog=examples("landscape batch cancel sweep.toml"))
def cancel(
    sweep: SweepArgument,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Cancel the units that wait or run in Slurm's queue; saved state stays."""
    from landscape.slurm import cancel as cancel_units

    count = cancel_units(_units(sweep))
    REPORT.say(f"{count} units cancelled" if count else "no unit is in the queue; nothing to do")


@group.command("status", epilog=examples("landscape batch status sweep.toml"))
def status(
    sweep: SweepArgument,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """How far every unit is, by its folder and Slurm's queue; why it failed, and its last line."""
    from rich.table import Table

    units = _units(sweep)
    _say_counts(units, found := _statuses(units))
    table = Table("checkpoint", "run", "state", "why", "last line")
    for unit in units:
        entry = _entry(unit, found[unit])
        REPORT.add(entry)
        shown = "" if found[unit].state in ("complete", "not started") else entry["last_line"]
        row = (unit.checkpoint.name, unit.run.label, found[unit].state, found[unit].reason, shown)
        table.add_row(*map(printable, row))
    REPORT.table(table)


@group.command("collect", epilog=examples("landscape batch collect sweep.toml -o series.h5"))
def collect(
    sweep: SweepArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")] = Path(
        "series.h5"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of other content.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Join the complete results in one file: a series for every run, and a table of all units."""
    from landscape_cli.batch_collect import collect_units

    collect_units(sweep, _units(sweep), out, overwrite=overwrite)


def _units(sweep: Path) -> list[Unit]:
    return _work(_sweep(sweep))


def _work(sweep: Sweep) -> list[Unit]:
    from landscape.jobs import work_list

    return work_list(sweep)


def _sweep(file: Path) -> Sweep:
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
    return read_sweep(file, known)


def _statuses(units: Sequence[Unit]) -> dict[Unit, Status]:
    from landscape.slurm import queue, record_of
    from landscape.unit_state import status_of

    # Without submissions there is nothing that Slurm could know.
    listed = queue() if any(map(record_of, units)) else None
    return {unit: status_of(unit, listed) for unit in units}


def _say_counts(units: Sequence[Unit], found: Mapping[Unit, Status]) -> None:
    counts = Counter(found[unit].state for unit in units)
    REPORT.say(
        f"{len(units)} units: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    )


def _entry(unit: Unit, found: Status) -> dict[str, Any]:
    return {
        "checkpoint": str(unit.checkpoint),
        "run": unit.run.label,
        "status": found.state,
        "reason": found.reason,
        "file": unit.result,
        "exit_code": unit.exit_code,
        "job": found.job,
        "requeues": found.requeues,
        "log": unit.log,
        "last_line": next(iter(unit.last_lines(1)), ""),
    }


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(group, name="batch")
