"""Parts of the law of the quadratic model, each from its own run, small enough to store.

A part is a :class:`QuadraticForm`, and a law is the sum of its parts: eigenpairs with multiplicity
1; for the rest of the space, probes whose quadrature weights stand for multiplicities (so that sums
over them are tr f(A) without bias), and the quadrature of z* and g, without multiplicity. Ritz
values are never clipped at zero: the noise of single nodes cancels in sums over all of them.

The Gauss rule of a Lanczos run is exact for polynomials, but a spectrum over many decades is not
known by them. The even derivatives of log(1 + s a) and s a / (1 + s a) are negative, so it
overestimates both, and log V comes out too low; their odd derivatives are positive, so the
Gauss-Radau rule with a node at the lower end of the spectrum underestimates them. Every part gives
that rule too, at no further product.

Sources: Golub and Meurant, Matrices, Moments and Quadrature (2010), chapters 6 and 7; Golub, SIAM
Review 15 (1973); Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017), for probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from torch import Tensor

from landscape.coordinates import Coordinates
from landscape.density import probe
from landscape.errors import UsageError
from landscape.krylov import quadrature
from landscape.operators import LinearOperator
from landscape.quadratic_form import QuadraticForm
from landscape.reductions import inner, norm

__all__ = [
    "eigenpair_measure",
    "exact_form",
    "gauss_radau",
    "location_measure",
    "merged",
    "probe_measure",
    "radau_measure",
]

FloatArray = NDArray[np.float64]


def exact_form(
    eigenvalues: ArrayLike, vectors: Tensor, z_star: Tensor, gradient: Tensor | None = None
) -> QuadraticForm:
    """The law of Q from a full eigendecomposition, or from the eigenpairs of a low-rank matrix.

    Args:
        eigenvalues: of A, (k,).
        vectors: orthonormal eigenvectors as rows (k, n). For k < n the rest of the space must be
            the null space of A; it enters as one eigenvalue 0 of multiplicity n - k.
        z_star: the anchor z* in whitened coordinates, (n,).
        gradient: g, (n,); zero where None.

    Raises:
        UsageError: shapes do not fit.

    Cost: 8 k n flops.
    """
    known = eigenpair_measure(eigenvalues, vectors, z_star, gradient)
    k, n = vectors.shape
    if k == n:
        return known
    c, g = _starts(Coordinates(n), z_star, gradient, vectors)
    flat = QuadraticForm(
        eigenvalues=np.zeros(1),
        multiplicity=np.array([float(n - k)]),
        location=np.array([norm(c) ** 2]),
        cross=np.array([float(inner(c[None], g))]),
        slope=np.array([norm(g) ** 2]),
    )
    return merged([known, flat], [1.0, 1.0])


def eigenpair_measure(
    eigenvalues: ArrayLike, vectors: Tensor, z_star: Tensor, gradient: Tensor | None = None
) -> QuadraticForm:
    """The part of the law in known eigenvectors, orthonormal rows (d, n)."""
    a = np.asarray(eigenvalues, dtype=np.float64)
    d, n = vectors.shape
    if a.shape != (d,):
        raise UsageError(
            f"{a.size} eigenvalues and {d} eigenvectors; expected as many of both. Take them from "
            "the same run"
        )
    _check(n, z_star, gradient)
    c = inner(vectors, z_star.to(vectors)).cpu().numpy()
    g = np.zeros(d) if gradient is None else inner(vectors, gradient.to(vectors)).cpu().numpy()
    return _located(a, c, g, multiplicity=np.ones(d))


def probe_measure(
    operator: LinearOperator,
    *,
    index: int,
    seed: int,
    steps: int,
    deflate: Tensor | None = None,
    on_step: Callable[[], None] | None = None,
) -> QuadraticForm:
    """One probe's estimate of the trace measure on the space orthogonal to ``deflate``.

    Args:
        operator: A, whitened, of size n.
        index: number of the probe; each has a random stream of its own.
        seed: seed of the probes.
        steps: Lanczos steps.
        deflate: orthonormal rows (d, n), converged eigenvectors.
        on_step: called after every product.

    Returns:
        multiplicities that sum to n - d and estimate ``tr f(A)`` there without bias.

    Cost: ``steps`` products.
    """
    nodes, weights = probe(
        operator, index, steps=steps, seed=seed, deflate=deflate, on_step=on_step
    )
    rest = operator.n - (0 if deflate is None else len(deflate))
    return QuadraticForm(eigenvalues=nodes, multiplicity=rest * weights)


def location_measure(
    operator: LinearOperator,
    z_star: Tensor,
    gradient: Tensor | None = None,
    *,
    steps: int,
    deflate: Tensor | None = None,
    on_step: Callable[[], None] | None = None,
) -> QuadraticForm:
    """The measures of z* and g on the space orthogonal to ``deflate``, without multiplicity.

    Args:
        operator: A, whitened, of size n.
        z_star: the anchor z*, (n,).
        gradient: g, (n,); zero where None, as for ``behaviour``, and then without cost.
        steps: Lanczos steps for each of the vectors.
        deflate: orthonormal rows (d, n), converged eigenvectors.
        on_step: called after every product.

    Returns:
        nodes with the parts of ``|z*|^2``, ``z* . g`` and ``|g|^2``.

    Cost: ``steps`` products for z* (none where it vanishes), and as many for g; with g also
    ``2 steps n`` numbers.
    """
    _check(operator.n, z_star, gradient)
    if gradient is not None:
        return _pair_measure(operator, z_star, gradient, steps, deflate, on_step)
    x = operator.coordinates
    start, _ = _starts(x, z_star, None, deflate)
    length = x.norm(start)
    if length <= _rounding(operator) * norm(z_star):
        return QuadraticForm(eigenvalues=np.zeros(0), multiplicity=np.zeros(0))
    nodes, weights = quadrature(
        operator, start.to(operator.like), steps=steps, deflate=deflate, on_step=on_step
    )
    return QuadraticForm(
        eigenvalues=nodes, multiplicity=np.zeros_like(nodes), location=length**2 * weights
    )


def radau_measure(part: QuadraticForm, *, steps: int, rest: int) -> QuadraticForm:
    """The Gauss-Radau rule that goes with the Gauss rule of one run.

    Args:
        part: from :func:`probe_measure` or :func:`location_measure`.
        steps: Lanczos steps that the run was given.
        rest: dimension of the space that it worked in.

    Returns:
        the part with a node at 0, or at its lowest node where that is negative. The part itself
        where its run ended early, in an invariant subspace, and where it has a gradient.
    """
    if len(part.eigenvalues) < min(steps, rest + 1) or part.slope.any():
        return part
    weights = part.multiplicity + part.location  # One of them is zero.
    nodes, shares = gauss_radau(
        part.eigenvalues, weights / weights.sum(), end=min(float(part.eigenvalues.min()), 0.0)
    )
    return QuadraticForm(
        eigenvalues=nodes,
        multiplicity=part.multiplicity.sum() * shares,
        location=part.location.sum() * shares,
    )


def gauss_radau(
    nodes: FloatArray, weights: FloatArray, *, end: float
) -> tuple[FloatArray, FloatArray]:
    """The Gauss-Radau rule of as many nodes, one of them at the end, from a Gauss rule.

    Args:
        nodes: of the Gauss rule, (m,), none below the end.
        weights: its weights, which sum to 1.
        end: the prescribed node.

    Returns:
        nodes (m,) ascending and weights, exact for the Gauss rule's measure to degree 2 m - 2.

    Source: Golub, SIAM Review 15 (1973): the last diagonal entry of the Jacobi matrix is changed so
    that the end becomes an eigenvalue. The matrix is found again by Lanczos on the nodes.
    """
    m = len(nodes)
    diagonal, coupling = np.zeros(m), np.zeros(m)
    rows = np.zeros((m + 1, m))
    rows[0] = np.sqrt(weights)
    for j in range(m):
        row = nodes * rows[j]
        diagonal[j] = row @ rows[j]
        for _ in range(2):
            row -= rows[: j + 1].T @ (rows[: j + 1] @ row)
        coupling[j] = np.linalg.norm(row)
        rows[j + 1] = row / coupling[j] if coupling[j] > 0 else 0.0
    # Pivots of the elimination of T - end from the top: the last one is to vanish.
    pivot, before = 1.0, 0.0
    for j in range(m - 1):
        pivot = diagonal[j] - end - before
        if pivot <= np.finfo(np.float64).eps * np.abs(nodes).max():
            return nodes, weights  # The end is a node already.
        before = coupling[j] ** 2 / pivot
    diagonal[-1] = end + before
    found, vectors = linalg.eigh_tridiagonal(diagonal, coupling[: m - 1])
    return found, vectors[0] ** 2


def _pair_measure(
    operator: LinearOperator,
    z_star: Tensor,
    gradient: Tensor,
    steps: int,
    deflate: Tensor | None,
    on_step: Callable[[], None] | None,
) -> QuadraticForm:
    """Rayleigh-Ritz on the block Krylov space of z* and g, which gives all three measures nodes.

    They are then those of one small quadratic form. Polarisation from runs of their own would give
    cross terms larger than the lengths that they belong to.
    """
    x = operator.coordinates
    starts = [start.to(operator.like) for start in _starts(x, z_star, gradient, deflate)]
    floor = _rounding(operator) * max(norm(z_star), norm(gradient))
    known = operator.like.new_empty(0, x.length) if deflate is None else deflate
    d = size = len(known)
    capacity = min(2 * steps, operator.n - d)
    basis = torch.cat([known, operator.like.new_empty(capacity + 2, x.length)])
    for start in starts:
        vector = _orthogonal(x, start.clone(), basis[:size])[0]
        if (length := x.norm(vector)) > floor:
            basis[size] = vector / length
            size += 1
    T: FloatArray = np.zeros((capacity + 2, capacity + 2))
    done, scale = 0, 0.0
    while done < min(capacity, size - d):
        vector = operator.matvec(basis[d + done]).clone()
        if on_step is not None:
            on_step()
        scale = max(scale, x.norm(vector))
        vector, coefficients = _orthogonal(x, vector, basis[:size])
        T[: size - d, done] = coefficients[d:]
        if (length := x.norm(vector)) > _rounding(operator) * scale and size < len(basis):
            T[size - d, done] = length
            basis[size] = vector / length
            size += 1
        done += 1
    inside = T[:done, :done]
    nodes, vectors = np.linalg.eigh((inside + inside.T) / 2)
    c, g = (vectors.T @ x.inner(basis[d : d + done], start).cpu().numpy() for start in starts)
    return _located(nodes, c, g, multiplicity=np.zeros(done))


# Pieces ------------------------------------------------------------------------------------------


def merged(parts: Sequence[QuadraticForm], shares: Sequence[float]) -> QuadraticForm:
    """One law of several parts, in their order; their multiplicities times shares."""
    scaled = [
        replace(part, multiplicity=share * part.multiplicity)
        for part, share in zip(parts, shares, strict=True)
    ]
    names = [item.name for item in fields(QuadraticForm)]
    return QuadraticForm(
        **{name: np.concatenate([getattr(part, name) for part in scaled]) for name in names}
    )


def _located(
    a: FloatArray, c: FloatArray, g: FloatArray, *, multiplicity: FloatArray
) -> QuadraticForm:
    """The law of directions in which z* and g have these coordinates."""
    return QuadraticForm(
        eigenvalues=a, multiplicity=multiplicity, location=c * c, cross=c * g, slope=g * g
    )


def _check(n: int, z_star: Tensor, gradient: Tensor | None) -> None:
    for name, vector in (("z*", z_star), ("the gradient", gradient)):
        if vector is not None and vector.shape != (n,):
            raise UsageError(
                f"{name} has shape {tuple(vector.shape)}; expected ({n},), the operator's size. "
                "Pass one flat vector"
            )


def _rounding(operator: LinearOperator) -> float:
    """Relative length below which a vector of the operator's type is rounding."""
    return float(10 * operator.n**0.5 * torch.finfo(operator.dtype).eps)


def _starts(
    x: Coordinates, z_star: Tensor, gradient: Tensor | None, deflate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """This process's part of z* and g, zero where there is none, orthogonal to ``deflate``."""
    c, g = x.own(z_star), x.own(torch.zeros_like(z_star) if gradient is None else gradient)
    if deflate is None:
        return c, g
    c, g = (_orthogonal(x, vector.to(deflate).clone(), deflate)[0] for vector in (c, g))
    return c, g


def _orthogonal(x: Coordinates, vector: Tensor, rows: Tensor) -> tuple[Tensor, FloatArray]:
    """Project orthonormal rows out of a vector, in place and twice; and what was there, (k,)."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
    for _ in range(2):
        coefficients = x.inner(rows, vector)
        vector.addmv_(rows.T, coefficients.to(vector.dtype), alpha=-1)
        total += coefficients
    return vector, total.cpu().numpy()
