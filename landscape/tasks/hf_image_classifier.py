"""``hf-image-classifier``: a Hugging Face classifier of images, such as ViT."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from landscape.errors import TaskError
from landscape.task import Task
from landscape.tasks._common import check_integer
from landscape.tasks._extras import optional
from landscape.tasks._hugging_face import (
    EXTRA,
    HuggingFaceModel,
    check_architecture,
    load_model,
    logits,
    model_folder,
    quiet,
)
from landscape.tasks._images import Transform, check_labels, fitting_images, read_images

__all__ = ["build"]

_PROCESSOR = "preprocessor_config.json"


def build(
    *,
    data: str | None = None,
    class_names: str | None = None,
    num_labels: int | None = None,
    model: str | None = None,
    base: str | None = None,
    checkpoint: str | Path | None = None,
) -> Task:
    """Build the task: cross-entropy of the class, a mean over images.

    Images become inputs as the model's own ``preprocessor_config.json`` says.

    Args:
        data: a folder with one folder for every class, or arrays
            (:func:`landscape.tasks._images.read_images`).
        class_names: a text file with the classes' folder names in the order of the outputs; the
            configuration's names unless given, where the folders have them.
        num_labels: number of classes, where the configuration does not say.
        model: folder with the configuration, where it is not the checkpoint's.
        base: folder of the model that PEFT adapters are for.
        checkpoint: given by the command.

    Raises:
        UsageError: a missing file or library, or a class that the network does not have.
        TaskError: the model or its image processor cannot be built.
    """
    folder = model_folder(model, checkpoint)
    check_architecture("hf-image-classifier", folder, checkpoint)
    options = {}
    if num_labels is not None:
        options["num_labels"] = check_integer("num_labels", num_labels, 1)
    found = load_model("AutoModelForImageClassification", folder, base=base, **options)
    names = {str(k): int(v) for k, v in (found.config.label2id or {}).items()}
    labelled = read_images(data, class_names, names)
    check_labels(labelled, int(found.config.num_labels))
    channels = int(getattr(found.config, "num_channels", 3))
    transform, files = _processor(found) if labelled.inputs is None else (None, ())
    examples = labelled.data(transform, channels)
    return Task(
        model=found.model,
        data=examples,
        batch_size=fitting_images(found.model, _forward, examples),
        criterion="cross_entropy",
        forward=_forward,
        initialise=found.initialise,
        convert_weights=found.convert,
        files=(*found.files, *files),
    )


def _processor(found: HuggingFaceModel) -> tuple[Transform | None, tuple[Path, ...]]:
    folder = next((f for f in found.folders if (f / _PROCESSOR).is_file()), None)
    if folder is None:
        return None, ()
    auto = optional("transformers", EXTRA).AutoImageProcessor
    try:
        with quiet():
            processor = auto.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise TaskError(
            f"transformers cannot read {folder / _PROCESSOR} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error

    def transform(image: object) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return transform, (folder / _PROCESSOR,)


def _forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Logits (N, classes)."""
    return logits(model, {"pixel_values": batch[0]})
