"""Norms and inner products whose rounding does not grow with the length of the vectors.

torch's float32 reductions on the CPU lose digits on long vectors: at n = 5e5 a norm is off by 3e-6
and a matrix-vector product by 2e-5, which ruins the orthogonality of a Krylov basis. Blocks of
columns are reduced in the vectors' dtype and summed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dot", "gram", "inner", "norm"]

_BLOCK = 1 << 14
_WIDE = 1 << 22  # On a GPU reductions are trees, and every block costs a launch.


def _blocks(vector: Tensor) -> range:
    n = vector.shape[-1]
    if vector.dtype == torch.float64:
        return range(0, n, max(n, 1))
    return range(0, n, _BLOCK if vector.device.type == "cpu" else _WIDE)


def norm(vector: Tensor) -> float:
    """Euclidean norm, accumulated in float64."""
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
    return float(inner(left[None], right))


def gram(rows: Tensor) -> Tensor:
    """``rows @ rows^T`` in float64: (k, k)."""
    blocks = _blocks(rows)
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in blocks:
        block = rows[:, start : start + blocks.step]
        total += block @ block.T
    return total
