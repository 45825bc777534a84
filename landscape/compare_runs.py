"""The ``compare`` measurement of one checkpoint: networks A and B on the same data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.compare.ablation import Ablation, ablated, parse_ablations
from landscape.compare.behaviour import compare_behaviour
from landscape.compare.laws import law_of
from landscape.compare.matching import Matched, match_units
from landscape.compare.options import CompareOptions
from landscape.compare.path import State, state_of, weight_path
from landscape.compare.records import CompareResult, WeightPath
from landscape.compare_spaces import compare_eigenspaces
from landscape.compare_volumes import compare_volumes
from landscape.distributed import ALONE, Alone
from landscape.errors import UsageError
from landscape.loading import load_weights
from landscape.measurement import Measurement, Stopwatch, prepared
from landscape.risk import Risk
from landscape.rng import stream
from landscape.settings import Settings
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent
from landscape.volume_runs import VolumeRun

__all__ = ["CompareRun", "compare_networks"]


@dataclass(kw_only=True)
class CompareRun(Measurement):
    """A prepared ``compare`` measurement; :meth:`measure` does it.

    Args:
        other: weights of network B; A's own where None, which ablations must then change.
        options: what to measure; for the others see :class:`landscape.measurement.Measurement`.
        sigma: the prior's standard deviation of every tensor where an earlier checkpoint of a
            series has resolved it; from the options, by the weights of A, where None.
        prior_access: how to read a checkpoint that the prior's mean names.

    Raises:
        UsageError: nothing to compare with, a criterion that names no law, or the volume of a
            network whose activations are resampled.
    """

    command: ClassVar[str] = "compare"

    other: Checkpoint | None
    options: CompareOptions
    sigma: tuple[float, ...] | None = None
    prior_access: Mapping[str, Any] = field(default_factory=dict)
    ablations: tuple[Ablation, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._choose_precision("float64")
        self.ablations = parse_ablations(self.options.ablate)
        if self.other is None and not self.ablations:
            raise UsageError(
                "nothing to compare with: expected a second checkpoint, or --ablate to compare a "
                "network with its ablated copy"
            )
        law_of(self.resolved.task.resolved_criterion)
        self._volume = self._volume_run()
        # The digest of B is in the identity: its path and step are for the reader.
        named = {"other": None, "other_step": None}
        self.key = run_key({**self.config, **named, **self.identity()})

    def _volume_run(self) -> VolumeRun | None:
        """The measurement of log V of A, where it is asked for."""
        options = self.options
        if options.volume is None:
            return None
        for entry in self.ablations:
            if entry.way == "resample" and not entry.weights:
                raise UsageError(
                    f"--volume with --ablate {entry.text}: what an example's outputs are then "
                    "depends on other examples, so that there is no loss of a network to measure; "
                    "expected zero or mean. Leave out --volume, or use one of them"
                )
        run = VolumeRun(
            resolved=self.resolved,
            data=self.data,
            checkpoint=self.checkpoint,
            settings=dataclasses.replace(self.settings, loss=options.volume_loss),
            ranks=self.ranks,
            options=options.volume,
            sigma=self.sigma,
            prior_access=self.prior_access,
        )
        self.sigma = run.sigma
        return run

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the result depends on."""
        other = self.other
        return {
            **self.shared_config(),
            **self._asked(),
            "other": None if other is None else other.path,
            "other_step": None if other is None else other.step,
        }

    def _asked(self) -> dict[str, Any]:
        options, volume = self.options, self._volume
        found = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        del found["volume_loss"]
        found["ablate"] = list(options.ablate)
        if volume is not None:
            kept = ("loss", "curvature", "route", "top", "steps")
            found["volume"] = {
                **{name: volume.config[name] for name in kept},
                **volume.prior_config(),
                "error": volume.options.error,
            }
        return found

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
        given = MemoryUnits() if units is None else units
        units, ranks = self.ranks.units(given), self.ranks
        watch = Stopwatch(units)
        risk = self.risk()
        if self.options.eigenspaces > risk.n:
            raise UsageError(
                f"--eigenspaces {self.options.eigenspaces}: there are {risk.n} parameters; "
                "expected at most as many"
            )
        if self._volume is not None:
            # A prior that cannot be is refused before anything is measured.
            self._volume.prior(risk.space, risk.space.vector().double().cpu())
        loss = risk.require_deterministic()
        gradient = float(torch.linalg.vector_norm(risk.gradient().double()))
        with ranks.unanimous():
            model = self._other_model(risk)
        theirs = self._risk_of(model, ranks)
        start = state_of(risk.model)

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        tick("behaviour", 0, None)
        options, seed = self.options, self.settings.seed
        volumes = None
        changed = ablated(
            model, self.ablations, theirs.outputs, theirs.n_batches, seed=seed, ranks=ranks
        )
        with changed as outputs:
            behaviour = compare_behaviour(
                risk,
                risk.outputs,
                outputs,
                n_bootstrap=options.bootstrap,
                by_example=options.over == "examples",
                generator=stream(seed, "bootstrap"),
                units=units,
            )
            end = state_of(model)  # With ablated weights.
            if self._volume is not None:
                volumes = compare_volumes(self._volume, theirs, units=given, progress=tick)
        notes = [] if volumes is None else list(volumes.notes)
        matched = None
        wanted = (options.points or options.eigenspaces) and not self.ablations
        if options.align != "none" and wanted:
            tick("matching", 0, None)
            matched = self._matched(theirs, start, options.align)
            notes += matched.notes
        path = aligned = None
        if not all(entry.weights for entry in self.ablations):
            notes.append("activations are ablated: no path between weights")
        elif options.points:
            path, aligned = self._paths(risk, start, end, matched, units, tick)
        spaces, products = None, 0
        if options.eigenspaces:
            moved = {} if matched is None or not matched.matching else matched.parameters
            spaces, products = compare_eigenspaces(
                risk, theirs, options.eigenspaces, moved, seed=seed, units=units, progress=tick
            )
        # Counted from what is there, since an earlier, interrupted run may have done a part of it.
        paths = len({id(found) for found in (path, aligned) if found is not None})
        averaged = any(not entry.weights and entry.way != "zero" for entry in self.ablations)
        info = self.info(
            config=self.config,
            risk=risk,
            loss=loss,
            gradient_norm=gradient,
            status="complete",
            watch=watch,
            n_matvecs=products + (0 if volumes is None else volumes.n_matvecs),
            n_forward=4
            + averaged
            + paths * options.points
            + (0 if volumes is None else volumes.n_forward),
            n_gradient=1 + (0 if volumes is None else volumes.n_gradient),
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
            volume=None if volumes is None else volumes.found,
        )

    def _matched(
        self, theirs: Risk, start: State, by: Literal["weights", "activations"]
    ) -> Matched:
        """Units of B in the order of those of A, as the first process finds it from all data."""

        def match() -> Matched:
            whole = theirs if self.ranks.size == 1 else self._risk_of(theirs.model, ALONE)
            return match_units(whole, start, by=by)

        return self.ranks.shared(match)

    def _other_model(self, risk: Risk) -> nn.Module:
        """A copy of the model with the weights of B."""
        model: nn.Module = copy.deepcopy(risk.model)
        if self.other is not None:
            load_weights(dataclasses.replace(self.resolved.task, model=model), model, self.other)
        return model

    def _risk_of(self, model: nn.Module, ranks: Alone) -> Risk:
        """The task loss of another model."""
        return Risk(
            dataclasses.replace(self.resolved.task, model=model),
            self.data,
            params=self.settings.params,
            batch_size=self.settings.batch_size,
            device=self._device,
            dtype=self._dtype,
            ranks=ranks,
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
