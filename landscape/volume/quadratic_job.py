"""``quadratic`` as units of work: parts that are stored one by one, until the error is small."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from landscape.quadratic_form import QuadraticForm
from landscape.units import Progress, Units
from landscape.volume.curvature import Curved, Proposal
from landscape.volume.options import VolumeOptions
from landscape.volume.quadratic import (
    QuadraticVolume,
    combine,
    eigenpair_measure,
    location_measure,
    probe_measure,
    quadratic_exact,
)
from landscape.volume.records import Directions, VolumeEstimate

__all__ = ["QuadraticFound", "directions", "quadratic_job"]

FloatArray = NDArray[np.float64]

_PILOTS = 2  # Probes that the directions of rays rest on.
_GROWTH = 10  # The error may ask for so many times the probes.
_STEEP, _FLAT = 0.1, 2.0  # Ratios of widths that separate the classes.


@dataclass(frozen=True, kw_only=True)
class QuadraticFound:
    """What ``quadratic`` found.

    Attributes:
        estimate: log V at every cutoff.
        directions: the table of directions.
        proposal: what tilts the directions of rays; None where the budget left too little for it.
        whole: whether nothing is missing of what was asked for.
        warnings: for the user to read.
    """

    estimate: VolumeEstimate
    directions: Directions
    proposal: Proposal | None
    whole: bool
    warnings: list[str]


def quadratic_job(
    model: Curved,
    options: VolumeOptions,
    *,
    seed: int,
    units: Units,
    stop: Callable[[], bool],
    progress: Progress,
) -> QuadraticFound:
    """The quadratic model's log-volume, exact or with probes added until their error is small.

    Args:
        model: the whitened curvature.
        options: cutoffs, steps, probes, error.
        seed: seed of the probes.
        units: where finished probes are kept.
        stop: whether the budget is spent.
        progress: called with the products done.
    """
    whole, count = True, model.n_matvecs
    proposal: Proposal | None
    if model.route == "lanczos":
        found, proposal, more, whole = _stochastic(
            model, options, seed=seed, units=units, stop=stop, progress=progress
        )
        count += more
    else:
        found = quadratic_exact(
            model.values.numpy(),
            model.vectors,
            model.anchor,
            model.gradient,
            cutoffs=options.cutoffs,
        )
        proposal = Proposal(model=model, tilt=found.saddle)
    return QuadraticFound(
        estimate=_estimate(found, model.route, count),
        directions=directions(found),
        proposal=proposal if model.whole else None,
        whole=whole and model.whole,
        warnings=_warnings(found, options),
    )


def _stochastic(
    model: Curved,
    options: VolumeOptions,
    *,
    seed: int,
    units: Units,
    stop: Callable[[], bool],
    progress: Progress,
) -> tuple[QuadraticVolume, Proposal | None, int, bool]:
    operator = model.operator
    deflate = operator.coordinates.own(model.vectors.to(operator.like))
    rest = operator.n - len(deflate)
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        progress("probes", done, max((options.probes + 1) * options.steps, done))

    def part(name: str, make: Callable[[], QuadraticForm]) -> QuadraticForm:
        stored = units.get(name)
        if stored is None:
            made = make()
            units.put(name, {f.name: getattr(made, f.name) for f in fields(made)})
            return made
        return QuadraticForm(**{f.name: stored[f.name] for f in fields(QuadraticForm)})

    known = eigenpair_measure(model.values.numpy(), model.vectors, model.anchor, model.gradient)
    location = part(
        "location",
        lambda: location_measure(
            operator,
            model.anchor,
            model.gradient,
            steps=options.steps,
            deflate=deflate,
            on_step=on_step,
        ),
    )
    probes: list[QuadraticForm] = []

    def combined(probes: Sequence[QuadraticForm]) -> QuadraticVolume:
        return combine(
            n=operator.n,
            eigenpairs=known if len(deflate) else None,
            location=location,
            probes=probes,
            cutoffs=options.cutoffs,
            steps=options.steps,
        )

    # The error is looked at seldom: every estimate left out is an inversion of its own.
    wanted = options.probes if rest else 0
    most = _GROWTH * options.probes
    while True:
        index = len(probes)
        if index >= wanted or (stop() and index >= 1):
            found = combined(probes)
            if stop() or index >= most or (found.stderr <= options.error).all():
                break
            wanted = min(wanted + max(wanted // 2, 1), most)
        probes.append(
            part(
                f"volume-probe-{index}",
                lambda index=index: probe_measure(  # type: ignore[misc]
                    operator,
                    index=index,
                    seed=seed,
                    steps=options.steps,
                    deflate=deflate,
                    on_step=on_step,
                ),
            )
        )
    proposal = None
    if len(probes) >= _PILOTS or not rest:
        # Later probes refine the value, not the directions: rays found earlier stay as they are.
        pilots = probes[:_PILOTS]
        total = sum(float(p.multiplicity @ p.eigenvalues) for p in pilots)
        bulk = total / (rest * len(pilots)) if pilots else 0.0
        proposal = Proposal(model=model, tilt=combined(pilots).saddle, bulk=bulk)
    count = sum(len(part.eigenvalues) for part in (location, *probes))
    return found, proposal, count, len(probes) >= options.probes or not rest


def _estimate(found: QuadraticVolume, route: str, n_matvecs: int) -> VolumeEstimate:
    count = len(found.cutoffs)
    unknown = np.full(count, np.nan)
    return VolumeEstimate(
        method_name="quadratic",
        path=route,
        cutoff=found.cutoffs,
        log_volume=found.log_volume,
        stderr=found.stderr,
        lower=found.lower,
        upper=found.upper,
        lower_bound=np.zeros(count, dtype=np.bool_),
        width=found.width,
        location=found.location,
        remainder=found.remainder,
        effective_dimension=found.effective_dimension,
        tilt=found.saddle,
        n_samples=np.full(count, found.n_probes, dtype=np.int64),
        ess=unknown,
        largest_share=unknown,
        n_matvecs=n_matvecs,
        n_forward=0,
    )


def directions(found: QuadraticVolume) -> Directions:
    """The table of directions of a quadratic model, steepest first.

    The nats of a direction are its part of -K(-s), s the tilt: ``m/2 log(1 + s a)`` and its part
    of the location term. Above the mean of the prior's own excess loss s is negative, and no
    direction is narrower than the prior: all are flat.
    """
    form = found.form
    order = np.argsort(-form.eigenvalues, kind="stable")
    a, m, location, x, y = (
        getattr(form, name)[order]
        for name in ("eigenvalues", "multiplicity", "location", "cross", "slope")
    )
    s = found.saddle[:, None]
    positive = a > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.where(positive, np.sqrt(2 * found.cutoffs[:, None] / a), np.inf)
        ratio = np.where(positive & (s > 0), 1 / np.sqrt(s * a), np.inf)
        v = 1 / (1 + s * a)
        nats = 0.5 * m * np.log1p(s * a) - 0.5 * s * v * (2 * x - location * a + y * s)
    kind = np.where(ratio < _STEEP, 0, np.where(ratio <= _FLAT, 1, 2))
    return Directions(
        eigenvalue=a,
        multiplicity=m,
        location=location,
        width=width,
        ratio=ratio,
        kind=kind.astype(np.int64),
        nats=nats,
        cutoff=found.cutoffs,
        remainder=-found.log_volume - nats.sum(1),
    )


def _warnings(found: QuadraticVolume, options: VolumeOptions) -> list[str]:
    notes = []
    negative = found.negative
    if negative.count:
        notes.append(
            f"quadratic: the curvature has about {negative.count:.4g} negative eigenvalues of "
            f"{found.n} (smallest {negative.least:.3g}); the quadratic model falls for ever along "
            "them, and its volume counts what lies there. Use --loss behaviour or --curvature ggn"
        )
    unreached = np.isnan(found.saddle)
    if unreached.any():
        notes.append(
            "quadratic: the curvature is 0, so that the quadratic model says nothing about the "
            "volume; use --method radial"
        )
    worst = float(np.nanmax(found.stderr, initial=0.0))
    if worst > options.error:
        notes.append(f"quadratic: the standard error is {worst:.2g} nats, above --error")
    if np.isnan(found.stderr).any():
        notes.append("quadratic: one probe tells no error; use --probes 2 or more")
    if any(not math.isfinite(value) for value in found.log_volume):
        notes.append("quadratic: no volume below the cutoff: the model's excess loss exceeds it")
    return notes
