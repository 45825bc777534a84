"""One reading of a checkpoint for all processes of a node, which share its tensors in memory.

The lowest process of a node reads and checks the file and writes the tensors to a temporary file.
All processes of the node map that file, so that the tensors are in memory once; its name goes as
soon as all of them have done so, and nobody writes to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from landscape.checkpoint import Checkpoint
from landscape.distributed import Alone

__all__ = ["read_once"]


def read_once(ranks: Alone, read: Callable[[], Checkpoint]) -> Checkpoint:
    """The checkpoint that ``read`` returns, called by one process of every node.

    Where the temporary file cannot be written or seen (``TMPDIR`` is full, or containers that share
    a host have folders of their own), every process reads for itself.

    Args:
        ranks: the processes; all of them call this.
        read: reads the checkpoint.

    Raises:
        LandscapeError: what ``read`` raises in one process, in all of them.
    """
    if ranks.size == 1:
        return read()
    own: Checkpoint | None = None

    def first() -> tuple[Checkpoint, str | None]:
        nonlocal own
        own = read()
        copy = _written(own.tensors) if ranks.local_size > 1 else None
        return dataclasses.replace(own, tensors={}), copy

    facts, file = ranks.once_per_node(first)
    try:
        with ranks.unanimous():
            tensors = None if file is None else _mapped(file)
            if tensors is not None:
                return dataclasses.replace(facts, tensors=tensors)
            return read() if own is None else own
    finally:
        if own is not None and file is not None:
            with contextlib.suppress(OSError):
                os.unlink(file)


def _written(tensors: dict[str, Tensor]) -> str | None:
    """A temporary file of the tensors; None where there is no room for one."""
    path: str | None = None
    try:
        handle, path = tempfile.mkstemp(prefix="landscape-", suffix=".pt")
        with open(handle, "wb") as file:
            torch.save(tensors, file)
    except (OSError, RuntimeError):  # torch's own writer raises either.
        if path is not None:
            os.unlink(path)
        return None
    except BaseException:
        if path is not None:
            os.unlink(path)
        raise
    return path


def _mapped(file: str) -> dict[str, Tensor] | None:
    """The tensors of a file, mapped; None where this process cannot see it."""
    try:
        found: dict[str, Tensor] = torch.load(file, mmap=True, weights_only=True)
    except OSError:
        return None
    return found
