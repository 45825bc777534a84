"""The whitened curvature at the anchor, through the eigenpairs that volumes are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.eigensolver import RitzPairs, extreme_eigenpairs
from landscape.gram import factor
from landscape.memory import stored_tensor
from landscape.operators import LinearOperator
from landscape.risk import Risk
from landscape.spectrum import dense_spectrum
from landscape.units import Progress, Units, kept_state

__all__ = ["Curved", "Proposal", "Route", "curved", "dense_eigenpairs", "factored"]

Route = Literal["dense", "gram", "lanczos"]

_TOL = 1e-6  # Of deflated pairs: what their residuals hide enters log V in second order.


@dataclass(frozen=True, kw_only=True)
class Curved:
    """``A = Sigma^(1/2) H Sigma^(1/2)`` at z*.

    Attributes:
        route: ``dense``: every eigenpair. ``gram``: every one that is not zero. ``lanczos``: the
            largest, converged.
        operator: A, (n, n).
        values: eigenvalues in descending order, (d,), float64.
        vectors: unit eigenvectors as rows, (d, n), float64.
        anchor: z*, (n,), float64.
        gradient: the whitened gradient g, (n,); None where it is exactly zero.
        n_matvecs: matrix-vector products behind them, pulled-back rows of a factor included.
        whole: whether the budget left time to find every eigenpair that was asked for.
    """

    route: Route
    operator: LinearOperator
    values: Tensor
    vectors: Tensor
    anchor: Tensor
    gradient: Tensor | None
    n_matvecs: int
    whole: bool = True


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What tilts the directions of rays, the same however many probes a run has.

    Attributes:
        model: the whitened curvature.
        tilt: s at every cutoff, (c,); NaN where the curvature is 0.
        bulk: mean of the eigenvalues that have no eigenpair; 0 where all have one.
    """

    model: Curved
    tilt: NDArray[np.float64]
    bulk: float = 0.0


def curved(
    operator: LinearOperator,
    route: Route,
    *,
    risk: Risk,
    scale: Tensor,
    anchor: Tensor,
    gradient: Tensor | None,
    top: int,
    seed: int,
    units: Units,
    stop: Callable[[], bool],
    progress: Progress,
) -> Curved:
    """Eigenpairs of the whitened curvature.

    Args:
        operator: A.
        route: how; see :class:`Curved`.
        risk: the loss whose GGN has the factor of ``gram``.
        scale: the prior's standard deviations, (n,).
        anchor: z*, (n,).
        gradient: the whitened gradient, (n,).
        top: eigenpairs of ``lanczos``.
        seed: seed of its start vector.
        units: where unfinished state is kept.
        stop: whether the budget is spent; asked on the ``lanczos`` route only.
        progress: called with the products done.

    Cost: n products and O(n^3) flops (``dense``), r vector-Jacobian products and O(n r^2) flops for
    r rows (``gram``), some hundred products (``lanczos``).
    """
    whole = True
    if route == "dense":
        values, vectors = dense_eigenpairs(operator, units, progress)
        count = operator.n
    elif route == "gram":
        values, vectors, count = _gram(risk, scale, units, progress)
    else:
        values, vectors, count = _largest(operator, top, seed, units, stop, progress)
        whole = units.get("pairs") is not None
    return Curved(
        route=route,
        operator=operator,
        values=values,
        vectors=vectors,
        anchor=anchor,
        gradient=gradient,
        n_matvecs=count,
        whole=whole,
    )


def dense_eigenpairs(
    operator: LinearOperator, units: Units, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), descending, and eigenvectors as rows (n, n) of the explicit matrix.

    Rows of the matrix that are built are kept as the unit ``matrix``. Cost: n products, O(n^3)
    flops.
    """

    def on_rows(matrix: Tensor, done: int) -> None:
        progress("curvature matrix", done, operator.n)
        if units.due() or done == operator.n:
            units.put("matrix", {"rows": matrix[:done].numpy().copy()})

    stored = units.get("matrix")
    spectrum, vectors = dense_spectrum(
        operator,
        "curvature",
        top=0,
        bottom=0,
        tol=1e-8,
        rows=None if stored is None else stored_tensor(stored["rows"]),
        on_rows=on_rows,
    )
    return torch.from_numpy(spectrum.eigenvalues), vectors


def _gram(
    risk: Risk, scale: Tensor, units: Units, progress: Progress
) -> tuple[Tensor, Tensor, int]:
    def on_rows(rows: Tensor) -> None:
        progress("curvature factor", len(rows), None)
        if units.due():
            units.put("factor", {"rows": rows.numpy().copy()})

    stored = units.get("factor")
    rows = factor(
        risk, rows=None if stored is None else stored_tensor(stored["rows"]), on_rows=on_rows
    )
    return *factored(rows * scale), len(rows)


def factored(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenpairs of ``F^T F`` that are not zero, for F (r, n) in float64.

    From the QR decomposition of F^T rather than the Gram matrix, which would square the condition
    number: small eigenvalues are then known to ``eps^2 lambda_1`` and vectors are orthonormal.

    Returns:
        eigenvalues (d,) descending and eigenvectors as rows (d, n), d <= min(r, n).

    Cost: O(n r^2) flops.
    """
    if not len(rows):
        return rows.new_zeros(0), rows.new_zeros(0, rows.shape[1])
    basis, triangle = torch.linalg.qr(rows.T)
    left, singular, _ = torch.linalg.svd(triangle)
    floor = torch.finfo(rows.dtype).eps * max(rows.shape) * float(singular[0])
    kept = int((singular > floor).sum())
    return singular[:kept] ** 2, (basis @ left[:, :kept]).T.contiguous()


def _largest(
    operator: LinearOperator,
    top: int,
    seed: int,
    units: Units,
    stop: Callable[[], bool],
    progress: Progress,
) -> tuple[Tensor, Tensor, int]:
    wanted = min(top, operator.n)
    stored = units.get("pairs")
    if stored is not None:
        values, vectors = (stored_tensor(stored[name]) for name in ("values", "vectors"))
        return values, vectors, int(stored["n_matvecs"])

    state, on_step = kept_state(
        units, "lanczos", lambda done: progress("largest eigenvalues", done, None), stop=stop
    )
    pairs = extreme_eigenpairs(
        operator,
        top=wanted,
        tol=_TOL,
        seed=seed,
        stop=stop,
        state=state,
        on_step=on_step,
    )
    values, vectors = _converged(operator, pairs)
    if not (stop() and len(values) < wanted):
        units.drop("lanczos")
        found = {"values": values.numpy(), "vectors": vectors.numpy()}
        units.put("pairs", {**found, "n_matvecs": pairs.n_matvecs})
    return values, vectors, pairs.n_matvecs


def _converged(operator: LinearOperator, pairs: RitzPairs) -> tuple[Tensor, Tensor]:
    kept = np.flatnonzero(pairs.converged)
    vectors = pairs.vectors[torch.as_tensor(kept, device=pairs.vectors.device)]
    vectors = operator.coordinates.whole(vectors).double().cpu()
    return torch.from_numpy(pairs.values[kept]), vectors
