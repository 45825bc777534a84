"""Built-in tasks: small real training problems, and adapters for models of other libraries.

Importing this package loads neither torch nor scikit-learn, so that listing the tasks is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["ADAPTERS", "BUILTIN_TASKS", "BuiltinTask", "Recipe", "adapter_of"]


@dataclass(frozen=True)
class BuiltinTask:
    """A task that is named rather than given as a file.

    Attributes:
        name: the name on the command line.
        module: the module that defines ``build``, and ``RECIPE`` where it can be trained. Where it
            defines ``training_loss(task, batch)``, that is minimised in place of the criterion.
        summary: one line for listings.
        trainable: whether ``landscape train`` takes it.
        needs_checkpoint: whether ``build(checkpoint=...)`` takes the path of the first checkpoint.
        architectures: ends of the class names, in a ``config.json`` of transformers, that it
            measures.
    """

    name: str
    module: str
    summary: str
    trainable: bool = True
    needs_checkpoint: bool = False
    architectures: tuple[str, ...] = ()


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
        BuiltinTask(
            "two-tasks", "landscape.tasks.two_tasks", "two digits at once, dense or modular network"
        ),
        BuiltinTask(
            "sparse-mlp", "landscape.tasks.sparse_mlp", "8x8 digits, wide perceptron, L1 penalty"
        ),
    )
}

# Models and data of the user's own, named by --set.
ADAPTERS: dict[str, BuiltinTask] = {
    task.name: task
    for task in (
        BuiltinTask(
            "hf-causal-lm",
            "landscape.tasks.hf_causal_lm",
            "Hugging Face causal language model on a text",
            trainable=False,
            needs_checkpoint=True,
            architectures=("ForCausalLM", "LMHeadModel"),
        ),
        BuiltinTask(
            "hf-classifier",
            "landscape.tasks.hf_classifier",
            "Hugging Face classifier of texts or pairs of texts",
            trainable=False,
            needs_checkpoint=True,
            architectures=("ForSequenceClassification",),
        ),
        BuiltinTask(
            "hf-image-classifier",
            "landscape.tasks.hf_image_classifier",
            "Hugging Face classifier of images",
            trainable=False,
            needs_checkpoint=True,
            architectures=("ForImageClassification",),
        ),
        BuiltinTask(
            "timm",
            "landscape.tasks.timm_classifier",
            "timm classifier of images",
            trainable=False,
            needs_checkpoint=True,
        ),
        BuiltinTask(
            "torchvision",
            "landscape.tasks.torchvision_classifier",
            "torchvision classifier of images",
            trainable=False,
        ),
        BuiltinTask(
            "sklearn-tabular",
            "landscape.tasks.sklearn_tabular",
            "multilayer perceptron on a table (CSV)",
        ),
    )
}


def adapter_of(classes: Sequence[str]) -> str | None:
    """The adapter that measures one of some classes of transformers; None where none does."""
    return next(
        (
            name
            for name, adapter in ADAPTERS.items()
            if any(given.endswith(adapter.architectures) for given in classes)
        ),
        None,
    )
