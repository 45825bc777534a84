"""Files that the command line names: paths, and globs that reach the program literally."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import UsageError
from landscape.text import natural_key

__all__ = ["expand_paths"]


def expand_paths(patterns: Sequence[str], *, what: str, expected: str) -> list[Path]:
    """The files that paths and globs stand for, each once.

    A path that exists is taken literally, whatever characters it has; matches of one pattern are
    in natural order.

    Args:
        patterns: paths and globs.
        what: what the files are, for the message, such as ``checkpoint``.
        expected: what would be right, for the message.

    Raises:
        UsageError: a path that does not exist, or a pattern without a match.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        usable = bool(path) and "\0" not in path
        matches = [path] if usable and os.path.lexists(path) else []
        if usable and not matches and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True), key=natural_key)
        if not matches:
            raise UsageError(
                f"no {what} {pattern!r}: no such file and no match (working directory "
                f"{os.getcwd()}); expected {expected}. Check the path"
            )
        for match in matches:
            found.setdefault(os.path.abspath(match), Path(match))
    return list(found.values())
