"""``two-tasks``: name two unrelated digits at once, with a dense or a modular network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from landscape.errors import UsageError
from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import SPLITS, check_choice, check_flag, check_integer, digits, mlp

__all__ = ["RECIPE", "TwoModules", "build"]

RECIPE = Recipe(steps=2000, batch_size=128, learning_rate=1e-2)

_CLASSES = 10
_PIXELS = 16  # A digit of 8x8 pixels, averaged to 4x4.
# Part of the definition of the task: another seed would be another data set.
_PAIR_SEED = 20240301


class TwoModules(nn.Module):
    """Two networks side by side, each with its own half of the inputs and of the outputs."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, 20)`` of inputs ``(N, 32)``."""
        first, second = inputs.chunk(2, dim=1)
        return torch.cat([self.left(first), self.right(second)], dim=1)


def build(
    *,
    network: str = "dense",
    width: int = 16,
    depth: int = 1,
    activation: str = "tanh",
    bias: bool = True,
    split: str = "train",
) -> Task:
    """Build the task: the pixels of two digits to the class of each, one-hot and centred.

    The criterion ``mse`` is a sum over the outputs, so that a modular network's Hessian is
    block-diagonal, whatever the weights.

    Args:
        network: dense (every unit sees both digits) or modular (half of the units for each).
        width: units per hidden layer of the whole network; even for a modular one.
        depth: hidden layers; 0 is linear regression.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        bias: whether the layers have biases.
        split: train (1438 pairs), test (359) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    modular = check_choice("network", network, ("dense", "modular")) == "modular"
    width, bias = check_integer("width", width, 1), check_flag("bias", bias)
    if modular and width % 2:
        raise UsageError(
            f"setting width={width}: expected an even number, half of it for each module"
        )

    def part(share: int) -> nn.Sequential:
        return mlp(
            2 * _PIXELS // share,
            2 * _CLASSES // share,
            width=width // share,
            depth=depth,
            activation=activation,
            bias=bias,
        )

    model = TwoModules(part(2), part(2)) if modular else part(1)
    if check_choice("split", split, SPLITS) == "all":
        parts = [_pairs("train"), _pairs("test")]
        data = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    else:
        data = _pairs(split)
    return Task(model=model, data=data, criterion="mse")


def _pairs(split: str) -> tuple[Tensor, Tensor]:
    """Every digit of a split with another one of it: ``(N, 32)`` pixels, ``(N, 20)`` targets."""
    images, classes = digits(split)
    pixels = functional.avg_pool2d(images, 2).flatten(1)
    targets = functional.one_hot(classes, _CLASSES).float() - 1 / _CLASSES
    partner = torch.randperm(len(pixels), generator=Generator().manual_seed(_PAIR_SEED))
    pixels, targets = (torch.cat([t, t[partner]], dim=1) for t in (pixels, targets))
    return pixels, targets
