"""``regression-mlp``: predict the progression of diabetes with a multilayer perceptron."""

from __future__ import annotations

import torch

from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import mlp, take_split

__all__ = ["RECIPE", "build"]

RECIPE = Recipe(steps=1000, batch_size=64, learning_rate=1e-2)

_TRAIN_FRACTION = 0.8


def build(
    *,
    width: int = 16,
    depth: int = 1,
    activation: str = "tanh",
    bias: bool = True,
    split: str = "train",
) -> Task:
    """Build the task: 10 measurements to one number, both standardised on the training split.

    Args:
        width: units per hidden layer.
        depth: hidden layers; 0 is linear regression.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        bias: whether the layers have biases.
        split: train (354 patients), test (88) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    from sklearn.datasets import load_diabetes

    model = mlp(10, 1, width=width, depth=depth, activation=activation, bias=bias)
    raw = load_diabetes()
    full = (torch.as_tensor(raw.data), torch.as_tensor(raw.target).unsqueeze(1))
    data = []
    for seen, wanted in zip(
        take_split("train", full, _TRAIN_FRACTION),
        take_split(split, full, _TRAIN_FRACTION),
        strict=True,
    ):
        std, mean = torch.std_mean(seen, dim=0, correction=0)
        data.append(((wanted - mean) / std).float())
    return Task(model=model, data=tuple(data), criterion="mse")
