"""Checkpoints: reading weights from a file or a folder by its content.

Rules, in the order in which they apply to a file:

- safetensors files hold tensors only. A ``torch.save`` file is read with ``weights_only=True``; one
  that needs more is refused and loads only with ``unsafe_pickle=True``.
- The state dict is the value of ``state_dict``, ``model`` or ``model_state_dict``, at the top or
  one level down; else the top level itself, where it holds tensors. Anything else (EMA weights,
  one of several networks) must be named by ``weights_key``.
- In the state dict, numbers and strings become metadata and other values are dropped, but a nested
  dict of tensors is refused, because dropping it would lose weights.
- ``module.`` at the start and ``_orig_mod`` anywhere are stripped from names.

A folder is one checkpoint where it holds ``.metadata`` of ``torch.distributed.checkpoint`` or the
weights of a Hugging Face model, whole or in shards with an index.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from landscape.contents import Contents, read_file, read_model_folder
from landscape.distributed import read_distributed
from landscape.folders import DISTRIBUTED, SHARDED, series_in, training_step, weights_file
from landscape.sniffing import refuse
from landscape.states import find_state, mapping, named_state, plain_tensors, state_paths
from landscape.text import shown

__all__ = ["Checkpoint", "canonical_name", "choose_weights", "read_checkpoint"]

_MAX_CANDIDATES = 20


@dataclass(frozen=True)
class Checkpoint:
    """The weights in one file or folder.

    Attributes:
        path: the file as it was named.
        format: ``safetensors``, ``torch-zip`` or ``torch-legacy``; of folders
            ``huggingface-safetensors``, ``huggingface-torch`` or ``distributed``.
        tensors: by name, wrappers' prefixes stripped, on the CPU. Names are as in the file: print
            them through :func:`landscape.text.escape_name`.
        metadata: numbers and strings beside the tensors (step, epoch, loss, ...), as strings.
        sha256: of the whole file; of a folder, a digest of all files that were read.
        step: the training step, where the metadata or the file's name tells it.
        weights_key: where in the file the tensors were; None is the top level.
        unsafe_pickle: whether the file was read by running the code that it names.
        others: keys of other sets of tensors in the file, such as averaged weights.
    """

    path: str
    format: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    step: int | None
    weights_key: str | None
    unsafe_pickle: bool
    others: tuple[str, ...] = ()


def read_checkpoint(
    path: str | os.PathLike[str], *, weights_key: str | None = None, unsafe_pickle: bool = False
) -> Checkpoint:
    """Read the weights from a file or a folder whose format is told by its content.

    Args:
        path: a safetensors file, a file written by ``torch.save`` (Lightning's too), a folder of a
            Hugging Face model or one of ``torch.distributed.checkpoint``.
        weights_key: where in the file the tensors are, with dots for nesting; where no dict has
            that name, the tensors whose names begin with it (``state_dict.net``).
        unsafe_pickle: load pickles that run code. Only for files that you trust.

    Raises:
        UsageError: no such file.
        CheckpointError: unreadable, of another kind, refused for safety, or without a clear set of
            weights.
    """
    name = os.fspath(path)
    try:
        contents = _read(name, unsafe_pickle=unsafe_pickle)
        return choose_weights(contents, name, weights_key)
    except OSError as error:
        seen = f"cannot be read ({error.strerror or type(error).__name__})"
        raise refuse(name, seen, "Check its permissions and the disk", "a readable file") from error


def choose_weights(contents: Contents, path: str, weights_key: str | None = None) -> Checkpoint:
    """The checkpoint in what was read: one state dict of it, and the metadata."""
    metadata = contents.metadata
    top = mapping(contents.value)
    if contents.format.endswith("safetensors") and top is not None:
        state, key = named_state(top, weights_key, path), weights_key
    else:
        state, key, found = find_state(contents.value, weights_key, path)
        metadata = metadata | found
    others = () if key is None or top is None else (p for p in state_paths(top) if p != key)
    tensors = plain_tensors(contents.finish(state), path)
    return Checkpoint(
        path=path,
        format=contents.format,
        tensors=_strip_prefixes(tensors, path),
        metadata=metadata,
        sha256=contents.sha256,
        step=training_step(path, metadata),
        weights_key=key,
        unsafe_pickle=contents.unsafe_pickle,
        others=tuple(islice(others, _MAX_CANDIDATES)),
    )


def _read(path: str, *, unsafe_pickle: bool) -> Contents:
    if "\0" in path or not os.path.isdir(path):
        return read_file(path, unsafe_pickle=unsafe_pickle)
    weights = weights_file(path)
    if weights == DISTRIBUTED:
        return read_distributed(path)
    if weights is not None:
        return read_model_folder(path, weights, unsafe_pickle=unsafe_pickle)
    series = series_in(path)
    if series:
        seen = f"is a folder of {len(series)} checkpoints"
        raise refuse(path, seen, f"Name one: {shown(p.name for p in series)}", "a single one")
    files = sorted(os.listdir(path))
    inside = [f for f in files if f.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))]
    todo = f"Name a file in it: {shown(inside)}" if inside else "Name a file"
    raise refuse(path, "is a directory", todo, SHARDED)


def canonical_name(name: str) -> str:
    """A tensor's name without the prefixes of DataParallel and ``torch.compile``."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts) or name


def _strip_prefixes(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    origin: dict[str, str] = {}
    for name in tensors:
        short = canonical_name(name)
        if short in origin:
            seen = f"names {shown([short])} twice: {shown([origin[short], name])}"
            todo = "Choose one set with --weights-key, or save the unwrapped model's state_dict()"
            raise refuse(path, seen, todo, "one, without the prefixes module. and _orig_mod.")
        origin[short] = name
    return {short: tensors[name] for short, name in origin.items()}
