"""The ``compare`` measurement of one checkpoint: networks A and B on the same data."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.compare.ablation import Ablation, ablated, parse_ablation
from landscape.compare.behaviour import compare_behaviour
from landscape.compare.laws import law_of
from landscape.compare.matching import Matched, match_units
from landscape.compare.options import CompareOptions
from landscape.compare.path import State, state_of, weight_path
from landscape.compare.records import CompareResult, Eigenspaces, WeightPath
from landscape.eigensolver import RitzPairs, extreme_eigenpairs
from landscape.errors import UsageError
from landscape.hessian import default_tol
from landscape.loading import load_weights
from landscape.measurement import Measurement, Stopwatch, prepared
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.rng import stream
from landscape.series import subspace_overlap
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
        if self.options.eigenspaces > risk.n:
            raise UsageError(
                f"--eigenspaces {self.options.eigenspaces}: there are {risk.n} parameters; "
                "expected at most as many"
            )
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
        matched = None
        notes: list[str] = []
        if options.align and (options.points or options.eigenspaces) and not self.ablations:
            tick("matching", 0, None)
            matched = match_units(theirs, start)
            notes += matched.notes
        path = aligned = None
        if not all(entry.weights for entry in self.ablations):
            notes.append("activations are ablated: no path between weights")
        elif options.points:
            path, aligned = self._paths(risk, start, end, matched, units, tick)
        spaces, products = self._eigenspaces(risk, theirs, matched, tick)
        info = self.info(
            config=self.config,
            risk=risk,
            loss=loss,
            gradient_norm=gradient,
            status="complete",
            watch=watch,
            n_matvecs=products,
            warnings=notes,
        )
        return CompareResult(
            info=info,
            indices=self.indices,
            behaviour=behaviour,
            path=path,
            aligned=aligned,
            matching=() if matched is None else matched.matching,
            eigenspaces=spaces,
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
        self,
        risk: Risk,
        a: State,
        b: State,
        matched: Matched | None,
        units: Units,
        progress: Progress,
    ) -> tuple[WeightPath, WeightPath | None]:
        """The path between the weights, and the one to the matched copy of B."""
        points = self.options.points
        path = weight_path(risk, a, b, points, name="path", units=units, progress=progress)
        if matched is None or not matched.matching:
            return path, None
        if not any(entry.moved for entry in matched.matching):
            return path, path
        end = {**b, **{name: tensor.to(b[name]) for name, tensor in matched.parameters.items()}}
        name = "aligned path"
        return path, weight_path(risk, a, end, points, name=name, units=units, progress=progress)

    def _eigenspaces(
        self, risk: Risk, theirs: Risk, matched: Matched | None, progress: Progress
    ) -> tuple[Eigenspaces | None, int]:
        """The overlap of the top eigenspaces, and the products that it took."""
        k = self.options.eigenspaces
        if not k:
            return None, 0

        def largest(at: Risk) -> RitzPairs:
            progress("eigenspaces", len(found), None)
            operator = curvature("hessian", at)
            tol = default_tol(self._dtype)
            pairs = extreme_eigenpairs(operator, top=k, tol=tol, seed=self.settings.seed)
            operator.release()
            found.append(pairs)
            return pairs

        found: list[RitzPairs] = []
        ours, other = largest(risk), largest(theirs)
        aligned = math.nan
        if matched is not None and matched.matching:
            own = dict(theirs.model.named_parameters())
            for name, tensor in matched.parameters.items():
                own[name].data = tensor.to(own[name])  # This copy of the model ends here.
            aligned = _overlap(ours, largest(theirs))
        return (
            Eigenspaces(
                eigenvalues_a=ours.values,
                eigenvalues_b=other.values,
                overlap=_overlap(ours, other),
                aligned=aligned,
                chance=k / risk.n,
                converged=all(bool(pairs.converged.all()) for pairs in found),
            ),
            sum(pairs.n_matvecs for pairs in found),
        )


def _overlap(one: RitzPairs, other: RitzPairs) -> float:
    return subspace_overlap(one.vectors.cpu().numpy(), other.vectors.cpu().numpy())


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
