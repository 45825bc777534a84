"""The ``modules`` measurement of one checkpoint: coupling between groups of its parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.flat.subject import Subject
from landscape.gram import GRAM_LIMIT
from landscape.measurement import BUDGET_SPENT, Stopwatch, prepared
from landscape.memory import total_memory
from landscape.modules.exact import exact_coupling
from landscape.modules.groups import Grouping, group_parameters
from landscape.modules.heads import check_heads
from landscape.modules.options import MOST_GROUPS, ModulesOptions
from landscape.modules.patterns import GroupPatterns
from landscape.modules.records import ModuleCoupling, ModulesResult
from landscape.modules.regions import Region
from landscape.modules.stochastic import Products, stochastic_coupling
from landscape.operators import LinearOperator, Restricted, Whitened, curvature
from landscape.prior_measurement import PriorMeasurement
from landscape.priors import GaussianPrior, prior_table
from landscape.risk import Risk
from landscape.settings import Settings
from landscape.spectrum import EXACT_LIMIT
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent
from landscape.volume.curvature import Curved, Route, curved
from landscape.volume.options import VolumeOptions
from landscape.volume.quadratic_job import quadratic_job

__all__ = ["ModulesRun", "module_coupling"]

_ROUNDING = 1e-8  # Negative eigenvalues down to this part of the largest are rounding.
# Singular values of blocks below this part of the largest eigenvalue may be rounding.
_TOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05}
_EXAMPLES = 2  # That heads are verified on.


@dataclass(kw_only=True)
class ModulesRun(PriorMeasurement):
    """A prepared ``modules`` measurement of one checkpoint; :meth:`measure` does it.

    The key depends neither on the number of probes nor on whether pairs are measured, which
    continue the same file.

    Args:
        options: what to measure; for the others see
            :class:`landscape.prior_measurement.PriorMeasurement`.

    Attributes:
        curvature: ``ggn`` or ``hessian``.
        grouping: the groups.
        route: ``dense``, ``gram`` or ``lanczos``, which stands for ``matrix-free``.
        pairs: whether every pair is measured.

    Raises:
        UsageError: bad groups, or a method that is out of reach.
    """

    command: ClassVar[str] = "modules"

    options: ModulesOptions
    curvature: str = field(init=False)
    grouping: Grouping = field(init=False)
    route: Route = field(init=False)
    pairs: bool = field(init=False)

    def __post_init__(self) -> None:
        options, model = self.options, self.resolved.task.model
        self._choose_precision("float64")
        self._tol = _TOL[self._dtype] if options.tol is None else options.tol
        self.curvature = options.curvature
        if self.curvature == "auto":
            self.curvature = "ggn" if self.settings.loss == "behaviour" else "hessian"
        self.grouping = group_parameters(options.groups, model, self.settings.params)
        self.route = self._route()
        few = len(self.grouping.names) <= MOST_GROUPS
        self.pairs = self.route != "lanczos" or (few if options.pairs is None else options.pairs)
        self._resolve_sigma()
        self.key = run_key({**self.config, **self.identity()})

    def _route(self) -> Route:
        """How: the factor where groups need few coordinates each, the matrix where it is small."""
        sizes = self.grouping.sizes
        n, wanted = sum(sizes), self.options.method
        if wanted == "matrix-free":
            return self._checked_sketch(n)
        rows = None
        if self.curvature == "ggn" and self.factor_is_real:
            rows = self.factor_rows(n)
        if rows is not None and rows <= min(GRAM_LIMIT, n - 1):
            needed = sum(min(size, rows) for size in sizes)
            if needed <= EXACT_LIMIT:
                return "gram"
        if n <= EXACT_LIMIT:
            return "dense"
        if wanted == "exact":
            raise UsageError(
                f"--method exact: neither the {n} parameters nor those that the groups need for "
                f"the rows of a factor of the curvature ({'none' if rows is None else rows}) are "
                f"at most {EXACT_LIMIT}. Use --method matrix-free, fewer parameters (--params) or "
                "fewer --examples"
            )
        return self._checked_sketch(n)

    def _checked_sketch(self, n: int) -> Route:
        size = self.options.sketch * len(self.grouping.names) * n * 8
        if size > total_memory(torch.device("cpu")) // 2:
            raise UsageError(
                f"--sketch {self.options.sketch}: {len(self.grouping.names)} groups would keep "
                f"{size / 2**30:.3g} GB of products; expected at most half of the memory. Use a "
                "smaller --sketch, or fewer groups"
            )
        return "lanczos"

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the estimates depend on."""
        options, groups = self.options, self.options.groups
        if not isinstance(groups, GroupPatterns) and groups not in ("layer", "block", "head"):
            groups = GroupPatterns.read(groups)
        free = self.route == "lanczos"
        return {
            **self.shared_config(),
            **self.prior_config(),
            "cutoffs": list(options.cutoffs) if options.tilt is None else [],
            "groups": groups.described() if isinstance(groups, GroupPatterns) else groups,
            "tilt": options.tilt,
            "curvature": self.curvature,
            "route": self.route,
            "tol": self._tol,
            "sketch": options.sketch if free else None,
            "steps": options.steps if free else None,
        }

    def measure(self, *, units: Units | None = None, progress: Progress = silent) -> ModulesResult:
        """Measure and return the result.

        Raises:
            TaskError: the loss is not deterministic.
            UsageError: heads do not lie where they were looked for.
            NotFiniteError: the loss, the gradient or a product is not finite, or ``I + s A`` is
                not positive definite.
        """
        units = MemoryUnits() if units is None else units
        watch = Stopwatch(units)
        risk = self.risk()
        loss = risk.require_deterministic()
        if self.grouping.attentions:
            subject = Subject.of(risk, examples=_EXAMPLES)
            check_heads(subject, self.grouping.attentions, seed=self.settings.seed)
        slope = risk.gradient().double().cpu()
        weights = risk.space.vector().double().cpu()
        prior = self.prior(risk.space, weights)
        assert isinstance(prior, GaussianPrior)
        meter = self.settings.budget.meter()
        notes = [*self.notes, *prior.notes]

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        plain = curvature(self.curvature, risk, graph_memory=self.settings.graph_memory)
        operator = Whitened(plain, prior.scale)
        # For behaviour the gradient at the anchor is exactly 0: rounding is no slope.
        sloped = None if self.settings.loss == "behaviour" else prior.scale * slope
        found, products = self._coupled(
            risk, operator, prior.whiten(weights), sloped, units, meter.spent, tick
        )
        operator.release()
        cut = self.missing(found)
        info = self.info(
            config={**self.config, "probes": self.options.probes},
            risk=risk,
            loss=loss,
            gradient_norm=float(torch.linalg.vector_norm(slope)),
            status="budget" if cut else "complete",
            watch=watch,
            n_matvecs=products,
            warnings=[*notes, *self._warnings(found), *[BUDGET_SPENT] * cut],
        )
        return ModulesResult(
            info=info,
            indices=self.indices,
            names=self.grouping.names,
            modules=found,
            prior=prior_table(prior, risk.space, weights),
        )

    def _coupled(
        self,
        risk: Risk,
        operator: Whitened,
        anchor: Tensor,
        slope: Tensor | None,
        units: Units,
        spent: Callable[[int], bool],
        progress: Progress,
    ) -> tuple[ModuleCoupling, int]:
        """The coupling, and the products that it took."""
        options, seed = self.options, self.settings.seed

        @functools.cache
        def eigenpairs() -> Curved:
            return curved(
                operator,
                self.route,
                risk=risk,
                scale=operator.diagonal.double().cpu(),
                anchor=anchor,
                gradient=slope,
                top=VolumeOptions().top,
                seed=seed,
                units=units,
                stop=lambda: False,  # A tilt from fewer eigenpairs would be another one.
                progress=progress,
            )

        if self.route != "lanczos":
            model = eigenpairs()
            tilt, products = self._tilt(lambda: model, units, progress)
            total = len(self.grouping.names)
            found = exact_coupling(
                model,
                self.grouping.indices,
                tilt=tilt,
                tol=self._tol,
                on_group=lambda done: progress("coupling", done, total),
            )
            return found, max(products, model.n_matvecs)
        tilt, products = self._tilt(eigenpairs, units, progress)
        before = operator.n_matvecs  # Of this run.

        def largest() -> tuple[Tensor, Tensor, int]:
            model = eigenpairs()
            # A tilt that follows from a cutoff has counted them.
            products = 0 if self.options.tilt is None else model.n_matvecs
            return model.values, model.vectors, products

        found, more = stochastic_coupling(
            Products(
                whole=operator,
                groups=self.grouping.indices,
                block=lambda region: self._block(operator, region),
                largest=largest,
            ),
            tilt=tilt,
            tol=self._tol,
            sketch=options.sketch,
            steps=options.steps,
            probes=options.probes,
            pairs=self.pairs,
            seed=seed,
            units=units,
            stop=lambda done: spent(before + done),
            progress=progress,
        )
        return found, products + more

    def _tilt(
        self, eigenpairs: Callable[[], Curved], units: Units, progress: Progress
    ) -> tuple[float, int]:
        """The tilt s >= 0, and the products that it took."""
        if self.options.tilt is not None:
            return self.options.tilt, 0
        stored = units.get("tilt")
        if stored is None:
            found = quadratic_job(
                eigenpairs(),
                VolumeOptions(cutoffs=self.options.cutoffs),
                seed=self.settings.seed,
                units=units,
                stop=lambda: False,
                progress=progress,
            ).estimate
            stored = {"tilt": float(found.tilt[0]), "n_matvecs": found.n_matvecs}
            units.put("tilt", stored)
        tilt = float(stored["tilt"])
        # Below 0 the prior's own mean excess is within the cutoff; without curvature there is none.
        return (tilt if tilt > 0 else 0.0), int(stored["n_matvecs"])

    def _block(self, operator: Whitened, region: Region) -> LinearOperator:
        """The diagonal block of some groups; of whole parameters at the price of those alone."""
        indices = [self.grouping.indices[a] for a in region]
        index = torch.cat(indices).sort().values
        positions = [self.grouping.positions[a] for a in region]
        whole = [p for p in positions if p is not None]
        if len(whole) < len(positions):
            return Restricted(operator, index)
        block = operator.operator.block(sorted(i for p in whole for i in p))
        return Whitened(block, operator.diagonal.cpu()[index])

    def missing(self, found: ModuleCoupling) -> bool:
        """Whether a record lacks probes or pairs that are asked for."""
        if found.exact:
            return False
        wanted = self.options.probes
        base = found.region.sum(1) != 2
        base |= len(found.size) <= 3  # Pairs are among the others.
        rows = found.log_det_high if self.pairs else found.log_det_high[base]
        done = rows == rows
        return bool(rows.shape[1] < wanted or not done[:, :wanted].all())

    def _warnings(self, found: ModuleCoupling) -> list[str]:
        """What to say of the numbers."""
        notes = []
        if found.tilt == 0:
            notes.append(
                "the tilt is 0, so that nothing is coupled: under the prior the mean excess loss "
                "of the quadratic model is within the cutoff. Use a smaller --cutoff, a wider "
                "--sigma or --tilt"
            )
        scale = max(abs(found.lowest), abs(found.highest))
        if found.lowest < -_ROUNDING * scale:
            notes.append(
                f"the curvature has negative eigenvalues (smallest {found.lowest:.3g}, 1 + s a "
                f"{1 + found.tilt * found.lowest:.3g}): the quadratic model falls for ever along "
                "them. Use --loss behaviour or --curvature ggn"
            )
        if found.exact:
            return notes
        if not found.converged:
            notes.append(
                f"extreme eigenvalues are not converged (largest residual {found.residual:.2e})"
            )
        if not self.pairs:
            count = len(found.size)
            notes.append(
                f"the {count * (count - 1) // 2} pairs of {count} groups are not measured; --pairs "
                "measures them"
            )
        if found.unresolved:
            notes.append(
                f"the Lanczos steps leave {found.truncation:.2g} nats of the total coupling open, "
                f"more than twice its standard error {found.total.stderr:.2g}; use more --steps"
            )
        return notes


def module_coupling(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: ModulesOptions | None = None,
    task_settings: Mapping[str, Any] | None = None,
) -> ModulesResult:
    """Coupling between groups of parameters: the library's counterpart of ``landscape modules``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: weights to load; the model's own where None.
        settings: data, device and precision; the loss is ``behaviour`` where None.
        options: which groups, and what to measure.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Returns:
        norms and ranks of the blocks between groups, their coupling in nats, and extremes.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> settings = {"network": "modular", "width": 4}
        >>> result = module_coupling("two-tasks", task_settings=settings)
        >>> result.names
        ('left.0', 'left.2', 'right.0', 'right.2')
        >>> float(result.modules.coupling[0, 2]) < 1e-8
        True
    """
    settings = Settings(loss="behaviour") if settings is None else settings
    return ModulesRun(
        **prepared(task, checkpoint, settings, task_settings),
        options=ModulesOptions() if options is None else options,
    ).measure()
