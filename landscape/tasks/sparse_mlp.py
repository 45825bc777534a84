"""``sparse-mlp``: digits by a wide perceptron, trained with an L1 penalty on its activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import check_number, digits, mlp

__all__ = ["RECIPE", "SparseMLP", "build", "training_loss"]

RECIPE = Recipe(steps=1000, batch_size=128, learning_rate=1e-2)


class SparseMLP(nn.Sequential):
    """A multilayer perceptron that knows how much its hidden activations cost in training.

    Args:
        layers: linear layers and activations in turn.
        l1: coefficient of the penalty.
    """

    def __init__(self, *layers: nn.Module, l1: float) -> None:
        super().__init__(*layers)
        self.l1 = l1

    def activations(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs of inputs ``(N, 64)``, and what every hidden layer puts out, ``(N, width)``."""
        hidden: list[Tensor] = []
        for layer in self:
            inputs = layer(inputs)
            if not isinstance(layer, nn.Linear):
                hidden.append(inputs)
        return inputs, hidden


def build(
    *,
    width: int = 128,
    depth: int = 1,
    activation: str = "relu",
    bias: bool = True,
    l1: float = 0.003,
    split: str = "train",
) -> Task:
    """Build the task: 64 pixels in [0, 1] to 10 classes.

    The loss that is measured has no penalty, whatever ``l1`` the network was trained with.

    Args:
        width: units per hidden layer.
        depth: hidden layers; 0 is multinomial logistic regression, which has nothing to penalise.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity; exact zeros need
            relu.
        bias: whether the layers have biases.
        l1: coefficient of :func:`training_loss`; 0 trains densely.
        split: train (1438 images), test (359) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    layers = mlp(64, 10, width=width, depth=depth, activation=activation, bias=bias)
    model = SparseMLP(*layers, l1=check_number("l1", l1, 0.0))
    images, classes = digits(split)
    return Task(model=model, data=(images.flatten(1), classes), criterion="cross_entropy")


def training_loss(task: Task, batch: Any) -> Tensor:
    """``L + l1 sum_u mean_x |a_u(x)|``: hidden units u of all layers, examples x of the batch."""
    model = task.model
    assert isinstance(model, SparseMLP)
    outputs, hidden = model.activations(batch[0])
    loss = task.resolved_criterion.loss(outputs, batch)
    if not model.l1:
        return loss
    for activation in hidden:
        loss = loss + model.l1 * activation.abs().sum(1).mean()
    return loss
