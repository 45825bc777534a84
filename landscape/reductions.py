"""Norms and inner products whose rounding does not grow with the length of the vectors.

torch's float32 reductions on the CPU lose digits on long vectors: at n = 5e5 a norm is off by 3e-6
and a matrix-vector product by 2e-5, which ruins the orthogonality of a Krylov basis. Blocks of
columns are reduced in the vectors' dtype and summed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["deviation", "dot", "gram", "inner", "norm"]

_FOLD = 1 << 12  # Length of the pieces of a single vector.
_BLOCK = 1 << 14
_SMALL = 1 << 15  # Vectors up to this length are converted or taken whole.
_WIDE = 1 << 22  # On a GPU reductions are trees, and every block costs a launch.


def _blocks(vector: Tensor) -> range:
    n = vector.shape[-1]
    if vector.dtype == torch.float64 or n <= _SMALL:
        return range(0, n, max(n, 1))
    return range(0, n, _BLOCK if vector.device.type == "cpu" else _WIDE)


def norm(vector: Tensor) -> float:
    """Euclidean norm of a vector (n,), accumulated in float64."""
    if vector.dtype != torch.float64 and vector.numel() > _SMALL:
        # Faster than a sum in float64, which is left for squares that leave the vector's range.
        whole = vector.numel() // _FOLD * _FOLD
        folded = torch.linalg.vector_norm(vector[:whole].reshape(-1, _FOLD), dim=1).double()
        rest = torch.linalg.vector_norm(vector[whole:])
        found = math.hypot(float(torch.linalg.vector_norm(folded)), float(rest))
        if 1e-15 < found < 1e15:
            return found
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def inner(rows: Tensor, vector: Tensor) -> Tensor:
    """``rows @ vector`` for rows (k, n) and a vector (n,), in float64: (k,)."""
    blocks = _blocks(vector)
    if len(blocks) == 1:
        return (rows @ vector).double()
    total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for start in blocks:
        columns = slice(start, start + blocks.step)
        total += rows[:, columns] @ vector[columns]
    return total


def dot(left: Tensor, right: Tensor) -> float:
    """Inner product of two vectors (n,), in float64."""
    if left.dtype == torch.float64 or left.numel() <= _SMALL:
        return float(torch.dot(left.double(), right.double()))
    whole = left.numel() // _FOLD * _FOLD
    folded = torch.linalg.vecdot(left[:whole].view(-1, _FOLD), right[:whole].view(-1, _FOLD))
    return float(folded.double().sum() + torch.linalg.vecdot(left[whole:], right[whole:]))


def gram(rows: Tensor) -> Tensor:
    """``rows @ rows^T`` in float64: (k, k)."""
    blocks = _blocks(rows)
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in blocks:
        block = rows[:, start : start + blocks.step]
        total += block @ block.T
    return total


def deviation(products: Tensor) -> float:
    """Largest entry of ``|G - I|``, for inner products G (k, k) of k rows with each other."""
    if not len(products):
        return 0.0
    identity = torch.eye(len(products), dtype=products.dtype, device=products.device)
    return float((products - identity).abs().max())
