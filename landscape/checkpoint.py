"""Checkpoints: reading weights by the content of a file or a folder, and putting them into a model.

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

import difflib
import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.contents import Contents, read_file, read_model_folder
from landscape.distributed_checkpoint import read_distributed
from landscape.errors import NotFiniteError
from landscape.folders import (
    DISTRIBUTED,
    SHARDED,
    holds_checkpoints,
    series_in,
    training_step,
    weights_file,
)
from landscape.sniffing import refuse
from landscape.states import find_state, mapping, named_state, plain_tensors, state_paths
from landscape.tensor_facts import dtype_name, number_kind, statistics
from landscape.text import escape_name, shown

__all__ = ["Checkpoint", "choose_weights", "load_into", "read_checkpoint"]

_MAX_CANDIDATES = 20
_MAX_LEVELS = 10
_MAX_COMPARED = 1000
_MAX_NAME = 200


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
        others=tuple(itertools.islice(others, _MAX_CANDIDATES)),
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
    below = [f for f in files if holds_checkpoints(os.path.join(path, f))]
    if inside:
        todo = f"Name a file in it: {shown(inside)}"
    elif below:
        todo = f"Name a folder in it: {shown(below)}"
    else:
        todo = "Copy or download its weights too, or name a file"
    seen = f"is a directory without weights (in it: {shown(files) or 'nothing'})"
    raise refuse(path, seen, todo, SHARDED)


def _canonical_name(name: str) -> str:
    """A tensor's name without the prefixes of DataParallel and ``torch.compile``."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts) or name


