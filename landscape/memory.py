"""How much memory there is, and large arrays of rows that fit it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Rows", "free_memory", "keep_freed_memory", "stored_tensor", "total_memory"]

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


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB that it freed for what it allocates next (glibc).

    By default the intermediate tensors of every product go back to the system and are mapped and
    cleared anew, which takes 5 to 15% of a product on the CPU. Settings of the environment win.
    """
    chosen = any(n.startswith("MALLOC_") or n == "GLIBC_TUNABLES" for n in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # From malloc.h.
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 32 << 20)


def _pages(name: str) -> int:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return _UNKNOWN


class Rows:
    """Uninitialised rows (count, n) of the dtype and on the device of ``like``.

    On the CPU they take memory only as they are written; where half of the machine's is too little
    for all of them they are memory-mapped from disk.

    Attributes:
        tensor: the rows.
    """

    def __init__(self, count: int, like: Tensor, n: int) -> None:
        size = count * n * like.element_size()
        numpy_type = {torch.float32: np.float32, torch.float64: np.float64}.get(like.dtype)
        self._mapped: mmap.mmap | None = None
        if like.device.type != "cpu" or numpy_type is None:
            self.tensor = like.new_empty(count, n)
        elif size > total_memory(like.device) // 2:
            # The file has no name any more: the space is given back when the array or process ends.
            with tempfile.TemporaryFile(prefix="landscape-basis-") as file:
                array = np.memmap(file, dtype=numpy_type, mode="w+", shape=(count, n))
            self.tensor = torch.from_numpy(array)
        elif size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            self.tensor = like.new_empty(count, n)
        else:
            # Touching a row of small pages for the first time costs more than the arithmetic with
            # it. Shared memory, mmap's default, gets no huge pages on most systems.
            self._mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):
                self._mapped.madvise(mmap.MADV_HUGEPAGE)
            self.tensor = self._first(count, like.new_empty(0, n))

    def cut(self, count: int) -> Tensor:
        """The first rows alone (count, n). The others are lost.

        Their memory is given back first, and nothing copied, where the system can do that.
        """
        first = self.tensor[:count]
        if self._mapped is None or not count:
            return first.clone()
        used = first.numel() * first.element_size()
        end = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        if end < len(self._mapped):
            self._mapped.madvise(mmap.MADV_DONTNEED, end, len(self._mapped) - end)
        return self._first(count, first)

    def _first(self, count: int, like: Tensor) -> Tensor:
        n = like.shape[1]
        assert self._mapped is not None
        return torch.frombuffer(self._mapped, dtype=like.dtype, count=count * n).view(count, n)


def stored_tensor(array: NDArray[Any]) -> Tensor:
    """A copy of a stored array in torch's own memory.

    Products round by the alignment of their operands: with numpy's, which is a matter of luck, a
    resumed run would differ from an uninterrupted one in its last digits.
    """
    return torch.from_numpy(array).clone()
