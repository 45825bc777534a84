"""Putting a checkpoint's weights into a model: names, shapes and numbers must match."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn

from landscape.checkpoint import Checkpoint, canonical_name
from landscape.errors import NotFiniteError
from landscape.sniffing import refuse
from landscape.summary import dtype_name, number_kind, statistics
from landscape.text import escape_name, shown

__all__ = ["load_into"]


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Replace a model's parameters and buffers by a checkpoint's, in place, in the model's dtype.

    Names and shapes must match exactly; of tied weights one name is enough. Nothing is changed
    where an error is raised.

    Raises:
        CheckpointError: names, shapes or kinds of numbers do not match.
        NotFiniteError: a NaN or infinite weight.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    entries = model.state_dict(keep_vars=True).items()
    raw = {name: target for name, target in entries if isinstance(target, Tensor)}
    full = {canonical_name(name): name for name in raw}
    if len(full) < len(raw):  # the model itself needs the prefixes to tell names apart
        full = {name: name for name in raw}
    targets = {name: raw[full[name]] for name in full}
    groups: dict[int, list[str]] = {}
    for name, target in targets.items():
        if nn.parameter.is_lazy(target) or target.is_meta:
            seen = f"cannot be loaded: the model's {shown([name])} is lazy or on the meta device"
            raise refuse(path, seen, "Let the task build it in full", "a model with data")
        groups.setdefault(id(target), []).append(name)
    sources: dict[str, Tensor] = {}
    for group in groups.values():
        # A tied name that is absent from the file is filled from its twin.
        twin = next((tensors[name] for name in group if name in tensors), None)
        if twin is not None:
            sources |= {name: tensors.get(name, twin) for name in group}
    _check_match(targets, sources, checkpoint)
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


def _check_match(
    targets: dict[str, Tensor], sources: dict[str, Tensor], checkpoint: Checkpoint
) -> None:
    missing = [name for name in targets if name not in sources]
    unexpected = [name for name in checkpoint.tensors if name not in targets]
    shapes = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(targets[name].shape)})"
        for name, tensor in sources.items()
        if tensor.shape != targets[name].shape
    ]
    near = {name: difflib.get_close_matches(name, unexpected, n=1) for name in missing[:5]}
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
        ends = [n.removesuffix("." + missing[0]) for n in unexpected] if missing else []
        for end in ends:
            if end not in unexpected and {f"{end}.{name}" for name in missing} <= {*unexpected}:
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
