"""``modular-addition``: (a + b) mod p with a one-layer transformer, a grokking problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import activation_named, check_fraction, check_integer, take_split
from landscape.tasks._transformer import Transformer

__all__ = ["RECIPE", "build"]

# Strong weight decay and a full batch: memorisation first, generalisation later.
RECIPE = Recipe(
    steps=4000,
    batch_size=1 << 20,
    learning_rate=1e-2,
    weight_decay=1.0,
    optimiser="adamw",
)


def build(
    *,
    p: int = 31,
    d_model: int = 16,
    heads: int = 2,
    d_mlp: int = 32,
    activation: str = "gelu",
    train_fraction: float = 0.7,
    split: str = "train",
) -> Task:
    """Build the task: the tokens a, b and ``=`` to (a + b) mod p, read at the last position.

    Args:
        p: the modulus, prime or not.
        d_model: width of the residual stream, a multiple of ``heads``.
        heads: attention heads.
        d_mlp: width of the hidden layer.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        train_fraction: part of the p^2 pairs in the training split.
        split: train, test (the other pairs) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    p = check_integer("p", p, 2, 1000)
    model = Transformer(
        vocabulary=p + 1,
        outputs=p,
        context=3,
        d_model=check_integer("d_model", d_model, 1),
        heads=check_integer("heads", heads, 1),
        d_mlp=check_integer("d_mlp", d_mlp, 1),
        layers=1,
        activation=activation_named(activation),
        layer_norm=False,
    )
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    tokens = torch.cat([pairs, torch.full((p * p, 1), p)], dim=1)
    data = take_split(
        split, (tokens, pairs.sum(1) % p), check_fraction("train_fraction", train_fraction)
    )
    return Task(model=model, data=data, criterion="cross_entropy", forward=last_position)


def last_position(model: nn.Module, batch: Any) -> Tensor:
    """Logits ``(N, p)`` after the ``=`` token."""
    logits: Tensor = model(batch[0])[:, -1]
    return logits
