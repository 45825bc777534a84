"""How large a Lanczos basis may grow, and which Ritz vectors survive its restarts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.memory import total_memory
from landscape.operators import LinearOperator

__all__ = ["default_basis_size", "is_long", "kept", "restart_size", "wanted_and_next"]

_LIGHT = 32 << 20  # Bytes that a basis may take without a thought for memory.
_NEXT = 10  # Ritz vectors that are kept beside the wanted ones when these are verified.


def default_basis_size(operator: LinearOperator, wanted: int) -> int:
    """A basis size that rarely needs a restart, within a quarter of the device's memory.

    Total rather than free memory, so that a resumed run restarts at the same steps.
    """
    memory = total_memory(operator.device) // 4
    vector = operator.coordinates.burden * torch.finfo(operator.dtype).bits // 8
    return max(2 * wanted + 16, min(4 * wanted + 200, memory // vector))


def is_long(operator: LinearOperator, capacity: int, tol: float) -> bool:
    """Whether vectors are so long that a basis without restarts would take much memory.

    A restart rotates the basis, which rounds: not where the tolerance is close to that, such as
    1e-6 in float32.
    """
    limits = torch.finfo(operator.dtype)
    vector = operator.coordinates.burden * limits.bits // 8
    return capacity * vector > _LIGHT and tol >= 100 * limits.eps


def restart_size(steps: int, wanted: int) -> int:
    """Size of a basis of long vectors at which it is restarted: three vectors for every pair.

    With fewer the products grow. An iteration that takes long gets half of its steps so far, with
    which it needs no more products than without restarts.
    """
    return max(3 * wanted, wanted + 20, steps // 2)


def kept(size: int, top: int, bottom: int) -> NDArray[np.int64]:
    """Indices of the Ritz values that survive a restart: the wanted ones and half of the rest."""
    extra = max((size - top - bottom) // 2, 1)
    share = top / (top + bottom)
    upper = min(top + round(extra * share), size - 1 - bottom)
    lower = min(bottom + extra - round(extra * share), size - 1 - upper)
    return np.concatenate([np.arange(lower), np.arange(size - upper, size)])


def wanted_and_next(size: int, top: int, bottom: int) -> NDArray[np.int64]:
    """Indices of the wanted Ritz values in descending order, then of a few that come next."""
    share = _NEXT * top // max(top + bottom, 1)
    upper = np.arange(size - 1, -1, -1)
    chosen = [
        upper[:top],
        np.arange(bottom)[::-1],
        upper[top : min(top + share, size - bottom)],
        np.arange(bottom, max(min(bottom + _NEXT - share, size - top - share), bottom)),
    ]
    return np.concatenate(chosen).astype(np.int64)
