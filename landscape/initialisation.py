"""The law of a task's initial weights, from re-initialising a copy of its model.

The caller's model, its mode and the global random state stay as they are.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from landscape.errors import LandscapeError, TaskError
from landscape.params import ParameterSpace
from landscape.rng import stream
from landscape.task import Task
from landscape.text import shown

__all__ = ["InitialMoments", "copy_model", "draw_weights", "initial_moments", "selected"]

_DRAWS = 32


@dataclass(frozen=True, kw_only=True)
class InitialMoments:
    """Mean and spread of the initial values of every tensor, one number each.

    Attributes:
        mean: over the tensor's coordinates and the draws.
        spread: standard deviation about that mean; exactly 0 where all values are equal.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]


def initial_moments(
    task: Task, space: ParameterSpace, *, seed: int, draws: int = _DRAWS
) -> InitialMoments:
    """Moments of a task's initial weights over several re-initialisations.

    Weights are drawn by the task's ``initialise``, else by every module's ``reset_parameters()``,
    in float32 on the CPU, so that the moments depend on the seed alone and not on precision or
    device. With d draws the mean of a tensor with s coordinates is off by ``spread / sqrt(s d)``,
    which adds about 1/d to its ``|z*|^2``.

    Args:
        task: its model may hold any weights.
        space: the selected parameters.
        seed: seed of the draws.
        draws: number of re-initialisations.

    Raises:
        TaskError: the re-initialisation failed or left a selected parameter as it was.

    Cost: that many initialisations and one copy of the model in float32.
    """
    model = copy_model(task.model).float()
    totals = torch.zeros(2, len(space.names), dtype=torch.float64)
    for draw in range(draws):
        _redraw(task, model, space, seed=seed, draw=draw)
        for index, tensor in enumerate(selected(model, space)):
            totals[0, index] += tensor.sum()
            totals[1, index] += tensor.square().sum()
    counts = draws * torch.tensor(space.sizes, dtype=torch.float64).clamp(min=1)
    mean, square = totals / counts
    variance = square - mean.square()
    # Equal values have a variance that is nothing but rounding.
    variance = torch.where(variance > 1e-12 * square, variance, 0.0)
    return InitialMoments(mean=tuple(mean.tolist()), spread=tuple(variance.sqrt().tolist()))


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy on the CPU.

    Raises:
        TaskError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        raise TaskError(
            f"the task's model cannot be copied ({type(error).__name__}: {error}), which a prior "
            "from initial weights or from a checkpoint needs; expected a model that copy.deepcopy "
            "takes. Use --mean zero or anchor and --sigma rms, layer-rms or a number"
        ) from error


def selected(model: nn.Module, space: ParameterSpace) -> list[Tensor]:
    """The selected parameters of a copy of the model, in float64 on the CPU."""
    named = dict(model.named_parameters())
    return [named[name].detach().to("cpu", torch.float64) for name in space.names]


def draw_weights(task: Task, model: nn.Module, generator: Generator) -> None:
    """Draw a model's initial weights, leaving the global generator as it was.

    Args:
        task: by its ``initialise``, or by every module's ``reset_parameters()`` where it has none.
        model: the task's model or a copy of it.
        generator: as freshly seeded: ``reset_parameters()`` draws from the same seed.
    """
    if task.initialise is not None:
        task.initialise(model, generator)
        return
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it reseeds every accelerator, which the fork does not restore.
        torch.default_generator.manual_seed(generator.initial_seed())
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def _redraw(task: Task, model: nn.Module, space: ParameterSpace, *, seed: int, draw: int) -> None:
    """Draw the model's initial weights from a stream of their own."""
    label = ("prior", "init", draw)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)  # Whatever is not drawn again is found out.
    try:
        with torch.random.fork_rng(devices=[]):
            # A task's own initialise may draw from the global generator all the same.
            torch.default_generator.manual_seed(stream(seed, *label).initial_seed())
            draw_weights(task, model, stream(seed, *label))
        tensors = selected(model, space)
    except LandscapeError:
        raise
    except Exception as error:
        raise TaskError(
            f"re-initialising the task's model raised {type(error).__name__}: {error}; expected "
            "new weights drawn in place. Check the task's initialise(model, generator)"
        ) from error
    missed = [n for n, t in zip(space.names, tensors, strict=True) if not bool(t.isfinite().all())]
    if missed:
        raise TaskError(
            f"re-initialising the task's model left {len(missed)} parameters undrawn: "
            f"{shown(missed)}; expected initial values for all. Give the Task an "
            "initialise(model, generator) that sets them (modules without reset_parameters() "
            "draw nothing)"
        )
