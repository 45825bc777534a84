"""Norms and numerical ranks of the blocks of a symmetric matrix, from products with few vectors.

Test vectors ``Omega_b`` on every group b give ``Y_ab = A_ab Omega_b`` for all a at once. Their
squared lengths are unbiased for the squared Frobenius norm. The last columns are held out: where
the range of the others holds them, A_ab is known, and with it its singular values, at no further
product, since ``Y_ba = A_ab^T Omega_a`` is known, too.

Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), sections 4.3 (the error estimate) and
5.5 (one pass).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.modules.records import BoolArray, IntArray
from landscape.operators import LinearOperator
from landscape.results import FloatArray
from landscape.rng import stream
from landscape.sums import standard_error

__all__ = ["Blocks", "Sketch", "block_sketch", "blocks_of"]

_HELD_OUT = 4  # A range that is too small passes with a probability of 1e-4.
_CONFIDENT = 10 * math.sqrt(2 / math.pi)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Norms and ranks of all blocks, (G, G) each.

    Attributes:
        norm: Frobenius norm.
        norm_stderr: its standard error over test vectors; 0 where the block is known.
        rank: numerical rank off the diagonal, 0 on it.
        rank_bound: whether that is only a lower bound.
    """

    norm: FloatArray
    norm_stderr: FloatArray
    rank: IntArray
    rank_bound: BoolArray


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Products of A with test vectors of one group.

    Attributes:
        vectors: test vectors as rows, (k, n_b): normal, or the unit vectors of a small group.
        products: A times each of them, (k, n).
        complete: whether they span the group.
    """

    vectors: Tensor
    products: Tensor
    complete: bool


def block_sketch(
    operator: LinearOperator,
    group: Tensor,
    index: int,
    *,
    count: int,
    seed: int,
    products: Tensor | None = None,
    on_product: Callable[[], None] | None = None,
) -> Sketch:
    """Products with test vectors of one group, in float64 on the CPU.

    Args:
        operator: A.
        group: coordinates of the group.
        index: number of the group, which names its random stream.
        count: test vectors; fewer for a group of fewer coordinates.
        seed: seed of the vectors.
        products: the products, where an earlier run has them.
        on_product: called after every one.

    Cost: ``min(count, n_b)`` products.
    """
    size = len(group)
    complete = size <= count
    if complete:
        vectors = torch.eye(size, dtype=torch.float64)
    else:
        vectors = torch.randn(
            count, size, generator=stream(seed, "sketch", index), dtype=torch.float64
        )
    if products is None:
        rows = []
        for vector in vectors:
            whole = torch.zeros(operator.n, dtype=operator.dtype, device=operator.device)
            whole[group.to(operator.device)] = vector.to(operator.like)
            rows.append(operator.matvec(whole).double().cpu())
            if on_product is not None:
                on_product()
        products = torch.stack(rows)
    return Sketch(vectors=vectors, products=products, complete=complete)


def blocks_of(
    sketches: Sequence[Sketch], groups: Sequence[Tensor], *, scale: float, tol: float
) -> Blocks:
    """Norms and ranks of all blocks from the sketches of all groups.

    Args:
        sketches: of every group.
        groups: their coordinates.
        scale: largest ``|eigenvalue|`` of A.
        tol: singular values above ``tol * scale`` count towards a rank.

    Cost: no products.
    """
    count = len(groups)
    shape = (count, count)
    norm, stderr = np.zeros(shape), np.zeros(shape)
    rank, bound = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    floor = tol * scale
    for i, (one, here) in enumerate(zip(sketches, groups, strict=True)):
        norm[i, i], stderr[i, i] = _norm([(one, here)])
        for j in range(i):
            other, there = sketches[j], groups[j]
            values, known = _singular_values(one, here, other, there, floor)
            rank[i, j] = rank[j, i] = int((values > floor).sum())
            bound[i, j] = bound[j, i] = not known
            found = float(values.norm()), 0.0
            if not known:
                found = _norm([(other, here), (one, there)])
            norm[i, j], stderr[i, j] = found
            norm[j, i], stderr[j, i] = found
    return Blocks(norm=norm, norm_stderr=stderr, rank=rank, rank_bound=bound)


def _norm(sides: Sequence[tuple[Sketch, Tensor]]) -> tuple[float, float]:
    """Frobenius norm of a block and its standard error, from one or both of its sides."""
    squares = [sketch.products[:, rows].square().sum(1) for sketch, rows in sides]
    for (sketch, _), square in zip(sides, squares, strict=True):
        if sketch.complete:
            return math.sqrt(float(square.sum())), 0.0
    samples = torch.stack(squares).mean(0).numpy()
    value = math.sqrt(float(samples.mean()))
    error = float(standard_error(samples[:, None])[0])
    return value, error / (2 * value) if value > 0 else 0.0


def _singular_values(
    one: Sketch, here: Tensor, other: Sketch, there: Tensor, floor: float
) -> tuple[Tensor, bool]:
    """Singular values of ``A[here, there]``, or lower bounds of them, and which of the two."""
    forth = other.products[:, here]  # Rows: A_ab times test vectors of b.
    back = one.products[:, there]  # Rows: A_ba times test vectors of a.
    if other.complete:
        return torch.linalg.svdvals(forth), True
    if one.complete:
        return torch.linalg.svdvals(back), True
    left, sizes, _ = torch.linalg.svd(forth[:-_HELD_OUT].T, full_matrices=False)
    basis = left[:, sizes > 1e-3 * floor]
    if not basis.shape[1] and not bool(forth.any()):
        return forth.new_zeros(0), True
    held = forth[-_HELD_OUT:].T
    missed = torch.linalg.vector_norm(held - basis @ (basis.T @ held), dim=0)
    if basis.shape[1] + _HELD_OUT <= len(back) and float(missed.max()) * _CONFIDENT <= floor:
        # A_ab = Q C, and back = Omega_a Q C.
        inside = one.vectors @ basis
        return torch.linalg.svdvals(torch.linalg.lstsq(inside, back).solution), True
    bounds = []
    for sketch, block in ((other, forth), (one, back)):
        length = torch.linalg.matrix_norm(sketch.vectors, ord=2)
        bounds.append(torch.linalg.svdvals(block) / length)
    return max(bounds, key=lambda values: int((values > floor).sum())), False
