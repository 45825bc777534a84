"""Checkpoints: reading weights from a file by its content, and putting them into a model.

Rules, in the order in which they apply to a file:

- safetensors files hold tensors only. A ``torch.save`` file is read with ``weights_only=True``; one
  that needs more is refused and loads only with ``unsafe_pickle=True``.
- The state dict is the value of ``state_dict``, ``model`` or ``model_state_dict``, at the top or
  one level down; else the top level itself, where it holds tensors. Anything else (EMA weights,
  one of several networks) must be named by ``weights_key``.
- In the state dict, numbers and strings become metadata and other values are dropped, but a nested
  dict of tensors is refused, because dropping it would lose weights.
- ``module.`` at the start and ``_orig_mod`` anywhere are stripped from names.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import NotFiniteError, UsageError
from landscape.paths import expand_paths
from landscape.pickles import (
    check_is_file,
    check_stored,
    check_tensor,
    escape_name,
    is_state,
    load_safetensors,
    load_torch,
    lookup,
    mapping,
    refuse,
    scalars,
    shown,
    sniff,
    state_paths,
)
from landscape.text import natural_key

__all__ = ["Checkpoint", "CheckpointSummary", "TensorSummary", "escape_name", "expand_checkpoints"]
__all__ += ["load_into", "natural_key", "read_checkpoint", "summarise", "training_step"]

_STATE_KEYS = ("state_dict", "model", "model_state_dict")
# One level down, averaged weights and optimisers are never taken unasked.
_NOT_WEIGHTS = frozenset({"ema", "swa", "optimizer", "optimizers"})
_STEP_WORDS = (r"(?:global[_-]?)?step", r"iter(?:ation)?", r"(?:checkpoint|ckpt)")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """The weights in one file.

    Attributes:
        path: the file as it was named.
        format: ``safetensors``, ``torch-zip`` or ``torch-legacy``.
        tensors: by name, wrappers' prefixes stripped, on the CPU. Names are as in the file: print
            them through :func:`escape_name`.
        metadata: numbers and strings beside the tensors (step, epoch, loss, ...), as strings.
        sha256: of the whole file.
        step: the training step, where the metadata or the file's name tells it.
        weights_key: where in the file the tensors were; None is the top level.
        unsafe_pickle: whether the file was read by running the code that it names.
    """

    path: str
    format: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    step: int | None
    weights_key: str | None
    unsafe_pickle: bool


@dataclass(frozen=True)
class TensorSummary:
    """One tensor: its norm (Euclidean, in float64) and how many elements are NaN or infinite."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    norm: float
    nan: int
    inf: int


@dataclass(frozen=True)
class CheckpointSummary:
    """What is in a checkpoint.

    ``n_parameters`` counts the elements of floating-point and complex tensors (parameters and
    buffers look alike in a file) and ``norm`` is theirs; these and ``n_bytes`` count tied tensors
    once where the file keeps the tie. ``nan`` and ``inf`` sum over all tensors.
    """

    path: str
    format: str
    sha256: str
    step: int | None
    metadata: dict[str, str]
    weights_key: str | None
    tensors: tuple[TensorSummary, ...]
    n_parameters: int
    n_bytes: int
    norm: float
    nan: int
    inf: int
    warnings: tuple[str, ...]


def read_checkpoint(
    path: str | os.PathLike[str], *, weights_key: str | None = None, unsafe_pickle: bool = False
) -> Checkpoint:
    """Read the weights from a file whose format is told by its content.

    Args:
        path: a safetensors file or a file written by ``torch.save``.
        weights_key: where in the file the tensors are, with dots for nesting; where no dict has
            that name, the tensors whose names begin with it (``state_dict.net``).
        unsafe_pickle: load pickles that run code. Only for files that you trust.

    Raises:
        UsageError: no such file.
        CheckpointError: unreadable, of another kind, refused for safety, or without a clear set of
            weights.
    """
    name = os.fspath(path)
    check_is_file(name)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            kind = sniff(file.read(4096), size, name)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if kind == "safetensors":
                tensors, metadata = load_safetensors(name)
                state, key = _named_state(tensors, weights_key, name), weights_key
            else:
                top, stored = load_torch(file, name, kind, size, unsafe_pickle=unsafe_pickle)
                state, key, metadata = _find_state(top, weights_key, name)
                if not unsafe_pickle:
                    check_stored(state, stored, name)
    except OSError as error:
        seen = f"cannot be read ({error.strerror or type(error).__name__})"
        raise refuse(name, seen, "Check its permissions and the disk", "a readable file") from error
    return Checkpoint(
        path=name,
        format=kind,
        tensors=_strip_prefixes(_plain_tensors(state, name), name),
        metadata=metadata,
        sha256=sha256,
        step=training_step(name, metadata),
        weights_key=key,
        unsafe_pickle=unsafe_pickle and kind != "safetensors",
    )


def _find_state(
    value: object, key: str | None, path: str
) -> tuple[Mapping[Any, Any], str | None, dict[str, str]]:
    """The state dict, its key and the metadata."""
    top = mapping(value)
    if top is None:
        seen = f"holds a {type(value).__name__}"
        raise refuse(path, seen, "Save model.state_dict()", "a dict of tensors")
    if key is not None:
        state = _named_state(top, key, path)
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


def _named_state(top: Mapping[Any, Any], key: str | None, path: str) -> Mapping[Any, Any]:
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


