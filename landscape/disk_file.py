"""A file for HDF5 to write to that survives a full disk."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["DiskFile"]

Found = TypeVar("Found")


class DiskFile(io.FileIO):
    """A file whose first failure is kept for :meth:`finish`, instead of being raised in HDF5.

    Where a write fails, HDF5 cannot close its objects any more: it prints an error for each of
    them, and what it raises in the end is hardly the cause. So it is told that all went well, and
    the file is given up afterwards.

    Args:
        path: where to write; an earlier file is replaced.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self._error: OSError | None = None

    def finish(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: the first failure of writing.
        """
        self._attempt(lambda: os.fsync(self.fileno()))
        self.check()

    def check(self) -> None:
        """Raise the first failure so far."""
        if self._error is not None:
            raise self._error

    def _attempt(self, call: Callable[[], Found]) -> Found | None:
        """What a call returns; None where it or an earlier one failed."""
        if self._error is None:
            try:
                return call()
            except OSError as error:
                self._error = error
        return None

    def write(self, data: Any) -> int:
        """Write all of the data, or none after a failure."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            written = self._attempt(partial(super().write, view[done:]))
            if written is None:
                break
            done += written
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, with zeros beyond the end of the file."""
        view = memoryview(buffer).cast("B")
        count = self._attempt(partial(super().readinto, view)) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the size, unless writing has failed."""
        return self._attempt(partial(super().truncate, size)) or 0

    def close(self) -> None:
        """Close the file; what a network file system says only now is a failure, too."""
        try:
            super().close()
        except OSError as error:
            self._error = self._error or error
