"""The task loss on the straight path between two networks' weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from landscape.compare.records import WeightPath
from landscape.risk import Risk
from landscape.units import Progress, Units

__all__ = ["State", "loss_here", "placed_state", "state_of", "weight_path"]

State = Mapping[str, Tensor]
"""Parameters and floating-point buffers of a model by name."""


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters and floating-point buffers of a model."""
    return {name: tensor.detach().clone() for name, tensor in _varied(model).items()}


def _varied(model: nn.Module) -> dict[str, Tensor]:
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in every.items() if tensor.is_floating_point()}


def weight_path(
    risk: Risk, a: State, b: State, points: int, *, name: str, units: Units, progress: Progress
) -> WeightPath:
    """Losses at equidistant points of the straight path and the barrier on it.

    ``barrier = max_t L((1 - t) w_A + t w_B) - (1 - t) L(w_A) - t L(w_B)`` over the points
    (Frankle et al., ICML 2020; Entezari et al., ICLR 2022). Buffers such as running statistics
    move along, too. Exactly 0 where both ends are the same.

    Args:
        risk: model, data and criterion; the model keeps its own weights.
        a: state at t = 0.
        b: state at t = 1.
        points: their number, ends included.
        name: of the units of work, one a point.
        units: finished points are taken from it.
        progress: told of every point.

    Cost: a forward pass over the data for each point.
    """
    t = np.linspace(0.0, 1.0, points)
    losses = np.empty(points)
    for index, place in enumerate(t.tolist()):
        stored = units.get(f"{name} {index}")
        if stored is None:
            with placed_state(risk.model, {n: torch.lerp(a[n], b[n], place) for n in a}):
                losses[index] = loss_here(risk)
            units.put(f"{name} {index}", {"loss": float(losses[index])})
        else:
            losses[index] = stored["loss"]
        progress(name, index + 1, points)
    above = losses - (losses[0] + t * (losses[-1] - losses[0]))
    above[[0, -1]] = 0.0
    parameters = dict(risk.model.named_parameters())
    square = math.fsum(float((a[n] - b[n]).double().square().sum()) for n in parameters)
    return WeightPath(t=t, loss=losses, barrier=float(above.max()), distance=math.sqrt(square))


def loss_here(risk: Risk) -> float:
    """The loss, which may be infinite or NaN far from both ends."""
    share = 0.0
    with torch.no_grad(), risk.ranks.unanimous():
        share = sum(float(risk.batch_loss(index)) for index in range(risk.n_batches))
    risk.n_forward += 1
    return sum(risk.ranks.each(share))


@contextlib.contextmanager
def placed_state(model: nn.Module, state: State) -> Iterator[None]:
    """Let a model have another state, in other memory, for a while."""
    varied = _varied(model)
    own = {name: tensor.data for name, tensor in varied.items()}
    try:
        for name, tensor in state.items():
            varied[name].data = tensor
        yield
    finally:
        for name, data in own.items():
            varied[name].data = data
