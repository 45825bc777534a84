"""Lanczos with full reorthogonalisation, thick restart and quadrature; knows nothing of networks.

Notation: the rows of the basis Q are orthonormal and ``A Q^T = Q^T T + beta q e^T``, with T
symmetric (tridiagonal, plus an arrow of kept Ritz values after a restart), q the next basis vector
and e the last unit vector. Vectors live in the operator's dtype; T is float64.

Sources: Parlett, The Symmetric Eigenvalue Problem (1998), chapter 13 (reorthogonalisation: twice
is enough); Wu and Simon, Thick-restart Lanczos, SIAM J. Matrix Anal. Appl. 22 (2000); Golub and
Meurant, Matrices, Moments and Quadrature (2010), chapter 6.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import UsageError
from landscape.operators import LinearOperator
from landscape.rng import normal, stream

__all__ = ["Lanczos", "RitzPairs", "extreme_eigenpairs", "quadrature"]

FloatArray = NDArray[np.float64]

_CHUNK = 1 << 16  # Columns rotated at a time in a restart, so that it needs no second basis.
_ROUNDS = 3  # Times that fresh residuals above the tolerance send the iteration on.


class Lanczos:
    """A Lanczos factorisation that grows by one vector per step.

    Args:
        operator: the symmetric operator A of size n.
        start: start vector (n,), need not be normalised.
        capacity: largest basis size; at most n minus the number of deflated vectors.
        deflate: orthonormal rows (d, n) that the basis stays orthogonal to.
        restarts: seed of the random vectors that continue after a breakdown.

    Cost: one matrix-vector product and about 8 n j flops for step j; (capacity + d + 1) n numbers.
    """

    def __init__(
        self,
        operator: LinearOperator,
        start: Tensor,
        *,
        capacity: int,
        deflate: Tensor | None = None,
        restarts: int = 0,
    ) -> None:
        self.operator = operator
        self.d = 0 if deflate is None else len(deflate)
        self.capacity = min(capacity, operator.n - self.d)
        rows = self.d + self.capacity + 1
        self._rows = torch.empty(rows, operator.n, dtype=operator.dtype, device=operator.device)
        if deflate is not None:
            self._rows[: self.d] = deflate
        self.T: FloatArray = np.zeros((self.capacity + 1, self.capacity + 1))
        self.size = 0
        self.beta = 0.0
        self.broken = False  # The last step found an invariant subspace.
        self.n_breakdowns = 0
        self.scale = 0.0  # Largest |A q| seen: a lower bound of the norm of A.
        self._seed = restarts
        vector, _ = self._orthogonalise(start.clone(), 0)
        self._rows[self.d] = vector / torch.linalg.vector_norm(vector)

    @property
    def basis(self) -> Tensor:
        """The orthonormal rows (size, n)."""
        return self._rows[self.d : self.d + self.size]

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole (deflated) space."""
        return self.size >= self.operator.n - self.d

    @property
    def projected(self) -> FloatArray:
        """T = Q A Q^T, (size, size)."""
        return self.T[: self.size, : self.size]

    def _orthogonalise(self, vector: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Project out the deflated rows and the first ``size`` basis vectors, twice or more."""
        rows = self._rows[: self.d + size]
        total = torch.zeros(len(rows), dtype=vector.dtype, device=vector.device)
        norm = float(torch.linalg.vector_norm(vector))
        for attempt in range(5):
            coefficients = rows @ vector
            vector = vector - rows.T @ coefficients
            total += coefficients
            before, norm = norm, float(torch.linalg.vector_norm(vector))
            # A pass that takes away half of a vector leaves rounding errors of relative size 2.
            if attempt >= 1 and norm > 0.5 * before:
                break
        return vector, total[self.d :]

    def step(self) -> None:
        """Add one basis vector's column to T and prepare the next vector."""
        j = self.size
        product = self.operator.matvec(self._rows[self.d + j])
        self.scale = max(self.scale, float(torch.linalg.vector_norm(product)))
        vector, coefficients = self._orthogonalise(product, j + 1)
        self.T[j, j] = float(coefficients[j])
        self.size = j + 1
        self.beta = float(torch.linalg.vector_norm(vector))
        self.broken = self.beta <= 10 * torch.finfo(self.operator.dtype).eps * self.scale
        if self.broken:
            self.beta = 0.0
            if self.complete:
                return
            # An invariant subspace: any vector orthogonal to it continues the factorisation.
            generator = stream(self._seed, "breakdown", self.n_breakdowns)
            self.n_breakdowns += 1
            vector = normal(self.operator.n, generator, like=vector)
            vector, _ = self._orthogonalise(vector / torch.linalg.vector_norm(vector), self.size)
        self._rows[self.d + self.size] = vector / torch.linalg.vector_norm(vector)
        self.T[self.size, self.size - 1] = self.T[self.size - 1, self.size] = self.beta

    def ritz(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Ritz values (ascending), coefficients (size, size) and residual estimates."""
        values, coefficients = np.linalg.eigh(self.projected)
        return values, coefficients, np.abs(self.beta * coefficients[-1])

    def vectors(self, coefficients: FloatArray) -> Tensor:
        """Rows ``coefficients^T Q`` (k, n) for coefficients (size, k), re-normalised."""
        rotation = torch.as_tensor(
            coefficients.T.copy(), dtype=self.operator.dtype, device=self.operator.device
        )
        rows = rotation @ self.basis
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows

    def restart(self, keep: NDArray[np.int64]) -> None:
        """Thick restart: keep the Ritz vectors of these indices and the next basis vector."""
        values, coefficients, _ = self.ritz()
        rotation = torch.as_tensor(
            coefficients[:, keep].T.copy(), dtype=self.operator.dtype, device=self.operator.device
        )
        old = self._rows[self.d : self.d + self.size]
        k = len(keep)
        for start in range(0, self.operator.n, _CHUNK):
            columns = slice(start, start + _CHUNK)
            old[:k, columns] = rotation @ old[:, columns]
        self._rows[self.d + k] = self._rows[self.d + self.size]
        coupling = self.beta * coefficients[-1, keep]
        self.T[:] = 0
        self.T[np.arange(k), np.arange(k)] = values[keep]
        self.T[k, :k] = self.T[:k, k] = coupling
        self.size = k
        # The kept vectors are orthonormal only up to rounding, which restarts would accumulate.
        self._tidy(k)

    def _tidy(self, k: int) -> None:
        next_vector, _ = self._orthogonalise(self._rows[self.d + k].clone(), k)
        self._rows[self.d + k] = next_vector / torch.linalg.vector_norm(next_vector)

    def orthogonality(self) -> float:
        """Largest entry of ``|Q Q^T - I|``: rounding size, unless ghosts are possible."""
        rows = self._rows[: self.d + self.size]
        gram = (rows @ rows.T).double()
        gram -= torch.eye(len(gram), dtype=torch.float64, device=gram.device)
        return float(gram.abs().max()) if len(gram) else 0.0

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as arrays and numbers."""
        return {
            "rows": self._rows[self.d : self.d + self.size + 1].cpu().numpy(),
            "T": self.T[: self.size + 1, : self.size + 1].copy(),
            "beta": self.beta,
            "scale": self.scale,
            "n_breakdowns": self.n_breakdowns,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state` of a run with the same arguments."""
        rows = np.asarray(state["rows"])
        self.size = len(rows) - 1
        self._rows[self.d : self.d + len(rows)] = torch.from_numpy(rows).to(self._rows)
        self.T[:] = 0
        self.T[: len(rows), : len(rows)] = np.asarray(state["T"])
        self.beta = float(state["beta"])
        self.scale = float(state["scale"])
        self.n_breakdowns = int(state["n_breakdowns"])


@dataclass(frozen=True, kw_only=True)
class RitzPairs:
    """Approximate eigenpairs, in descending order.

    Attributes:
        values: Rayleigh quotients ``x^T A x`` from fresh products, (k,).
        residuals: ``|A x - theta x|`` from the same products, (k,).
        converged: residual within the tolerance times the largest |theta|, (k,).
        vectors: orthonormal rows x, (k, n).
        n_matvecs: products used, those of the residuals included.
        n_restarts: thick restarts.
        orthogonality: largest entry of ``|Q Q^T - I|`` of the final basis.
    """

    values: FloatArray
    residuals: FloatArray
    converged: NDArray[np.bool_]
    vectors: Tensor
    n_matvecs: int
    n_restarts: int
    orthogonality: float


def total_memory() -> int:
    """Bytes of physical memory, or 4 GB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def default_basis_size(operator: LinearOperator, wanted: int) -> int:
    """A basis size that rarely needs a restart, within a quarter of the device's memory.

    Total rather than free memory, so that a resumed run restarts at the same steps.
    """
    if operator.device.type == "cuda":
        memory = torch.cuda.mem_get_info(operator.device)[1] // 4
    else:
        memory = total_memory() // 4
    vector = operator.n * torch.finfo(operator.dtype).bits // 8
    return max(2 * wanted + 16, min(4 * wanted + 200, memory // vector))


def extreme_eigenpairs(
    operator: LinearOperator,
    *,
    top: int,
    bottom: int = 0,
    tol: float,
    seed: int = 0,
    max_basis: int | None = None,
    max_matvecs: int | None = None,
    state: Mapping[str, Any] | None = None,
    on_step: Callable[[dict[str, int], Lanczos], None] | None = None,
) -> RitzPairs:
    """The algebraically largest and smallest eigenpairs by thick-restart Lanczos.

    Args:
        operator: symmetric operator of size n.
        top: number of largest eigenvalues.
        bottom: number of smallest eigenvalues.
        tol: a pair has converged when its residual is at most tol times the largest |theta|.
        seed: seed of the start vector and of the vectors that continue after breakdowns.
        max_basis: basis vectors held in memory (default: :func:`default_basis_size`).
        max_matvecs: stop after so many products, converged or not (default 5000 + 100 per pair).
        state: counters and Lanczos state, as passed to ``on_step``, to continue from.
        on_step: called before every step with the counters and the factorisation: what a
            resumed run needs as ``state``.

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
        empty = np.zeros(0)
        rows = torch.zeros(0, n, dtype=operator.dtype, device=operator.device)
        return RitzPairs(
            values=empty,
            residuals=empty,
            converged=np.zeros(0, dtype=np.bool_),
            vectors=rows,
            n_matvecs=0,
            n_restarts=0,
            orthogonality=0.0,
        )
    capacity = min(n, default_basis_size(operator, wanted) if max_basis is None else max_basis)
    capacity = max(capacity, min(n, wanted + 3))
    limit = 5000 + 100 * wanted if max_matvecs is None else max_matvecs
    start = normal(n, stream(seed, "lanczos"), like=operator.like)
    lanczos = Lanczos(operator, start, capacity=capacity, restarts=seed)
    count = {"n_matvecs": 0, "n_restarts": 0, "round": 0}
    if state is not None:
        lanczos.load_state(state)
        count = {key: int(state[key]) for key in count}
    while True:
        if on_step is not None:
            on_step(count, lanczos)
        if lanczos.size == lanczos.capacity and not lanczos.complete:
            lanczos.restart(_kept(lanczos.size, top, bottom))
            count["n_restarts"] += 1
        lanczos.step()
        count["n_matvecs"] += 1
        # Rounding can leave fresh residuals above the estimates: aim lower in every round.
        goal = tol * 0.5 * 0.1 ** count["round"]
        exhausted = count["n_matvecs"] >= limit and lanczos.size >= wanted
        if not (exhausted or _settled(lanczos, top, bottom, goal)):
            continue
        pairs = _verified(lanczos, top, bottom, tol, count)
        count["round"] += 1
        if lanczos.complete or exhausted or pairs.converged.all() or count["round"] >= _ROUNDS:
            return pairs


def _kept(size: int, top: int, bottom: int) -> NDArray[np.int64]:
    """Indices of the Ritz values that survive a restart: the wanted ones and half of the rest."""
    extra = max((size - top - bottom) // 2, 1)
    share = top / (top + bottom)
    upper = min(top + round(extra * share), size - 1 - bottom)
    lower = min(bottom + extra - round(extra * share), size - 1 - upper)
    return np.concatenate([np.arange(lower), np.arange(size - upper, size)])


def _settled(lanczos: Lanczos, top: int, bottom: int, goal: float) -> bool:
    if lanczos.complete:
        return True
    size = lanczos.size
    # Dense solves of T grow as its cube: look at every tenth part of a growing basis.
    if size <= top + bottom or size % max(1, size // 50):
        return False
    values, _, estimates = lanczos.ritz()
    wanted = np.r_[estimates[:bottom], estimates[size - top :]]
    return bool(wanted.max() <= goal * np.abs(values).max())


def _verified(
    lanczos: Lanczos, top: int, bottom: int, tol: float, count: dict[str, int]
) -> RitzPairs:
    """Ritz pairs with Rayleigh quotients and residuals recomputed from fresh products."""
    _, coefficients, _ = lanczos.ritz()
    size = lanczos.size
    wanted = np.r_[np.arange(size - 1, size - 1 - top, -1), np.arange(bottom - 1, -1, -1)]
    vectors = lanczos.vectors(coefficients[:, wanted.astype(np.int64)])
    values, residuals = np.zeros(len(wanted)), np.zeros(len(wanted))
    for start in range(0, len(wanted), 16):
        rows = vectors[start : start + 16]
        products = lanczos.operator.rows(rows)
        count["n_matvecs"] += len(rows)
        rows64, products64 = rows.double(), products.double()
        theta = (rows64 * products64).sum(1)
        gap = torch.linalg.vector_norm(products64 - theta[:, None] * rows64, dim=1)
        values[start : start + 16] = theta.cpu().numpy()
        residuals[start : start + 16] = gap.cpu().numpy()
    order = np.argsort(-values, kind="stable")
    largest = max(float(np.abs(values).max()), float(np.abs(lanczos.ritz()[0]).max()))
    return RitzPairs(
        values=values[order],
        residuals=residuals[order],
        converged=residuals[order] <= tol * largest,
        vectors=vectors[torch.as_tensor(order.copy(), device=vectors.device)],
        n_matvecs=count["n_matvecs"],
        n_restarts=count["n_restarts"],
        orthogonality=lanczos.orthogonality(),
    )


def quadrature(
    operator: LinearOperator,
    start: Tensor,
    *,
    steps: int,
    deflate: Tensor | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Gauss quadrature of the start vector's spectral measure.

    ``sum_j weights_j f(nodes_j)`` equals ``v^T f(A) v / v^T v`` exactly for polynomials f of degree
    below ``2 steps``, and for every f once an invariant subspace is reached.

    Args:
        operator: symmetric operator of size n.
        start: start vector v (n,); its part along ``deflate`` is projected out first.
        steps: Lanczos steps, at most n minus the number of deflated rows.
        deflate: orthonormal rows (d, n); the measure is that of the compressed operator.
        on_step: called after every step.

    Returns:
        nodes (m,) ascending and weights (m,) with sum 1, m <= steps.

    Cost: m matrix-vector products and (m + d + 1) n numbers.
    """
    lanczos = Lanczos(operator, start, capacity=steps, deflate=deflate)
    while lanczos.size < lanczos.capacity:
        lanczos.step()
        if on_step is not None:
            on_step()
        if lanczos.broken:
            break
    nodes, vectors = np.linalg.eigh(lanczos.projected)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum()
