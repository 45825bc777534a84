"""Norms and inner products whose rounding does not grow with the length of the vectors.

torch's float32 reductions on the CPU lose digits on long vectors: at n = 5e5 a norm is off by 3e-6
and a matrix-vector product by 2e-5, which ruins the orthogonality of a Krylov basis. Blocks of
columns are reduced in the vectors' dtype and summed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dot", "gram", "inner", "norm"]

_FOLD = 1 << 12  # Length of the pieces of a single vector.
_BLOCK = 1 << 14
_WIDE = 1 << 22  # On a GPU reductions are trees, and every block costs a launch.


def _blocks(vector: Tensor) -> range:
    n = vector.shape[-1]
    if vector.dtype == torch.float64:
        return range(0, n, max(n, 1))
    return range(0, n, _BLOCK if vector.device.type == "cpu" else _WIDE)


def _folded(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a vector (n,): as many whole blocks as it has (b, block), and what is left."""
    size = min(_FOLD, max(vector.numel(), 1))
    whole = vector.numel() // size * size
    return vector[:whole].reshape(-1, size), vector[whole:]


def norm(vector: Tensor) -> float:
    """Euclidean norm of a vector (n,), accumulated in float64."""
    blocks, rest = _folded(vector)
    norms = torch.linalg.vector_norm(blocks, dim=1).double()
    found = math.hypot(
        float(torch.linalg.vector_norm(norms)), float(torch.linalg.vector_norm(rest))
    )
    if 1e-15 < found < 1e15:
        return found
    # Squares may have left the range of the vector's own type.
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def inner(rows: Tensor, vector: Tensor) -> Tensor:
    """``rows @ vector`` for rows (k, n) and a vector (n,), in float64: (k,)."""
    blocks = _blocks(vector)
    total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for start in blocks:
        columns = slice(start, start + blocks.step)
        total += rows[:, columns] @ vector[columns]
    return total


def dot(left: Tensor, right: Tensor) -> float:
    """Inner product of two vectors (n,), in float64."""
    (a, a_rest), (b, b_rest) = _folded(left), _folded(right)
    total = torch.linalg.vecdot(a, b).double().sum() + torch.linalg.vecdot(a_rest, b_rest)
    return float(total)


def gram(rows: Tensor) -> Tensor:
    """``rows @ rows^T`` in float64: (k, k)."""
    blocks = _blocks(rows)
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in blocks:
        block = rows[:, start : start + blocks.step]
        total += block @ block.T
    return total
