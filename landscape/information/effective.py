"""Effective ranks of the rows of a matrix, and how many of them differ."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from landscape.flat.ranks import participation_ratio, rank_count, singular_values
from landscape.information.records import EffectiveRank

__all__ = ["distinct_rows", "effective_rank", "entropy_rank", "row_values"]


def row_values(rows: Tensor) -> Tensor:
    """Singular values of rows (r, n), descending, min(r, n) of them; O(r n min(r, n)) flops.

    Not from the Gram matrix, whose rounding hides singular values below 1e-8 of the largest.
    """
    return singular_values(rows if len(rows) > rows.shape[1] else rows.T.contiguous())


def entropy_rank(eigenvalues: ArrayLike) -> float:
    """``exp(-sum p_i log p_i)`` with ``p_i = l_i / sum l`` for eigenvalues l >= 0.

    Between 1 and the number of eigenvalues that are not 0; NaN where all are. Source: Roy and
    Vetterli, The effective rank, EUSIPCO 2007, applied to the Gram matrix, whose singular values
    its eigenvalues are.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    total = float(values.sum())
    if not total > 0:
        return math.nan
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def effective_rank(values: Tensor, *, layer: str, size: int, tol: float) -> EffectiveRank:
    """Effective ranks of a matrix from its singular values.

    Args:
        values: at most as many as it has columns.
        layer: what it belongs to.
        size: its columns.
        tol: relative tolerance of the rank.

    Raises:
        UsageError: a value is not finite, or a bad tolerance.
    """
    count = rank_count(values.numpy(), n=size, tol=tol)
    squares = values.numpy() ** 2
    return EffectiveRank(
        layer=layer,
        size=size,
        rank=count.rank,
        last_kept=count.last_kept,
        first_dropped=count.first_dropped,
        looser=count.looser,
        tighter=count.tighter,
        entropy=entropy_rank(squares),
        participation=participation_ratio(squares),
        trace=float(squares.sum()),
    )


def distinct_rows(rows: Tensor, *, tol: float, generator: Generator) -> int:
    """How many rows (r, n) differ by more than ``tol`` times the largest row's norm.

    Rows that are near in the direction of one random vector are compared in full. Near rows form no
    chains: each is compared with the first of its kind.
    """
    if not len(rows):
        return 0
    allowed = tol * float(torch.linalg.vector_norm(rows, dim=1).max())
    direction = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    direction /= torch.linalg.vector_norm(direction).clamp(min=torch.finfo(torch.float64).tiny)
    place, order = (rows.double() @ direction).sort()
    kinds: list[int] = []
    # Rows within `allowed` of each other are as near along the direction, up to its rounding.
    window = allowed + 1e-14 * float(place.abs().max())
    where = place.tolist()
    for position, row in enumerate(order.tolist()):
        near = []
        for kind in reversed(kinds):
            if where[position] - where[kind] > window:
                break
            near.append(kind)
        first = rows[order[near]]
        if near and float(torch.linalg.vector_norm(first - rows[row], dim=1).min()) <= allowed:
            continue
        kinds.append(position)
    return len(kinds)
