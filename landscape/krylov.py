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

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import NotFiniteError
from landscape.memory import total_memory
from landscape.operators import LinearOperator
from landscape.rng import normal, stream

__all__ = ["FUNCTIONS", "Lanczos", "apply_function", "quadrature"]

FloatArray = NDArray[np.float64]

_CHUNK = 1 << 16  # Columns rotated at a time in a restart, so that it needs no second basis.


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
        self._rows = allocate_rows(rows, operator.like, operator.n)
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

    def renew(self, index: int) -> None:
        """Replace the next basis vector by a random one, to look beyond the Krylov space.

        Only where the kept pairs have converged: their coupling to the old vector is dropped.
        """
        vector = normal(self.operator.n, stream(self._seed, "fresh", index), like=self._rows)
        vector, _ = self._orthogonalise(vector / torch.linalg.vector_norm(vector), self.size)
        self._rows[self.d + self.size] = vector / torch.linalg.vector_norm(vector)
        self.T[self.size, : self.size] = self.T[: self.size, self.size] = 0
        self.beta = 0.0

    def orthogonality(self) -> float:
        """Largest entry of ``|Q Q^T - I|``: rounding size, unless ghosts are possible."""
        rows = self._rows[: self.d + self.size]
        gram = (rows @ rows.T).double()
        gram -= torch.eye(len(gram), dtype=torch.float64, device=gram.device)
        return float(gram.abs().max()) if len(gram) else 0.0

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as arrays and numbers."""
        return {
            "rows": self._rows[self.d : self.d + self.size + 1].cpu().numpy().copy(),
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


def allocate_rows(count: int, like: Tensor, n: int) -> Tensor:
    """Uninitialised rows (count, n); on disk, memory-mapped, where half the memory is too small."""
    size = count * n * like.element_size()
    numpy_type = {torch.float32: np.float32, torch.float64: np.float64}.get(like.dtype)
    if like.device.type != "cpu" or numpy_type is None or size <= total_memory(like.device) // 2:
        return like.new_empty(count, n)
    # The file has no name any more: the space is given back when the array or the process ends.
    with tempfile.TemporaryFile(prefix="landscape-basis-") as file:
        return torch.from_numpy(np.memmap(file, dtype=numpy_type, mode="w+", shape=(count, n)))


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
    norm = float(torch.linalg.vector_norm(vector))
    if norm == 0:
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
    return norm * result, error
