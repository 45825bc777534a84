"""Eigenvectors of the Hessian as directions of a slice; found once and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.eigensolver import extreme_eigenpairs
from landscape.operators import LinearOperator
from landscape.results import FloatArray
from landscape.units import Progress, Units, kept_state

__all__ = ["Eigenvectors", "eigenvectors", "keep_eigenvectors"]

_FOUND, _STATE = "eigenvectors", "lanczos"


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenvectors:
    """Eigenpairs in the order in which they were asked for.

    Attributes:
        values: (k,).
        residuals: ``|Hv - theta v|``, (k,).
        converged: residual within the tolerance times the largest |theta|, (k,).
        vectors: unit rows (k, n), the entry of the largest magnitude of each positive.
        n_matvecs: products that they took.
    """

    values: FloatArray
    residuals: FloatArray
    converged: NDArray[np.bool_]
    vectors: FloatArray
    n_matvecs: int


def eigenvectors(
    operator: LinearOperator,
    wanted: Sequence[int],
    *,
    tol: float,
    seed: int,
    units: Units,
    progress: Progress,
) -> Eigenvectors | None:
    """Eigenvectors by their ranks, 0 for the largest eigenvalue; None where none is wanted.

    Lanczos works from whichever end is nearer, and continues from what ``units`` hold.

    Cost: about 20 to 100 products for a few pairs near the ends, and more for pairs further in.
    """
    if not wanted:
        return None
    stored = units.get(_FOUND)
    if stored is not None:
        return Eigenvectors(
            values=np.asarray(stored["values"]),
            residuals=np.asarray(stored["residuals"]),
            converged=np.asarray(stored["converged"]).astype(np.bool_),
            vectors=np.asarray(stored["vectors"]),
            n_matvecs=int(stored["n_matvecs"]),
        )

    state, on_step = kept_state(units, _STATE, lambda done: progress("eigenvectors", done, None))
    n = operator.n
    top = max((rank + 1 for rank in wanted if rank < n - rank), default=0)
    bottom = max((n - rank for rank in wanted if rank >= n - rank), default=0)
    pairs = extreme_eigenpairs(
        operator,
        top=top,
        bottom=bottom,
        tol=tol,
        seed=seed,
        state=state,
        on_step=on_step,
    )
    places = [rank if rank < n - rank else top + bottom - (n - rank) for rank in wanted]
    vectors = pairs.vectors[places].cpu().to(torch.float64).numpy()
    # The sign of an eigenvector is free.
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], axis=1)
    found = Eigenvectors(
        values=pairs.values[places],
        residuals=pairs.residuals[places],
        converged=pairs.converged[places],
        vectors=vectors * np.sign(largest),
        n_matvecs=pairs.n_matvecs,
    )
    units.drop(_STATE)
    keep_eigenvectors(found, units)
    return found


def keep_eigenvectors(found: Eigenvectors, units: Units) -> None:
    """Take eigenvectors as finished work."""
    units.put(_FOUND, {f.name: getattr(found, f.name) for f in dataclasses.fields(found)})
