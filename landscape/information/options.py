"""What ``landscape information`` is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from landscape.errors import UsageError

__all__ = ["InformationOptions"]


@dataclass(frozen=True, kw_only=True)
class InformationOptions:
    """What to measure.

    Args:
        tol: a singular value counts above this part of the largest, and an eigenvalue of H as
            negative below minus this part of the largest magnitude; 1e-10 in float64 and 1e-5 in
            float32 where None.
        method: ``exact`` builds H and the GGN, ``probes`` never does, ``auto`` is exact up to 4096
            parameters.
        probes: random vectors behind the norms where they are estimated.
        steps: Lanczos steps in search of negative eigenvalues where H is not built; 0 for none.

    Raises:
        UsageError: a number out of range or an unknown word.
    """

    tol: float | None = None
    method: Literal["auto", "exact", "probes"] = "auto"
    probes: int = 16
    steps: int = 100

    def __post_init__(self) -> None:
        if self.tol is not None and not 0 < self.tol < 1:
            raise UsageError(f"--tol {self.tol}: expected a number between 0 and 1, such as 1e-10")
        if self.method not in ("auto", "exact", "probes"):
            raise UsageError(f"--method {self.method!r}: expected auto, exact or probes")
        if self.probes < 2:
            raise UsageError(f"--probes {self.probes}: expected at least 2, to tell their error")
        if self.steps < 0:
            raise UsageError(f"--steps {self.steps}: expected a number from 0")
