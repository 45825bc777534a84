"""``digits-cnn``: classify the 8x8 digits of scikit-learn with a convolutional network."""

from __future__ import annotations

import math

from torch import nn

from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import activation_named, check_choice, check_integer, digits

__all__ = ["RECIPE", "build"]

RECIPE = Recipe(steps=1000, batch_size=128, learning_rate=1e-2)

_NORMS = ("none", "group", "batch")


def build(
    *,
    channels: int = 8,
    activation: str = "gelu",
    norm: str = "none",
    split: str = "train",
) -> Task:
    """Build the task: two 3x3 convolutions with average pooling, then a linear layer.

    Args:
        channels: channels of the first convolution; the second has twice as many.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        norm: none, group (up to four groups) or batch, after each convolution.
        split: train (1438 images), test (359) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    channels = check_integer("channels", channels, 1)
    new_activation = activation_named(activation)
    norm = check_choice("norm", norm, _NORMS)

    layers: list[nn.Module] = []
    fan_in = 1
    for fan_out in (channels, 2 * channels):
        # Batch norm subtracts the mean, and with it any bias.
        layers.append(nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=norm != "batch"))
        if norm == "group":
            layers.append(nn.GroupNorm(math.gcd(4, fan_out), fan_out))
        elif norm == "batch":
            layers.append(nn.BatchNorm2d(fan_out))
        layers += [new_activation(), nn.AvgPool2d(2)]
        fan_in = fan_out
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(fan_in * 4, 10))
    return Task(model=model, data=digits(split), criterion="cross_entropy")
