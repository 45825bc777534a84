"""What ``--prior``, ``--mean``, ``--sigma``, ``--uniform`` and ``--half-width`` stand for."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.checkpoint import read_checkpoint
from landscape.errors import NotFiniteError, UsageError
from landscape.initialisation import copy_model, initial_moments, selected
from landscape.loading import load_weights
from landscape.params import ParameterSpace
from landscape.priors import GaussianPrior, UniformPrior
from landscape.task import Task
from landscape.text import shown

__all__ = ["resolve_mean", "resolve_prior", "resolve_sigma"]

_SIGMA_WORDS = "rms, init, layer-rms or a positive number"


def resolve_prior(
    kind: str = "gaussian",
    *,
    space: ParameterSpace,
    anchor: Tensor,
    task: Task,
    mean: str | os.PathLike[str] = "zero",
    sigma: str | float | Sequence[float] | None = None,
    uniform: str | None = None,
    half_width: float | None = None,
    seed: int = 0,
    weights_key: str | None = None,
    unsafe_pickle: bool = False,
) -> GaussianPrior | UniformPrior:
    """The prior that the command line's words stand for.

    The task's model keeps its weights and mode, and the global random state its value.

    Args:
        kind: ``gaussian`` or ``uniform``.
        space: the selected parameters.
        anchor: w*, (n,).
        task: its model gives the architecture, and for ``init`` the law of the initial weights.
        mean: see :func:`resolve_mean`.
        sigma: see :func:`resolve_sigma`, ``rms`` where None; only for ``gaussian``.
        uniform: ``box`` (where None) or ``ball``; only for ``uniform``.
        half_width: H; for ``uniform``, which has no default.
        seed: seed of the initial weights of ``init``.
        weights_key: where in a checkpoint named by ``mean`` its tensors are.
        unsafe_pickle: run the code in a checkpoint named by ``mean``.

    Raises:
        UsageError: a bad option, or an anchor outside a uniform prior's set.
        CheckpointError: the mean's checkpoint is unreadable or of another architecture.
        TaskError: the model cannot be copied or re-initialised.
        NotFiniteError: the anchor or the mean's checkpoint has NaN or infinite weights.
    """
    if kind not in ("gaussian", "uniform"):
        raise UsageError(f"--prior {kind!r}: expected gaussian or uniform")
    anchor = _checked(anchor, space)
    centre = functools.partial(
        resolve_mean,
        mean,
        space=space,
        anchor=anchor,
        task=task,
        seed=seed,
        weights_key=weights_key,
        unsafe_pickle=unsafe_pickle,
    )
    if kind == "gaussian":
        for option, given in (("--uniform", uniform), ("--half-width", half_width)):
            if given is not None:
                raise UsageError(
                    f"{option} {given} belongs to --prior uniform, but the prior is gaussian. Use "
                    "--sigma for a Gaussian's standard deviation, or --prior uniform"
                )
        scales, notes = resolve_sigma(
            "rms" if sigma is None else sigma, space=space, anchor=anchor, task=task, seed=seed
        )
        return GaussianPrior(mean=centre(), scale=_spread_out(scales, space), notes=notes)
    if sigma is not None:
        raise UsageError(
            f"--sigma {sigma} belongs to --prior gaussian, but the prior is uniform. Use "
            "--half-width for the size of a uniform prior, or --prior gaussian"
        )
    if half_width is None:
        raise UsageError(
            "--prior uniform needs its size: expected --half-width H, in the parameters' units"
        )
    shape = "box" if uniform is None else uniform
    prior = UniformPrior(mean=centre(), half_width=half_width, shape=shape)
    prior.require_inside(anchor)
    return prior


def resolve_sigma(
    sigma: str | float | Sequence[float],
    *,
    space: ParameterSpace,
    anchor: Tensor,
    task: Task,
    seed: int = 0,
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """A standard deviation for every tensor.

    Pass the numbers on as ``sigma`` for the later checkpoints of a series: with ``rms`` and
    ``layer-rms`` each would else get a prior of its own, and volumes would not compare.

    Args:
        sigma: ``rms``: root mean square of the anchor's selected coordinates, for all tensors.
            ``layer-rms``: the same of each tensor; a tensor of zeros gets that of all.
            ``init``: spread of each tensor's initial values
            (:func:`landscape.initialisation.initial_moments`); a tensor without spread, such as
            LayerNorm's weights or zero biases, gets the root mean square spread of all coordinates
            that have one. Or a number, or one for each tensor.
        space: the selected parameters.
        anchor: w*, (n,).
        task: for ``init``.
        seed: for ``init``.

    Returns:
        one number for each tensor, and notes on those that had none of their own.

    Raises:
        UsageError: not one of these, not positive and finite, or nothing to take it from.
        TaskError: the model cannot be copied or re-initialised.
    """
    if not isinstance(sigma, str):
        return _numbers(sigma, space), ()
    if sigma == "init":
        found = list(initial_moments(task, space, seed=seed).spread)
        lacks, lacking = "has no spread at initialisation", "have no spread at initialisation"
        whole = "the root mean square spread of the others"
        todo = "random initial weights. Use --sigma rms or a number"
    elif sigma in ("rms", "layer-rms"):
        found = [_rms(part) for part in space.split(_checked(anchor, space))]
        lacks, lacking = "is zero in the checkpoint", "are zero in the checkpoint"
        whole = "the root mean square of all coordinates"
        todo = "an anchor that is not zero. Use --sigma init or a number"
    else:
        try:
            return _numbers(float(sigma), space), ()
        except ValueError:
            raise UsageError(f"--sigma {sigma!r}: expected {_SIGMA_WORDS}") from None
    sizes = torch.tensor(space.sizes, dtype=torch.float64)
    values = torch.tensor(found, dtype=torch.float64)
    counted = values > 0 if sigma == "init" else sizes > 0
    total = float((sizes * values.square())[counted].sum())
    floor = math.sqrt(total / max(float(sizes[counted].sum()), 1))
    if not floor > 0:
        raise UsageError(f"--sigma {sigma}: all selected parameters {lacking}; expected {todo}")
    if sigma == "rms":
        return (floor,) * len(found), ()
    bare = [name for name, value in zip(space.names, found, strict=True) if not value > 0]
    few = (
        f"1 tensor {lacks} and gets" if len(bare) == 1 else f"{len(bare)} tensors {lacking} and get"
    )
    note = f"--sigma {sigma}: {few} {floor:.4g}, {whole}: "
    return tuple(value or floor for value in found), (note + shown(bare),) if bare else ()


def resolve_mean(
    mean: str | os.PathLike[str],
    *,
    space: ParameterSpace,
    anchor: Tensor,
    task: Task,
    seed: int = 0,
    weights_key: str | None = None,
    unsafe_pickle: bool = False,
) -> Tensor:
    """The prior's mean, (n,), in float64 on the CPU.

    Args:
        mean: ``zero``, ``anchor``, ``init`` (the mean of each tensor's initial values, for all its
            coordinates) or a checkpoint's path (``./zero`` for a file of that name).
        space: the selected parameters.
        anchor: w*, (n,).
        task: for ``init`` and checkpoints.
        seed: for ``init``.
        weights_key: where in the checkpoint its tensors are.
        unsafe_pickle: run the code in the checkpoint.

    Raises:
        UsageError: neither a word nor a file.
        CheckpointError: the checkpoint is unreadable or of another architecture.
        NotFiniteError: the checkpoint has NaN or infinite weights.
        TaskError: the model cannot be copied or re-initialised.
    """
    if mean == "zero":
        return torch.zeros(space.n, dtype=torch.float64)
    if mean == "anchor":
        return _checked(anchor, space).clone()
    if mean == "init":
        return _spread_out(initial_moments(task, space, seed=seed).mean, space)
    if not os.path.exists(mean):
        raise UsageError(
            f"--mean {os.fspath(mean)!r}: expected zero, anchor, init or a checkpoint, and there "
            f"is no such file (working directory {os.getcwd()})"
        )
    checkpoint = read_checkpoint(mean, weights_key=weights_key, unsafe_pickle=unsafe_pickle)
    model = copy_model(task.model).double()
    load_weights(task, model, checkpoint)
    return space.flatten(selected(model, space))


def _checked(anchor: Tensor, space: ParameterSpace) -> Tensor:
    anchor = anchor.detach().to("cpu", torch.float64)
    if anchor.shape != (space.n,):
        raise UsageError(
            f"an anchor of shape {tuple(anchor.shape)} does not fit {space.n} selected parameters; "
            f"expected ({space.n},). Pass space.vector()"
        )
    if not bool(torch.isfinite(anchor).all()):
        raise NotFiniteError(
            "the anchor has NaN or infinite weights; expected finite numbers. Take a checkpoint "
            "from before it diverged"
        )
    return anchor


def _rms(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().sum()) / max(tensor.numel(), 1))


def _numbers(sigma: float | Sequence[float], space: ParameterSpace) -> tuple[float, ...]:
    """Given numbers, one for each tensor."""
    if isinstance(sigma, Sequence):
        values = tuple(map(float, sigma))
    else:
        values = (float(sigma),) * len(space.names)
    if len(values) != len(space.names):
        raise UsageError(
            f"--sigma: {len(values)} numbers for {len(space.names)} tensors; expected one for "
            "each, in the model's order"
        )
    bad = [value for value in values if not 0 < value < math.inf]
    if bad:
        raise UsageError(f"--sigma {bad[0]:g}: expected {_SIGMA_WORDS}")
    return values


def _spread_out(values: Sequence[float], space: ParameterSpace) -> Tensor:
    """One number for each tensor, repeated for its coordinates: (n,)."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return torch.repeat_interleave(numbers, torch.tensor(space.sizes))
