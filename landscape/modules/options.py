"""What ``landscape modules`` is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from landscape.errors import UsageError
from landscape.modules.patterns import GroupPatterns
from landscape.volume.options import PriorOptions, check_cutoffs

__all__ = ["MOST_GROUPS", "ModulesOptions"]

MOST_GROUPS = 12  # Whose pairs are measured without being asked for.


@dataclass(frozen=True, kw_only=True)
class ModulesOptions(PriorOptions):
    """What to measure between which groups, under a prior.

    Attributes:
        groups: ``layer``, ``block``, ``head``, a TOML file's path, or patterns.
        tilt: s of ``M = I + s A``; where None the one at which the quadratic model's mean excess
            loss is the cutoff.
        curvature: ``ggn``, ``hessian``, or ``auto``: the GGN for ``behaviour``, whose Hessian it is
            at the anchor, else the Hessian.
        method: ``exact`` builds the curvature or its factor, ``matrix-free`` never does, ``auto``
            builds it where it is small enough.
        tol: singular values of a block above this part of the largest absolute eigenvalue count
            towards its rank; where None 1e-10, in float32 1e-5 and in bfloat16 0.05, above what
            rounding leaves.
        sketch: test vectors of every group, for norms and ranks, where matrix-free.
        steps: Lanczos steps of every log-determinant and probe there.
        probes: probes of the log-determinants there.
        pairs: whether the coupling of every pair is measured where matrix-free; for few groups
            where None.

    Raises:
        UsageError: a number out of range or an unknown word.
    """

    groups: str | GroupPatterns = "layer"
    tilt: float | None = None
    curvature: Literal["auto", "ggn", "hessian"] = "auto"
    method: Literal["auto", "exact", "matrix-free"] = "auto"
    tol: float | None = None
    sketch: int = 24
    steps: int = 60
    probes: int = 10
    pairs: bool | None = None

    def __post_init__(self) -> None:
        if self.prior != "gaussian":
            raise UsageError(
                f"--prior {self.prior}: expected gaussian, under which the quadratic model's law "
                "has a precision matrix whose blocks can be coupled"
            )
        for name, value, allowed in (
            ("curvature", self.curvature, ("auto", "ggn", "hessian")),
            ("method", self.method, ("auto", "exact", "matrix-free")),
        ):
            if value not in allowed:
                raise UsageError(f"--{name} {value!r}: expected one of {', '.join(allowed)}")
        check_cutoffs(self.cutoffs)
        if len(self.cutoffs) > 1:
            raise UsageError(
                f"--cutoff: {len(self.cutoffs)} cutoffs; expected one, since each has a tilt of "
                "its own. Run the command once for each"
            )
        if self.tilt is not None and not 0 <= self.tilt < math.inf:
            raise UsageError(f"--tilt {self.tilt}: expected a number that is not negative")
        if self.tol is not None and not 0 < self.tol < 1:
            raise UsageError(f"--tol {self.tol}: expected a number between 0 and 1, such as 1e-10")
        for name, number, least in (
            ("sketch", self.sketch, 8),
            ("steps", self.steps, 2),
            ("probes", self.probes, 2),
        ):
            if number < least:
                raise UsageError(f"--{name} {number}: expected a whole number of at least {least}")
