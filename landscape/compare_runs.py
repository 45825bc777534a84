"""The ``compare`` measurement of one checkpoint: networks A and B on the same data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.compare.ablation import Ablation, ablated, parse_ablation
from landscape.compare.behaviour import compare_behaviour
from landscape.compare.laws import law_of
from landscape.compare.matching import match_units
from landscape.compare.options import CompareOptions
from landscape.compare.path import State, state_of, weight_path
from landscape.compare.records import CompareResult, Matching, WeightPath
from landscape.errors import UsageError
from landscape.loading import load_weights
from landscape.measurement import Measurement, Stopwatch, prepared
from landscape.risk import Risk
from landscape.rng import stream
from landscape.settings import Settings
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent

__all__ = ["CompareRun", "compare_networks"]


@dataclass(kw_only=True)
class CompareRun(Measurement):
    """A prepared ``compare`` measurement; :meth:`measure` does it.

    Args:
        other: weights of network B; A's own where None, which ablations must then change.
        options: what to measure; for the others see :class:`landscape.measurement.Measurement`.

    Raises:
        UsageError: nothing to compare with, or a criterion that names no law.
    """

    command: ClassVar[str] = "compare"

    other: Checkpoint | None
    options: CompareOptions
    ablations: tuple[Ablation, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._choose_precision("float64")
        self.ablations = tuple(parse_ablation(text) for text in self.options.ablate)
        if self.other is None and not self.ablations:
            raise UsageError(
                "nothing to compare with: expected a second checkpoint, or --ablate to compare a "
                "network with its ablated copy"
            )
        law_of(self.resolved.task.resolved_criterion)
        # The digest of B is in the identity: its path and step are for the reader.
        named = {"other": None, "other_step": None}
        self.key = run_key({**self.config, **named, **self.identity()})

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the result depends on."""
        other = self.other
        return {
            **self.shared_config(),
            **dataclasses.asdict(self.options),
            "ablate": list(self.options.ablate),
            "other": None if other is None else other.path,
            "other_step": None if other is None else other.step,
        }

    def identity(self) -> dict[str, Any]:
        """Digests, with that of B."""
        other = None if self.other is None else self.other.sha256
        return {**super().identity(), "other_sha256": other}

    def measure(self, *, units: Units | None = None, progress: Progress = silent) -> CompareResult:
        """Measure and return the result.

        Raises:
            TaskError: the loss is not deterministic.
            CheckpointError: the weights of B do not fit.
            UsageError: an ablation does not fit the model.
            NotFiniteError: the loss, the gradient or an output is not finite.
        """
        units = MemoryUnits() if units is None else units
        watch = Stopwatch(units)
        risk = self.risk()
        loss = risk.require_deterministic()
        gradient = float(torch.linalg.vector_norm(risk.gradient().double()))
        theirs = self._other_risk(risk)
        start = state_of(risk.model)

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        tick("behaviour", 0, None)
        options, seed = self.options, self.settings.seed
        changed = ablated(theirs.model, self.ablations, theirs.outputs, theirs.n_batches, seed=seed)
        with changed as outputs:
            behaviour = compare_behaviour(
                risk,
                risk.outputs,
                outputs,
                n_bootstrap=options.bootstrap,
                by_example=options.over == "examples",
                generator=stream(seed, "bootstrap"),
            )
            end = state_of(theirs.model)  # With ablated weights.
        risk.n_forward += 2
        path, aligned, matching, notes = self._paths(risk, start, end, theirs, units, tick)
        info = self.info(
            config=self.config,
            risk=risk,
            loss=loss,
            gradient_norm=gradient,
            status="complete",
            watch=watch,
            n_matvecs=0,
            warnings=notes,
        )
        return CompareResult(
            info=info,
            indices=self.indices,
            behaviour=behaviour,
            path=path,
            aligned=aligned,
            matching=matching,
        )

    def _other_risk(self, risk: Risk) -> Risk:
        """The risk of a copy of the model with the weights of B."""
        model: nn.Module = copy.deepcopy(risk.model)
        task = dataclasses.replace(self.resolved.task, model=model)
        if self.other is not None:
            load_weights(task, model, self.other)
        return Risk(
            task,
            self.data,
            params=self.settings.params,
            batch_size=self.settings.batch_size,
            device=self._device,
            dtype=self._dtype,
        )

    def _paths(
        self, risk: Risk, a: State, b: State, theirs: Risk, units: Units, progress: Progress
    ) -> tuple[WeightPath | None, WeightPath | None, tuple[Matching, ...], Sequence[str]]:
        """The path between the weights, and the one to the matched copy of B."""
        points = self.options.points
        if not points:
            return None, None, (), ()
        if not all(entry.weights for entry in self.ablations):
            return None, None, (), ("activations are ablated: no path between weights",)
        path = weight_path(risk, a, b, points, name="path", units=units, progress=progress)
        if not self.options.align or self.ablations:
            return path, None, (), ()
        progress("matching", 0, None)
        found = match_units(theirs, a)
        if not any(entry.moved for entry in found.matching):
            # Nothing moved, so that the paths are one.
            return path, path if found.matching else None, found.matching, found.notes
        end = {**b, **{name: tensor.to(b[name]) for name, tensor in found.parameters.items()}}
        aligned = weight_path(
            risk, a, end, points, name="aligned path", units=units, progress=progress
        )
        return path, aligned, found.matching, found.notes


def compare_networks(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    other: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: CompareOptions | None = None,
    task_settings: Mapping[str, Any] | None = None,
) -> CompareResult:
    """Compare two networks: the library's counterpart of ``landscape compare``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: weights of A; the model's own where None.
        other: weights of B; those of A, with ablations, where None.
        settings: data, device and precision.
        options: what to measure.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> found = compare_networks(
        ...     "digits-mlp",
        ...     options=CompareOptions(ablate=("2=zero",)),
        ...     task_settings={"width": 2, "depth": 1},
        ... )
        >>> found.behaviour.kl_ab.value > 0
        True
    """
    settings = Settings() if settings is None else settings
    return CompareRun(
        **prepared(task, checkpoint, settings, task_settings),
        other=None if other is None else read_checkpoint(Path(other)),
        options=CompareOptions() if options is None else options,
    ).measure()
