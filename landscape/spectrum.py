"""Eigenvalues of one operator: all from the explicit matrix, or the extreme ones by Lanczos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.eigensolver import RitzPairs, extreme_eigenpairs
from landscape.errors import UsageError
from landscape.operators import LinearOperator
from landscape.results import Spectrum
from landscape.rng import stream

__all__ = ["EXACT_LIMIT", "dense_matrix", "dense_spectrum", "gram_spectrum", "lanczos_spectrum"]

_BLOCK = 64

EXACT_LIMIT = 4096  # Largest n whose matrix is built explicitly (128 MiB in float64).


def dense_matrix(
    operator: LinearOperator,
    *,
    rows: Tensor | None = None,
    on_rows: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """The explicit matrix (n, n) in float64 on the CPU, symmetric up to the products' rounding.

    Args:
        operator: symmetric operator of size n.
        rows: leading rows (multiples of 64) that an earlier run built.
        on_rows: called with the matrix and the number of its rows built so far.

    Cost: n matrix-vector products.
    """
    n = operator.n
    matrix = torch.empty(n, n, dtype=torch.float64)
    done = 0 if rows is None else len(rows)
    if rows is not None:
        matrix[:done] = rows
    for start in range(done, n, _BLOCK):
        unit = torch.zeros(min(_BLOCK, n - start), n, dtype=operator.dtype, device=operator.device)
        unit[torch.arange(len(unit)), torch.arange(start, start + len(unit))] = 1
        matrix[start : start + len(unit)] = operator.rows(unit).double().cpu()
        if on_rows is not None:
            on_rows(matrix, start + len(unit))
    return matrix


def dense_spectrum(
    operator: LinearOperator,
    name: str,
    *,
    top: int,
    bottom: int,
    tol: float,
    rows: Tensor | None = None,
    on_rows: Callable[[Tensor, int], None] | None = None,
) -> tuple[Spectrum, Tensor]:
    """All eigenvalues of the explicitly built matrix, in float64.

    Args:
        operator: symmetric operator of size n.
        name: its name.
        top: how many of the largest eigenvalues count as asked for.
        bottom: how many of the smallest.
        tol: tolerance of the convergence flags.
        rows: leading rows of the matrix (multiples of 64) that an earlier run built.
        on_rows: called with the matrix and the number of its rows built so far.

    Returns:
        the spectrum (all n eigenvalues) and the unit eigenvectors as rows (n, n), descending.

    Cost: n matrix-vector products, O(n^3) flops and 3 n^2 numbers.
    """
    n = operator.n
    check_wanted(n, top, bottom)
    matrix = dense_matrix(operator, rows=rows, on_rows=on_rows)
    largest = float(matrix.abs().max())
    symmetry = float((matrix - matrix.T).abs().max()) / largest if largest > 0 else 0.0
    matrix = (matrix + matrix.T) / 2
    values, vectors = torch.linalg.eigh(matrix)
    vectors = vectors.T.flip(0).contiguous()
    values = values.flip(0)
    residuals = torch.linalg.vector_norm(vectors @ matrix - values[:, None] * vectors, dim=1)
    spectrum = Spectrum(
        operator=name,
        method="dense",
        eigenvalues=values.numpy(),
        residuals=residuals.numpy(),
        converged=(residuals <= tol * values.abs().max()).numpy(),
        tol=tol,
        top=top,
        bottom=bottom,
        orthogonality=_orthogonality(vectors),
        symmetry=symmetry,
        n_restarts=0,
        n_matvecs=n,
    )
    return spectrum, vectors


def gram_spectrum(
    rows: Tensor, name: str, *, top: int, bottom: int, tol: float
) -> tuple[Spectrum, Tensor]:
    """All eigenvalues of ``F^T F`` from the small matrix ``F F^T``, in float64.

    Args:
        rows: the factor F, (r, n) with any r, in float64.
        name: the operator's name.
        top: how many of the largest eigenvalues count as asked for.
        bottom: how many of the smallest.
        tol: tolerance of the convergence flags.

    Returns:
        the spectrum: min(r, n) eigenvalues of the Gram matrix and exact zeros up to n; and unit
        eigenvectors of the ``top`` largest as rows (top, n). Residuals of the others are the
        rounding of the small eigenproblem, ``eps * r * lambda_1``.

    Cost: r^2 n + O(r^3) flops.
    """
    r, n = rows.shape
    check_wanted(n, top, bottom)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0), vectors.flip(1)
    known = min(r, n)
    eigenvalues = torch.zeros(n, dtype=torch.float64)
    # F F^T is positive semi-definite: a negative value is rounding, as large as every value's own.
    eigenvalues[:known] = values[:known].clamp(min=0)
    largest = float(eigenvalues[0])
    floor = torch.finfo(torch.float64).eps * max(r, 1) * largest
    leading = _leading_vectors(rows, eigenvalues, vectors, floor, top)
    residuals = torch.full((n,), floor, dtype=torch.float64)
    gaps = (leading @ rows.T) @ rows - eigenvalues[:top, None] * leading
    residuals[:top] = torch.linalg.vector_norm(gaps, dim=1)
    spectrum = Spectrum(
        operator=name,
        method="gram",
        eigenvalues=eigenvalues.numpy(),
        residuals=residuals.numpy(),
        converged=(residuals <= tol * largest).numpy(),
        tol=tol,
        top=top,
        bottom=bottom,
        orthogonality=_orthogonality(leading),
        symmetry=0.0,
        n_restarts=0,
        n_matvecs=r,
    )
    return spectrum, leading


def _leading_vectors(
    rows: Tensor, eigenvalues: Tensor, left: Tensor, floor: float, top: int
) -> Tensor:
    """Unit rows (top, n): ``F^T u / sqrt(lambda)``, then null vectors of F where the rank ends."""
    rank = int((eigenvalues > floor).sum())
    kept = min(top, rank)
    leading = (left[:, :kept] / eigenvalues[:kept].sqrt()).T @ rows
    if top > kept:
        generator = stream(0, "null vectors")
        draws = torch.randn(top - kept, rows.shape[1], generator=generator, dtype=torch.float64)
        inverse = left[:, :rank] / eigenvalues[:rank]
        for _ in range(2):
            draws = draws - ((draws @ rows.T) @ inverse) @ left[:, :rank].T @ rows
        leading = torch.cat([leading, torch.linalg.qr(draws.T).Q.T])
    return leading


def _orthogonality(rows: Tensor) -> float:
    gram = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)
    return float(gram.abs().max()) if len(rows) else 0.0


def lanczos_spectrum(
    operator: LinearOperator,
    name: str,
    *,
    top: int,
    bottom: int,
    tol: float,
    seed: int,
    multiplicity: Literal["auto", "always"] = "auto",
    stop: Callable[[], bool] = lambda: False,
    state: Mapping[str, Any] | None = None,
    on_step: Callable[[int, Callable[[], dict[str, Any]]], None] | None = None,
) -> tuple[Spectrum, Tensor]:
    """The top and bottom eigenvalues by thick-restart Lanczos.

    See :func:`landscape.eigensolver.extreme_eigenpairs` for the arguments and the cost.

    Returns:
        the spectrum and the orthonormal Ritz vectors as rows (k, n), descending.
    """
    check_wanted(operator.n, top, bottom)
    pairs = extreme_eigenpairs(
        operator,
        top=top,
        bottom=bottom,
        tol=tol,
        seed=seed,
        multiplicity=multiplicity,
        stop=stop,
        state=state,
        on_step=on_step,
    )
    return from_pairs(pairs, name, top=top, bottom=bottom, tol=tol), pairs.vectors


def from_pairs(pairs: RitzPairs, name: str, *, top: int, bottom: int, tol: float) -> Spectrum:
    """The result record of Ritz pairs."""
    return Spectrum(
        operator=name,
        method="lanczos",
        eigenvalues=pairs.values,
        residuals=pairs.residuals,
        converged=pairs.converged,
        tol=tol,
        top=top,
        bottom=bottom,
        orthogonality=pairs.orthogonality,
        symmetry=float(np.nan),
        n_restarts=pairs.n_restarts,
        n_matvecs=pairs.n_matvecs,
    )


def check_wanted(n: int, top: int, bottom: int) -> None:
    """Refuse numbers of eigenvalues that the matrix does not have."""
    if top < 0:
        raise UsageError(f"--top {top}: expected a number that is not negative")
    if bottom < 0:
        raise UsageError(f"--bottom {bottom}: expected a number that is not negative")
    if top + bottom > n:
        raise UsageError(
            f"--top {top} --bottom {bottom} asks for {top + bottom} eigenvalues, but there are "
            f"only n = {n} parameters; ask for at most {n} in all"
        )