def _strip_prefixes(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    origin: dict[str, str] = {}
    for name in tensors:
        short = _canonical_name(name)
        if short in origin:
            seen = f"names {shown([short])} twice: {shown([origin[short], name])}"
            todo = "Choose one set with --weights-key, or save the unwrapped model's state_dict()"
            raise refuse(path, seen, todo, "one, without the prefixes module. and _orig_mod.")
        origin[short] = name
    return {short: tensors[name] for short, name in origin.items()}


# Into a model ----------------------------------------------------------------------------------


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Replace a model's parameters and buffers by a checkpoint's, in place, in the model's dtype.

    Names and shapes must match exactly; of tied weights one name is enough. A prefix that all names
    of the file share, such as a Lightning module's ``model.``, is dropped where that makes them
    match, and one that all names of the model share is added. Nothing is changed where an error is
    raised.

    Raises:
        CheckpointError: names, shapes or kinds of numbers do not match.
        NotFiniteError: a NaN or infinite weight.
    """
    path = checkpoint.path
    entries = model.state_dict(keep_vars=True).items()
    raw = {name: target for name, target in entries if isinstance(target, Tensor)}
    full = {_canonical_name(name): name for name in raw}
    if len(full) < len(raw):  # the model itself needs the prefixes to tell names apart
        full = {name: name for name in raw}
    targets = {name: raw[full[name]] for name in full}
    groups: dict[int, list[str]] = {}
    for name, target in targets.items():
        if nn.parameter.is_lazy(target) or target.is_meta:
            seen = f"cannot be loaded: the model's {shown([name])} is lazy or on the meta device"
            raise refuse(path, seen, "Let the task build it in full", "a model with data")
        groups.setdefault(id(target), []).append(name)
    tensors = _fitted(checkpoint.tensors, groups.values())
    sources: dict[str, Tensor] = {}
    for group in groups.values():
        # A tied name that is absent from the file is filled from its twin.
        twin = next((tensors[name] for name in group if name in tensors), None)
        if twin is not None:
            sources |= {name: tensors.get(name, twin) for name in group}
    _check_match(targets, sources, tensors, checkpoint)
    _check_finite({name: tensors[name] for name in sources if name in tensors}, path)
    converted = {name: _convert(name, sources[name], targets[name], path) for name in sources}
    for first, *twins in groups.values():
        for name in twins:
            if not torch.equal(converted[first], converted[name]):
                seen = f"has unequal {shown([first, name])}, which the model ties"
                todo = "Build the task's model without the tie, or check how the file was saved"
                raise refuse(path, seen, todo, "equal values")
    try:
        model.load_state_dict({full[n]: tensor for n, tensor in converted.items()}, strict=False)
    except Exception as error:
        seen = f"is refused by the model: {shown([f'{type(error).__name__}: {error}'])}"
        raise refuse(path, seen, "Check the task's model", "weights that it takes") from error


def _fitted(tensors: dict[str, Tensor], groups: Collection[Sequence[str]]) -> dict[str, Tensor]:
    """The tensors under the model's names, where one prefix is all that differs."""
    names = {name for group in groups for name in group}
    changes = [("", ""), *((prefix, "") for prefix in _shared_prefixes(tensors))]
    for drop, add in [*changes, *(("", prefix) for prefix in _shared_prefixes(names))]:
        found = {add + name.removeprefix(drop): tensor for name, tensor in tensors.items()}
        if found.keys() <= names and all(any(n in found for n in group) for group in groups):
            return found
    return tensors


def _shared_prefixes(names: Iterable[str]) -> list[str]:
    """``a.`` and ``a.b.`` where all names begin so, the shortest first."""
    levels = zip(*(name.split(".", _MAX_LEVELS + 1)[:-1] for name in names), strict=False)
    same = itertools.takewhile(lambda each: len({*each}) == 1, levels)
    shared = [parts[0] for parts in itertools.islice(same, _MAX_LEVELS)]
    return [".".join(shared[: i + 1]) + "." for i in range(len(shared))]


def _check_match(
    targets: dict[str, Tensor],
    sources: dict[str, Tensor],
    tensors: dict[str, Tensor],
    checkpoint: Checkpoint,
) -> None:
    missing = [name for name in targets if name not in sources]
    unexpected = [name for name in tensors if name not in targets]
    shapes = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(targets[name].shape)})"
        for name, tensor in sources.items()
        if tensor.shape != targets[name].shape
    ]
    # Comparing takes time that is quadratic in the lengths.
    likely = [name for name in unexpected[:_MAX_COMPARED] if len(name) < _MAX_NAME]
    near = {name: difflib.get_close_matches(name, likely, n=1) for name in missing[:5]}
    hints = [f"{name} (nearest: {near[name][0]})" if near.get(name) else name for name in missing]
    parts = [
        f"{len(names)} {what}: {shown(names)}"
        for what, names in (
            ("missing from the file", hints),
            ("not in the model", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if parts:
        todo = "Check the task's architecture and settings (--set), or choose with --weights-key"
        rest = {*unexpected}
        first = "." + missing[0] if missing else "."
        ends = [n.removesuffix(first) for n in unexpected[:_MAX_COMPARED] if n.endswith(first)]
        for end in ends[:_MAX_LEVELS]:
            if {f"{end}.{name}" for name in missing} <= rest:
                key = ".".join(filter(None, (checkpoint.weights_key, end)))
                todo = f"The names match under a prefix: add --weights-key {escape_name(key)}"
        seen = f"does not fit the model: {'; '.join(parts)}"
        raise refuse(checkpoint.path, seen, todo, "the same names and shapes")


def _convert(name: str, source: Tensor, target: Tensor, path: str) -> Tensor:
    kind, todo = number_kind(source), "Check the task's model"
    if kind != number_kind(target):
        seen = f"has {kind} values for {shown([name])}, which is {number_kind(target)} in the model"
        raise refuse(path, seen, todo, "the same kind of number")
    result = source.to(target.dtype)
    if kind == "integer" and not torch.equal(result.to(source.dtype), source):
        seen = f"has values of {shown([name])} out of range for the model's {dtype_name(target)}"
        raise refuse(path, seen, todo, "integers that fit")
    if result.dtype != source.dtype:
        _check_finite({name: result}, path, f" after conversion to {dtype_name(target)}")
    return result


def _check_finite(tensors: dict[str, Tensor], path: str, when: str = "") -> None:
    bad = []
    for name, tensor in tensors.items():
        _, nan, inf = statistics(tensor)
        if nan or inf:
            bad.append(f"{name} ({nan} NaN, {inf} infinite of {tensor.numel()})")
    if bad:
        raise NotFiniteError(
            f"checkpoint {path!r} has NaN or infinite weights{when} in {len(bad)} of its tensors: "
            f"{shown(bad)}; expected finite numbers. Take a checkpoint from before it diverged"
        )
