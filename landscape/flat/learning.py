"""The learning coefficient: how the log-volume falls with the cutoff.

``V(e) ~ c e^lambda log(1/e)^(m - 1)`` as e goes to 0 (Watanabe, Algebraic Geometry and Statistical
Learning Theory, 2009). The multiplicity m is given: it cannot be fitted from noisy values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.errors import UsageError
from landscape.flat.records import LearningCoefficient
from landscape.volume.records import VolumeEstimate

__all__ = ["coefficient_of", "effective_dimension", "learning_coefficient"]

FloatArray = NDArray[np.float64]

_FEWEST = 3
# A correction that falls as a power of the cutoff is at most this many times larger than the change
# that leaving the upper half out makes.
_CAUTION = 3.0
# V ~ e^lambda (log(1/e) + b)^(m - 1) with an unknown b of order 1 (2.2 for x^2 y^2).
_OFFSET = 3.0


def learning_coefficient(
    cutoff: ArrayLike,
    log_volume: ArrayLike,
    stderr: ArrayLike | None = None,
    *,
    multiplicity: int = 1,
) -> LearningCoefficient:
    """Fit ``log V = lambda log e + (m - 1) log log(1/e) + c`` by weighted least squares.

    Args:
        cutoff: e in (0, 1), (c,), in the units of the loss per example.
        log_volume: log V in nats, (c,); cutoffs where it is not finite are left out.
        stderr: standard errors of log V, (c,); 0 or None where they are exact.
        multiplicity: m >= 1.

    Returns:
        lambda with its standard error: that of the log-volumes (of the residuals where they are
        larger), and three times how far the fit of the lower half of the cutoffs lies from that of
        all, beyond what noise explains: the asymptotic law is only reached as e goes to 0. For
        m > 1 also what adding 3 to log(1/e) changes, since its constant is unknown. NaN and the
        reason where fewer than three cutoffs are left.

    Raises:
        UsageError: shapes that do not fit, a cutoff outside (0, 1), m below 1, a negative error.
    """
    e, y = (np.asarray(v, dtype=np.float64).reshape(-1) for v in (cutoff, log_volume))
    error = np.zeros_like(y) if stderr is None else np.asarray(stderr, dtype=np.float64).reshape(-1)
    if not len(e) == len(y) == len(error):
        raise UsageError(
            f"{len(e)} cutoffs, {len(y)} log-volumes and {len(error)} standard errors; expected as "
            "many of each"
        )
    if multiplicity < 1:
        raise UsageError(f"a multiplicity of {multiplicity}: expected 1 or more")
    if not ((e > 0) & (e < 1)).all():
        raise UsageError(
            f"cutoffs from {e.min():g} to {e.max():g}: the learning coefficient is defined for "
            "cutoffs between 0 and 1. Choose smaller ones"
        )
    if (error < 0).any():
        raise UsageError("a negative standard error of a log-volume; expected 0 or more")
    kept = np.isfinite(y) & np.isfinite(error)
    e, y, error = e[kept], y[kept], error[kept]
    distinct = len(np.unique(e))
    if distinct < _FEWEST:
        return LearningCoefficient(
            value=math.nan,
            stderr=math.nan,
            multiplicity=multiplicity,
            n_cutoffs=distinct,
            lowest=float(e.min(initial=math.inf)) if len(e) else math.nan,
            highest=float(e.max(initial=0.0)) if len(e) else math.nan,
            misfit=math.nan,
            reason=f"{distinct} cutoff{'s' * (distinct != 1)} with a log-volume; expected "
            f"{_FEWEST} or more",
        )
    order = np.argsort(e)
    e, y, error = e[order], y[order], error[order]
    other, _, _ = _line(np.log(e), y - (multiplicity - 1) * np.log(np.log(1 / e) + _OFFSET), error)
    y = y - (multiplicity - 1) * np.log(np.log(1 / e))
    value, own, misfit = _line(np.log(e), y, error)
    half = max(2, (len(e) + 1) // 2)
    low, low_error, _ = _line(np.log(e[:half]), y[:half], error[:half])
    # The lower half is part of the whole: the variances of nested fits subtract.
    noise = max(low_error**2 - own**2, 0.0) if (error > 0).any() else 0.0
    drift = math.sqrt(max((low - value) ** 2 - noise, 0.0))
    return LearningCoefficient(
        value=value,
        stderr=math.hypot(own, _CAUTION * drift, other - value),
        multiplicity=multiplicity,
        n_cutoffs=len(e),
        lowest=float(e[0]),
        highest=float(e[-1]),
        misfit=misfit,
    )


def coefficient_of(estimate: VolumeEstimate, *, multiplicity: int = 1) -> LearningCoefficient:
    """The learning coefficient of one method's log-volumes, without cutoffs of 1 or more.

    Lower bounds are left out: their distance from the log-volume is unknown.
    """
    used = (estimate.cutoff < 1) & ~estimate.lower_bound
    parts = (estimate.cutoff, estimate.log_volume, estimate.stderr)
    return learning_coefficient(*(part[used] for part in parts), multiplicity=multiplicity)


def _line(x: FloatArray, y: FloatArray, error: FloatArray) -> tuple[float, float, float]:
    """Slope of a weighted line, its standard error and the largest residual."""
    # One exact value beside noisy ones must not fix the line alone.
    floor = np.median(error[error > 0]) if (error > 0).any() else 1.0
    weight = 1 / np.maximum(error, floor) ** 2
    mean_x, mean_y = weight @ x / weight.sum(), weight @ y / weight.sum()
    spread = float(weight @ (x - mean_x) ** 2)
    slope = float(weight @ ((x - mean_x) * (y - mean_y))) / spread
    residual = y - mean_y - slope * (x - mean_x)
    freedom = len(x) - 2
    scatter = float(weight @ residual**2) / freedom if freedom > 0 else 0.0
    # Known errors are trusted unless the residuals are larger; without any only those tell.
    known = 1.0 if (error > 0).any() else 0.0
    stderr = math.sqrt(max(known, scatter) / spread)
    return slope, stderr, float(np.abs(residual).max())


def effective_dimension(cutoff: ArrayLike, log_volume: ArrayLike) -> FloatArray:
    """``2 d log V / d log e`` over a range of cutoffs: how many directions the scale e feels.

    Args:
        cutoff: e > 0, ascending, (c,).
        log_volume: log V in nats, (c,).

    Returns:
        (c,): central differences in log e, of second order inside and of first at the ends; NaN for
        fewer than two cutoffs and beside values that are not finite.

    Raises:
        UsageError: shapes that do not fit, cutoffs that are not positive and ascending.
    """
    e, y = (np.asarray(v, dtype=np.float64).reshape(-1) for v in (cutoff, log_volume))
    if len(e) != len(y) or not (e > 0).all() or not (np.diff(e) > 0).all():
        raise UsageError(
            f"{len(e)} cutoffs and {len(y)} log-volumes; expected as many of each, with cutoffs "
            "that are positive and ascending"
        )
    if len(e) < 2:
        return np.full_like(y, math.nan)
    with np.errstate(invalid="ignore"):
        slope = np.gradient(y, np.log(e))
    return np.where(np.isfinite(slope), 2 * slope, math.nan)
