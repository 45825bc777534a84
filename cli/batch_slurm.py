"""Submission of a sweep's open units to Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from landscape.errors import ResultFileError
from landscape_cli.reporting import REPORT, printable

if TYPE_CHECKING:
    from landscape.jobs import Unit
    from landscape.sweep_file import Sweep

__all__ = ["submit_units"]


def submit_units(sweep: Sweep, units: Sequence[Unit], *, dry_run: bool) -> None:
    """Submit what is neither complete nor in work nor in the queue."""
    from landscape.lock import hold
    from landscape.slurm import queue, require_slurm, submit
    from landscape.unit_state import status_of

    if not dry_run:
        require_slurm()
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultFileError.of(error, sweep.out) from error
    # Two submissions at a time would both find the same units open.
    with hold(sweep.out / "submit.lock", f"the submission of {sweep.file}"):
        listed = queue()
        found = {unit: status_of(unit, listed) for unit in units}
        todo = [unit for unit in units if found[unit].is_open]
        left = [unit for unit in units if found[unit].state in ("running", "pending")]
        if left:
            REPORT.say(f"{len(left)} units are in work or in the queue and left alone")
        if not todo:
            REPORT.say(f"nothing to submit: {len(units) - len(left)} units are complete")
            return
        jobs: list[str] = []
        if not dry_run:
            jobs = submit(
                todo,
                working=sweep.file.absolute().parent,
                logs=sweep.out / "slurm",
                resources=sweep.resources,
            )
    for unit in todo:
        REPORT.add({"checkpoint": str(unit.checkpoint), "run": unit.run.label})
        if dry_run:
            REPORT.say(printable(f"{unit.folder.name}: {found[unit].state}"))
    how = "would be submitted" if dry_run else f"submitted as job {', '.join(jobs)}"
    REPORT.say(f"{len(todo)} of {len(units)} units {how}")
