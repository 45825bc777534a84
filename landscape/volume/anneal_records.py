"""What ``anneal`` leaves beside its estimates: its islands, the curve over R and its checks.

Arrays over cutoffs have the axis c, over radii r. Log-volumes are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landscape.volume.islands import Islands

__all__ = ["Annealing", "Check", "Curve"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that could have gone wrong.

    Attributes:
        name: what is looked at.
        value: what was found.
        limit: what it may be: at most, or at least where ``at_least``.
        at_least: which.
        passed: whether it is.
        remedy: what to do where it is not.
    """

    name: str
    value: float
    limit: float
    at_least: bool
    passed: bool
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """``log V`` at the smallest cutoff against the radius, from both starts.

    Attributes:
        radius: R in prior standard deviations (rms), ascending, inf for no limit, (r,).
        ladder: log V from the prior, (r,); NaN where no ladder was run, as all of it.
        ladder_stderr, ladder_lower, ladder_upper: its standard error and 95% interval, (r,).
        ladder_distance: rms distance of the basin's mass from the anchor, in the same unit, (r,).
        outward: log V from the anchor, (r,); NaN where there is none, as all of it.
        outward_stderr, outward_lower, outward_upper, outward_distance: (r,).
        agrees: whether both are known and agree, (r,).
        findings: ``agree``, or why not, in words, (r,).
    """

    radius: FloatArray
    ladder: FloatArray
    ladder_stderr: FloatArray
    ladder_lower: FloatArray
    ladder_upper: FloatArray
    ladder_distance: FloatArray
    outward: FloatArray
    outward_stderr: FloatArray
    outward_lower: FloatArray
    outward_upper: FloatArray
    outward_distance: FloatArray
    agrees: BoolArray
    findings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """What ``anneal`` rests on, beside its estimates.

    Attributes:
        radius: R that was asked for; inf for no limit.
        converged: whether both starts agree there and no check failed.
        agreed_radius: largest R at which both starts agree; NaN where none is known.
        checks: what could have gone wrong.
        curve: log V against R, from both starts.
        ladder: islands of the path from the prior.
        marks: the ladder's mark of every cutoff, (c,).
        outward: islands of the path from the anchor; None where the budget left no time.
        markov: log V is above it with 95% confidence, whatever else is wrong, (c,).
        reverse: log V is below it with 95% confidence, *only at equilibrium*, (c,); inf without a
            run back to the prior.
        reverse_partition: the same bound of log Z at the ladder's end; inf likewise.
        ladder_levels: levels that were planned for the ladder,
        outward_levels: and for the outward run, 0 without one: for a run that goes on.
        symmetries: names of the discrete symmetries that the architecture shows.
        log_orders: log of the number of copies that each makes, in nats.
        n_gradients: gradients of the whole data set, pilots included.
        gradient_seconds: wall time of one, of many chains together; NaN where unknown.
        bare_seconds: the same of the model alone.
    """

    radius: float
    converged: bool
    agreed_radius: float
    checks: tuple[Check, ...]
    curve: Curve
    ladder: Islands
    marks: IntArray
    outward: Islands | None
    markov: FloatArray
    reverse: FloatArray
    reverse_partition: float
    ladder_levels: int
    outward_levels: int
    symmetries: tuple[str, ...]
    log_orders: FloatArray
    n_gradients: int
    gradient_seconds: float
    bare_seconds: float
