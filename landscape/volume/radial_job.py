"""``radial`` as units of work: rays that are stored as they are found, until the error is small."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landscape.flat.learning import effective_dimension
from landscape.priors import Prior, UniformPrior
from landscape.units import Progress, Units
from landscape.volume.curvature import Proposal
from landscape.volume.options import VolumeOptions
from landscape.volume.radial import RadialEstimate, RaySample, merge, radial_estimate, radial_rays
from landscape.volume.ray_priors import BallPrior, BoxPrior, NormalPrior, RayPrior
from landscape.volume.records import Rays, VolumeEstimate
from landscape.volume.tilted import DirectionLaw, symmetric_law, tilted_law

__all__ = ["RadialFound", "estimate_rays", "keep_rays", "radial_job"]

FloatArray = NDArray[np.float64]

_BATCH = 32  # Rays in one unit of work.
_GROWTH = 10  # The error may ask for so many times the rays.


@dataclass(frozen=True, kw_only=True)
class RadialFound:
    """What ``radial`` found.

    Attributes:
        estimate: log V of the star domain at every cutoff.
        rays: every ray.
        whole: whether nothing is missing of what was asked for.
        warnings: for the user to read.
    """

    estimate: VolumeEstimate
    rays: Rays
    whole: bool
    warnings: list[str]


def radial_job(
    excess: Callable[[Tensor], Tensor],
    anchor: Tensor,
    *,
    proposal: Proposal | None,
    prior: Prior,
    options: VolumeOptions,
    seed: int,
    units: Units,
    stop: Callable[[], bool],
    progress: Progress,
) -> RadialFound:
    """The star domain's log-volume from rays, each of which is found from its number alone.

    Args:
        excess: excess loss of whitened points (k, n): (k,).
        anchor: z*, (n,).
        proposal: what tilts the directions; symmetric ones where None.
        prior: the prior, in whose whitened coordinates all is said.
        options: cutoffs, samples, error, tether, shard.
        seed: seed of the directions.
        units: where finished rays are kept.
        stop: whether the budget is spent.
        progress: called with the rays done.
    """
    tether = math.inf if options.tether is None else options.tether * math.sqrt(len(anchor))
    seen = _ray_prior(prior, anchor)
    laws = [_law(anchor, proposal, place, seed) for place in range(len(options.cutoffs))]
    start, stride = (0, 1) if options.shard is None else (options.shard[0] - 1, options.shard[1])
    most = options.samples * (_GROWTH if options.shard is None else 1)
    found: list[RaySample | None] = [_stored(units, cutoff) for cutoff in options.cutoffs]
    wanted = options.samples
    total = len(range(start, wanted, stride)) * len(laws)

    def trace(place: int, count: int) -> bool:
        """Find the rays of one cutoff that are missing; whether all were found."""
        known = found[place]
        have = set() if known is None else set(known.index.tolist())
        missing = [i for i in range(start, count, stride) if i not in have]
        for batch in range(0, len(missing), _BATCH):
            if stop() and found[place] is not None:
                return False
            sample = radial_rays(
                excess,
                laws[place],
                seen,
                cutoff=options.cutoffs[place],
                indices=missing[batch : batch + _BATCH],
                tether=tether,
                batch=_BATCH,
            )
            earlier = found[place]
            sample = sample if earlier is None else merge([earlier, sample])
            found[place] = sample
            units.put(_unit(options.cutoffs[place]), as_unit(sample))
            done = sum(0 if f is None else len(f.index) for f in found)
            progress("rays", done, max(total, done))
        return True

    def trace_all(count: int) -> bool:
        done = [trace(place, count) for place in range(len(laws))]
        return all(done)

    whole = trace_all(wanted)
    while whole and wanted < most:
        estimates = [radial_estimate(sample) for sample in found if sample is not None]
        if all(e.label != "estimate" or e.stderr <= options.error for e in estimates):
            break
        wanted = min(2 * wanted, most)
        total = len(range(start, wanted, stride)) * len(laws)
        if not trace_all(wanted):
            break
    rays = _rays(options.cutoffs, [sample for sample in found if sample is not None])
    estimate, warnings = estimate_rays(rays, path=_path(proposal), error=options.error)
    return RadialFound(estimate=estimate, rays=rays, whole=whole, warnings=warnings)


def _unit(cutoff: float) -> str:
    return f"rays-{cutoff!r}"


def as_unit(sample: RaySample) -> dict[str, NDArray[Any]]:
    """Rays as arrays to store."""
    return {f.name: getattr(sample, f.name) for f in fields(sample)}


def _stored(units: Units, cutoff: float) -> RaySample | None:
    unit = units.get(_unit(cutoff))
    return None if unit is None else RaySample(**{f.name: unit[f.name] for f in fields(RaySample)})


def keep_rays(rays: Rays, units: Units) -> None:
    """Take the rays of a complete result as finished work."""
    for place, cutoff in enumerate(rays.cutoff):
        units.put(_unit(float(cutoff)), as_unit(_at(rays, place)))


def _path(proposal: Proposal | None) -> str:
    return "symmetric" if proposal is None else f"tilted, {proposal.model.route}"


def _law(anchor: Tensor, proposal: Proposal | None, place: int, seed: int) -> DirectionLaw:
    """Directions at one cutoff; symmetric ones where the curvature is 0, too."""
    if proposal is None or not math.isfinite(proposal.tilt[place]):
        return symmetric_law(anchor, seed=seed)
    model = proposal.model
    return tilted_law(
        anchor,
        model.vectors,
        model.values,
        scale=float(proposal.tilt[place]),
        bulk=proposal.bulk,
        gradient=model.gradient,
        seed=seed,
    )


def _ray_prior(prior: Prior, anchor: Tensor) -> RayPrior:
    if not isinstance(prior, UniformPrior):
        return NormalPrior(anchor)
    return BoxPrior(anchor, 1.0) if prior.shape == "box" else BallPrior(anchor, 1.0)


_EACH = tuple(f.name for f in fields(RaySample) if f.name != "index")


def _rays(cutoffs: Sequence[float], samples: Sequence[RaySample]) -> Rays:
    """Those rays that were found at every cutoff."""
    index = samples[0].index
    for sample in samples[1:]:
        index = np.intersect1d(index, sample.index)
    chosen = [np.isin(sample.index, index) for sample in samples]
    columns = {
        name: np.stack([getattr(s, name)[c] for s, c in zip(samples, chosen, strict=True)])
        for name in _EACH
    }
    return Rays(cutoff=np.array(cutoffs), index=index, **columns)


def _at(rays: Rays, place: int) -> RaySample:
    """The rays at one cutoff."""
    return RaySample(index=rays.index, **{name: getattr(rays, name)[place] for name in _EACH})


def estimate_rays(rays: Rays, *, path: str, error: float) -> tuple[VolumeEstimate, list[str]]:
    """The estimate at every cutoff, and what the user should read.

    Args:
        rays: of one law a cutoff.
        path: how the directions were drawn.
        error: standard error above which the user is told.
    """
    found = [radial_estimate(_at(rays, place)) for place in range(len(rays.cutoff))]
    unknown = np.full(len(found), np.nan)
    # A share of the prior's mass is at most 1, whatever rounding and noise say.
    logs = np.minimum([f.log_volume for f in found], 0.0)
    bound = np.array([f.label != "estimate" for f in found])
    dimension = unknown
    if len(found) >= 3 and np.isfinite(logs).all() and not bound.any():
        order = np.argsort(rays.cutoff)
        dimension = np.empty(len(found))
        dimension[order] = effective_dimension(rays.cutoff[order], logs[order])
    estimate = VolumeEstimate(
        method_name="radial",
        path=path,
        cutoff=rays.cutoff,
        log_volume=logs,
        stderr=np.array([f.stderr for f in found]),
        lower=np.array([f.lower for f in found]),
        upper=np.minimum([f.upper for f in found], np.where(bound, np.inf, 0.0)),
        lower_bound=bound,
        width=unknown,
        location=unknown,
        remainder=unknown,
        effective_dimension=dimension,
        tilt=unknown,
        n_samples=np.array([f.n_rays for f in found], dtype=np.int64),
        ess=np.array([f.ess for f in found]),
        largest_share=np.array([f.largest_share for f in found]),
        n_matvecs=0,
        n_forward=int(rays.evaluations.sum()),
    )
    return estimate, _warnings(rays, found, error)


def _warnings(rays: Rays, found: Sequence[RadialEstimate], error: float) -> list[str]:
    notes = []
    bounds = [(c, f) for c, f in zip(rays.cutoff, found, strict=True) if f.label != "estimate"]
    if bounds:
        least = min(f.ess for _, f in bounds)
        notes.append(
            f"radial: a lower bound only at {len(bounds)} of {len(found)} cutoffs: as few as "
            f"{least:.1f} effective rays of {len(rays.index)} carry the weight"
        )
    worst = max((f.stderr for f in found if f.label == "estimate"), default=0.0)
    if worst > error:
        notes.append(f"radial: the standard error is {worst:.2g} nats, above --error")
    total = rays.radius.size
    for count, what in (
        (int(rays.not_finite.sum()), "met a loss that is not a number, counted as outside"),
        (int(rays.non_monotone.sum()), "saw the excess loss fall: the region is not convex there"),
        (int((~rays.converged).sum()), "were not found to their tolerance"),
    ):
        if count:
            notes.append(f"radial: {count} of {total} rays {what}")
    return notes
