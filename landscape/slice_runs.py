"""The ``slice`` measurement of one checkpoint: the loss on a line or in a plane through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.compare.path import loss_here
from landscape.errors import UsageError
from landscape.hessian import default_tol
from landscape.measurement import Measurement, Stopwatch, prepared
from landscape.operators import curvature
from landscape.params import ParameterSpace
from landscape.results import FloatArray
from landscape.settings import Settings
from landscape.slices.directions import Ray
from landscape.slices.eigenvectors import Eigenvectors, eigenvectors, keep_eigenvectors
from landscape.slices.frame import (
    axes_of,
    curvatures_of,
    keep_curvatures,
    positions,
    rays_of,
    trajectory_rows,
)
from landscape.slices.options import SliceOptions, coordinates
from landscape.slices.records import Direction, SliceResult
from landscape.slices.surface import Surface, evaluate, keep_points, quadratic_model
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent

__all__ = ["SliceRun", "keep_slice", "loss_slice"]

_NOTED = 0.1  # Cosine of two directions beyond which making them orthogonal is worth a warning.


@dataclass(kw_only=True)
class SliceRun(Measurement):
    """A prepared ``slice`` measurement; :meth:`measure` does it.

    The key does not depend on the span and the number of points, so that finer and wider grids
    continue what there is.

    Args:
        options: where to evaluate; for the others see :class:`landscape.measurement.Measurement`.
        others: the checkpoints of the directions ``to:``, in their order.
        trajectory: checkpoints in the order of training, for ``pca:K`` and for the figure.

    Raises:
        UsageError: a component without a trajectory, or one of a single checkpoint.
    """

    command: ClassVar[str] = "slice"

    options: SliceOptions
    others: Sequence[Checkpoint] = ()
    trajectory: Sequence[Checkpoint] = ()
    _wanted: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._choose_precision("float64")
        directions = self.options.directions
        count = len(self.trajectory)
        if any(one.kind == "pca" for one in directions) and not count:
            raise UsageError(
                "--along pca: components of what? Name the checkpoints of a training run by "
                "--trajectory 'runs/*.safetensors'"
            )
        if count == 1:
            raise UsageError(
                f"--trajectory: one checkpoint ({self.trajectory[0].path}) is no trajectory; "
                "expected two or more, such as --trajectory 'runs/*.safetensors'"
            )
        n = ParameterSpace(self.resolved.task.model, self.settings.params).n
        for one in directions:
            if one.kind == "eigen" and abs(one.number) > n:
                raise UsageError(
                    f"--along eigen:{one.number}: there are {n} parameters; expected a number from "
                    f"1 to {n}, or from -{n} to -1"
                )
        # Counted from the largest; numbers from the smallest may name the same eigenvector.
        self._wanted = tuple(
            one.number - 1 if one.number > 0 else n + one.number
            for one in directions
            if one.kind == "eigen"
        )
        if len(set(self._wanted)) < len(self._wanted):
            raise UsageError(
                f"--along {' and --along '.join(self.options.along)}: with {n} parameters these "
                "are the same eigenvector; a plane needs two"
            )
        loose = {"along": [(d.kind, d.number) for d in directions], "points": None, "span": None}
        named = {"others": None, "trajectory": None}
        self.key = run_key({**self.config, **loose, **named, **self.identity()})

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the result depends on."""
        return {
            **self.shared_config(),
            "along": list(self.options.along),
            "points": self.options.count,
            "span": [list(span) for span in self.options.spans],
            "trajectory": [one.path for one in self.trajectory],
        }

    def identity(self) -> dict[str, Any]:
        """Digests, with those of the other checkpoints."""
        return {
            **super().identity(),
            "others_sha256": [one.sha256 for one in self.others],
            "trajectory_sha256": [one.sha256 for one in self.trajectory],
        }

    def measure(self, *, units: Units | None = None, progress: Progress = silent) -> SliceResult:
        """Measure and return the result.

        Raises:
            TaskError: the loss is not deterministic or cannot be differentiated twice.
            CheckpointError: the weights of another checkpoint do not fit.
            UsageError: directions that are parallel or zero, or a component that is not there.
            NotFiniteError: the loss, the gradient or a product at the anchor is not finite.
        """
        units = MemoryUnits() if units is None else units
        watch = Stopwatch(units)
        risk = self.risk()
        loss = risk.require_deterministic()
        gradient = risk.gradient()

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        tick("directions", 0, None)
        base = loss_here(risk)
        operator = curvature("hessian", risk, graph_memory=self.settings.graph_memory)
        eigen = eigenvectors(
            operator,
            self._wanted,
            tol=default_tol(operator.precision),
            seed=self.settings.seed,
            units=units,
            progress=tick,
        )
        rows = trajectory_rows(risk, self.settings.params, self.trajectory)
        rays = rays_of(
            risk,
            self.options,
            params=self.settings.params,
            seed=self.settings.seed,
            eigen=eigen,
            others=self.others,
            rows=rows,
        )
        curvatures, products = curvatures_of(operator, rays, units)
        operator.release()
        slopes = np.array([float(ray.vector.double() @ gradient.double()) for ray in rays])
        trajectory = positions(self.trajectory, rows, rays)
        directions = axes_of(
            self.options,
            rays,
            slopes,
            curvatures,
            loss=base,
            norm=float(torch.linalg.vector_norm(risk.space.vector().double())),
            trajectory=trajectory,
        )
        axes = [coordinates(d.low, d.high, self.options.count) for d in directions]
        at = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
        passes = int(risk.n_forward)  # Of this run, as of every other: points may be older.
        found, known = evaluate(risk, Surface(risk, rays), at, units=units, progress=tick)
        shape = tuple(len(axis) for axis in axes)
        excess = found if self.settings.loss == "behaviour" else found - base
        return SliceResult(
            info=self.info(
                config=self.config,
                risk=risk,
                loss=loss,
                gradient_norm=float(torch.linalg.vector_norm(gradient.double())),
                status="complete",
                watch=watch,
                n_matvecs=products + (0 if eigen is None else eigen.n_matvecs),
                n_forward=passes + len(known.loss),
                warnings=_warnings(rays, directions, found),
            ),
            indices=self.indices,
            directions=directions,
            x=axes[0],
            y=axes[1] if len(axes) > 1 else None,
            loss=found.reshape(shape),
            excess_loss=excess.reshape(shape),
            quadratic=quadratic_model(at, slopes, curvatures).reshape(shape),
            mixed=float(curvatures[0, 1]) if len(axes) > 1 else float("nan"),
            known=known,
            trajectory=trajectory,
            eigenvectors=None if eigen is None else eigen.vectors,
        )


