"""``anneal`` of one checkpoint: from a task and weights to its energy, metrics and limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.data import DataSet
from landscape.distributed import Alone
from landscape.flat.discrete import discrete_of_risk
from landscape.led import Evaluate, led
from landscape.priors import Prior
from landscape.quadratic_form import QuadraticForm
from landscape.risk import Risk
from landscape.settings import Settings
from landscape.task import Task
from landscape.units import Progress, Units
from landscape.volume.anneal_job import Annealer, AnnealFound
from landscape.volume.anneal_plan import predicted_gradients
from landscape.volume.anneal_work import DRAWS
from landscape.volume.curvature import Curved
from landscape.volume.excess import ExcessLoss
from landscape.volume.excess_gradient import ExcessGradient
from landscape.volume.metric import BATCH, SampledMetric
from landscape.volume.options import VolumeOptions
from landscape.volume.path import Metric
from landscape.volume.records import Directions

__all__ = ["AUTO", "anneal_checkpoint", "anneal_limit", "left_out", "timed_gradient"]

LIMIT = 1_000_000  # Gradients in all, where no budget says otherwise.
AUTO = 80_000  # Gradients that ``--method auto`` spends at most.
_TIMED = 3  # Gradients of the model alone that are timed.


@dataclass(frozen=True, kw_only=True, eq=False)
class _Energy:
    """Excess loss and gradient at whitened rows, on the risk's device."""

    gradient: ExcessGradient
    mean: Tensor
    scale: Tensor

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        loss, slope = self.gradient(self.unwhiten(z))
        return loss, slope.to(z) * self.scale

    def unwhiten(self, z: Tensor) -> Tensor:
        return self.mean + self.scale * z


def left_out(directions: Directions | None, tilt: float, options: VolumeOptions) -> str | None:
    """Why ``auto`` leaves ``anneal`` out, or None where it does not.

    Args:
        directions: of the quadratic model, which predicts what it costs.
        tilt: s at the smallest cutoff.
        options: cutoffs, chains, error.
    """
    if directions is None:
        return "anneal was left out: --method anneal runs it"
    form = QuadraticForm(
        eigenvalues=directions.eigenvalue.clip(min=0.0),
        multiplicity=directions.multiplicity,
        location=directions.location,
    )
    count = predicted_gradients(form, tilt, chains=options.chains, draws=DRAWS, error=options.error)
    if count <= AUTO:
        return None
    return (
        f"anneal was left out: it would take about {float(f'{count:.1g}'):.0f} gradients; --method "
        "anneal runs it"
    )


def timed_gradient(risk: Risk) -> float:
    """Seconds of one gradient of the model alone, the best of three."""
    times = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        risk.gradient()
        times.append(time.perf_counter() - began)
    return min(times)


def anneal_checkpoint(
    excess: ExcessLoss,
    prior: Prior,
    *,
    task: Task,
    data: DataSet,
    settings: Settings,
    options: VolumeOptions,
    curved: Curved | None,
    limit: int,
    bare: float,
    ranks: Alone,
    units: Units,
    stop: Callable[[], bool],
    progress: Progress,
) -> AnnealFound:
    """Anneal about a risk's anchor.

    Args:
        excess: the excess loss.
        prior: the Gaussian prior.
        task: whose model holds the anchor's weights.
        data: the task's data.
        settings: loss, parameters, seed.
        options: what to measure.
        curved: the whitened curvature at the anchor: the mass matrix of a criterion that has no
            real factor.
        limit: gradients in all.
        bare: seconds of one gradient of the model alone.
        ranks: processes that share out the chains of every gradient; all call this.
        units: where work is kept.
        stop: whether the budget is spent.
        progress: called with the levels done.
    """
    risk = excess.risk
    # Whitened positions live where the model does, in double precision where it can be had.
    double = risk.device.type != "mps"
    kind = {"device": risk.device, "dtype": torch.float64 if double else torch.float32}
    mean, scale = prior.mean.to(**kind), prior.scale.to(**kind)  # type: ignore[call-overload]
    energy = _Energy(gradient=ExcessGradient(excess), mean=mean, scale=scale)
    anchor = (risk.space.vector().to(mean) - mean) / scale
    fallback = Metric(
        vectors=anchor.new_zeros(0, len(anchor)), values=anchor.new_zeros(0), bulk=0.0
    )
    if curved is not None:
        positive = curved.values > 0
        fallback = Metric(
            vectors=curved.vectors[positive].to(anchor),
            values=curved.values[positive].to(anchor),
            bulk=0.0,
        )
    few = Risk(
        task,
        data,
        loss=settings.loss,
        params=settings.params,
        batch_size=min(BATCH, settings.batch_size or task.batch_size or BATCH),
        device=risk.device,
        dtype=risk.dtype,
    )

    def metrics(name: str) -> SampledMetric:
        return SampledMetric(
            few,
            prior.scale,
            energy.unwhiten,
            seed=settings.seed,
            label=name,
            fallback=fallback,
        )

    def work(evaluate: Evaluate) -> AnnealFound:
        def shared_out(z: Tensor) -> tuple[Tensor, Tensor]:
            loss, slope = evaluate(z)
            return loss, slope

        return Annealer(
            energy=shared_out,
            anchor=anchor,
            metrics=metrics,
            options=options,
            seed=settings.seed,
            units=units,
            stop=lambda count: stop(),
            limit=limit,
            progress=progress,
            symmetries=[
                (f"{one.name} of {one.layer}", one.log_order)
                for one in discrete_of_risk(few, seed=settings.seed).symmetries
                if not one.continuous  # Others' copies are no copies apart.
            ],
            bare=bare,
        ).measure()

    found = led(ranks, energy, work, like=anchor)
    if energy.gradient.fallback is not None:
        note = f"chains are evaluated one by one: {energy.gradient.fallback}"
        found.warnings.append(note)
    return found


def anneal_limit(settings: Settings, *, explicit: bool) -> int:
    """Gradients in all that a run may take."""
    given = settings.budget.gradients
    if given is not None:
        return given
    if settings.budget.seconds is not None and explicit:
        return 2**62  # Time is the limit.
    return LIMIT if explicit else AUTO
