"""The ``flat`` measurement of one checkpoint: from a task and weights to counts of directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from landscape.errors import TaskError, UsageError
from landscape.flat.declared import DeclaredSymmetry
from landscape.flat.discrete import discrete_of_risk
from landscape.flat.exact import (
    ExactCounts,
    exact_counts,
    prior_counts,
    require_exact,
    symmetry_table,
)
from landscape.flat.learning import coefficient_of
from landscape.flat.options import FlatOptions
from landscape.flat.records import ExampleSweep, FlatResult, NullWalk
from landscape.flat.sweep import example_sweep
from landscape.flat.walk import null_walk
from landscape.flat.walk_risk import RiskBehaviour
from landscape.measurement import BUDGET_SPENT, Stopwatch, prepared
from landscape.operators import Whitened, curvature
from landscape.params import ParameterSpace
from landscape.prior_measurement import PriorMeasurement
from landscape.priors import GaussianPrior, UniformPrior, prior_table
from landscape.risk import Risk
from landscape.settings import Settings
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent
from landscape.volume.curvature import Curved, factored
from landscape.volume.excess import ExcessLoss
from landscape.volume.options import VolumeOptions
from landscape.volume.quadratic_job import QuadraticFound, quadratic_job

__all__ = ["FlatRun", "flat_directions"]

_BATCH = 32  # Examples: a row of the Jacobian pulls back its whole micro-batch.


@dataclass(kw_only=True)
class FlatRun(PriorMeasurement):
    """A prepared ``flat`` measurement of one checkpoint; :meth:`measure` does it.

    The key depends neither on the walks nor on the sweep over examples, which are added to the same
    file.

    Args:
        options: what to count; for the others see
            :class:`landscape.prior_measurement.PriorMeasurement`.
        earlier: a result of the same key, whose counts are taken over.

    Raises:
        UsageError: the exact paths are out of reach.
    """

    command: ClassVar[str] = "flat"

    options: FlatOptions
    earlier: FlatResult | None = None
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._choose_precision("float64")
        require_exact(ParameterSpace(self.resolved.task.model, self.settings.params).n, self._dtype)
        total = self.data.n_examples
        sizes = self.options.sizes
        if sizes and max(sizes) > total:
            raise UsageError(
                f"--examples-sweep {max(sizes)}: the data has {total} examples; expected numbers "
                f"from 1 to {total}"
            )
        self.sizes = tuple(sorted({*sizes, total})) if sizes else ()
        if self.settings.batch_size is None:
            size = min(_BATCH, self.resolved.task.batch_size or _BATCH)
            self.settings = dataclasses.replace(self.settings, batch_size=size)
        self._resolve_sigma()
        self.key = run_key({**self.config, **self.identity()})

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the counts depend on."""
        options = self.options
        return {
            **self.shared_config(),
            **self.prior_config(),
            "tol": options.tol,
            "multiplicity": options.multiplicity,
        }

    def measure(self, *, units: Units | None = None, progress: Progress = silent) -> FlatResult:
        """Measure and return the result.

        Raises:
            TaskError: the loss is not deterministic, or a declared symmetry fails.
            UsageError: a declared symmetry does not fit the model.
            NotFiniteError: the loss, the gradient or a product is not finite.
        """
        units = MemoryUnits() if units is None else units
        watch = Stopwatch(units)
        risk = self.risk()
        loss = risk.require_deterministic()
        slope = risk.gradient().double().cpu()
        weights = risk.space.vector().double().cpu()
        prior = self.prior(risk.space, weights)
        meter = self.settings.budget.meter()

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        if self.earlier is None:
            parts, notes, products = self._counts(risk, prior, slope, units, tick)
        else:
            # Beside what a walk or a sweep adds, nothing is computed again.
            earlier = self.earlier
            parts = {name: getattr(earlier, name) for name in _COUNTED}
            notes = [text for text in earlier.info.warnings if text != BUDGET_SPENT]
            products = earlier.info.n_matvecs

        def stop() -> bool:
            return meter.spent(products)

        no_walk, no_sweep = self.missing(self.earlier)
        if no_walk and not stop():
            parts["walk"] = self._walk(risk, prior, units, stop, tick)
            no_walk = not _walked(parts["walk"], self.options.walks)
        if no_sweep and not stop():
            parts["sweep"], no_sweep = self._sweep(risk, units, tick), False
        cut = no_walk or no_sweep
        info = self.info(
            config=self.config,
            risk=risk,
            loss=loss,
            gradient_norm=float(torch.linalg.vector_norm(slope)),
            status="budget" if cut else "complete",
            watch=watch,
            n_matvecs=products,
            warnings=[*notes, *[BUDGET_SPENT] * cut],
        )
        return FlatResult(info=info, indices=self.indices, **parts)

    def missing(self, result: FlatResult | None) -> tuple[bool, bool]:
        """Whether a result, if there is one, lacks walks or a sweep that are asked for."""
        walk, sweep = (None, None) if result is None else (result.walk, result.sweep)
        counted = set() if sweep is None else {*sweep.examples.tolist()}
        wanted = self.options.walks
        return wanted > 0 and not _walked(walk, wanted), not counted >= {*self.sizes}

    def _counts(
        self,
        risk: Risk,
        prior: GaussianPrior | UniformPrior,
        slope: Tensor,
        units: Units,
        progress: Progress,
    ) -> tuple[dict[str, Any], list[str], int]:
        """Everything that rests on all singular values, what to say of it, and the products."""
        options, settings = self.options, self.settings
        counts = exact_counts(risk, tol=options.tol, units=units, progress=progress)
        progress("symmetries", 0, None)
        table = symmetry_table(risk, counts, declared=self._declared(), seed=settings.seed)
        discrete = discrete_of_risk(risk, seed=settings.seed)
        table = dataclasses.replace(
            table, notes=tuple(dict.fromkeys((*table.notes, *discrete.notes)))
        )
        notes = [*self.notes, *prior.notes, *_unclear(counts)]
        by_prior = learning = None
        found = self._quadratic(risk, counts, prior, slope, units, progress)
        if found is None:
            notes.append(
                "the criterion is not convex in the outputs: no classes of directions by prior and "
                "no N_eff without a GGN. Use --loss behaviour"
            )
        else:
            by_prior = prior_counts(found.directions, found.estimate)
            learning = coefficient_of(found.estimate, multiplicity=options.multiplicity)
            notes += found.warnings
        weights = risk.space.vector().double().cpu()
        parts = {
            "ranks": counts.ranks,
            "participation": counts.participation,
            "symmetries": table,
            "discrete": discrete.counts(),
            "counts": by_prior,
            "learning": learning,
            "prior": prior_table(prior, risk.space, weights),
        }
        return parts, notes, counts.n_matvecs

    def _declared(self) -> tuple[DeclaredSymmetry, ...]:
        declared = tuple(self.resolved.task.symmetries)
        for entry in declared:
            if not isinstance(entry, DeclaredSymmetry):
                raise TaskError(
                    f"the task's symmetries hold a {type(entry).__name__}; expected "
                    "landscape.DeclaredSymmetry"
                )
        return declared

    def _quadratic(
        self,
        risk: Risk,
        counts: ExactCounts,
        prior: GaussianPrior | UniformPrior,
        slope: Tensor,
        units: Units,
        progress: Progress,
    ) -> QuadraticFound | None:
        """The quadratic model's log-volume and directions, from the factor of the GGN at hand."""
        if counts.factor is None:
            return None
        progress("directions", 0, None)
        values, vectors = factored(counts.factor * prior.scale)
        model = Curved(
            route="gram",
            operator=Whitened(curvature("ggn", risk), prior.scale),
            values=values,
            vectors=vectors,
            anchor=prior.whiten(risk.space.vector().double().cpu()),
            # For behaviour the gradient at the anchor is exactly 0: rounding is no slope.
            gradient=None if self.settings.loss == "behaviour" else prior.scale * slope,
            n_matvecs=0,
        )
        return quadratic_job(
            model,
            VolumeOptions(cutoffs=self.options.cutoffs),
            seed=self.settings.seed,
            units=units,
            stop=lambda: False,
            progress=progress,
        )

    def _walk(
        self,
        risk: Risk,
        prior: GaussianPrior | UniformPrior,
        units: Units,
        stop: Callable[[], bool],
        progress: Progress,
    ) -> NullWalk:
        behaviour = RiskBehaviour(risk, prior)
        steps = 0

        def on_step(walk: int, distance: float) -> None:
            nonlocal steps
            steps += 1
            progress(f"walk {walk + 1} of {self.options.walks}", steps, None)

        return null_walk(
            behaviour.excess(ExcessLoss(risk)),
            behaviour,
            behaviour.start,
            # The strictest: who stays within it stays within all.
            cutoff=min(self.options.cutoffs),
            walks=self.options.walks,
            tol=self.options.tol,
            seed=self.settings.seed,
            on_step=on_step,
            units=units,
            stop=stop,
        )

    def _sweep(self, risk: Risk, units: Units, progress: Progress) -> ExampleSweep:
        progress("examples", 0, None)
        known = None if self.earlier is None else self.earlier.sweep
        sizes = sorted({*self.sizes, *(() if known is None else known.examples.tolist())})
        stored = units.get("sweep")
        if stored is not None and stored["examples"].tolist() == sizes:
            return ExampleSweep(**stored)
        sweep = example_sweep(risk, sizes, seed=self.settings.seed, tol=self.options.tol)
        units.put("sweep", dataclasses.asdict(sweep))
        return sweep


