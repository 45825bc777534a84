"""The ``volume`` measurement of one checkpoint: from a task and weights to log-volumes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from landscape.distributed import ALONE
from landscape.errors import UsageError
from landscape.gram import GRAM_LIMIT
from landscape.led import Evaluate, led
from landscape.measurement import BUDGET_SPENT, Stopwatch, prepared
from landscape.operators import LinearOperator, Whitened, curvature
from landscape.params import ParameterSpace
from landscape.prior_measurement import PriorMeasurement
from landscape.priors import GaussianPrior, UniformPrior, prior_table
from landscape.settings import Settings
from landscape.sharded import sharded
from landscape.spectrum import EXACT_LIMIT
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent
from landscape.volume.curvature import Route, curved
from landscape.volume.excess import ExcessLoss
from landscape.volume.options import VolumeOptions
from landscape.volume.quadratic_job import quadratic_job
from landscape.volume.radial_job import RadialFound, radial_job
from landscape.volume.records import VolumeEstimate, VolumeResult
from landscape.volume_anneal import (
    anneal_checkpoint,
    anneal_limit,
    left_out,
    timed_gradient,
)

__all__ = ["VolumeRun", "log_volume"]


@dataclass(kw_only=True)
class VolumeRun(PriorMeasurement):
    """A prepared ``volume`` measurement of one checkpoint; :meth:`measure` does it.

    The key depends neither on the batch size and the device nor on the numbers of rays and probes
    and the error that is asked for, which continue the same file.

    Args:
        options: what to measure; for the others see
            :class:`landscape.prior_measurement.PriorMeasurement`.

    Attributes:
        curvature: ``ggn`` or ``hessian``.
        route: ``dense``, ``gram`` or ``lanczos``.
    """

    command: ClassVar[str] = "volume"

    options: VolumeOptions
    curvature: str = field(init=False)
    route: Route = field(init=False)

    def __post_init__(self) -> None:
        options, model = self.options, self.resolved.task.model
        products = self.settings.budget.products
        if options.chosen == ("anneal",) and products is not None:
            raise UsageError(
                f"--budget {products}mv with --method anneal: it takes gradients, not products; "
                "expected gradients (1e6grad) or seconds (60)"
            )
        self._choose_precision("float64")
        behaves = self.settings.loss == "behaviour"
        self.curvature = options.curvature
        if self.curvature == "auto":
            self.curvature = "ggn" if behaves else "hessian"
        self.route = self._route(ParameterSpace(model, self.settings.params).n)
        self._resolve_sigma()
        self.key = run_key({**self.config, **self.identity()})

    def _route(self, n: int) -> Route:
        if self.options.exact == "lanczos":
            return "lanczos"
        rows = None
        if self.curvature == "ggn" and self.factor_is_real:
            rows = self.factor_rows(n)
        if rows is not None and rows <= GRAM_LIMIT and rows < n:
            return "gram"
        if n <= EXACT_LIMIT:
            return "dense"
        if self.options.exact == "exact":
            raise UsageError(
                f"--exact exact: neither the {n} parameters nor the rows of a factor of the "
                f"curvature ({'none' if rows is None else rows}) are at most {EXACT_LIMIT}. Use "
                "--exact lanczos, fewer parameters (--params) or fewer --examples"
            )
        return "lanczos"

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the estimates depend on."""
        options = self.options
        lanczos = self.route == "lanczos"
        return {
            **self.shared_config(),
            **self.prior_config(),
            "methods": list(options.chosen),
            "curvature": self.curvature,
            "route": self.route,
            "top": options.top if lanczos else None,
            "steps": options.steps if lanczos else None,
            "tether": options.tether,
            "directions": options.directions,
            "chains": options.chains if "anneal" in options.chosen else None,
        }

    @property
    def _needs_curvature(self) -> bool:
        options = self.options
        tilted = options.directions == "tilted" and options.prior == "gaussian"
        return "quadratic" in options.chosen or ("radial" in options.chosen and tilted)

    def measure(self, *, units: Units | None = None, progress: Progress = silent) -> VolumeResult:
        """Measure and return the result.

        Raises:
            TaskError: the loss is not deterministic, or the excess loss at the anchor is not 0.
            NotFiniteError: the loss, the gradient or a product is not finite.
        """
        units = MemoryUnits() if units is None else units
        options, settings, ranks = self.options, self.settings, self.ranks
        kept = ranks.units(units)
        watch = Stopwatch(kept)
        risk = self.risk()
        loss = risk.require_deterministic()
        slope = risk.gradient().double().cpu()
        # Points are shared out over the processes, each of which then needs all examples.
        pointwise = {"radial", "anneal"} & set(options.chosen)
        at_points = self._risk(ALONE) if ranks.size > 1 and pointwise else risk
        with ranks.unanimous():
            excess = ExcessLoss(at_points)
            excess.require_zero_at_anchor()
        weights = risk.space.vector().double().cpu()
        prior = self.prior(risk.space, weights)
        anchor = prior.whiten(weights)
        meter = settings.budget.meter()
        operator: LinearOperator | None = None
        if self._needs_curvature:
            plain = curvature(self.curvature, risk, graph_memory=settings.graph_memory)
            operator = Whitened(plain, prior.scale)
            if self.route == "lanczos":
                operator = sharded(operator, ranks)

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        def spent() -> bool:
            return meter.spent(0 if operator is None else operator.n_matvecs)

        stop = ranks.decide(spent)
        work: dict[str, Any] = {"units": kept, "stop": stop, "progress": tick}
        led_work: dict[str, Any] = {"units": units, "stop": spent, "progress": tick}
        estimates: dict[str, VolumeEstimate] = {}
        warnings = [*self.notes, *prior.notes]
        proposal = directions = rays = model = found = None
        whole, n_matvecs = True, 0
        tilted = operator is not None and options.directions == "tilted"
        if operator is not None:
            # For behaviour the gradient at the anchor is exactly 0: rounding is no slope.
            sloped = None if settings.loss == "behaviour" else prior.scale * slope
            model = curved(
                operator,
                self.route,
                risk=risk,
                scale=prior.scale,
                anchor=anchor,
                gradient=sloped,
                top=options.top,
                seed=settings.seed,
                **work,
            )
            if not model.whole:
                # What rests on fewer eigenpairs must not be taken for what rests on all of them.
                led_work["units"] = MemoryUnits()
                work["units"] = ranks.units(led_work["units"])
            found = quadratic_job(model, options, seed=settings.seed, **work)
            proposal, whole = found.proposal if tilted else None, found.whole
            directions, n_matvecs = found.directions, found.estimate.n_matvecs
            operator.release()
            # Where the budget leaves no time for rays, there is at least this.
            if "quadratic" in options.chosen or (tilted and proposal is None):
                estimates["quadratic"] = found.estimate
                warnings += found.warnings
        if "radial" in options.chosen and (proposal is not None or not tilted):
            trace = functools.partial(
                _traced,
                anchor=anchor,
                proposal=proposal,
                prior=prior,
                options=options,
                seed=settings.seed,
                **led_work,
            )
            radial = led(ranks, functools.partial(_excess_at, excess, prior), trace, like=anchor)
            estimates["radial"], rays = radial.estimate, radial.rays
            warnings += radial.warnings
            whole = whole and radial.whole
        annealing, annealed_cut, n_gradient = None, False, int(risk.n_gradient)
        # Shards share out the rays of one run; auto leaves the rest to it.
        if "anneal" in options.chosen and options.shard is None:
            explicit = "anneal" in options.methods
            tilt = math.nan if found is None else _smallest_tilt(found.estimate)
            note = None if explicit else left_out(directions, tilt, options)
            if note is not None:
                warnings.append(note)
            else:
                annealed = anneal_checkpoint(
                    excess,
                    prior,
                    task=self.resolved.task,
                    data=self.data,
                    settings=settings,
                    options=options,
                    curved=model,
                    limit=anneal_limit(settings, explicit=explicit),
                    bare=timed_gradient(risk),
                    ranks=ranks,
                    **led_work,
                )
                annealing = annealed.annealing
                n_gradient += annealed.n_gradients
                warnings += annealed.warnings
                # What auto spends on it at most is no budget of the user's.
                annealed_cut = not annealed.whole and (explicit or stop())
                whole = whole and not annealed_cut
                estimates["anneal"] = annealed.estimate
        # Of an earlier, interrupted run too.
        passes = {id(r): r.n_forward for r in (risk, at_points)}
        n_forward = int(sum(passes.values())) - excess.n_forward
        n_forward += 0 if rays is None else int(rays.evaluations.sum())
        if excess.fallback is not None:
            warnings.append(f"points are evaluated one by one: {excess.fallback}")
        # Gradients are a budget too, which only annealing looks at.
        cut = not whole and (stop() or annealed_cut)
        if cut:
            warnings.append(BUDGET_SPENT)
        info = self.info(
            config={
                **self.config,
                "samples": options.samples,
                "error": options.error,
                "shard": options.shard,
            },
            risk=risk,
            loss=loss,
            gradient_norm=float(torch.linalg.vector_norm(slope)),
            status="budget" if cut else "complete",
            watch=watch,
            n_matvecs=n_matvecs,
            n_forward=n_forward,
            n_gradient=n_gradient,
            warnings=warnings,
        )
        return VolumeResult(
            info=info,
            estimates=estimates,
            directions=directions,
            rays=rays,
            annealing=annealing,
            prior=prior_table(prior, risk.space, weights),
            indices=self.indices,
        )


