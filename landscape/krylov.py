"""The Lanczos factorisation: full reorthogonalisation, thick restart, quadrature.

Knows nothing of networks.

Notation: the rows of the basis Q are orthonormal and ``A Q^T = Q^T T + beta q e^T``, with T
symmetric (tridiagonal, plus an arrow of kept Ritz values after a restart), q the next basis vector
and e the last unit vector. Vectors live in the operator's dtype; T is float64.

Sources: Parlett, The Symmetric Eigenvalue Problem (1998), chapter 13 (reorthogonalisation: twice
is enough); Wu and Simon, Thick-restart Lanczos, SIAM J. Matrix Anal. Appl. 22 (2000); Golub and
Meurant, Matrices, Moments and Quadrature (2010), chapter 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.drift import Drift
from landscape.errors import NotFiniteError
from landscape.memory import Rows
from landscape.operators import LinearOperator
from landscape.rng import stream

__all__ = ["FUNCTIONS", "GHOST", "GhostError", "Lanczos", "apply_function", "quadrature"]

FloatArray = NDArray[np.float64]

_CHUNK = 1 << 13  # Columns rotated at a time in a restart, so that it needs no second basis.


GHOST = 0.05  # Inner product of two Ritz vectors from which on they may be copies of one.


class GhostError(Exception):
    """A basis drifted farther than was estimated: products are coarser than their dtype says."""


class Lanczos:
    """A Lanczos factorisation that grows by one vector per step.

    Args:
        operator: the symmetric operator A of size n.
        start: start vector (n,), need not be normalised.
        capacity: largest basis size; at most n minus the number of deflated vectors.
        deflate: orthonormal rows (d, n) that the basis stays orthogonal to.
        drift: reorthogonalise only when, and against those vectors where, rounding errors have
            grown to this power of the rounding unit. At 1/2 that keeps T as accurate and hides no
            ghosts, at a third of the cost. Restarts and breakdowns end it. None, and where products
            are coarser than their dtype: at every step.
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
        drift: float | None = None,
        restarts: int = 0,
    ) -> None:
        self.operator = operator
        self._x = operator.coordinates
        self.d = 0 if deflate is None else len(deflate)
        self.capacity = min(capacity, operator.n - self.d)
        rows = self.d + self.capacity + 1
        self._memory = Rows(rows, operator.like, self._x.length)
        self._rows = self._memory.tensor
        if deflate is not None:
            self._rows[: self.d] = deflate
        self.T: FloatArray = np.zeros((self.capacity + 1, self.capacity + 1))
        self._removed: FloatArray = np.zeros_like(self.T if drift is not None else self.T[:0])
        self.size = 0
        self.beta = 0.0
        self.broken = False  # The last step found an invariant subspace.
        self.n_breakdowns = 0
        self.scale = 0.0  # Largest |A q| seen: a lower bound of the norm of A.
        self._seed = restarts
        self._drift: Drift | None = None
        if drift is not None and operator.precision == operator.dtype:
            self._drift = Drift(torch.finfo(operator.dtype).eps, drift, operator.n)
        vector = start / self._x.norm(start)
        self._rows[self.d] = vector / self._project_out(vector, 0)[1]

    @property
    def basis(self) -> Tensor:
        """The orthonormal rows (size, n)."""
        return self._rows[self.d : self.d + self.size]

    @property
    def following(self) -> Tensor:
        """The next basis vector (n,)."""
        return self._rows[self.d + self.size]

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole (deflated) space."""
        return self.size >= self.operator.n - self.d

    @property
    def drifts(self) -> bool:
        """Whether rounding errors are let grow up to a limit."""
        return self._drift is not None

    @property
    def projected(self) -> FloatArray:
        """T = Q A Q^T, (size, size)."""
        return self.T[: self.size, : self.size]

    def _project_out(
        self, vector: Tensor, size: int, before: float | None = None
    ) -> tuple[Tensor, float]:
        """Remove the deflated rows and the first ``size`` basis vectors, in place.

        One pass is enough unless it takes away much of the vector, whose rounding errors it then
        leaves behind relatively larger; twice is (almost always) enough.

        Args:
            vector: the vector (n,).
            size: number of basis vectors.
            before: norm of the vector, where it is known.

        Returns:
            the coefficients along the basis vectors, (size,), and the norm of what is left.
        """
        rows = self._rows[: self.d + size]
        total = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
        before = self._x.norm(vector) if before is None else before
        for _ in range(5):
            coefficients = self._x.inner(rows, vector)
            vector.addmv_(rows.T, coefficients.to(vector.dtype), alpha=-1)
            total += coefficients
            before, earlier = self._x.norm(vector), before
            if before > 0.7 * earlier:
                break
        return total[self.d :], before

    def _random_direction(self, *label: str | int) -> Tensor:
        """A unit vector orthogonal to everything so far."""
        vector = self._x.normal(stream(self._seed, *label), like=self._rows)
        vector /= self._x.norm(vector)
        for _ in range(2):
            vector /= self._project_out(vector, self.size)[1]
        return vector

    def step(self) -> None:
        """Add one basis vector's column to T and prepare the next vector."""
        j = self.size
        current = self._rows[self.d + j]
        vector = self.operator.matvec(current)
        if vector.data_ptr() == current.data_ptr():
            vector = vector.clone()  # An operator may hand its argument back.
        # What the recurrence says first, so that the full pass only removes rounding errors.
        alpha = self._x.dot(current, vector)
        vector.add_(current, alpha=-alpha)
        above = self.T[j, :j]
        if above[:-1].any():  # The arrow after a restart.
            row = torch.as_tensor(above).to(self._rows)
            vector.addmv_(self._rows[self.d : self.d + j].T, row, alpha=-1)
            coupling = float(np.linalg.norm(above))
        elif j:
            coupling = float(above[-1])
            vector.add_(self._rows[self.d + j - 1], alpha=-coupling)
        else:
            coupling = 0.0
        self.beta = self._x.norm(vector)
        self.scale = max(self.scale, math.hypot(coupling, alpha, self.beta))
        reach = j + 1
        if self._drift is not None:
            reach = self._drift.reach(self.T, j, alpha, self.beta, self.scale)
        if reach or self.d:
            along, self.beta = self._project_out(vector, reach, self.beta)
            removed = along.cpu().numpy()
            alpha += float(removed[j]) if reach > j else 0.0
            if self._drift is not None:
                self._removed[: min(reach, j), j] = removed[:j]
        self.T[j, j] = alpha
        self.size = j + 1
        self.broken = self.beta <= 10 * torch.finfo(self.operator.dtype).eps * self.scale
        if self.broken:
            self.beta, self._drift = 0.0, None
            if self.complete:
                return
            # An invariant subspace: any vector orthogonal to it continues the factorisation.
            vector = self._random_direction("breakdown", self.n_breakdowns)
            self.n_breakdowns += 1
            self._rows[self.d + self.size] = vector
        else:
            torch.div(vector, self.beta, out=self._rows[self.d + self.size])
        self.T[self.size, self.size - 1] = self.T[self.size - 1, self.size] = self.beta

    def ritz(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Ritz values (ascending), coefficients (size, size) and residual estimates."""
        values, coefficients = np.linalg.eigh(self.projected)
        return values, coefficients, np.abs(self.couplings(coefficients))

    def couplings(self, coefficients: FloatArray) -> FloatArray:
        """rho_k in ``A x_k = theta_k x_k + rho_k q`` of Ritz vectors x_k = Q^T c_k, (k,)."""
        return self.T[self.size, : self.size] @ coefficients

    def refined(self) -> tuple[FloatArray, FloatArray]:
        """Ritz values and coefficients with what reorthogonalisation removed taken into account.

        Where a basis drifts, ``A Q^T = Q^T (T + E) + beta q e^T`` with the removed coefficients E,
        which ``T`` alone leaves in the residuals. They enter by first-order perturbation theory,
        except between neighbours closer than they are large.
        """
        values, coefficients, _ = self.ritz()
        if self._drift is None:
            return values, coefficients
        removed = self._removed[: self.size, : self.size]
        change = coefficients.T @ removed @ coefficients
        gaps = values - values[:, None]  # theta_k - theta_i for row i, column k.
        wide = np.abs(gaps) > 100 * np.abs(change).max(initial=0.0)
        mixing = np.where(wide, change, 0.0) / np.where(wide, gaps, 1.0)
        return values + np.diag(change), coefficients + coefficients @ mixing

    def vectors(self, coefficients: FloatArray) -> Tensor:
        """Rows ``coefficients^T Q`` (k, n) for coefficients (size, k), re-normalised."""
        rotation = torch.as_tensor(
            coefficients.T.copy(), dtype=self.operator.dtype, device=self.operator.device
        )
        rows = rotation @ self.basis
        for row in rows:
            row /= self._x.norm(row)
        return rows

    def restart(self, keep: NDArray[np.int64]) -> None:
        """Thick restart: keep the Ritz vectors of these indices and the next basis vector.

        They become the first basis vectors, in that order and in place.

        Raises:
            GhostError: they are copies of each other. Projecting them out would amplify rather than
                remove what lies along them, more with every step.
        """
        values, coefficients = self.refined()
        coupling = self.couplings(coefficients[:, keep])
        rotation = torch.as_tensor(
            coefficients[:, keep].T.copy(), dtype=self.operator.dtype, device=self.operator.device
        )
        old = self._rows[self.d : self.d + self.size]
        k = len(keep)
        for start in range(0, self._x.length, _CHUNK):
            columns = slice(start, start + _CHUNK)
            old[:k, columns] = rotation @ old[:, columns]
        if self._drift is not None and self._x.deviation(old[:k]) > GHOST:
            raise GhostError
        self._drift = None
        self._rows[self.d + k] = self._rows[self.d + self.size]
        self.T[:] = 0
        self.T[np.arange(k), np.arange(k)] = values[keep]
        self.T[k, :k] = self.T[:k, k] = coupling
        self.size = k
        # The kept vectors are orthonormal only up to rounding, which restarts would accumulate.
        following = self._rows[self.d + k]
        following /= self._project_out(following, k)[1]

    def renew(self, index: int) -> None:
        """Replace the next basis vector by a random one, to look beyond the Krylov space.

        Only where the kept pairs have converged: their coupling to the old vector is dropped.
        """
        self._rows[self.d + self.size] = self._random_direction("fresh", index)
        self.T[self.size, : self.size] = self.T[: self.size, self.size] = 0
        self.beta = 0.0

    def cut(self, count: int) -> Tensor:
        """The first basis vectors (count, n), which survive; the factorisation ends."""
        return self._memory.cut(self.d + count)[self.d :]

    def orthogonality(self) -> float:
        """Largest entry of ``|Q Q^T - I|``: rounding size, unless ghosts are possible."""
        return self._x.deviation(self._rows[: self.d + self.size])

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as arrays and numbers."""
        return {
            "rows": self._x.collected(self._rows[self.d : self.d + self.size + 1]).numpy().copy(),
            "T": self.T[: self.size + 1, : self.size + 1].copy(),
            "beta": self.beta,
            "scale": self.scale,
            "n_breakdowns": self.n_breakdowns,
            **self._drift_state(),
        }

    def _drift_state(self) -> dict[str, Any]:
        if self._drift is None:
            return {}
        return {**self._drift.state(), "removed": self._removed[: self.size, : self.size].copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state` of a run with the same arguments."""
        rows = np.asarray(state["rows"])
        self.size = len(rows) - 1
        stored = self._x.own(torch.from_numpy(rows))
        self._rows[self.d : self.d + len(rows)] = stored.to(self._rows)
        self.T[:] = 0
        self.T[: len(rows), : len(rows)] = np.asarray(state["T"])
        self.beta = float(state["beta"])
        self.scale = float(state["scale"])
        self.n_breakdowns = int(state["n_breakdowns"])
        if self._drift is None:
            return
        if "removed" in state:
            self._drift.load_state(state)
            self._removed[: self.size, : self.size] = np.asarray(state["removed"])
        else:
            self._drift = None


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
    lanczos = Lanczos(operator, start, capacity=steps, deflate=deflate, drift=0.5)
    while lanczos.size < lanczos.capacity:
        lanczos.step()
        if on_step is not None:
            on_step()
        if lanczos.broken:
            break
    nodes, vectors = np.linalg.eigh(lanczos.projected)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum()


FUNCTIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "exp": np.exp,
    "log1p": np.log1p,
    "inverse": lambda t: 1 / t,
    "inverse_sqrt": lambda t: 1 / np.sqrt(t),
}


def apply_function(
    operator: LinearOperator,
    vector: Tensor,
    function: str | Callable[[FloatArray], FloatArray],
    *,
    tol: float = 1e-8,
    max_steps: int = 500,
) -> tuple[Tensor, float]:
    """``f(A) v`` by Lanczos: ``|v| Q^T f(T) e_1``.

    Args:
        operator: symmetric operator of size n, whose spectrum lies where f is defined.
        vector: v, (n,).
        function: ``exp``, ``log1p``, ``inverse``, ``inverse_sqrt`` or a function of eigenvalues.
        tol: stop when the last steps changed the result by at most tol times its norm.
        max_steps: largest Krylov space.

    Returns:
        f(A) v and the estimated relative error: the change over the last fifth of the steps.

    Raises:
        NotFiniteError: f is not finite on the Ritz values (such as log1p below -1).

    Cost: one product per step. Source: Higham, Functions of Matrices (2008), section 13.2.
    """
    f = FUNCTIONS[function] if isinstance(function, str) else function
    length = operator.coordinates.norm(vector)
    if length == 0:
        return torch.zeros_like(vector), 0.0
    lanczos = Lanczos(operator, vector, capacity=max_steps)
    error, earlier = np.inf, [np.zeros(0)]
    while lanczos.size < lanczos.capacity:
        lanczos.step()
        values, coefficients, _ = lanczos.ritz()
        with np.errstate(all="ignore"):
            image = f(values)
        if not np.isfinite(image).all():
            bad = values[~np.isfinite(image)][0]
            raise NotFiniteError(
                f"the function is not finite at the Ritz value {bad:.6g}; expected a spectrum "
                "inside its domain. Shift or scale the operator"
            )
        weights = coefficients @ (image * coefficients[0])
        earlier.append(weights)
        if lanczos.broken or lanczos.complete:
            error = 0.0
            break
        # Single steps can stall; the change over several is a safer estimate.
        old = earlier[-1 - max(lanczos.size // 5, 2)] if lanczos.size > 5 else np.zeros(0)
        change = weights - np.pad(old, (0, len(weights) - len(old)))
        error = float(np.linalg.norm(change)) / max(float(np.linalg.norm(weights)), 1e-300)
        if error <= tol:
            break
    result = lanczos.basis.T @ torch.as_tensor(weights).to(lanczos.basis)
    return length * result, error
