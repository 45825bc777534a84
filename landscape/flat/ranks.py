"""Numerical ranks of the behavioural Jacobian, the GGN and the Hessian, with their gaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from landscape.errors import UsageError
from landscape.flat.records import RankCount
from landscape.gram import pull_back
from landscape.risk import Risk

__all__ = [
    "TOLERANCE",
    "behaviour_jacobian",
    "mackay",
    "null_space",
    "outputs_in_frame",
    "participation_ratio",
    "rank_count",
    "singular_values",
    "term_frame",
    "triangle",
]

TOLERANCE = 1e-10
_BLOCK = 32  # Rows pulled back at a time.


def rank_count(
    values: ArrayLike, *, n: int, n_rows: int | None = None, tol: float = TOLERANCE
) -> RankCount:
    """The number of values above ``tol`` times the largest, with the gap around it.

    Args:
        values: singular values, or eigenvalues of either sign, in any order; those that are not
            given are zero.
        n: number of parameters.
        n_rows: rows of the matrix, n where None.
        tol: relative tolerance, between 0 and 1.

    Raises:
        UsageError: more values than parameters, a value that is not finite, a bad tolerance.
    """
    given = np.asarray(values, dtype=np.float64).reshape(-1)
    if not 0 < tol < 1:
        raise UsageError(f"--tol {tol}: expected a number between 0 and 1, such as 1e-10")
    if len(given) > n or not np.isfinite(given).all():
        raise UsageError(
            f"{len(given)} values of {n} parameters, {int((~np.isfinite(given)).sum())} not "
            "finite; expected at most one finite value for each. Check the weights"
        )
    size = np.sort(np.abs(given))[::-1]
    largest = float(size[0]) if len(size) else 0.0
    relative = size / largest if largest > 0 else np.zeros(0)

    def above(t: float) -> int:
        return int((relative > t).sum())

    rank = above(tol)
    return RankCount(
        n=n,
        rank=rank,
        tolerance=tol,
        largest=largest,
        last_kept=float(relative[rank - 1]) if rank else math.nan,
        first_dropped=float(relative[rank]) if rank < len(relative) else 0.0,
        looser=above(tol / 10),
        tighter=above(tol * 10),
        n_rows=n if n_rows is None else n_rows,
        negative=int((given < -tol * largest).sum()) if largest > 0 else 0,
    )


def behaviour_jacobian(
    risk: Risk, *, on_rows: Callable[[Tensor, int], Any] | None = None, examples: bool = False
) -> tuple[Tensor, Tensor]:
    """Derivatives of what the divergence sees of the outputs, one row for each.

    For softmax the logits of a term in an orthonormal basis of the vectors that add up to 0, since
    a common shift changes nothing: C - 1 rows a term. Else every output. Rows are not weighted, so
    that confident predictions do not hide directions as they do in the GGN.

    Args:
        risk: the loss at the anchor, in float64 for exact ranks.
        on_rows: called with every block of rows, and the number of its micro-batch, instead of
            keeping them.
        examples: also tell which example each row belongs to.

    Returns:
        the Jacobian (r, n), float64 on the CPU (no rows with ``on_rows``), and numbers of examples
        (r,), empty unless asked for.

    Cost: r vector-Jacobian products of one micro-batch each, and r n numbers.
    """
    blocks: list[Tensor] = []
    owners: list[Tensor] = []
    before = 0
    for index in range(risk.n_batches):
        outputs = risk.outputs(index)
        places = risk.criterion.term_places(outputs, risk.batch(index)).cpu()
        frame = term_frame(places.shape[1], shift_invariant=risk.criterion.shift_invariant)
        width = len(frame)
        per_example = outputs.numel() // len(outputs) if outputs.dim() else 1
        for start in range(0, len(places) * width, _BLOCK):
            stop = min(start + _BLOCK, len(places) * width)
            term = torch.arange(start, stop) // max(width, 1)
            direction = torch.arange(start, stop) % max(width, 1)
            cotangents = torch.zeros(stop - start, outputs.numel(), dtype=outputs.dtype)
            cotangents.scatter_(1, places[term], frame[direction].to(outputs.dtype))
            shaped = cotangents.to(outputs.device).reshape(-1, *outputs.shape)
            rows = pull_back(risk, outputs, shaped)
            if examples:
                owners.append(before + places[term][:, 0] // per_example)
            if on_rows is not None:
                on_rows(rows, index)
            else:
                blocks.append(rows)
        before += len(outputs) if outputs.dim() else 1
    empty = torch.zeros(0, risk.n, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    return (torch.cat(blocks) if blocks else empty), (torch.cat(owners) if owners else none)


def outputs_in_frame(risk: Risk) -> Tensor:
    """What the divergence sees of the outputs, in the order of the Jacobian's rows, (r,)."""
    parts: list[Tensor] = []
    with torch.no_grad():
        for index in range(risk.n_batches):
            outputs = risk.outputs(index)
            places = risk.criterion.term_places(outputs, risk.batch(index))
            frame = term_frame(places.shape[1], shift_invariant=risk.criterion.shift_invariant)
            terms = outputs.reshape(-1)[places].double().cpu()
            parts.append((terms @ frame.T).reshape(-1))
    return torch.cat(parts)


