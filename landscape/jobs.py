"""Work lists: every checkpoint of a sweep with every run, each unit in a folder of its own.

What a unit's folder holds is the truth about it: a result file, saved state, or an exit code. Its
name has a digest of the contents of the checkpoint and the task file and of all options, so that
another checkpoint or option is another unit.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import UsageError
from landscape.lock import Holder, holder_of
from landscape.sweep_file import Run, Sweep

__all__ = ["ATTEMPT", "Unit", "work_list"]

ATTEMPT = "--- "  # A line of the log that begins so begins an attempt.


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
    def lock(self) -> Path:
        """Held while the command runs."""
        return self.folder / "lock"

    @property
    def holder(self) -> Holder | None:
        """The process that runs the command now."""
        return holder_of(self.lock)

    @property
    def is_partial(self) -> bool:
        """Whether there is saved state."""
        return any(self.folder.glob("*.h5.partial"))

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the log's last attempt that are not blank."""
        try:
            text = self.log.read_text("utf-8", errors="replace")
        except OSError:
            return []
        lines = [line for line in text.splitlines() if line.strip()]
        begin = max((i for i, line in enumerate(lines) if line.startswith(ATTEMPT)), default=-1)
        return lines[begin + 1 :][-count:]


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
