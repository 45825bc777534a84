"""Units of a sweep as child processes: so many at a time, each with its log and exit code."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import ResultFileError
from landscape_cli.progress import progress_bar

if TYPE_CHECKING:
    from landscape.jobs import Unit

__all__ = ["run_units"]

_POLL_SECONDS = 0.05


def run_units(units: Sequence[Unit], *, folder: Path, workers: int, quiet: bool) -> dict[Unit, str]:
    """Run ``landscape`` for every unit, at most ``workers`` at a time.

    An interrupt or a termination is passed on: the children save their state and leave first.

    Args:
        units: what to run.
        folder: working directory of the commands.
        workers: number of processes at the same time.
        quiet: no progress bar.

    Returns:
        what kept a unit from being started, such as a folder that cannot be written.
    """
    from landscape.unit_process import start

    waiting = list(reversed(units))
    running: dict[subprocess.Popen[bytes], Unit] = {}
    problems: dict[Unit, str] = {}
    with progress_bar("units", quiet=quiet, unit="units") as progress:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    unit = waiting.pop()
                    if unit.result is not None:
                        continue  # Another batch run has been faster.
                    try:
                        running[start(unit, working=folder)] = unit
                    except OSError as error:
                        raise ResultFileError.of(error, unit.folder) from error
                _reap(running, problems)
                progress("", len(units) - len(waiting) - len(running), len(units))
                time.sleep(_POLL_SECONDS)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()
            _reap(running, problems)
    return problems


def _reap(running: dict[subprocess.Popen[bytes], Unit], problems: dict[Unit, str]) -> None:
    from landscape.unit_process import keep_exit_code

    for process in [process for process in running if process.poll() is not None]:
        unit = running.pop(process)
        keep_exit_code(unit, process.returncode)
        if said := process.communicate()[1].decode(errors="replace").strip():
            problems[unit] = said
