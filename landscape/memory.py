"""How much memory there is, and large arrays of rows that fit it."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["allocate_rows", "free_memory", "stored_tensor", "total_memory"]

_UNKNOWN = 4 << 30  # Assumed where the system does not tell.
_HUGE = 8 << 20  # Bytes from which an array is worth large pages.


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _pages("SC_AVPHYS_PAGES")


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory, free or not: the same for a resumed run."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return _pages("SC_PHYS_PAGES")


def _pages(name: str) -> int:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return _UNKNOWN


def allocate_rows(count: int, like: Tensor, n: int) -> Tensor:
    """Uninitialised rows (count, n) of the dtype and on the device of ``like``.

    On the CPU they take memory only as they are written; where half of the machine's is too little
    for all of them they are memory-mapped from disk.
    """
    size = count * n * like.element_size()
    numpy_type = {torch.float32: np.float32, torch.float64: np.float64}.get(like.dtype)
    if like.device.type != "cpu" or numpy_type is None:
        return like.new_empty(count, n)
    if size > total_memory(like.device) // 2:
        # The file has no name any more: the space is given back when the array or process ends.
        with tempfile.TemporaryFile(prefix="landscape-basis-") as file:
            return torch.from_numpy(np.memmap(file, dtype=numpy_type, mode="w+", shape=(count, n)))
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(count, n)
    # Touching a row of small pages for the first time costs more than the arithmetic with it.
    memory = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype, count=count * n).view(count, n)


def stored_tensor(array: NDArray[Any]) -> Tensor:
    """A copy of a stored array in torch's own memory.

    Products round by the alignment of their operands: with numpy's, which is a matter of luck, a
    resumed run would differ from an uninterrupted one in its last digits.
    """
    return torch.from_numpy(array).clone()
