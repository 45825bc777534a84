"""What every measurement of one checkpoint shares: identity, loading, and the record of the run."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.data import DataSet, materialise, micro_batches
from landscape.distributed import ALONE, Alone
from landscape.gram import factor_width
from landscape.loading import load_weights
from landscape.memory import total_memory
from landscape.params import ParameterSpace
from landscape.results import Result, RunInfo
from landscape.risk import Risk
from landscape.settings import Settings, device_name, resolve_device, resolve_dtype, versions
from landscape.store import SCHEMA
from landscape.task import ResolvedTask, Task, resolve_task
from landscape.units import Progress, Units, silent

__all__ = ["BUDGET_SPENT", "Measurement", "Stopwatch", "prepared"]

BUDGET_SPENT = (
    "the budget was spent before everything was measured; the same command with a larger --budget "
    "continues"
)


@dataclass(kw_only=True)
class Measurement(ABC):
    """A prepared measurement of one checkpoint.

    Args:
        resolved: the task; its model receives the weights.
        data: the task's data, read once for all checkpoints.
        checkpoint: the weights, or None to take the model's own.
        settings: what all measurements share.
        argv: the command line, for the record.
        ranks: the processes that make this measurement, which all call :meth:`measure`.

    Attributes:
        key: SHA-256 of everything that determines the estimates.
    """

    command: ClassVar[str]

    resolved: ResolvedTask
    data: DataSet
    checkpoint: Checkpoint | None
    settings: Settings
    argv: Sequence[str] = ()
    ranks: Alone = ALONE
    key: str = field(init=False)

    def _choose_precision(self, default: str) -> None:
        """Resolve the device and the dtype; the default is float32 where there is no float64."""
        self._device = self.ranks.device(resolve_device(self.settings.device))
        default = "float32" if self._device.type == "mps" else default
        self._dtype_name = self.settings.dtype or default
        self._dtype = resolve_dtype(self._dtype_name, self._device)

    def shared_config(self) -> dict[str, Any]:
        """The options of every measurement that the estimates depend on."""
        settings = self.settings
        return {
            "command": self.command,
            "set": self.resolved.settings,
            "criterion": self.resolved.task.resolved_criterion.name,
            "units": self.resolved.task.resolved_criterion.units,
            "loss": settings.loss,
            "params": list(settings.params),
            "examples": settings.examples,
            # The data's digest is in the key, too; this is for the reader.
            **({"data_seed": settings.data_seed} if settings.data_seed else {}),
            "dtype": self._dtype_name,
            "seed": settings.seed,
        }

    @property
    def indices(self) -> NDArray[np.int64] | None:
        """The examples that are used, where a subset was asked for."""
        return None if self.data.indices is None else self.data.indices.numpy()

    @property
    def factor_is_real(self) -> bool:
        """Whether the loss is known to be convex in the outputs, as a factor of the GGN needs."""
        convex = self.resolved.task.resolved_criterion.fisher_is_ggn
        return convex or self.settings.loss == "behaviour"

    def factor_rows(self, n: int) -> int | None:
        """Rows of the factor F of the GGN ``F^T F`` (n, n); None where F is not small enough.

        That is where it would take more than a quarter of the host's memory.
        """
        # The outputs' shape is all that is needed: one forward pass of two examples tells it.
        task = self.resolved.task
        own = next(p.dtype for p in task.model.parameters() if p.requires_grad)
        two = materialise([micro_batches(self.data, 2)[0]])
        width = factor_width(Risk(task, two, device=self._device, dtype=own))
        terms = sum(task.resolved_criterion.weight(batch) for batch in self.data.batches)
        rows = int(terms) * width
        return rows if rows * n * 8 <= total_memory(torch.device("cpu")) // 4 else None

    def identity(self) -> dict[str, Any]:
        """Digests of the task's source, the checkpoint's content and the data."""
        return {
            "task_sha256": self.resolved.sha256,
            "checkpoint_sha256": self._checkpoint_sha256(),
            "data": self.data.digest,
        }

    def _checkpoint_sha256(self) -> str:
        if self.checkpoint is not None:
            return self.checkpoint.sha256
        digest = hashlib.sha256()
        for name, tensor in self.resolved.task.model.state_dict().items():
            digest.update(name.encode())
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        return digest.hexdigest()

    def load(self) -> ParameterSpace:
        """Load the weights into the model and return its selected parameters.

        Raises:
            CheckpointError: the weights do not fit.
            NotFiniteError: they are not finite.
        """
        model = self.resolved.task.model
        # Cast first: weights of higher precision than the model's must not be rounded twice.
        model.to(dtype=self._dtype, device=self._device)
        if self.checkpoint is not None:
            load_weights(self.resolved.task, model, self.checkpoint)
        return ParameterSpace(model, self.settings.params)

    def risk(self) -> Risk:
        """Load the weights into the model and return the risk at them; raises as :meth:`load`.

        Several processes share out its examples.
        """
        with self.ranks.unanimous():
            self.load()
        return self._risk(self.ranks)

    def _risk(self, ranks: Alone, *, batch_size: int | None = None) -> Risk:
        """The risk at the model's weights, its examples shared out over some processes.

        In smaller micro-batches than those of the settings, where a size is given.
        """
        settings = self.settings
        return Risk(
            self.resolved.task,
            self.data,
            loss=settings.loss,
            params=settings.params,
            batch_size=settings.batch_size if batch_size is None else batch_size,
            device=self._device,
            dtype=self._dtype,
            ranks=ranks,
        )

    @abstractmethod
    def measure(self, *, units: Units | None = None, progress: Progress = silent) -> Result:
        """Measure and return the result.

        Args:
            units: finished units of an earlier, interrupted run; kept up to date.
            progress: called with a phase, the work done in it and all of it where that is known.
        """

    def info(
        self,
        *,
        config: Mapping[str, Any],
        risk: Risk,
        loss: float,
        gradient_norm: float,
        status: str,
        watch: Stopwatch,
        n_matvecs: int,
        warnings: Sequence[str],
        n_forward: int | None = None,
        n_gradient: int | None = None,
    ) -> RunInfo:
        """The record of a finished run; the risk's own passes and gradients where not given."""
        notes = list(warnings)
        if self.checkpoint is not None and self.checkpoint.unsafe_pickle:
            notes.append("the checkpoint was loaded with --unsafe-pickle")
        return RunInfo(
            schema=SCHEMA,
            command=self.command,
            argv=tuple(self.argv),
            config=config,
            key=self.key,
            seed=self.settings.seed,
            versions=versions(),
            device=device_name(self._device),
            dtype=self._dtype_name,
            task=self.resolved.name,
            task_sha256=self.resolved.sha256,
            checkpoint="" if self.checkpoint is None else self.checkpoint.path,
            checkpoint_sha256=self._checkpoint_sha256(),
            step=None if self.checkpoint is None else self.checkpoint.step,
            n_parameters=risk.n,
            n_examples=self.data.n_examples,
            loss=loss,
            gradient_norm=gradient_norm,
            status=status,
            started=watch.started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_seconds=watch.seconds,
            n_matvecs=n_matvecs,
            n_forward=int(risk.n_forward) if n_forward is None else n_forward,
            n_gradient=int(risk.n_gradient) if n_gradient is None else n_gradient,
            warnings=tuple(notes),
        )


class Stopwatch:
    """Seconds of the analysis, those of an earlier, interrupted run included."""

    def __init__(self, units: Units) -> None:
        self.started = datetime.now(UTC)
        self._units = units
        self._earlier = units.seconds
        self._clock = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._earlier + time.monotonic() - self._clock

    def note(self) -> None:
        """Put the seconds so far on record, for a run that goes on from here."""
        self._units.seconds = self.seconds


def prepared(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None,
    settings: Settings,
    task_settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The arguments of a :class:`Measurement` from what a library user gives."""
    if isinstance(task, str):
        task = resolve_task(task, task_settings, checkpoint=checkpoint)
    if isinstance(task, Task):
        # The measurement casts the model and loads weights into it: the caller's stays as it is.
        task = dataclasses.replace(task, model=copy.deepcopy(task.model))
        task = ResolvedTask(task=task, name="(in memory)", path="", sha256="", settings={})
    return {
        "resolved": task,
        "data": materialise(task.task.data, examples=settings.examples, seed=settings.data_seed),
        "checkpoint": None if checkpoint is None else read_checkpoint(Path(checkpoint)),
        "settings": settings,
    }