def _plain_tensors(state: Mapping[Any, Any], path: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    expanded = 0
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


def _canonical_name(name: str) -> str:
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


# Names and steps -------------------------------------------------------------------------------


def training_step(path_or_name: str | os.PathLike[str], metadata: Mapping[str, str]) -> int | None:
    """The training step from the metadata, else from the name; None where neither tells it.

    Metadata ``step`` or ``global_step``; in the name ``step_100``, ``step=100``, ``iter100``,
    ``checkpoint-100``, ``ckpt_100``, digits alone, or a parent folder such as ``checkpoint-100``.
    An epoch is not a step.
    """
    for key in ("step", "global_step"):
        if match := re.fullmatch(r"\s*([0-9]{1,18})(?:\.0*)?\s*", metadata.get(key, "")):
            return int(match[1])
    path = Path(path_or_name)
    stem = path.stem.lower()
    if re.fullmatch(r"[0-9]{1,18}", stem):
        return int(stem)
    number = r"[_=-]?([0-9]{1,18})"
    for word in _STEP_WORDS:
        if found := re.findall(rf"(?<![a-z]){word}{number}(?!\.?[0-9]|[a-z])", stem):
            return int(found[-1])
    for word in _STEP_WORDS:
        if match := re.fullmatch(word + number, path.parent.name.lower()):
            return int(match[1])
    return None


def expand_checkpoints(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and glob patterns stand for, in the order given, each once.

    A path that exists is taken literally, whatever characters it has; matches of one pattern are
    in natural order.

    Raises:
        UsageError: a path that does not exist, or a pattern without a match.
    """
    found = expand_paths(patterns, what="checkpoint", expected="a file or a quoted glob pattern")
    if not found:
        raise UsageError("no checkpoint given; expected a file or a quoted glob pattern. Name one")
    return found


# Into a model ----------------------------------------------------------------------------------


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


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating-point"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def _convert(name: str, source: Tensor, target: Tensor, path: str) -> Tensor:
    kind, todo = _kind(source), "Check the task's model"
    if kind != _kind(target):
        seen = f"has {kind} values for {shown([name])}, which is {_kind(target)} in the model"
        raise refuse(path, seen, todo, "the same kind of number")
    result = source.to(target.dtype)
    if kind == "integer" and not torch.equal(result.to(source.dtype), source):
        seen = f"has values of {shown([name])} out of range for the model's {_dtype(target)}"
        raise refuse(path, seen, todo, "integers that fit")
    if result.dtype != source.dtype:
        _check_finite({name: result}, path, f" after conversion to {_dtype(target)}")
    return result


def _check_finite(tensors: dict[str, Tensor], path: str, when: str = "") -> None:
    bad = []
    for name, tensor in tensors.items():
        _, nan, inf = _statistics(tensor)
        if nan or inf:
            bad.append(f"{name} ({nan} NaN, {inf} infinite of {tensor.numel()})")
    if bad:
        raise NotFiniteError(
            f"checkpoint {path!r} has NaN or infinite weights{when} in {len(bad)} of its tensors: "
            f"{shown(bad)}; expected finite numbers. Take a checkpoint from before it diverged"
        )


# Looking inside --------------------------------------------------------------------------------


def summarise(checkpoint: Checkpoint) -> CheckpointSummary:
    """Sizes, norms and non-finite counts of every tensor, in natural order of the names."""
    rows = []
    once: dict[object, tuple[Tensor, TensorSummary]] = {}
    for name in sorted(checkpoint.tensors, key=natural_key):
        tensor = checkpoint.tensors[name]
        shape, size = tuple(tensor.shape), tensor.numel()
        rows.append(TensorSummary(name, shape, _dtype(tensor), size, *_statistics(tensor)))
        place = (tensor.data_ptr(), tensor.dtype, shape, tensor.stride())
        once.setdefault(place, (tensor, rows[-1]))
    weights = [row for t, row in once.values() if _kind(t) in ("floating-point", "complex")]
    return CheckpointSummary(
        path=checkpoint.path,
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        step=checkpoint.step,
        metadata=checkpoint.metadata,
        weights_key=checkpoint.weights_key,
        tensors=tuple(rows),
        n_parameters=sum(row.size for row in weights),
        n_bytes=sum(t.numel() * t.element_size() for t, _ in once.values()),
        norm=math.hypot(*(row.norm for row in weights)),
        nan=sum(row.nan for row in rows),
        inf=sum(row.inf for row in rows),
        warnings=tuple(_warnings(checkpoint, rows)),
    )


def _warnings(checkpoint: Checkpoint, rows: Sequence[TensorSummary]) -> Iterator[str]:
    if checkpoint.unsafe_pickle:
        yield "read with --unsafe-pickle: code named by the file was run"
    if bad := [row.name for row in rows if row.nan or row.inf]:
        yield f"{len(bad)} tensors have NaN or infinite elements: {shown(bad)}"
    dtypes = sorted({row.dtype for row in rows if "float" in row.dtype})
    if len(dtypes) > 1:
        yield f"floating-point tensors of several dtypes: {', '.join(dtypes)}"
    if empty := [row.name for row in rows if row.size == 0]:
        yield f"{len(empty)} tensors are empty: {shown(empty)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _statistics(tensor: Tensor) -> tuple[float, int, int]:
    """Norm, NaN and infinite elements, in pieces so that float64 copies stay small."""
    norm, nan, inf = 0.0, 0, 0
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        wide = chunk.to(torch.complex128 if chunk.is_complex() else torch.float64)
        nan += int(wide.isnan().sum())
        inf += int((wide.isinf() & ~wide.isnan()).sum())
        # Summed in pairs, which vector_norm does not do: it loses four digits on millions.
        norm = math.hypot(norm, math.sqrt(float(wide.abs().square().sum())))
    return norm, nan, inf
