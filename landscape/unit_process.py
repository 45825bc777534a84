"""A unit of a sweep as a child process, which itself keeps the unit's lock, log and exit code.

The child does so, not who starts it: where the starter is killed, a child that is left finishes its
unit in order, and nobody starts a second one on it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from landscape.errors import LockedError
from landscape.jobs import ATTEMPT, Unit
from landscape.lock import hold, slurm_job

__all__ = ["HELD", "keep_exit_code", "run_locked", "start"]

HELD = 75  # Exit code of a child that found its unit in other hands ("try again").


def start(unit: Unit, *, working: Path) -> subprocess.Popen[bytes]:
    """Start the command of a unit.

    Args:
        unit: what to run.
        working: working directory of the command.

    Raises:
        OSError: the folder cannot be made, or the process not be started.
    """
    unit.folder.mkdir(parents=True, exist_ok=True)
    # -P: a landscape_cli in the working directory is not ours. A session of its own: a Ctrl-C of
    # the terminal must reach the child once, through us.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "landscape_cli.unit", str(unit.folder), *unit.arguments],
        cwd=working,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run_locked(unit_folder: Path, run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """In the child: run a command line under the unit's lock, and leave its exit code.

    Args:
        unit_folder: the unit's folder.
        run: runs a command line and returns its exit code.
        argv: the command line.

    Returns:
        the exit code; :data:`HELD` where another process works on the unit.

    Raises:
        OSError, ResultFileError: the folder cannot be written.
    """
    try:
        with hold(unit_folder / "lock", str(unit_folder)):
            if any(unit_folder.glob("*.h5")):
                return 0  # Another process has been faster.
            job, _ = slurm_job(os.environ)
            if "SUBMITIT_EXECUTOR" not in os.environ:
                # What an earlier submission became does not matter any more.
                (unit_folder / "slurm.json").unlink(missing_ok=True)
            (unit_folder / "exit_code").unlink(missing_ok=True)
            with (unit_folder / "log.txt").open("ab", buffering=0) as log:
                place = f"process {os.getpid()} on {socket.gethostname()}"
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                log.write(f"{ATTEMPT}{now} {place}{f', Slurm job {job}' if job else ''}\n".encode())
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = run(argv)
            (unit_folder / "exit_code").write_text(f"{code}\n", "ascii")
            return code
    except LockedError:
        return HELD


def keep_exit_code(unit: Unit, code: int) -> None:
    """Record how a child ended that could not do so itself, killed by a signal."""
    # Where the disk is full the log has the command's own message.
    if code < 0:
        with contextlib.suppress(OSError):
            unit.exit_file.write_text(f"{code}\n", "ascii")


def signal_name(code: int) -> str:
    """``SIGKILL`` for -9."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
