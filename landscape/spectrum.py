"""Eigenvalues of one operator: all from the explicit matrix, or the extreme ones by Lanczos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.eigensolver import RitzPairs, extreme_eigenpairs
from landscape.errors import UsageError
from landscape.operators import LinearOperator
from landscape.results import Spectrum

__all__ = ["EXACT_LIMIT", "exact_spectrum", "lanczos_spectrum"]

_BLOCK = 64

EXACT_LIMIT = 4096  # Largest n whose matrix is built explicitly (128 MiB in float64).


def exact_spectrum(
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
    largest = float(matrix.abs().max())
    symmetry = float((matrix - matrix.T).abs().max()) / largest if largest > 0 else 0.0
    matrix = (matrix + matrix.T) / 2
    values, vectors = torch.linalg.eigh(matrix)
    vectors = vectors.T.flip(0).contiguous()
    values = values.flip(0)
    residuals = torch.linalg.vector_norm(vectors @ matrix - values[:, None] * vectors, dim=1)
    gram = vectors @ vectors.T
    spectrum = Spectrum(
        operator=name,
        method="exact",
        eigenvalues=values.numpy(),
        residuals=residuals.numpy(),
        converged=(residuals <= tol * values.abs().max()).numpy(),
        tol=tol,
        top=top,
        bottom=bottom,
        orthogonality=float((gram - torch.eye(n, dtype=torch.float64)).abs().max()),
        symmetry=symmetry,
        n_restarts=0,
        n_matvecs=n,
    )
    return spectrum, vectors


def lanczos_spectrum(
    operator: LinearOperator,
    name: str,
    *,
    top: int,
    bottom: int,
    tol: float,
    seed: int,
    max_matvecs: int | None = None,
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
        max_matvecs=max_matvecs,
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
