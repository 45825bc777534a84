"""Errors that end a run with one message and a documented exit code.

Every message says what was seen, what was expected and what to do next. The command line prints it
without a traceback and exits with ``exit_code``; any other exception is a bug (exit code 1).
"""

from __future__ import annotations

import errno
from pathlib import Path

_CAUSES = {
    errno.ENOSPC: "the disk is full. Free some space; the same command resumes",
    errno.EDQUOT: "your quota is used up. Delete something; the same command resumes",
    errno.EROFS: "the file system is read-only. Choose another folder with --out",
}


class LandscapeError(Exception):
    """Base class of every foreseen failure; carries the command line's exit code."""

    exit_code = 1


class UsageError(LandscapeError):
    """Wrong usage: a bad option value, no such file, an unknown task, a corrupt result file."""

    exit_code = 2


class ResultFileError(UsageError):
    """A result file is corrupt, foreign, of another schema version, or cannot be written."""

    @classmethod
    def of(cls, error: Exception, path: Path) -> ResultFileError:
        """That a file cannot be written, by what the system said."""
        cause = _CAUSES.get(error.errno or 0) if isinstance(error, OSError) else None
        said = getattr(error, "strerror", None) or error
        return cls(f"cannot write {path}: {cause or f'{said}. Choose another folder with --out'}")


class LockedError(ResultFileError):
    """Another process works on the same result."""


class CheckpointError(LandscapeError):
    """A checkpoint is unreadable, refused for safety, or does not fit the architecture."""

    exit_code = 3


class TaskError(LandscapeError):
    """A task's import or builder failed, returned the wrong type, or is not deterministic."""

    exit_code = 3


class NotFiniteError(LandscapeError):
    """A weight, a loss or a product is NaN or infinite."""

    exit_code = 4


class NotConvergedError(LandscapeError):
    """A requested number did not converge and ``--strict`` was given."""

    exit_code = 4


class PartialFailureError(LandscapeError):
    """Some of several checkpoints failed; the others' results are complete."""

    exit_code = 5


class TerminatedError(LandscapeError):
    """The run was terminated (SIGTERM, SIGUSR1, SIGUSR2); finished units are saved."""

    exit_code = 143


class RankError(LandscapeError):
    """A process of a distributed analysis failed or cannot be reached; finished units are saved."""

    exit_code = 6
