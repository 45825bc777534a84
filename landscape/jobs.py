"""Work lists: every checkpoint of a sweep with every run, each unit in a folder of its own.

What a unit's folder holds is the truth about it: a result file, saved state, or a failure. Its name
has a digest of the contents of the checkpoint and the task file and of all options, so that another
checkpoint or option is another unit.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from landscape.errors import UsageError
from landscape.sweep_file import Run, Sweep

__all__ = ["State", "Unit", "work_list"]

State = Literal["complete", "partial", "failed", "not started"]

# Interrupted and terminated, as the command line and as the system report it.
_STOPPED = {130, 143, -2, -15}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One checkpoint, measured by one command with one combination of options.

    Attributes:
        checkpoint: the checkpoint's file.
        run: the command and its options.
        arguments: the command line behind ``landscape``.
        folder: where the result, saved state, log and exit code are.
    """

    checkpoint: Path
    run: Run
    arguments: tuple[str, ...]
    folder: Path

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.folder / "log.txt"

    @property
    def exit_file(self) -> Path:
        """Holds the command's exit code once it has ended."""
        return self.folder / "exit_code"

    @property
    def result(self) -> Path | None:
        """The complete result file."""
        return next(iter(sorted(self.folder.glob("*.h5"))), None)

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last run; None where none has ended."""
        try:
            return int(self.exit_file.read_text("ascii"))
        except (OSError, ValueError):
            return None

    @property
    def state(self) -> State:
        """How far the unit is, as its folder tells."""
        if self.result is not None:
            return "complete"
        code = self.exit_code
        if code is not None and code not in _STOPPED:
            return "failed"
        return "partial" if any(self.folder.glob("*.h5.partial")) else "not started"

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the log that are not blank."""
        try:
            text = self.log.read_text("utf-8", errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-count:]


def work_list(sweep: Sweep) -> list[Unit]:
    """All units of a sweep, checkpoint by checkpoint.

    Raises:
        UsageError: a checkpoint or the task file cannot be read.
    """
    name = re.sub(r"(\.py):\w+$", r"\1", sweep.task)
    task_file = sweep.file.absolute().parent / name
    task = _digest(task_file) if task_file.is_file() else ""
    units = []
    for checkpoint in sweep.checkpoints:
        content = _digest(checkpoint)
        for run in sweep.runs:
            shared = (f"--task={sweep.task}", *(f"--set={item}" for item in sweep.settings))
            parts = (str(checkpoint), content, task, run.command, *shared, *run.arguments)
            key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
            folder = sweep.out / f"{checkpoint.stem[:100]}.{run.command}.{key[:12]}"
            arguments = (run.command, str(checkpoint), *shared, *run.arguments, f"--out={folder}")
            units.append(Unit(checkpoint=checkpoint, run=run, arguments=arguments, folder=folder))
    return units


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}; expected a readable file. Check it"
        ) from error
