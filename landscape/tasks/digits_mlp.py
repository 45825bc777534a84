"""``digits-mlp``: classify the 8x8 digits of scikit-learn with a multilayer perceptron."""

from __future__ import annotations

from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import digits, mlp

__all__ = ["RECIPE", "build"]

RECIPE = Recipe(steps=1000, batch_size=128, learning_rate=1e-2)


def build(
    *,
    width: int = 16,
    depth: int = 1,
    activation: str = "tanh",
    bias: bool = True,
    split: str = "train",
) -> Task:
    """Build the task: 64 pixels in [0, 1] to 10 classes.

    Args:
        width: units per hidden layer.
        depth: hidden layers; 0 is multinomial logistic regression.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        bias: whether the layers have biases.
        split: train (1438 images), test (359) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    model = mlp(64, 10, width=width, depth=depth, activation=activation, bias=bias)
    images, classes = digits(split)
    return Task(model=model, data=(images.flatten(1), classes), criterion="cross_entropy")
