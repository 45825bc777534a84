"""The mean of importance weights, in log space, with an error that does not pretend.

Knows nothing of losses or rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

__all__ = ["LogMean", "log_mean", "log_mean_exp", "mean_of_estimates", "tail_index"]

FloatArray = NDArray[np.float64]

ENOUGH = 10.0  # Effective weights below which the estimate is only a lower bound.
EVEN = 0.99  # Part of the weights that are effective above which the tail says nothing.
FEWEST = 4  # Estimates below which their spread is unknown.
FEW = 64  # Estimates up to which they are taken for log-normal unless they are even.
DOUBT = 0.4  # Variance of the log of how far a variance is from that of its path's parts.
WIDEST = 12.0  # Variance of log-normal estimates beyond which their mean is out of sight.
_NODES = 512  # Of the quadrature over a variance.
HEAVY = 0.7  # Tail index above which means converge too slowly to be of use.


@dataclass(frozen=True, kw_only=True)
class LogMean:
    """``log of the mean of w`` for independent weights w >= 0.

    Attributes:
        value: log-mean-exp of the log-weights, in nats.
        stderr: delete-one jackknife standard error of it.
        lower: lower end of the 95% interval.
        upper: upper end; inf for a lower bound.
        label: ``estimate`` or ``lower bound``.
        ess: effective number of weights, ``(sum w)^2 / sum w^2``.
        largest_share: largest weight's share of the sum.
        tail_index: k of the generalised Pareto law fitted to the largest weights; -inf where they
            are equal, NaN where there are too few.
        freedom: degrees of freedom of the standard error.
    """

    value: float
    stderr: float
    lower: float
    upper: float
    label: str
    ess: float
    largest_share: float
    tail_index: float
    freedom: float


def log_mean_exp(logs: FloatArray, axis: int | tuple[int, ...] = -1) -> FloatArray:
    """Log of the mean of ``exp(logs)`` over some axes; -inf where all are."""
    axes = (axis,) if isinstance(axis, int) else axis
    count = math.prod(logs.shape[a] for a in axes)
    with np.errstate(divide="ignore"):
        total: FloatArray = special.logsumexp(logs, axis=axes)
    return total - math.log(count)


def log_mean(logs: FloatArray) -> LogMean:
    """Log of the mean weight with a jackknife error and a 95% interval.

    With L the log-mean-exp and ``q = t(0.975, ESS - 1)`` the interval is
    ``[L - q stderr, L - bias + q (1 + 2 a q) stderr]``. Skew weights make L miss upwards: the bias
    is the jackknife's and a the acceleration (a sixth of the weights' skewness over the root of
    their number), whose leading term in a studentised interval is 2 a q.

    Fewer than 10 effective weights, or any number with a tail index above 0.7 (unless they are
    equal to a tenth), say nothing of the weights unseen. Their mean is still unbiased, so that by
    Markov's inequality it is above 20 times its expectation in at most one sample of 20: the label
    is ``lower bound`` and the interval ``[L - log 20, inf]``.

    Measured on 500 samples of 200 weights, log-normal with ESS of 180, 80, 50, 30 and 17 or
    Pareto with index 1/k of 2.5 and 2.1, the interval holds the truth in 96, 94, 97, 94, 93, 94 and
    91% (of 30 weights with that tail, in 87%).

    Args:
        logs: log-weights in nats, -inf allowed, (k,), k >= 1.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 11.5 and 14.3;
    Hall, Theoretical comparison of bootstrap confidence intervals, Ann. Stat. 16 (1988); Vehtari
    et al., Pareto smoothed importance sampling, JMLR 25 (2024), section 3.2 (the threshold).
    """
    count = len(logs)
    value = float(log_mean_exp(logs))
    share = special.softmax(logs) if value > -math.inf else np.zeros(count)
    ess = float(1 / (share**2).sum()) if share.any() else 0.0
    stderr, bias, acceleration = _jackknife(share)
    tail = tail_index(share)
    # The tail of weights that are nearly equal is that of their rounding.
    known = ess >= ENOUGH and (not tail > HEAVY or ess > EVEN * count)
    lower, upper = value - math.log(20), math.inf
    if known:
        q = float(stats.t.ppf(0.975, ess - 1))
        lower = value - q * stderr
        upper = value - bias + q * (1 + 2 * acceleration * q) * stderr
    return LogMean(
        value=value,
        stderr=stderr,
        lower=lower,
        upper=upper,
        label="estimate" if known else "lower bound",
        ess=ess,
        largest_share=float(share.max()),
        tail_index=tail,
        freedom=max(ess - 1, 0.0),
    )


def mean_of_estimates(logs: FloatArray, parts: FloatArray | None = None) -> LogMean:
    """Log of the mean of a few unbiased estimates, each a product of many nearly even factors.

    Such products are log-normal. Of up to 64 of them, unless they are so even that half of them are
    effective, or of any number that says no more than a lower bound to :func:`log_mean`, the mean m
    and the variance v of the k logs give ``m + v/2`` with the standard error
    ``sqrt(v/k + v^2 / (2 d))``, d degrees of freedom of v, provided that k is at least 4 and v at
    most 12: beyond it the upper tail that carries the mean is out of sight. The interval is the
    generalised one, from the 2.5% to the 97.5% quantile of

        m + Z sqrt(V / k) + V / 2    for Z ~ N(0, 1) and V ~ v d / chi^2_d, independent

    which is wider upwards: v is uncertain by a factor.

    The variance u of k logs has d = k - 1 only, and is the weakest link. Where the logs are sums
    over the parts of a path, parts that are longer than the memory of what makes them vary
    independently of all but their neighbours, and each shows its share:

        s = sum_j var_j + 2 sum_j cov_{j, j+1}
        e = (k - 1) (sum_j var_j)^2 / (sum_j var_j^2 + 2 sum_j var_j var_{j+1})

    with e degrees of freedom, much more than k - 1. What lasts longer than a part is missing from
    s; so s is a prior for v, good to a factor of two (t^2 = 0.4 + 2 / e for its log), and u an
    observation (o^2 = 2 / (k - 1)): log v is their mean with the weights 1 / t^2 and 1 / o^2, and
    d = 2 / t^2 + k - 1. Where both are more than two standard deviations apart u is taken alone.

    Of 4 to 64 log-normal estimates the interval holds the truth in 91 to 98% of cases for v from
    0.3 to 10, with parts or without, and where something that lasts adds a half, as much, or twice
    as much variance as they show; also in 91 to 97% of the cases with a finite one. So it does for
    annealed islands that lag behind (a metric of 0.3 of the curvature; two quadratics and a quartic
    in 60 coordinates, 800 islands for each path, grouped four times) at v from 3 to 11; of those
    that v lets pass in 93 to 97% at v = 16, but in 18 to 75% of the few at v = 19.

    Args:
        logs: logs of the estimates in nats, -inf allowed, (k,), k >= 1.
        parts: what they are sums of, up to a constant, (j, k).

    Source: Krishnamoorthy and Mathew, Inferences on the means of lognormal distributions using
    generalized p-values and generalized confidence intervals, J. Stat. Plan. Inference 115 (2003),
    section 2; Satterthwaite, An approximate distribution of estimates of variance components,
    Biometrics Bull. 2 (1946).
    """
    plain = log_mean(logs)
    count = len(logs)
    even = plain.label == "estimate" and (plain.ess >= count / 2 or count > FEW)
    if even or count < FEWEST or not np.isfinite(logs).all():
        return plain
    variance, freedom = float(logs.var(ddof=1)), float(count - 1)
    if parts is not None and np.isfinite(parts).all():
        explained, known = _variance_of_sum(parts)
        if known > freedom and variance > 0:
            doubt, noise = DOUBT + 2 / known, 2 / freedom
            gap = math.log(variance / explained)
            if abs(gap) < 2 * math.sqrt(doubt + noise):
                variance = explained * math.exp(doubt / (doubt + noise) * gap)
                freedom += 2 / doubt
    if variance > WIDEST:
        return plain
    value = float(logs.mean()) + variance / 2
    stderr = math.sqrt(variance / count + variance**2 / (2 * freedom))
    lower, upper = (float(logs.mean()) + end for end in _log_normal(variance, count, freedom))
    found = {"value": value, "stderr": stderr, "lower": lower, "upper": upper}
    return replace(plain, **found, label="estimate", freedom=freedom)


def _log_normal(variance: float, count: int, freedom: float) -> tuple[float, float]:
    """The 95% interval of :func:`mean_of_estimates` about the mean of the logs."""
    if not variance > 0:
        return 0.0, 0.0
    level = (np.arange(_NODES) + 0.5) / _NODES
    drawn = variance * freedom / stats.chi2.isf(level, freedom)
    centre, scale = drawn / 2, np.sqrt(drawn / count)
    ends = centre.min() - 4 * scale.max(), centre.max() + 4 * scale.max()

    def end(part: float) -> float:
        below = lambda x: float(special.ndtr((x - centre) / scale).mean()) - part  # noqa: E731
        return float(optimize.brentq(below, *ends))

    return end(0.025), end(0.975)


def _variance_of_sum(parts: FloatArray) -> tuple[float, float]:
    """Variance of the sum of parts (j, k) that only neighbours share, and its freedom."""
    count = parts.shape[1]
    centred = parts - parts.mean(1, keepdims=True)
    own = (centred**2).sum(1) / (count - 1)
    shared = (centred[1:] * centred[:-1]).sum(1) / (count - 1)
    total = float(own.sum() + 2 * shared.sum())
    # Of a variance 2 v^2 / (k - 1), of a covariance of independent parts v v' / (k - 1); the
    # relative error stays about the same where neighbours are alike.
    noise = (own**2).sum() + 2 * (own[1:] * own[:-1]).sum()
    if not (total > 0 and noise > 0):
        return 0.0, 0.0
    return total, float(own.sum() ** 2 * (count - 1) / noise)


def _jackknife(share: FloatArray) -> tuple[float, float, float]:
    """Standard error, bias and acceleration of the log of a mean, from each weight's share.

    NaN for one weight, or where one carries everything.
    """
    count = len(share)
    rest = 1 - share
    # The others' sum, which a subtraction would lose where one weight dominates.
    rest[share.argmax()] = np.delete(share, share.argmax()).sum()
    if count < 2 or not share.any() or not rest.all():
        return math.nan, math.nan, math.nan
    without = np.log(rest) + math.log(count / (count - 1))  # Less the log of the whole mean.
    centred = without - without.mean()
    stderr = math.sqrt((count - 1) / count * float((centred**2).sum()))
    skew = share - 1 / count
    norm = float((skew**2).sum()) ** 1.5
    acceleration = float((skew**3).sum()) / (6 * norm) if norm > 0 else 0.0
    return stderr, (count - 1) * float(without.mean()), acceleration


def tail_index(weights: FloatArray) -> float:
    """Index k of the generalised Pareto law of the largest weights: moments from 1/k up diverge.

    Fitted to the exceedances of the largest ``min(k / 5, 3 sqrt(k))`` of k weights, and drawn
    towards 1/2 by the weight of ten observations.

    Args:
        weights: (k,), up to a common factor.

    Returns:
        k; negative for bounded weights, -inf where the largest are equal, NaN for fewer than 25
        weights or where fewer than five of the largest stand out.

    Source: Zhang and Stephens, A new and efficient estimation method for the generalized Pareto
    distribution, Technometrics 51 (2009); Vehtari et al., JMLR 25 (2024), appendix.
    """
    count = len(weights)
    largest = int(min(count / 5, 3 * math.sqrt(count)))
    if largest < 5:
        return math.nan
    ordered = np.sort(weights)
    x = ordered[-largest:] - ordered[-largest - 1]
    x = x[x > 1e-9 * ordered[-1]]  # Ties up to rounding have no tail.
    if len(x) < 5:
        return math.nan if len(x) else -math.inf
    points = 30 + int(math.sqrt(len(x)))
    theta = 1 - np.sqrt(points / (np.arange(points) + 0.5))
    theta = theta / (3 * x[int(len(x) / 4 + 0.5) - 1]) + 1 / x[-1]
    k = np.log1p(-theta[:, None] * x).mean(1)
    weight = special.softmax(len(x) * (np.log(-theta / k) - k - 1))
    found = float(np.log1p(-float(weight @ theta) * x).mean())
    return (len(x) * found + 10 * 0.5) / (len(x) + 10)
