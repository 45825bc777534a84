"""``timm``: an image classifier of the timm library."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from landscape.errors import TaskError, UsageError
from landscape.task import Task, default_forward
from landscape.tasks._common import check_integer, initialise_by
from landscape.tasks._extras import optional
from landscape.tasks._files import read_json
from landscape.tasks._images import check_labels, fitting_images, read_images

__all__ = ["build"]

_EXTRA = "vision"


def build(
    *,
    data: str | None = None,
    model: str | None = None,
    classes: int | None = None,
    class_names: str | None = None,
    channels: int = 3,
    size: int | None = None,
    options: dict[str, Any] | None = None,
    checkpoint: str | Path | None = None,
) -> Task:
    """Build the task: cross-entropy of the class, a mean over images.

    Images are resized, cropped and normalised as the model's own data configuration says for
    evaluation. The model is in eval mode: statistics of batch normalisation stay as they are.

    Args:
        data: a folder with one folder for every class, or arrays
            (:func:`landscape.tasks._images.read_images`).
        model: the architecture's name (resnet18), or a folder with timm's config.json; the
            checkpoint's own folder unless given.
        classes: number of outputs; as the configuration says, else as the data have.
        class_names: a text file with the classes' folder names in the order of the outputs.
        channels: of an image: 3, or 1 for grey ones.
        size: height and width of the input, where it is not the model's own.
        options: further arguments of the model, such as {img_size=32}.
        checkpoint: given by the command.

    Raises:
        UsageError: a missing file or library, an unknown architecture, a class that the network
            does not have, or a setting of the wrong type.
        TaskError: the model cannot be built.
    """
    timm = optional("timm", _EXTRA)
    labelled = read_images(data, class_names)
    name, config, files = _architecture(timm, model, checkpoint)
    channels = check_integer("channels", channels, 1)
    count = config.get("num_classes") if classes is None else check_integer("classes", classes, 1)
    count = labelled.classes if count is None else int(count)
    check_labels(labelled, count)
    if options is not None and not isinstance(options, dict):
        raise UsageError(f"setting options={options!r}: expected a table, as in {{img_size=32}}")
    own = {**config.get("model_args", {}), **(options or {})}
    own |= {"pretrained": False, "num_classes": count, "in_chans": channels}
    # Neither a configuration nor an option makes it read or fetch another file.
    own |= dict.fromkeys(("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"))

    def create() -> nn.Module:
        made: nn.Module = timm.create_model(name, **own)
        return made

    try:
        built = create()
    except Exception as error:
        raise TaskError(
            f"timm cannot build {name!r} ({type(error).__name__}: {error}); check --set options="
        ) from error
    given: dict[str, Any] = {"in_chans": channels}
    if size is not None:
        side = check_integer("size", size, 1)
        given["input_size"] = (channels, side, side)
    resolved = timm.data.resolve_data_config(
        given, pretrained_cfg=config.get("pretrained_cfg"), model=built
    )
    for key in ("mean", "std"):
        if len(resolved[key]) != channels:
            resolved[key] = (sum(resolved[key]) / len(resolved[key]),) * channels
    transform = timm.data.create_transform(**resolved, is_training=False)
    examples = labelled.data(transform, channels)
    return Task(
        model=built,
        data=examples,
        criterion="cross_entropy",
        batch_size=fitting_images(built, default_forward, examples),
        initialise=initialise_by(create),
        files=files,
        convert_weights=_convert,
    )


def _architecture(
    timm: Any, model: object, checkpoint: object
) -> tuple[str, dict[str, Any], tuple[Path, ...]]:
    """The name, the configuration and the files that say them."""
    if isinstance(model, str) and not Path(model).expanduser().is_dir():
        # Names with a scheme would be looked up in a hub.
        if ":" not in model and timm.is_model(model):
            return model, {}, ()
        import difflib

        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise UsageError(
            f"setting model={model!r}: neither an architecture of timm nor a folder.{hint} Names "
            "are listed by python -c 'import timm; print(timm.list_models())'"
        )
    for place in (model, checkpoint, None if checkpoint is None else Path(str(checkpoint)).parent):
        if isinstance(place, str | os.PathLike):
            path = Path(place).expanduser() / "config.json"
            if path.is_file():
                config = read_json(path)
                name = config.get("architecture")
                if isinstance(name, str) and ":" not in name and timm.is_model(name):
                    return name, config, (path,)
                seen = f"the architecture {name!r}, which timm does not have"
                raise UsageError(
                    f"{path} names {seen if name else 'no architecture of timm'}; expected a "
                    "configuration of timm. Name the architecture with --set model=NAME; landscape "
                    "inspect tells the task that fits a checkpoint"
                )
    raise UsageError("--set model=NAME is missing; expected timm's name of it, such as resnet18")


def _convert(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of this release of timm."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or set(tensors) == set(model.state_dict()):
        return tensors
    return dict(convert(dict(tensors), model))
