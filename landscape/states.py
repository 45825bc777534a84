"""Where the weights are in what a file holds, and which tensors can be read at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from landscape.sniffing import refuse
from landscape.text import escape_name, shown

__all__ = ["check_stored", "check_tensor", "find_state", "is_state", "mapping", "named_state"]
__all__ += ["plain_tensors", "state_paths"]

_STATE_KEYS = ("state_dict", "model", "model_state_dict")
# One level down, averaged weights and optimisers are never taken unasked.
_NOT_WEIGHTS = frozenset({"ema", "swa", "optimizer", "optimizers"})
_MAX_EXPANSION = 64 << 20
_MAX_TEXT = 1000
_MAX_LOOK = 1000
_MAX_SHARING = 30
_DENSE = re.compile(
    r"torch\.(bool|u?int(8|16|32|64)|b?float(16|32|64)|complex(32|64|128)|float8_e.m.*)"
)


def find_state(
    value: object, key: str | None, path: str
) -> tuple[Mapping[Any, Any], str | None, dict[str, str]]:
    """The state dict, its key and the metadata.

    Raises:
        CheckpointError: there is none, or more than one without a ``key`` that chooses.
    """
    top = mapping(value)
    if top is None:
        seen = f"holds a {type(value).__name__}"
        raise refuse(path, seen, "Save model.state_dict()", "a dict of tensors")
    if key is not None:
        state = named_state(top, key, path)
        return state, key, scalars(top, state)
    places: list[list[str]] = [[name] for name in _STATE_KEYS if is_state(top.get(name))]
    for outer in () if places else top:
        inner = mapping(top[outer])
        if inner and not _NOT_WEIGHTS & set(re.split(r"[^a-z]+", str(outer).lower())):
            places += [[outer, name] for name in _STATE_KEYS if is_state(inner.get(name))]
    names = [".".join(map(str, place)) for place in places]
    if len(places) > 1:
        todo = f"Choose with --weights-key, for example --weights-key {escape_name(names[0])}"
        raise refuse(path, f"holds several sets of weights ({shown(names)})", todo, "one")
    if places:
        containers = [top]
        for name in places[0]:
            containers.append(mapping(containers[-1][name]) or {})
        return containers[-1], names[0], scalars(*containers)
    if is_state(top):
        return top, None, scalars(top)
    seen = f"has no weights at the usual places (top-level keys: {shown(top, 10) or 'none'})"
    names, todo = state_paths(top), "Save model.state_dict()"
    if names:
        todo = (
            f"Weights are under {shown(names)}: choose with --weights-key {escape_name(names[0])}"
        )
    raise refuse(path, seen, todo, f"a dict of tensors, alone or under {', '.join(_STATE_KEYS)}")


def named_state(top: Mapping[Any, Any], key: str | None, path: str) -> Mapping[Any, Any]:
    """The state dict under a key, ``top`` itself for None; CheckpointError where there is none."""
    if key is None:
        return top
    value = lookup(top, key)
    state = mapping(value)
    if state is None or not is_state(state):
        what = "a tensor" if isinstance(value, Tensor) else f"a {type(value).__name__} without any"
        what = "absent" if value is None else what
        names = state_paths(top)
        todo = f"Weights are under {shown(names)}" if names else f"Its keys: {shown(top, 10)}"
        seen = f"does not fit --weights-key {escape_name(key)}, which is {what}"
        raise refuse(path, seen, todo, "a dict of tensors")
    return state


def plain_tensors(state: Mapping[Any, Any], path: str) -> dict[str, Tensor]:
    """The tensors of a state dict, checked and detached; CheckpointError where one is not plain."""
    tensors: dict[str, Tensor] = {}
    expanded = 0
    _check_sharing([value for value in state.values() if isinstance(value, Tensor)], path)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            if is_state(value):
                seen = f"has more tensors under {shown([key])}, beside those of the weights"
                raise refuse(path, seen, "Choose with --weights-key", "a flat dict of tensors")
            continue
        if not isinstance(key, str):
            seen = f"has a tensor under the key {shown([key])} ({type(key).__name__})"
            raise refuse(path, seen, "Save model.state_dict()", "names as keys")
        expanded = check_tensor(key, value, path, expanded)
        tensors[key] = value.detach().resolve_conj().resolve_neg()
    if not tensors:
        raise refuse(path, "holds no tensors", "Save model.state_dict()", "weights")
    return tensors


def _check_sharing(tensors: list[Tensor], path: str) -> None:
    """Refuse tensors that share so much that a small file would be very long work."""
    plain = [tensor for tensor in tensors if is_readable(tensor)]
    logical = sum(tensor.numel() * tensor.element_size() for tensor in plain)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain}
    stored = sum(storages.values())
    if logical > _MAX_EXPANSION + _MAX_SHARING * stored:
        seen = f"declares {logical} bytes of tensors that share {stored}"
        expected = f"at most {_MAX_SHARING} times as much"
        raise refuse(path, seen, "Save every tensor once", expected)


# What the tensors declare ----------------------------------------------------------------------


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor is a plain dense one of numbers, with data."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
        and _DENSE.fullmatch(str(tensor.dtype)) is not None
    )


def check_stored(state: Mapping[Any, Any], stored: int, path: str) -> None:
    """Refuse tensors that the file declares but does not hold."""
    tensors = [t for t in state.values() if isinstance(t, Tensor) and is_readable(t)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    declared = sum(storages.values())
    if declared > stored:
        seen = f"declares {declared} bytes of tensors but holds {stored}"
        raise refuse(path, seen, "Save it again", "what it declares")


def check_tensor(name: str, tensor: Tensor, path: str, expanded: int = 0) -> int:
    """Refuse what cannot be read, before any operation on the tensor.

    Args:
        name: the tensor's name, for messages.
        tensor: the tensor.
        path: the file's name, for messages.
        expanded: bytes that earlier tensors of the file declare beyond what is stored.

    Returns:
        ``expanded`` with this tensor's share added.
    """
    if not is_readable(tensor):
        kind = f"quantised or packed ({tensor.dtype})"
        if type(tensor) not in (Tensor, nn.Parameter):
            kind = f"of class {type(tensor).__name__}"
        elif tensor.is_meta:
            kind = "without data (on the meta device)"
        elif tensor.is_nested or tensor.layout != torch.strided:
            kind = f"sparse or nested ({tensor.layout})"
        todo = "Convert the weights to dense ones and save them again"
        raise refuse(path, f"has {shown([name])} {kind}", todo, "dense tensors of numbers")
    # A stride of 0 declares any size in a file of a kilobyte.
    logical, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if logical > stored:
        expanded += logical
    if expanded > _MAX_EXPANSION:
        seen = f"declares {logical} bytes for {shown([name])} and stores {stored}"
        todo = "Save tensor.contiguous()"
        raise refuse(path, seen, todo, f"at most {_MAX_EXPANSION} bytes of expanded tensors")
    return expanded


# Where the tensors are -------------------------------------------------------------------------


def mapping(value: object) -> Mapping[Any, Any] | None:
    """The value as a mapping: itself, or the state dict of a module that was pickled whole."""
    if isinstance(value, nn.Module):
        try:
            return value.state_dict()
        except Exception:
            return None  # pickled by another version of its class
    return value if isinstance(value, Mapping) else None


def is_state(value: object) -> bool:
    """Whether a value is a mapping that holds tensors directly, among its first thousand entries.

    A file may refer to one large mapping from many places, so that none is read to its end.
    """
    entries = (mapping(value) or {}).values()
    return any(isinstance(entry, Tensor) for entry in islice(entries, _MAX_LOOK))


def _has_weights(value: object) -> bool:
    """Whether a mapping holds a tensor with a dimension, unlike the scores that callbacks keep."""
    entries = islice((mapping(value) or {}).values(), _MAX_LOOK)
    return any(isinstance(entry, Tensor) and entry.ndim > 0 for entry in entries)


def state_paths(top: Mapping[Any, Any]) -> list[str]:
    """The keys of mappings of weights, down to two levels, among the first thousand looked at."""
    paths: list[str] = []
    looks = 0
    for outer, value in top.items():
        for key, entry in (mapping(value) or {}).items():
            looks += 1
            if looks > _MAX_LOOK:
                return paths
            paths += [f"{outer}.{key}"] if _has_weights(entry) else []
        looks += 1
        paths += [str(outer)] if _has_weights(value) else []
    return paths


def lookup(container: Mapping[Any, Any], key: str) -> object | None:
    """The value under a dotted key, else the entries whose names begin with it; None if absent."""
    if key in container:
        value: object = container[key]
        return value
    for match in re.finditer(r"\.", key):
        inner = mapping(container.get(key[: match.start()]))
        value = None if inner is None else lookup(inner, key[match.end() :])
        if value is not None:
            return value
    names = [name for name in container if isinstance(name, str) and name.startswith(key + ".")]
    return {name[len(key) + 1 :]: container[name] for name in names} or None


def scalars(*containers: Mapping[Any, Any]) -> dict[str, str]:
    """Numbers and strings as metadata, outermost container first; its values win."""
    metadata: dict[str, str] = {}
    for container in containers:
        for key, value in container.items():
            # In the state dict itself (the last) a one-element tensor is a weight, not a remark.
            if isinstance(value, Tensor) and container is not containers[-1]:
                value = value.item() if is_readable(value) and value.numel() == 1 else None
            if isinstance(value, int) and value.bit_length() > 256:
                continue  # str() refuses integers of thousands of digits
            if isinstance(key, str) and isinstance(value, str | int | float):
                metadata.setdefault(key, str(value)[:_MAX_TEXT])
    return metadata
