"""Built-in tasks: small real training problems for trying the measurements out.

Importing this package loads neither torch nor scikit-learn, so that listing the tasks is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BUILTIN_TASKS", "BuiltinTask", "Recipe"]


@dataclass(frozen=True)
class BuiltinTask:
    """A task that is named rather than given as a file.

    Attributes:
        name: the name on the command line.
        module: the module that defines ``build`` and ``RECIPE``.
        summary: one line for listings.
    """

    name: str
    module: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a built-in task is trained by default.

    Attributes:
        steps: optimiser steps.
        batch_size: examples per step; the whole training split where it is no larger.
        learning_rate: the initial learning rate.
        weight_decay: decoupled for ``adamw``, an L2 penalty for ``adam`` and ``sgd``.
        optimiser: ``adam``, ``adamw`` or ``sgd``.
        momentum: momentum of ``sgd``.
        cosine: anneal the learning rate to 0 along half a cosine, else keep it constant.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.0
    cosine: bool = True


BUILTIN_TASKS: dict[str, BuiltinTask] = {
    task.name: task
    for task in (
        BuiltinTask(
            "digits-mlp", "landscape.tasks.digits_mlp", "8x8 digits, multilayer perceptron"
        ),
        BuiltinTask(
            "digits-cnn", "landscape.tasks.digits_cnn", "8x8 digits, convolutional network"
        ),
        BuiltinTask(
            "modular-addition",
            "landscape.tasks.modular_addition",
            "(a + b) mod p, one-layer transformer",
        ),
        BuiltinTask("char-lm", "landscape.tasks.char_lm", "characters of Macbeth, transformer"),
        BuiltinTask(
            "regression-mlp",
            "landscape.tasks.regression_mlp",
            "diabetes progression, multilayer perceptron",
        ),
    )
}
