"""Units of a sweep as child processes: so many at a time, each with its log and exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import UsageError
from landscape_cli.progress import progress_bar

if TYPE_CHECKING:
    from landscape.jobs import Unit

__all__ = ["run_units"]

_POLL_SECONDS = 0.05


def run_units(units: Sequence[Unit], *, folder: Path, workers: int, quiet: bool) -> None:
    """Run ``landscape`` for every unit, at most ``workers`` at a time.

    An interrupt or a termination is passed on: the children save their state and leave first.

    Args:
        units: what to run.
        folder: working directory of the commands.
        workers: number of processes at the same time.
        quiet: no progress bar.
    """
    waiting = list(reversed(units))
    running: dict[subprocess.Popen[bytes], Unit] = {}
    with progress_bar("units", quiet=quiet, unit="units") as progress:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    unit = waiting.pop()
                    running[_start(unit, folder)] = unit
                _reap(running)
                progress("", len(units) - len(waiting) - len(running), len(units))
                time.sleep(_POLL_SECONDS)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()
            _reap(running)


def _start(unit: Unit, folder: Path) -> subprocess.Popen[bytes]:
    try:
        unit.folder.mkdir(parents=True, exist_ok=True)
        unit.exit_file.unlink(missing_ok=True)
        with unit.log.open("wb") as log:
            # A session of its own: a Ctrl-C of the terminal must reach it once, through us.
            return subprocess.Popen(
                [sys.executable, "-m", "landscape_cli", *unit.arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        raise UsageError(
            f"cannot run in {unit.folder}: {error.strerror or error}; expected a folder that can "
            "be written. Choose another 'out' in the sweep file"
        ) from error


def _reap(running: dict[subprocess.Popen[bytes], Unit]) -> None:
    for process in [process for process in running if process.poll() is not None]:
        unit = running.pop(process)
        unit.exit_file.write_text(f"{process.returncode}\n", "ascii")
