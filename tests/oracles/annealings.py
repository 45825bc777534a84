"""Made-up results of ``--method anneal`` for a loss whose volumes are known.

With ``dL = a |z|^2 / 2`` in n = 8 whitened coordinates about an anchor at the prior's mean, the
prior's dL has the law Gamma(n/2, rate 1/a), and at inverse temperature beta Gamma(n/2, beta + 1/a).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import special
from volumes import CUTOFFS, N, estimate, volume_result

from landscape.volume.anneal_records import Annealing, Check, Curve
from landscape.volume.islands import Islands
from landscape.volume.records import VolumeEstimate, VolumeResult

CURVATURE = 200.0
NOISE = 0.2  # Standard deviation of an island's log-weight.
SYMMETRIES = (("permutations of 3 units of [0]", math.log(6)), ("signs of [0]", 3 * math.log(2)))


def truth(cutoff: np.ndarray) -> np.ndarray:
    """Log V."""
    return np.log(special.gammainc(N / 2, np.asarray(cutoff) / CURVATURE))


def log_partition(beta: np.ndarray) -> np.ndarray:
    """Log Z."""
    return -N / 2 * np.log1p(beta * CURVATURE)


def islands(
    betas: np.ndarray,
    *,
    levels: int = 150,
    count: int = 8,
    tether: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Islands:
    """A path from the prior, with a mark at each inverse temperature, ascending."""
    noise = np.random.default_rng(seed)
    beta = np.unique([0.0, *np.geomspace(1e-4, max(betas), levels - 1), *betas])
    shape = (len(beta), count)
    mean = N / 2 / (beta + 1 / CURVATURE)
    marks = np.searchsorted(beta, np.unique(betas))
    # Errors add up along the path, from none at the start.
    steps = np.vstack([np.zeros(count), noise.normal(size=(len(beta) - 1, count))])
    walk = NOISE * np.cumsum(steps, axis=0) / math.sqrt(len(beta))
    weights = log_partition(beta)[:, None] + walk
    rate = beta[marks][:, None, None, None] + 1 / CURVATURE
    loss = noise.gamma(N / 2, size=(len(marks), 16, count, 8)) / rate
    return Islands(
        beta=beta,
        tether=np.linspace(*tether, len(beta)),
        log_partition=weights,
        loss=mean[:, None] * (1 + 0.05 * noise.normal(size=shape)),
        distance=2 * mean[:, None] / CURVATURE * np.ones(shape),
        acceptance=np.full(shape, 0.9),
        divergent=np.zeros(shape, dtype=np.int64),
        stride=np.full(shape, 0.8),
        marks=marks.astype(np.int64),
        log_scale=weights[marks],
        draw_loss=loss,
        draw_distance=2 * loss / CURVATURE,
        n_gradients=4000 * count,
        n_resampled=12,
    )


def curve(*, agree: int = 4, known: bool = True) -> Curve:
    """Log V from both starts at four radii and without limit, which agree up to the fourth."""
    radius = np.array([0.1, 0.2, 0.4, 0.8, np.inf])
    ladder = -10 / (1 + np.minimum(radius, 1.6))
    outward = ladder - np.where(np.arange(5) < agree, 0.1, 3.0)
    if not known:
        outward = np.full(5, np.nan)
    columns = {}
    for name, values in (("ladder", ladder), ("outward", outward)):
        columns |= {name: values, f"{name}_stderr": 0 * values + 0.3}
        columns |= {f"{name}_lower": values - 0.7, f"{name}_upper": values + 0.7}
        columns[f"{name}_distance"] = np.where(np.isfinite(values), np.minimum(radius, 0.9), np.nan)
    agrees = (np.arange(5) < agree) & known
    differ = "log V differs by 3, not 1.1" if known else "no run from the checkpoint"
    return Curve(
        radius=radius,
        agrees=agrees,
        findings=tuple("agree" if agreed else differ for agreed in agrees),
        **columns,
    )


def checks(*, failing: bool) -> tuple[Check, ...]:
    """One that fails and one that passes."""
    return (
        Check(
            name="log V of both starts differ by",
            value=3.04 if failing else 0.1,
            limit=0.9,
            at_least=False,
            passed=not failing,
            remedy="a larger --budget, or a smaller --tether",
        ),
        Check(
            name="ladder: lowest acceptance",
            value=0.81,
            limit=0.5,
            at_least=True,
            passed=True,
            remedy="another --seed",
        ),
    )


def annealing(
    cutoffs: tuple[float, ...] = CUTOFFS,
    *,
    converged: bool = True,
    outward: bool = True,
    radius: float = math.inf,
) -> Annealing:
    """What an annealed result rests on."""
    betas = N / 2 / np.array(cutoffs) - 1 / CURVATURE
    found = truth(np.array(cutoffs))
    names, orders = zip(*SYMMETRIES, strict=True)
    both = curve(agree=5 if converged else 3, known=outward)
    agreed = both.radius[both.agrees]
    return Annealing(
        radius=radius,
        converged=converged,
        agreed_radius=float(agreed.max()) if len(agreed) else math.nan,
        checks=checks(failing=not converged),
        curve=both,
        ladder=islands(betas),
        marks=np.searchsorted(np.unique(betas), betas).astype(np.int64),
        outward=islands(betas, levels=9, tether=(100.0, 0.0), seed=1) if outward else None,
        markov=found - 3.1,
        reverse=np.where(found == found.min(), found + 3.2, np.inf),
        reverse_partition=float(log_partition(max(betas)) + 3.1),
        ladder_levels=150,
        outward_levels=9 if outward else 0,
        symmetries=names,
        log_orders=np.array(orders),
        n_gradients=123456,
        gradient_seconds=0.00025,
        bare_seconds=0.001,
    )


def anneal_estimate(cutoffs: tuple[float, ...], *, bound: bool = False) -> VolumeEstimate:
    """The truth with an error."""
    found, width = truth(np.array(cutoffs)), len(cutoffs)
    return dataclasses.replace(
        estimate("anneal", cutoffs),
        path="ladder from the prior, 8 islands of 8",
        log_volume=found,
        stderr=np.full(width, 0.3),
        lower=found - (3.1 if bound else 0.7),
        upper=np.full(width, np.inf) if bound else found + 0.7,
        lower_bound=np.full(width, bound),
        n_samples=np.full(width, 8),
        ess=np.linspace(5.25, 7.5, width),
        n_forward=0,
    )


def annealed_result(
    step: int | None = 7,
    *,
    cutoffs: tuple[float, ...] = CUTOFFS,
    methods: tuple[str, ...] = ("quadratic",),
    converged: bool = True,
    outward: bool = True,
    radius: float = math.inf,
    table: bool = True,
    record: dict[str, object] | None = None,
    **options: object,
) -> VolumeResult:
    """A result of one checkpoint whose log V was annealed, besides by other methods."""
    result = volume_result(step, cutoffs=cutoffs, methods=methods, table=table, **options)
    found = anneal_estimate(cutoffs, bound=not converged)
    return dataclasses.replace(
        result,
        estimates={**result.estimates, "anneal": found},
        annealing=dataclasses.replace(
            annealing(cutoffs, converged=converged, outward=outward, radius=radius),
            **(record or {}),
        ),
    )
