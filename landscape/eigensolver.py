"""Extreme eigenpairs by thick-restart Lanczos, verified by fresh products; knows no networks.

Source: Wu and Simon, Thick-restart Lanczos, SIAM J. Matrix Anal. Appl. 22 (2000).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import UsageError
from landscape.krylov import GHOST, FloatArray, GhostError, Lanczos
from landscape.operators import LinearOperator
from landscape.restarts import default_basis_size, is_long, kept, restart_size, wanted_and_next
from landscape.rng import stream

__all__ = ["RitzPairs", "extreme_eigenpairs"]

_COMBINATIONS = 2  # Random combinations of Ritz vectors that a fresh product checks.
_DRIFT = 0.65  # See Lanczos: what drift leaves after refinement is of the square of this power.
_FEW = 32
_ROUNDS = 3  # Times that fresh residuals above the tolerance send the iteration on.


@dataclass(frozen=True, kw_only=True)
class RitzPairs:
    """Approximate eigenpairs, in descending order.

    Attributes:
        values: Ritz values, or Rayleigh quotients where every x was multiplied afresh, (k,).
        residuals: ``|A x - theta x|``, (k,): from the same products, or an upper bound of it from
            fresh products with random combinations of all x, where that shows convergence.
        converged: residual within the tolerance times the largest |theta|, (k,).
        vectors: orthonormal rows x, (k, n).
        n_matvecs: products used, those of the residuals included.
        n_restarts: thick restarts.
        orthogonality: largest entry of ``|X X^T - I|`` of the vectors: ghosts would show here.
    """

    values: FloatArray
    residuals: FloatArray
    converged: NDArray[np.bool_]
    vectors: Tensor
    n_matvecs: int
    n_restarts: int
    orthogonality: float


def extreme_eigenpairs(
    operator: LinearOperator,
    *,
    top: int,
    bottom: int = 0,
    tol: float,
    seed: int = 0,
    multiplicity: Literal["auto", "always"] = "auto",
    max_basis: int | None = None,
    max_matvecs: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    state: Mapping[str, Any] | None = None,
    on_step: Callable[[int, Callable[[], dict[str, Any]]], None] | None = None,
) -> RitzPairs:
    """The algebraically largest and smallest eigenpairs by thick-restart Lanczos.

    A Krylov space holds one vector of every eigenspace, so further copies of a repeated eigenvalue
    are looked for by fresh random vectors in the complement of what has converged, until such a
    vector changes nothing. ``auto`` does so where it matters in practice: after a breakdown, and
    where the wanted eigenvalues reach zero, which singular networks have many times over.

    Args:
        operator: symmetric operator of size n.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        tol: a pair has converged when its residual is at most tol times the largest |theta|.
        seed: seed of the start vector and of all later random vectors.
        multiplicity: ``always`` looks for further copies of every wanted eigenvalue.
        max_basis: basis vectors held in memory (default: :func:`default_basis_size`).
        max_matvecs: stop after so many products, converged or not (default 5000 + 100 per pair).
        stop: asked after every step; where it says so, the run ends as with ``max_matvecs``.
        state: a snapshot to continue from.
        on_step: called before every step with the products so far and a function that takes a
            snapshot: everything that a resumed run needs.

    Raises:
        UsageError: more pairs than n, or a negative number of them.

    Cost: about 20 to 100 products for a few pairs, and one more product per pair.
    """
    n, wanted = operator.n, top + bottom
    if top < 0 or bottom < 0:
        raise UsageError(f"top {top}, bottom {bottom}: expected numbers that are not negative")
    if wanted > n:
        raise UsageError(
            f"{wanted} eigenvalues asked for (top {top}, bottom {bottom}), but the matrix has only "
            f"{n}; ask for at most {n}"
        )
    if wanted == 0:
        return _no_pairs(operator)
    capacity = min(n, default_basis_size(operator, wanted) if max_basis is None else max_basis)
    x = operator.coordinates
    capacity = x.least(max(capacity, min(n, wanted + 5)))
    limit = 5000 + 100 * wanted if max_matvecs is None else max_matvecs
    start = x.normal(stream(seed, "lanczos"), like=operator.like)
    long = max_basis is None and is_long(operator, capacity, tol)
    # Restarts accumulate what a drifting basis leaves: not where they are to be expected.
    drift = _DRIFT if wanted <= _FEW and not long else None
    lanczos = Lanczos(operator, start, capacity=capacity, drift=drift, restarts=seed)
    count = {"n_matvecs": 0, "n_restarts": 0, "round": 0, "n_fresh": 0}
    before = np.zeros(0)  # Wanted values before the last fresh vector.
    if state is not None:
        lanczos.load_state(state)
        count = {key: int(state[key]) for key in count}
        before = np.asarray(state["before"])

    def snapshot() -> dict[str, Any]:
        return {**lanczos.state(), **count, "before": before}

    def anew() -> Lanczos:
        # Ghosts come where products are coarser than their dtype, such as float32 within float64.
        return Lanczos(operator, start, capacity=capacity, restarts=seed)

    while True:
        if on_step is not None:
            on_step(count["n_matvecs"], snapshot)
        full = min(capacity, restart_size(count["n_matvecs"], wanted)) if long else capacity
        if lanczos.size >= full and not lanczos.complete:
            try:
                lanczos.restart(kept(lanczos.size, top, bottom))
            except GhostError:
                lanczos = anew()
            count["n_restarts"] += 1
        lanczos.step()
        count["n_matvecs"] += 1
        # Rounding can leave fresh residuals above the estimates: aim lower in every round.
        goal = tol * 0.5 * 0.1 ** count["round"]
        exhausted = (count["n_matvecs"] >= limit or stop()) and lanczos.size >= wanted
        beyond = count["n_fresh"] > 0
        if not (exhausted or _settled(lanczos, top, bottom, goal, beyond=beyond)):
            continue
        pairs = _verified(lanczos, top, bottom, tol, count, spare=long and not lanczos.complete)
        if pairs.orthogonality > GHOST and lanczos.drifts and not exhausted:
            lanczos, count["round"] = anew(), 0
            continue
        if lanczos.complete or exhausted:
            return _own(pairs, lanczos)
        count["round"] += 1
        if not pairs.converged.all() and count["round"] < _ROUNDS:
            continue
        largest = np.abs(pairs.values).max()
        if len(before) and np.abs(pairs.values - before).max() <= tol * largest:
            return _own(pairs, lanczos)
        reaches_zero = bool((pairs.values[:top] <= tol * largest).any()) or bool(
            (pairs.values[top:] >= -tol * largest).any()
        )
        if multiplicity == "auto" and not (reaches_zero or lanczos.n_breakdowns):
            return _own(pairs, lanczos)
        size = lanczos.size
        lanczos.restart(np.r_[np.arange(bottom), np.arange(size - top, size)])
        lanczos.renew(count["n_fresh"])
        count["n_fresh"] += 1
        count["round"] = 0
        before = pairs.values


def _no_pairs(operator: LinearOperator) -> RitzPairs:
    return RitzPairs(
        values=np.zeros(0),
        residuals=np.zeros(0),
        converged=np.zeros(0, dtype=np.bool_),
        vectors=torch.zeros(
            0, operator.coordinates.length, dtype=operator.dtype, device=operator.device
        ),
        n_matvecs=0,
        n_restarts=0,
        orthogonality=0.0,
    )


def _settled(lanczos: Lanczos, top: int, bottom: int, goal: float, *, beyond: bool) -> bool:
    """Whether the residual estimates of the wanted Ritz values are within the goal.

    With ``beyond``, the first unwanted value at each wanted end must be known well enough too: a
    hidden copy of a wanted eigenvalue would show there.
    """
    if lanczos.complete:
        return True
    size = lanczos.size
    # Dense solves of T grow as its cube: look at every tenth part of a growing basis.
    if size <= top + bottom + 2 * beyond or size % max(1, size // 25):
        return False
    values, _, estimates = lanczos.ritz()
    largest = np.abs(values).max()
    if np.r_[estimates[:bottom], estimates[size - top :]].max() > goal * largest:
        return False
    if beyond and top:
        gap = values[size - top] - values[size - top - 1]
        if estimates[size - top - 1] > max(goal * largest, 0.1 * gap):
            return False
    if beyond and bottom:
        gap = values[bottom] - values[bottom - 1]
        return bool(estimates[bottom] <= max(goal * largest, 0.1 * gap))
    return True


def _verified(
    lanczos: Lanczos, top: int, bottom: int, tol: float, count: dict[str, int], *, spare: bool
) -> RitzPairs:
    """Orthonormal Ritz pairs with residuals from fresh products.

    With ``spare`` of memory, the vectors take the place of the basis, by a restart that keeps a few
    others to go on with.
    """
    x = lanczos.operator.coordinates
    estimated, coefficients = lanczos.refined()
    size = lanczos.size
    wanted = wanted_and_next(size, top, bottom)[: top + bottom]
    values, coupling = estimated[wanted], lanczos.couplings(coefficients[:, wanted])
    if spare:
        lanczos.restart(wanted_and_next(size, top, bottom))
        vectors = lanczos.basis[: len(wanted)]
    else:
        vectors = lanczos.vectors(coefficients[:, wanted])
    largest = float(np.abs(estimated).max())
    residuals = np.full(len(wanted), np.inf)
    hopeful = bool((np.abs(coupling) <= tol * largest).all())
    if hopeful and len(wanted) > 2 * _COMBINATIONS:
        error = _combined_error(lanczos, vectors, values, coupling, count)
        residuals = np.hypot(coupling, error)
    if (residuals > tol * largest).any():
        for place, row in enumerate(vectors):
            product = lanczos.operator.fresh(row)
            if product.data_ptr() == row.data_ptr():
                product = product.clone()  # An operator may hand its argument back.
            count["n_matvecs"] += 1
            exact = row.to(product.dtype)
            values[place] = x.dot(exact, product) / x.dot(exact, exact)
            residuals[place] = x.norm(product.double().sub_(exact, alpha=values[place]))
    order = np.argsort(-values, kind="stable")
    if (np.diff(order) != 1).any():
        vectors = vectors[torch.as_tensor(order, device=vectors.device)]
    return RitzPairs(
        values=values[order],
        residuals=residuals[order],
        converged=residuals[order] <= tol * largest,
        vectors=vectors,
        n_matvecs=count["n_matvecs"],
        n_restarts=count["n_restarts"],
        orthogonality=x.deviation(vectors),
    )


def _own(pairs: RitzPairs, lanczos: Lanczos) -> RitzPairs:
    """The pairs with vectors that hold no memory of the basis, which ends."""
    if not len(pairs.values) or pairs.vectors.data_ptr() != lanczos.basis.data_ptr():
        return pairs
    return replace(pairs, vectors=lanczos.cut(len(pairs.values)))


def _combined_error(
    lanczos: Lanczos,
    vectors: Tensor,
    values: FloatArray,
    coupling: FloatArray,
    count: dict[str, int],
) -> float:
    """How far ``A x = theta x + rho q`` is from holding, for all pairs together.

    With random signs g, ``A sum_k g_k x_k`` from a fresh product differs from the sum of the right
    sides by ``sum_k g_k e_k``, whose squared norm has the mean ``sum_k |e_k|^2``: the larger of two
    draws bounds every pair's error e_k, up to the chance that errors of equal direction cancel.
    """
    errors = []
    for draw in range(_COMBINATIONS):
        generator = stream(0, "residuals", count["n_matvecs"], draw)
        signs = torch.randint(0, 2, (len(values),), generator=generator).numpy() * 2.0 - 1.0
        rows = vectors.T
        product = lanczos.operator.fresh(rows @ torch.as_tensor(signs).to(vectors)).double()
        count["n_matvecs"] += 1
        product -= (rows @ torch.as_tensor(signs * values).to(vectors)).double()
        if lanczos.beta > 0:
            product.sub_(lanczos.following, alpha=float(signs @ coupling))
        errors.append(lanczos.operator.coordinates.norm(product))
    return max(errors)
