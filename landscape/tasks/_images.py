"""Labelled images, from a folder for every class or from arrays; read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from landscape.errors import TaskError, UsageError
from landscape.tasks._common import fitting_batch
from landscape.tasks._files import existing, read_arrays, read_text

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SHOWN = 5

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images, still as files or pixels, and their classes.

    Attributes:
        sources: paths, or arrays (H, W) or (H, W, C) of uint8.
        inputs: the network's inputs (N, C, H, W), where they are given instead.
        labels: class indices, (N,).
        classes: how many classes there are in the data.
    """

    sources: Sequence[Path | Tensor]
    inputs: Tensor | None
    labels: Tensor
    classes: int

    def data(self, transform: Transform | None, channels: int) -> Any:
        """The task's data: the network's inputs as they are given, else made by the transform."""
        if self.inputs is not None:
            return self.inputs, self.labels
        if transform is None:
            raise UsageError(
                "nothing says how images become the network's inputs; expected them ready, as "
                "floating-point images (N, C, H, W) in .npz"
            )
        return _Images(self, transform, channels)


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Examples that are opened and transformed when they are asked for."""

    def __init__(self, labelled: Labelled, transform: Transform, channels: int) -> None:
        self._labelled = labelled
        self._transform = transform
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._labelled.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        source = self._labelled.sources[index]
        if isinstance(source, Tensor):
            image = Image.fromarray(source.numpy()).convert(self._mode)
        else:
            try:
                with Image.open(source) as opened:
                    image = opened.convert(self._mode)
            except Exception as error:
                raise TaskError(
                    f"the image {source} cannot be read ({type(error).__name__}: {error})"
                ) from error
        return self._transform(image), self._labelled.labels[index]


def read_images(
    data: object, class_names: object = None, known: Mapping[str, int] | None = None
) -> Labelled:
    """Labelled images from what ``--set data=`` names.

    Args:
        data: a folder with one folder of images for every class, or an ``.npz`` or
            ``.safetensors`` file with ``images`` and ``labels``. Images of uint8, (N, H, W) or
            (N, H, W, C), are transformed like files; of floating point, (N, C, H, W), they are the
            network's inputs as they are.
        class_names: a text file with the classes' folder names, one a line, in the order of the
            network's outputs; else they are sorted.
        known: classes that the model itself names.

    Raises:
        UsageError: a missing or empty folder, an unknown class, or arrays of another kind.
    """
    what = "a folder of classes, or .npz with images and labels"
    if isinstance(data, str | os.PathLike) and Path(data).expanduser().is_file():
        return _from_arrays(existing("data", data), what)
    return _from_folder(existing("data", data, folder=True, what=what), class_names, known)


def _from_folder(folder: Path, class_names: object, known: Mapping[str, int] | None) -> Labelled:
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    if not places:
        raise UsageError(f"{folder} has no folders; expected one folder of images for every class")
    order = {place.name: index for index, place in enumerate(places)}
    if class_names is not None:
        lines = read_text(existing("class_names", class_names)).splitlines()
        order = {name.strip(): index for index, name in enumerate(lines)}
    elif known is not None and set(order) <= set(known):
        order = dict(known)
    sources: list[Path | Tensor] = []
    labels = []
    for place in places:
        if place.name not in order:
            raise UsageError(
                f"{folder} has a class {place.name!r} that {class_names} does not name; expected "
                f"one of {', '.join(list(order)[:_SHOWN])}, ..."
            )
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
        sources += files
        labels += [order[place.name]] * len(files)
    if not sources:
        raise UsageError(
            f"{folder} has {len(places)} folders without images; expected files that end in "
            f"{', '.join(_ENDINGS)}"
        )
    return Labelled(
        sources=sources, inputs=None, labels=torch.tensor(labels), classes=max(order.values()) + 1
    )


def _from_arrays(path: Path, what: str) -> Labelled:
    arrays = read_arrays(path, ("images", "labels"), what=what)
    if "labels" not in arrays:
        raise UsageError(f"{path} has no array 'labels'; expected the class of every image")
    images, labels = arrays["images"], arrays["labels"]
    if labels.is_floating_point() or labels.dim() != 1 or len(labels) != len(images):
        raise UsageError(
            f"{path}: labels of shape {tuple(labels.shape)} and type {labels.dtype} for images of "
            f"shape {tuple(images.shape)}; expected one whole number an image"
        )
    if not len(labels):
        raise UsageError(f"{path} has no images; expected at least one")
    if int(labels.min()) < 0:
        raise UsageError(f"{path} has the label {int(labels.min())}; expected 0 or more")
    labels = labels.long()
    classes = int(labels.max()) + 1
    if images.is_floating_point() and images.dim() == 4:
        return Labelled(sources=(), inputs=images, labels=labels, classes=classes)
    if images.dtype == torch.uint8 and (
        images.dim() == 3 or (images.dim() == 4 and images.shape[-1] == 3)
    ):
        return Labelled(sources=tuple(images), inputs=None, labels=labels, classes=classes)
    raise UsageError(
        f"{path}: images of shape {tuple(images.shape)} and type {images.dtype}; expected uint8 of "
        "shape (N, H, W) or (N, H, W, 3), or floating point of shape (N, C, H, W)"
    )


def fitting_images(model: nn.Module, forward: Callable[[nn.Module, Any], Tensor], data: Any) -> int:
    """:func:`landscape.tasks._common.fitting_batch` by the first image.

    Raises:
        TaskError: the network does not take it.
    """
    first = tuple(t[:1] for t in data) if isinstance(data, tuple) else [t[None] for t in data[0]]
    own = next(model.parameters()).dtype
    try:
        return fitting_batch(model, forward, (first[0].to(own), first[1]))
    except Exception as error:
        raise TaskError(
            f"the network does not take inputs of shape {tuple(first[0].shape)} "
            f"({type(error).__name__}: {error}); check the size of the images"
        ) from error


def check_labels(labelled: Labelled, classes: int) -> None:
    """Require every class to be one of the network's.

    Raises:
        UsageError: it is not.
    """
    top = int(labelled.labels.max())
    if top >= classes:
        raise UsageError(
            f"the data have the class {top}, and the network has {classes} outputs, 0 to "
            f"{classes - 1}; check --set classes= and --set class_names="
        )
