"""A family of parameter changes that leave the behaviour as it is, and its tangents.

A family maps coefficients c in R^k to parameters, the identity at c = 0: a group near its identity,
or a linear space. Its tangents are the derivatives there, one row for each coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from landscape.flat.subject import Subject

__all__ = ["Family", "null_rows", "orthonormal", "selected", "tangents", "tried"]

Act = Callable[[Mapping[str, Tensor], Tensor], dict[str, Tensor]]

LIMIT = 1 << 28  # Numbers in a family's tangents (2 GiB in float64).
_CHUNK = 64
_NULL = 1e-9  # Relative size of what counts as zero among spans.


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Parameters as a function of coefficients.

    Attributes:
        name: the kind of symmetry, such as ``relu rescaling``.
        layer: the module that it acts on.
        size: k, number of coefficients.
        act: the parameters that move, by name, at coefficients (k,).
        local: it holds for small coefficients only, as long as no unit changes sides.
        symmetry: False where the data cause it rather than the architecture.
        alternatives: smaller families, to be tried where this one is refuted.
    """

    name: str
    layer: str
    size: int
    act: Act
    local: bool = False
    symmetry: bool = True
    alternatives: tuple[Family, ...] = ()


def orthonormal(rows: Tensor, *, tol: float = _NULL) -> Tensor:
    """An orthonormal basis of the span of rows (k, n), which are scaled to one length first.

    Returns:
        rows (rank, n); singular values below ``tol`` times the largest count as zero.
    """
    length = torch.linalg.vector_norm(rows, dim=1)
    kept = length > tol * length.max() if len(rows) else length > 0
    rows = rows[kept] / length[kept, None]
    if not len(rows):
        return rows
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    span: Tensor = basis[singular > tol * singular[0]]
    return span


def null_rows(matrix: Tensor, *, tol: float = _NULL, scale: float = 0.0) -> Tensor:
    """An orthonormal basis of ``{x: matrix x = 0}`` as rows, for a matrix (m, n).

    Singular values up to ``tol`` times the largest, or times ``scale``, count as zero.
    """
    m, n = matrix.shape
    if not m or not bool(matrix.any()):
        return torch.eye(n, dtype=matrix.dtype)
    # A tall matrix has all right singular vectors without m x m left ones, m being all weights.
    _, singular, basis = torch.linalg.svd(matrix, full_matrices=m < n)
    rank = int((singular > tol * max(float(singular[0]), scale)).sum())
    span: Tensor = basis[rank:]
    return span


def tangents(family: Family, subject: Subject) -> Tensor:
    """Derivatives at c = 0 in all parameters, (k, N), float64: selected ones first.

    Cost: k derivatives of the action, and k N numbers.
    """
    return subject.flatten(_derivatives(family, subject), family.size)


def selected(rows: Tensor, n: int) -> Tensor:
    """Of rows (k, N) the combinations whose coordinates beyond the first n are 0, (k', n)."""
    if rows.shape[1] == n or not bool(rows[:, n:].any()):
        return rows[:, :n]
    return null_rows(rows[:, n:].T, scale=float(rows.abs().max())) @ rows[:, :n]


def _derivatives(family: Family, subject: Subject) -> dict[str, Tensor]:
    """Derivatives at c = 0 of all parameters that move, (k, *shape) by name.

    ``J^T u`` is linear in u, so that its derivative in u gives J without forward mode.
    """
    c = torch.zeros(family.size, dtype=torch.float64, requires_grad=True)
    moved = {n: t for n, t in family.act(subject.parameters, c).items() if t.requires_grad}
    if not moved:
        return {}
    probes = [torch.zeros_like(tensor, requires_grad=True) for tensor in moved.values()]
    (pulled,) = torch.autograd.grad(tuple(moved.values()), c, probes, create_graph=True)
    eye = torch.eye(family.size, dtype=torch.float64)
    parts = [
        torch.autograd.grad(
            pulled,
            probes,
            rows,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=True,
        )
        for rows in torch.split(eye, _CHUNK)
    ]
    return {name: torch.cat([part[place] for part in parts]) for place, name in enumerate(moved)}


def tried(family: Family, subject: Subject, generator: Generator, *, scale: float) -> float:
    """Relative change of the behaviour under a random finite element.

    Args:
        family: what moves.
        subject: whose outputs are compared.
        generator: draws the element.
        scale: standard deviation of the coefficients, but for families of many coefficients.

    Cost: one forward pass.
    """
    draw = torch.randn(family.size, generator=generator, dtype=torch.float64)
    # Elements of matrix groups grow with their size; they are to stay well-conditioned.
    element = draw * scale / max(1.0, family.size**0.25)
    return subject.change(family.act(subject.parameters, element))
