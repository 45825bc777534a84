"""How much memory there is, for budgets that fit the machine."""

from __future__ import annotations

import os

import torch

__all__ = ["free_memory", "total_memory"]

_UNKNOWN = 4 << 30  # Assumed where the system does not tell.


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
