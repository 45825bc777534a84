"""A checkpoint's weights into a task's model."""

from __future__ import annotations

import dataclasses

from torch import nn

from landscape.checkpoint import Checkpoint, load_into
from landscape.errors import CheckpointError, LandscapeError
from landscape.task import Task

__all__ = ["load_weights"]


def load_weights(task: Task, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Replace a model's weights by a checkpoint's, under the names that the task gives them.

    Args:
        task: its ``convert_weights``, where it has one, translates the file's names.
        model: the task's model or a copy of it.
        checkpoint: the weights.

    Raises:
        CheckpointError: names, shapes or kinds of numbers do not match.
        NotFiniteError: a NaN or infinite weight.
    """
    if task.convert_weights is not None:
        try:
            tensors = dict(task.convert_weights(model, dict(checkpoint.tensors)))
        except LandscapeError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"the weights of {checkpoint.path!r} cannot be put under the model's names "
                f"({type(error).__name__}: {error}). Check that they are of this architecture"
            ) from error
        checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    load_into(model, checkpoint)