def _smallest_tilt(estimate: VolumeEstimate) -> float:
    """The quadratic model's tilt at the smallest cutoff."""
    return float(estimate.tilt[estimate.cutoff.argmin()])


def _excess_at(
    excess: ExcessLoss, prior: GaussianPrior | UniformPrior, z: Tensor
) -> tuple[Tensor, ...]:
    """The excess loss at whitened points (k, n)."""
    return (excess(prior.unwhiten(z)),)


def _traced(evaluate: Evaluate, anchor: Tensor, **work: Any) -> RadialFound:
    """Rays by evaluations that are shared out over processes."""
    return radial_job(lambda z: evaluate(z)[0], anchor, **work)


def log_volume(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: VolumeOptions | None = None,
    task_settings: Mapping[str, Any] | None = None,
) -> VolumeResult:
    """Log-volume of a basin: the library's counterpart of ``landscape volume``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: weights to load; the model's own where None.
        settings: data, device and precision; the loss is ``behaviour`` where None.
        options: what to measure.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Returns:
        log-volumes by method, the table of directions, and the rays.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> options = VolumeOptions(cutoffs=(0.1,), samples=20)
        >>> result = log_volume("digits-mlp", options=options, task_settings={"width": 2})
        >>> sorted(result.estimates)
        ['quadratic', 'radial']
    """
    settings = Settings(loss="behaviour") if settings is None else settings
    return VolumeRun(
        **prepared(task, checkpoint, settings, task_settings),
        options=VolumeOptions() if options is None else options,
    ).measure()