_COUNTED = (
    "ranks",
    "participation",
    "symmetries",
    "discrete",
    "counts",
    "learning",
    "prior",
    "walk",
    "sweep",
)


def _walked(walk: NullWalk | None, wanted: int) -> bool:
    """Whether as many walks were done as are asked for, or there is nothing to walk along."""
    return walk is not None and (len(walk.distance) >= wanted or walk.start_null == 0)


def _unclear(counts: ExactCounts) -> list[str]:
    """What to say of ranks that the tolerance decides."""
    return [
        f"the rank of the {name} is not clear: {rank.rank} at tolerance {rank.tolerance:g}, "
        f"{rank.looser} at a tenth of it and {rank.tighter} at ten times as much (gap "
        f"{rank.gap:.3g})"
        for name, rank in counts.ranks.items()
        if not rank.clear
    ]


def flat_directions(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: FlatOptions | None = None,
    task_settings: Mapping[str, Any] | None = None,
) -> FlatResult:
    """Counts of flat directions: the library's counterpart of ``landscape flat``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: weights to load; the model's own where None.
        settings: data, device and precision; the loss is ``behaviour`` where None.
        options: what to count.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Returns:
        ranks, symmetries, counts by prior, and walks and sweeps where they are asked for.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> settings = {"width": 2, "depth": 1}
        >>> result = flat_directions("digits-mlp", task_settings=settings)
        >>> result.ranks["jacobian"].null == result.symmetries.null
        True
    """
    settings = Settings(loss="behaviour") if settings is None else settings
    return FlatRun(
        **prepared(task, checkpoint, settings, task_settings),
        options=FlatOptions() if options is None else options,
    ).measure()
