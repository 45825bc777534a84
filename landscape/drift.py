"""Partial reorthogonalisation: when, and against what, a Krylov basis must be orthogonalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drift"]

FloatArray = NDArray[np.float64]


class Drift:
    """Estimates how far a basis has drifted from orthogonality without looking at it.

    The inner products ``omega_{j,k} = q_j^T q_k`` obey the Lanczos recurrence with rounding errors
    as its source. Below the root of the rounding unit they change T only by rounding, so the basis
    is reorthogonalised (two steps in a row) only when an estimate passes the limit, and only
    against its leading vectors up to the last one whose estimate is not much smaller.

    Args:
        eps: rounding unit of the vectors.
        power: the limit is ``eps ** power``.
        n: size of the operator.

    Source: Simon, The Lanczos algorithm with partial reorthogonalization, Math. Comp. 42 (1984).
    """

    def __init__(self, eps: float, power: float, n: int) -> None:
        self._eps, self._limit, self._lower = eps, eps**power, eps ** (power + 0.25)
        self._root = n**0.5
        self._earlier = np.zeros(0)  # omega_{j-1, k} for k < j - 1, then 1.
        self._current = np.ones(1)
        self._again = False

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"omega": self._current, "omega_earlier": self._earlier, "again": int(self._again)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._current = np.asarray(state["omega"])
        self._earlier = np.asarray(state["omega_earlier"])
        self._again = bool(state["again"])

    def reach(self, T: FloatArray, j: int, alpha: float, beta: float, scale: float) -> int:
        """Advance to q_{j+1}; how many leading vectors it must be reorthogonalised against."""
        if scale == 0:
            return j + 1
        current, earlier = self._current, self._earlier
        a, b = T.diagonal()[:j], T.diagonal(-1)[:j]  # b[k] couples k and k + 1.
        new = np.zeros(j + 2)
        if beta > 0 and j:
            inner = new[:j]
            np.multiply(b, current[1:], out=inner)
            inner += (a - alpha) * current[:j]
            inner[1:] += b[:-1] * current[: j - 1]
            inner -= b[-1] * earlier
            # The recurrence's own rounding, and a product's along one of n directions.
            source = self._eps * (2 * (b + beta) + 4 * scale / self._root)
            inner += np.copysign(source, inner)
            inner /= beta
        size = abs(alpha) + beta + (b[-1] if j else 0.0)
        new[j], new[j + 1] = self._eps * size / max(beta, self._eps * scale), 1.0
        estimates = np.abs(new[: j + 1])
        wide = bool(estimates.max() > self._limit)
        reach = 0
        if wide or self._again:
            reach = int(np.flatnonzero(estimates > self._lower).max(initial=-1)) + 1
            new[:reach] = 2 * self._eps
        self._again = wide and not self._again
        self._earlier, self._current = current, new
        return reach
