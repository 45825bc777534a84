"""``char-lm``: predict the next character of Macbeth with a causal transformer."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor

from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import (
    SPLITS,
    activation_named,
    check_choice,
    check_flag,
    check_integer,
)
from landscape.tasks._transformer import Transformer

__all__ = ["RECIPE", "build"]

# Stopped about where the test loss is least.
RECIPE = Recipe(steps=400, batch_size=32, learning_rate=3e-3, weight_decay=0.1, optimiser="adamw")

# The last tenth of the play is the test text.
_TRAIN_FRACTION = 0.9


def build(
    *,
    context: int = 32,
    d_model: int = 32,
    heads: int = 4,
    layers: int = 2,
    activation: str = "gelu",
    sequences: int = 512,
    tie: bool = False,
    split: str = "train",
) -> Task:
    """Build the task: characters ``(N, context)`` to the character that follows each of them.

    Args:
        context: length of a sequence.
        d_model: width of the residual stream, a multiple of ``heads``; hidden layers have 4 times
            as many units.
        heads: attention heads per layer.
        layers: transformer blocks.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        sequences: number of training sequences, spread evenly over the training text; the test
            split has as many where its text is long enough.
        tie: share the token embedding with the unembedding.
        split: train, test (another part of the play) or all.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    split = check_choice("split", split, SPLITS)
    text = resources.files("landscape.tasks").joinpath("data/macbeth.txt").read_text("ascii")
    characters = sorted(set(text))
    index = {character: place for place, character in enumerate(characters)}
    codes = torch.tensor([index[character] for character in text])
    boundary = round(_TRAIN_FRACTION * len(codes))
    train_text, test_text = codes[:boundary], codes[boundary:]

    context = check_integer("context", context, 1, len(test_text) - 1)
    available = len(train_text) // (context + 1)
    sequences = check_integer("sequences", sequences, 1, available)
    d_model = check_integer("d_model", d_model, 1)
    model = Transformer(
        vocabulary=len(characters),
        outputs=len(characters),
        context=context,
        d_model=d_model,
        heads=check_integer("heads", heads, 1),
        d_mlp=4 * d_model,
        layers=check_integer("layers", layers, 1),
        activation=activation_named(activation),
        layer_norm=True,
        tie=check_flag("tie", tie),
    )
    parts = {"train": [train_text], "test": [test_text], "all": [train_text, test_text]}[split]
    windows = torch.cat([_windows(part, context + 1, sequences) for part in parts])
    data = (windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
    return Task(model=model, data=data, criterion="cross_entropy")


def _windows(codes: Tensor, length: int, count: int) -> Tensor:
    """Up to ``count`` disjoint windows of the text, evenly spaced, in order."""
    windows = codes[: len(codes) // length * length].reshape(-1, length)
    count = min(count, len(windows))
    return windows[torch.arange(count) * len(windows) // count]
