"""Which library wrote a checkpoint, told by what is in and beside it, and the task that fits it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import Any

from landscape.checkpoint import Checkpoint
from landscape.contents import read_note
from landscape.errors import CheckpointError

__all__ = ["Origin", "recognise"]


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        library: a name and what told it, in words; empty where nothing did.
        task: the built-in task that fits, None where a task file is needed.
        command: a command line to go on with; words in capitals are the user's to fill in.
    """

    library: str
    task: str | None
    command: str


# What the adapters of transformers need besides the model.
_NEEDS = {
    "hf-causal-lm": "text=FILE.txt",
    "hf-classifier": "data=FILE.csv",
    "hf-image-classifier": "data=FOLDER",
}
_SHARD = re.compile(r".+-(?P<this>[0-9]{5})-of-(?P<all>[0-9]{5})\.(?:safetensors|bin)")
# Names of timm's models have a digit or an underscore; its training script notes a bare class name
# where it is not told the model's.
_TIMM_MODEL = re.compile(r"(?=.*[0-9_])[A-Za-z][A-Za-z0-9_.]{1,99}")
# Tensors that tell an architecture of image classifiers, and the library whose names they are.
_IMAGE_MODELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("timm", "a vision transformer", ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")),
    ("torchvision", "a vision transformer", ("conv_proj.weight", "encoder.pos_embedding")),
    ("torchvision", "a ResNet", ("conv1.weight", "layer1.0.conv1.weight", "fc.weight")),
    ("torchvision", "a VGG or AlexNet", ("features.0.weight", "classifier.6.weight")),
    (
        "torchvision",
        "a DenseNet",
        ("features.conv0.weight", "features.denseblock1.denselayer1.norm1.weight"),
    ),
)


def recognise(checkpoint: Checkpoint) -> Origin:
    """The library that wrote a checkpoint, and how to go on.

    Reads ``config.json`` or ``adapter_config.json`` beside the weights, where they are a folder;
    runs nothing.
    """
    for look in (_shard, _hugging_face, _own, _lightning, _image_model):
        if (found := look(checkpoint)) is not None:
            return found
    library = {
        "distributed": "torch.distributed.checkpoint",
        "safetensors": "",
    }.get(checkpoint.format, "torch.save" if checkpoint.format.startswith("torch") else "")
    return _task_file(checkpoint, library)


def _task_file(checkpoint: Checkpoint, library: str) -> Origin:
    words = ["landscape", "init-task", checkpoint.path]
    if checkpoint.weights_key is not None and checkpoint.others:
        words += ["--weights-key", checkpoint.weights_key]
    return Origin(library, None, shlex.join([*words, "-o", "task.py"]))


def _adapter(checkpoint: Checkpoint, library: str, task: str, *settings: str) -> Origin:
    words = ["landscape", "check", checkpoint.path, "--task", task]
    for setting in settings:
        words += ["--set", setting]
    return Origin(library, task, shlex.join(words))


def _shard(checkpoint: Checkpoint) -> Origin | None:
    found = _SHARD.fullmatch(os.path.basename(checkpoint.path))
    if found is None or int(found["all"]) < 2 or os.path.isdir(checkpoint.path):
        return None
    words = f"one shard of a model ({int(found['this'])} of {int(found['all'])}): name its folder"
    folder = os.path.dirname(checkpoint.path) or os.curdir
    return Origin(words, None, shlex.join(["landscape", "inspect", folder]))


def _hugging_face(checkpoint: Checkpoint) -> Origin | None:
    from landscape.tasks import adapter_of

    folder = checkpoint.path
    if not os.path.isdir(folder):
        return None
    if adapter := _config(folder, "adapter_config.json"):
        base = str(adapter.get("base_model_name_or_path", ""))
        kind = str(adapter.get("task_type", ""))
        task = "hf-classifier" if kind == "SEQ_CLS" else "hf-causal-lm"
        words = f"peft, an adapter of {base or 'a model that it does not name'}"
        where = [] if os.path.isdir(base) else ["base=FOLDER"]
        return _adapter(checkpoint, words, task, *where, _NEEDS[task])
    config = _config(folder, "config.json")
    if not config:
        return None
    if isinstance(config.get("architecture"), str) and "pretrained_cfg" in config:
        name = str(config["architecture"])
        return _adapter(checkpoint, f"timm, {name}", "timm", f"model={name}", "data=FOLDER")
    listed = config.get("architectures")
    classes = [str(name) for name in listed] if isinstance(listed, list) else []
    library = f"transformers, {', '.join(classes)}" if classes else "transformers"
    if (fitting := adapter_of(classes)) is not None:
        return _adapter(checkpoint, library, fitting, f"model={folder}", _NEEDS[fitting])
    return _task_file(checkpoint, library)


def _config(folder: str, name: str) -> dict[str, Any]:
    """A JSON file of a folder; empty where there is none, or none to rely on."""
    try:
        return read_note(folder, name)
    except (CheckpointError, OSError):
        return {}


def _own(checkpoint: Checkpoint) -> Origin | None:
    from landscape.tasks import BUILTIN_TASKS

    name = checkpoint.metadata.get("task", "")
    known = {"settings", "recipe"} <= checkpoint.metadata.keys()
    if not known or name not in BUILTIN_TASKS:
        return None
    return _adapter(checkpoint, "landscape train", name)


def _lightning(checkpoint: Checkpoint) -> Origin | None:
    version = checkpoint.metadata.get("pytorch-lightning_version")
    return None if version is None else _task_file(checkpoint, f"Lightning {version}")


def _image_model(checkpoint: Checkpoint) -> Origin | None:
    noted = checkpoint.metadata.get("arch", "")
    model = noted if _TIMM_MODEL.fullmatch(noted) else "NAME"
    for library, words, names in _IMAGE_MODELS:
        if checkpoint.tensors.keys() >= {*names}:
            known = f"{words} by its names, as in {library}"
            return _adapter(checkpoint, known, library, f"model={model}", "data=FOLDER")
    # timm's training script numbers its format.
    if model != "NAME" and checkpoint.metadata.get("version") == "2":
        return _adapter(checkpoint, f"timm, {model}", "timm", f"model={model}", "data=FOLDER")
    return None