def _warnings(
    rays: Sequence[Ray], directions: Sequence[Direction], losses: FloatArray
) -> list[str]:
    notes = []
    bad = int((~np.isfinite(losses)).sum())
    if bad:
        notes.append(f"the loss is not finite at {bad} of {len(losses)} points")
    if len(rays) > 1 and abs(rays[1].cosine) > _NOTED:
        notes.append(
            f"{directions[1].name} was made orthogonal to {directions[0].name} (their cosine was "
            f"{rays[1].cosine:.3g})"
        )
    if any(ray.others for ray in rays):
        notes.append(
            "frozen parameters or buffers, such as running statistics, move along; the quadratic "
            "prediction does not know of them"
        )
    notes += [f"{d.name} is not converged" for d in directions if not d.converged]
    return notes


def keep_slice(earlier: SliceResult, units: Units) -> None:
    """Take what a stored result holds as finished work, for another grid of the same slice."""
    directions = earlier.directions
    chosen = [d for d in directions if d.kind == "eigen"]
    if earlier.eigenvectors is not None:
        keep_eigenvectors(
            Eigenvectors(
                values=np.array([d.eigenvalue for d in chosen]),
                residuals=np.array([d.residual for d in chosen]),
                converged=np.array([d.converged for d in chosen]),
                vectors=earlier.eigenvectors,
                n_matvecs=0,
            ),
            units,
        )
    keep_curvatures(directions, earlier.mixed, earlier.info.n_matvecs, units)
    keep_points(earlier.known, units)


def loss_slice(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: SliceOptions | None = None,
    trajectory: Sequence[Path | str] = (),
    task_settings: Mapping[str, Any] | None = None,
) -> SliceResult:
    """The loss on a line or in a plane: the library's counterpart of ``landscape slice``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: the anchor; the model's own weights where None.
        settings: loss, parameters, data, device and precision.
        options: directions, spans and points.
        trajectory: checkpoints in the order of training.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> found = loss_slice(
        ...     "digits-mlp",
        ...     options=SliceOptions(along=("random",), points=3),
        ...     task_settings={"width": 2},
        ... )
        >>> found.x.tolist(), found.excess_loss[1] == 0
        ([-1.0, 0.0, 1.0], np.True_)
    """
    settings = Settings() if settings is None else settings
    options = SliceOptions() if options is None else options
    return SliceRun(
        **prepared(task, checkpoint, settings, task_settings),
        options=options,
        others=[read_checkpoint(Path(d.path)) for d in options.directions if d.kind == "to"],
        trajectory=[read_checkpoint(Path(path)) for path in trajectory],
    ).measure()
