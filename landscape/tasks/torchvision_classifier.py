"""``torchvision``: an image classifier of the torchvision library."""

from __future__ import annotations

from typing import Any

from torch import nn

from landscape.errors import TaskError, UsageError
from landscape.task import Task, default_forward
from landscape.tasks._common import check_integer, initialise_by
from landscape.tasks._extras import optional
from landscape.tasks._images import Transform, check_labels, fitting_images, read_images

__all__ = ["build"]

_EXTRA = "vision"


def build(
    *,
    data: str | None = None,
    model: str | None = None,
    classes: int | None = None,
    class_names: str | None = None,
    size: int | None = None,
    options: dict[str, Any] | None = None,
) -> Task:
    """Build the task: cross-entropy of the class, a mean over images.

    Images are resized, cropped and normalised as the library's published weights of that
    architecture need it. The model is in eval mode: statistics of batch normalisation stay.

    Args:
        data: a folder with one folder for every class, or arrays
            (:func:`landscape.tasks._images.read_images`).
        model: the architecture's name, such as resnet18.
        classes: number of outputs; as the data have unless given.
        class_names: a text file with the classes' folder names in the order of the outputs.
        size: height and width of the input, where it is not the architecture's own.
        options: further arguments of the model, such as {dropout=0.0}.

    Raises:
        UsageError: a missing file or library, an unknown architecture, a class that the network
            does not have, or a setting of the wrong type.
        TaskError: the model cannot be built.
    """
    models = optional("torchvision.models", _EXTRA)
    labelled = read_images(data, class_names)
    known = models.list_models(module=models)
    if not isinstance(model, str) or model not in known:
        import difflib

        near = difflib.get_close_matches(str(model), known, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise UsageError(
            f"setting model={model!r}: expected a classifier of torchvision, such as resnet18."
            f"{hint}"
        )
    count = labelled.classes if classes is None else check_integer("classes", classes, 1)
    check_labels(labelled, count)
    if options is not None and not isinstance(options, dict):
        raise UsageError(f"setting options={options!r}: expected a table, as in {{dropout=0.0}}")

    def create() -> nn.Module:
        made: nn.Module = models.get_model(
            model, weights=None, num_classes=count, **(options or {})
        )
        return made

    try:
        built = create()
    except Exception as error:
        raise TaskError(
            f"torchvision cannot build {model!r} ({type(error).__name__}: {error}); check --set "
            "options="
        ) from error
    transform = _transform(models, model, size)
    examples = labelled.data(transform, 3)
    return Task(
        model=built,
        data=examples,
        criterion="cross_entropy",
        batch_size=fitting_images(built, default_forward, examples),
        initialise=initialise_by(create),
    )


def _transform(models: Any, model: str, size: object) -> Transform:
    """The evaluation transform of the architecture's published weights; nothing is downloaded."""
    side = None if size is None else check_integer("size", size, 1)
    sides = {} if side is None else {"crop_size": side, "resize_size": side}
    made: Transform = models.get_model_weights(model).DEFAULT.transforms(**sides)
    return made
