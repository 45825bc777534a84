"""The ``information`` measurement of one checkpoint: gradients, activations, and GGN + residual."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from landscape.distributed import ALONE
from landscape.errors import UsageError
from landscape.gram import factor_width
from landscape.information.activations import activation_ranks
from landscape.information.gradients import gradient_gram, require_memory
from landscape.information.options import InformationOptions
from landscape.information.records import EffectiveRank, InformationResult, Split
from landscape.information.split import exact_split, probed_split
from landscape.measurement import Measurement, Stopwatch, prepared
from landscape.operators import CurvatureOperator, curvature
from landscape.params import ParameterSpace
from landscape.risk import Risk
from landscape.settings import Settings
from landscape.spectrum import EXACT_LIMIT
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent

__all__ = ["InformationRun", "information_of_data"]

_TOL = {torch.float64: 1e-10, torch.float32: 1e-5}
_BATCH = 16  # Examples: a gradient of one pulls back its whole micro-batch.


@dataclass(kw_only=True)
class InformationRun(Measurement):
    """A prepared ``information`` measurement; :meth:`measure` does it.

    The key does not depend on the number of probes, which are added to the same file.

    Args:
        options: what to measure; for the others see :class:`landscape.measurement.Measurement`.
        earlier: a result of the same key, whose parts are taken over.

    Raises:
        UsageError: bfloat16, or too many parameters for ``exact``.
    """

    command: ClassVar[str] = "information"

    options: InformationOptions
    earlier: InformationResult | None = None

    def __post_init__(self) -> None:
        self._choose_precision("float64")
        if self._dtype not in _TOL:
            raise UsageError(
                f"ranks in {self._dtype_name}: expected float64 or float32, in which rounding can "
                "be told from small values"
            )
        n = ParameterSpace(self.resolved.task.model, self.settings.params).n
        method = self.options.method
        if method == "exact" and n > EXACT_LIMIT:
            raise UsageError(
                f"--method exact: matrices of {n} parameters; they are built up to {EXACT_LIMIT}. "
                "Use --method probes, or select fewer with --params"
            )
        self._exact = method == "exact" or (method == "auto" and n <= EXACT_LIMIT)
        self._tol = _TOL[self._dtype] if self.options.tol is None else self.options.tol
        self.key = run_key({**self.config, **self.identity()})

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the estimates depend on."""
        return {
            **self.shared_config(),
            "tol": self._tol,
            "method": "exact" if self._exact else "probes",
            **({} if self._exact else {"steps": self.options.steps}),
        }

    def missing(self, result: InformationResult) -> bool:
        """Whether a result has fewer probes than are asked for."""
        return not self._exact and result.split.n_probes < self.options.probes

    def measure(
        self, *, units: Units | None = None, progress: Progress = silent
    ) -> InformationResult:
        """Measure and return the result.

        Raises:
            TaskError: the loss is not deterministic, or cannot be differentiated twice.
            UsageError: too many examples for the memory, or outputs that do not belong to them.
            NotFiniteError: the loss, a gradient, an activation or a product is not finite.
        """
        units = MemoryUnits() if units is None else units
        watch = Stopwatch(units)
        risk = self.risk()
        loss = risk.require_deterministic()
        slope = float(torch.linalg.vector_norm(risk.gradient().double()))

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        earlier, seed = self.earlier, self.settings.seed
        notes: list[str] = []
        if earlier is None:
            small = self._small_risk()
            require_memory(self._rows(small), risk.n)
            gradients = gradient_gram(small, tol=self._tol, seed=seed, units=units, progress=tick)
            activations, notes = activation_ranks(small, tol=self._tol, progress=tick)
        else:
            gradients, activations = earlier.gradients, earlier.activations
            notes += [text for text in earlier.info.warnings if text.startswith("activations of")]
        split, products = self._split(risk, units, tick)
        info = self.info(
            config=self.config,
            risk=risk,
            loss=loss,
            gradient_norm=slope,
            status="complete",
            watch=watch,
            n_matvecs=products,
            warnings=[*notes, *_unclear(gradients.ranks[:1])],
        )
        return InformationResult(
            info=info,
            indices=self.indices,
            gradients=gradients,
            activations=activations,
            split=split,
        )

    def _small_risk(self) -> Risk:
        """The same loss in small micro-batches."""
        largest = (self.settings.batch_size, self.resolved.task.batch_size, _BATCH)
        return self._risk(ALONE, batch_size=min(size for size in largest if size))

    def _rows(self, risk: Risk) -> int:
        """Rows of the factor of the gradients, at most."""
        if self.settings.loss != "behaviour":
            return self.data.n_examples
        terms = sum(risk.criterion.weight(batch) for batch in self.data.batches)
        return int(terms) * factor_width(risk)

    def _split(self, risk: Risk, units: Units, progress: Progress) -> tuple[Split, int]:
        """``H = GGN + R``, and the products that it took."""
        options, settings = self.options, self.settings
        memory = settings.graph_memory
        # Both operators keep graphs.
        half = None if memory is None else memory // 2
        hessian, ggn = (curvature(name, risk, graph_memory=half) for name in ("hessian", "ggn"))
        assert isinstance(hessian, CurvatureOperator)
        assert isinstance(ggn, CurvatureOperator)
        blocks = risk.space.modules()
        if len(blocks) == 1:
            blocks = {}  # It is the whole.
        if self._exact:
            measure = functools.partial(exact_split, tol=self._tol)
        else:
            measure = functools.partial(
                probed_split,
                probes=options.probes,
                steps=options.steps,
                tol=self._tol,
                seed=settings.seed,
            )
        return measure(hessian, ggn, blocks, units=units, progress=progress)


def _unclear(ranks: tuple[EffectiveRank, ...]) -> list[str]:
    return [
        f"the rank of the gradients is not clear: {found.rank} at the tolerance, {found.looser} at "
        f"a tenth of it and {found.tighter} at ten times as much"
        for found in ranks
        if not found.clear
    ]


def information_of_data(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: InformationOptions | None = None,
    task_settings: Mapping[str, Any] | None = None,
) -> InformationResult:
    """What the data distinguish: the library's counterpart of ``landscape information``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: weights to load; the model's own where None.
        settings: loss, data, device and precision.
        options: what to measure.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> found = information_of_data(
        ...     "digits-mlp",
        ...     settings=Settings(examples=20),
        ...     task_settings={"width": 2, "depth": 1},
        ... )
        >>> found.gradients.ranks[0].rank <= found.gradients.distinct_gradients <= 20
        True
    """
    settings = Settings() if settings is None else settings
    return InformationRun(
        **prepared(task, checkpoint, settings, task_settings),
        options=InformationOptions() if options is None else options,
    ).measure()
