"""Log-volume of the star domain about an anchor, by importance sampling over rays.

The part of the region that rays from the anchor see before they first leave it: the whole region
where it is star-shaped about the anchor, else less, so that the estimate errs low there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import UsageError
from landscape.volume.ray_priors import RayPrior
from landscape.volume.rays import first_passage
from landscape.volume.tilted import DirectionLaw
from landscape.volume.weights import log_mean

__all__ = ["RadialEstimate", "RaySample", "merge", "radial_estimate", "radial_rays"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RaySample:
    """Rays of one law at one cutoff, the unit of work, in ascending order of their index.

    Attributes:
        index: number of the ray, which determines its direction, (k,).
        radius: verified radius of first passage, inf where there is none up to the tether or the
            prior's reach, 0 where no point inside was found, (k,).
        log_weight: log w(u) at the radius, in nats, (k,).
        log_weight_outside: the same at the verified radius outside, (k,).
        converged: the radius is within its tolerance, (k,).
        not_finite: a NaN was met, (k,).
        non_monotone: the excess loss was seen to fall along the ray, (k,).
        evaluations: evaluations of the excess loss, (k,).
    """

    index: IntArray
    radius: FloatArray
    log_weight: FloatArray
    log_weight_outside: FloatArray
    converged: BoolArray
    not_finite: BoolArray
    non_monotone: BoolArray
    evaluations: IntArray

    @property
    def infinite(self) -> BoolArray:
        """The ray does not leave the region, (k,)."""
        return np.isinf(self.radius)


@dataclass(frozen=True, kw_only=True)
class RadialEstimate:
    """Log-volume at one cutoff from a sample of rays.

    Attributes:
        log_volume: log of the mean weight, in nats.
        stderr: delete-one jackknife standard error of it.
        lower: lower end of the 95% interval.
        upper: upper end; inf for a lower bound.
        label: ``estimate``, or ``lower bound`` below 10 effective rays or with a heavy tail.
        ess: effective number of rays, ``(sum w)^2 / sum w^2``.
        largest_share: largest weight's share of the sum.
        tail_index: of the largest weights; above about 0.6 the rays may have missed most of it.
        n_rays: rays.
        n_infinite: rays without a first passage.
        n_unconverged: rays whose radius is not within its tolerance.
        n_not_finite: rays that met NaN.
        n_non_monotone: rays along which the excess loss was seen to fall.
        n_evaluations: evaluations of the excess loss.
    """

    log_volume: float
    stderr: float
    lower: float
    upper: float
    label: str
    ess: float
    largest_share: float
    tail_index: float
    n_rays: int
    n_infinite: int
    n_unconverged: int
    n_not_finite: int
    n_non_monotone: int
    n_evaluations: int


def radial_rays(
    excess: Callable[[Tensor], Tensor],
    law: DirectionLaw,
    prior: RayPrior,
    *,
    cutoff: float,
    indices: Iterable[int],
    tether: float = math.inf,
    tolerance: float = 0.01,
    scan: int = 4,
    batch: int = 64,
) -> RaySample:
    """Weigh rays from the anchor; each depends on its index alone.

    The weight of a direction u with density d(u) on the sphere is

        log w(u) = log of the integral from 0 to R(u) of p(z* + r u) r^(n-1) dr - log d(u),

    whose mean is the prior's mass of the star domain. For a tilted law d(u) is the integral of its
    Gaussian along the whole ray.

    Args:
        excess: excess loss of points (k, n) in whitened coordinates: (k,), 0 at the anchor.
        law: law of the directions.
        prior: the prior, which knows the anchor.
        cutoff: largest excess loss inside the region, > 0.
        indices: numbers of the rays; any subset, in any order.
        tether: largest distance from the anchor.
        tolerance: allowed error of a weight's log, in nats: radii are found to tolerance / n.
        scan: smaller radii checked for earlier crossings, per ray.
        batch: points in one evaluation, and rays in memory.

    Returns:
        the rays, sorted by index.

    Raises:
        UsageError: an index appears twice, or the cutoff or tether is not positive.

    Cost: about 9 evaluations of the excess loss a ray, and 2 batch n numbers.
    """
    wanted = sorted(int(index) for index in indices)
    anchor = prior.anchor
    parts = []
    for first in range(0, len(wanted), batch):
        index = np.array(wanted[first : first + batch], dtype=np.int64)
        directions = torch.stack([law.sample(int(i)) for i in index])
        limit = np.minimum(prior.reach(directions), tether)
        radii = first_passage(
            excess,
            anchor,
            directions,
            cutoff=cutoff,
            limit=limit,
            tolerance=tolerance / len(anchor),
            guess=law.typical_radius(directions),
            scan=scan,
            batch=batch,
        )
        density = law.log_density(directions)
        inside, outside = (
            prior.log_mass(directions, np.minimum(radius, tether)) - density
            for radius in (radii.inside, radii.outside)
        )
        parts.append(
            RaySample(
                index=index,
                radius=radii.inside,
                log_weight=inside,
                log_weight_outside=outside,
                converged=radii.converged,
                not_finite=radii.not_finite,
                non_monotone=radii.non_monotone,
                evaluations=radii.evaluations,
            )
        )
    return merge(parts)


def merge(samples: Sequence[RaySample]) -> RaySample:
    """One sample of the rays of several, of the same law and cutoff.

    Raises:
        UsageError: a ray appears twice, or there is none.
    """
    index = np.concatenate([sample.index for sample in samples]) if samples else np.zeros(0)
    if not len(index):
        raise UsageError("no rays; expected at least one. Raise --samples")
    order = np.argsort(index)
    if bool((np.diff(index[order]) == 0).any()):
        raise UsageError(
            "a ray appears twice among the samples; expected each once. Merge shards of one run, "
            "each once"
        )
    return RaySample(
        **{
            field.name: np.concatenate([getattr(sample, field.name) for sample in samples])[order]
            for field in fields(RaySample)
        }
    )


def radial_estimate(sample: RaySample) -> RadialEstimate:
    """The log-mean-exp of the weights with its error (:func:`landscape.volume.weights.log_mean`).

    The upper end is raised by how much larger the mean weight is at the verified points outside.

    Args:
        sample: rays of one law at one cutoff.

    Returns:
        the estimate of the star domain's mass, a lower bound of the region's where the region is
        not star-shaped about the anchor.
    """
    mean = log_mean(sample.log_weight)
    bracket = log_mean(sample.log_weight_outside).value - mean.value
    return RadialEstimate(
        log_volume=mean.value,
        stderr=mean.stderr,
        lower=mean.lower,
        upper=mean.upper + (bracket if math.isfinite(bracket) else math.inf),
        label=mean.label,
        ess=mean.ess,
        largest_share=mean.largest_share,
        tail_index=mean.tail_index,
        n_rays=len(sample.index),
        n_infinite=int(sample.infinite.sum()),
        n_unconverged=int((~sample.converged).sum()),
        n_not_finite=int(sample.not_finite.sum()),
        n_non_monotone=int(sample.non_monotone.sum()),
        n_evaluations=int(sample.evaluations.sum()),
    )