def term_frame(width: int, *, shift_invariant: bool) -> Tensor:
    """Orthonormal directions of a term's outputs that count, as rows (k, width)."""
    eye = torch.eye(width, dtype=torch.float64)
    if not shift_invariant:
        return eye
    ones = torch.ones(width, 1, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.cat([ones, eye[:, 1:]], dim=1))
    frame: Tensor = q[:, 1:].T.contiguous()
    return frame


def triangle(rows: Tensor) -> Tensor:
    """A matrix R with ``R^T R = rows^T rows`` and no more rows than columns.

    Its singular values and null space are those of the rows, to their own precision. Cost:
    O(r n^2) flops for (r, n).
    """
    if len(rows) <= rows.shape[1]:
        return rows
    small: Tensor = torch.linalg.qr(rows, mode="r").R
    return small


def singular_values(rows: Tensor) -> Tensor:
    """Singular values of rows (r, n), descending, min(r, n) of them."""
    return torch.linalg.svdvals(triangle(rows)) if len(rows) else rows.new_zeros(0)


def null_space(rows: Tensor, *, rank: int) -> Tensor:
    """An orthonormal basis of the null space of rows (r, n) of known rank, (n - rank, n)."""
    if not len(rows) or rank == 0:
        return torch.eye(rows.shape[1], dtype=rows.dtype)
    basis: Tensor = torch.linalg.svd(triangle(rows), full_matrices=True).Vh
    return basis[rank:]


def participation_ratio(eigenvalues: ArrayLike) -> float:
    """``(tr H)^2 / tr H^2``: how many equal eigenvalues would concentrate the trace as much.

    It looks at the steep end only and says nothing of flat directions. NaN where H is 0.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    square = float((values**2).sum())
    return float(values.sum() ** 2 / square) if square > 0 else math.nan


def mackay(eigenvalues: ArrayLike, alpha: float, *, multiplicity: ArrayLike | None = None) -> float:
    """MacKay's number of well-determined parameters, ``sum l / (l + alpha)``.

    Args:
        eigenvalues: l >= 0 of the curvature; negative ones count as 0.
        alpha: the prior's precision in the same units, ``1 / (s sigma^2)`` at the tilt s.
        multiplicity: of each eigenvalue; 1 where None.

    Raises:
        UsageError: alpha is not positive.

    Source: MacKay, Neural Computation 4 (1992).
    """
    if not alpha > 0:
        raise UsageError(f"a prior precision of {alpha}: expected a positive number")
    values = np.maximum(np.asarray(eigenvalues, dtype=np.float64), 0.0)
    times = 1.0 if multiplicity is None else np.asarray(multiplicity, dtype=np.float64)
    return float((times * values / (values + alpha)).sum())
