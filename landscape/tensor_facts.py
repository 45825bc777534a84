"""Facts about one tensor: its type in words, its norm, its elements that are not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dtype_name", "number_kind", "statistics"]

_CHUNK = 1 << 22


def dtype_name(tensor: Tensor) -> str:
    """A tensor's type in short, such as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def statistics(tensor: Tensor) -> tuple[float, int, int]:
    """Norm, NaN and infinite elements, in pieces so that float64 copies stay small."""
    norm, nan, inf = 0.0, 0, 0
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        wide = chunk.to(torch.complex128 if chunk.is_complex() else torch.float64)
        nan += int(wide.isnan().sum())
        inf += int((wide.isinf() & ~wide.isnan()).sum())
        # Summed in pairs, which vector_norm does not do: it loses four digits on millions.
        norm = math.hypot(norm, math.sqrt(float(wide.abs().square().sum())))
    return norm, nan, inf


def number_kind(tensor: Tensor) -> str:
    """``complex``, ``floating-point``, ``integer`` or ``boolean``."""
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating-point"
    return "boolean" if tensor.dtype == torch.bool else "integer"
