"""Folders written by ``torch.distributed.checkpoint``: shards assembled without its unpickler.

``.metadata`` is an ordinary pickle. It is read with every class that it may name replaced by a
record of values, so that nothing it says can run; any other name is refused. The tensors are
slices of the shard files, each written by ``torch.save``, and are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.contents import Contents, digest
from landscape.errors import CheckpointError
from landscape.folders import DISTRIBUTED, inner_file
from landscape.pickle_scan import scan_pickles
from landscape.pickles import load_torch
from landscape.sniffing import AGAIN, reason, refuse, sniff
from landscape.states import check_stored, check_tensor
from landscape.text import shown

__all__ = ["read_distributed"]

_MAX_METADATA = 64 << 20
_MAX_NOTE = 1 << 16
_MAX_DEPTH = 50
_MAX_DIMENSIONS = 64
_NOTES = ("step", "global_step", "epoch")
_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"


class _Record:
    """An instance of a class that the metadata names: its arguments or its state, no behaviour."""

    values: object = ()  # Where it is made and never given a state.

    def __init__(self, *args: object) -> None:
        self.values = args

    def __setstate__(self, state: object) -> None:
        self.values = state

    def get(self, name: str, position: int) -> Any:
        """A field by its name, or by its position where the state is a tuple."""
        if isinstance(self.values, dict):
            return self.values.get(name)
        known = isinstance(self.values, tuple) and position < len(self.values)
        return self.values[position] if known else None  # type: ignore[index]


class _Metadata(_Record): ...


class _TensorEntry(_Record): ...


class _BytesEntry(_Record): ...


class _Chunk(_Record): ...


class _Properties(_Record): ...


class _Index(_Record): ...


class _Place(_Record): ...


class _Ignored(_Record): ...


_STAND_INS: dict[str, type] = {
    f"{_METADATA}.Metadata": _Metadata,
    f"{_METADATA}.TensorStorageMetadata": _TensorEntry,
    f"{_METADATA}.BytesStorageMetadata": _BytesEntry,
    f"{_METADATA}.ChunkStorageMetadata": _Chunk,
    f"{_METADATA}.TensorProperties": _Properties,
    f"{_METADATA}.MetadataIndex": _Index,
    f"{_METADATA}.StorageMeta": _Ignored,
    f"{_METADATA}._MEM_FORMAT_ENCODING": _Ignored,
    f"{_FILESYSTEM}._StorageInfo": _Place,
    f"{_FILESYSTEM}._StoragePrefix": _Ignored,
    "torch.Size": tuple,
    "torch.serialization._get_layout": _Ignored,
    "collections.OrderedDict": dict,
} | {
    f"{module}.{kind}": _Ignored
    for module in ("pathlib", "pathlib._local")
    for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
}


def _stand_in(full: str) -> Any:
    """What stands for a global, by its dotted name; None where it is not allowed."""
    if full in _STAND_INS:
        return _STAND_INS[full]
    module, _, name = full.rpartition(".")
    dtype = getattr(torch, name, None) if module == "torch" else None
    return dtype if isinstance(dtype, torch.dtype) else None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        found = _stand_in(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"it names {shown([f'{module}.{name}'])}")
        return found


@dataclass(frozen=True)
class _Slice:
    """Where a chunk's bytes are, and where its elements belong."""

    file: str
    start: int
    length: int
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    dtype: torch.dtype
    slices: tuple[_Slice, ...]


def read_distributed(folder: str) -> Contents:
    """Read a distributed checkpoint; only the tensors of the chosen state dict are loaded.

    Raises:
        CheckpointError: foreign classes in the metadata, missing or damaged shards, tensors that
            their chunks do not cover exactly once.
    """
    data, metadata = _read_metadata(folder)
    places = _places(metadata.get("storage_data", 2), folder)
    entries = _mapping(metadata.get("state_dict_metadata", 0), folder)
    paths = metadata.get("planner_data", 1)
    paths = paths if isinstance(paths, dict) else {}
    top: dict[Any, Any] = {}
    kept: list[Tensor] = []
    waiting: list[tuple[str, _Entry]] = []
    for name, item in entries.items():
        if not isinstance(name, str):
            raise _damaged(folder, f"an entry named {shown([name])}")
        path = _path(paths.get(name, (name,)), name, folder)
        if isinstance(item, _TensorEntry):
            entry = _entry(name, item, places, folder)
            if path[-1] in _NOTES and entry.shape in ((), (1,)):
                value: object = _assemble(folder, name, entry)
            else:
                value = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
                kept.append(value)
                waiting.append((name, entry))
        elif path[-1] in _NOTES:
            value = _note(folder, places.get((name, None)))
        else:
            continue
        _insert(top, path, value, folder)
    whole = hashlib.sha256(data)
    for file in sorted({place.file for place in places.values()}):
        with open(inner_file(folder, file), "rb") as opened:
            whole.update(f"{file}\0{digest(opened)}\0".encode())

    def finish(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
        # The placeholders live in `kept`, so that no other tensor takes their identity.
        pending = {id(value): where for value, where in zip(kept, waiting, strict=True)}
        return {
            key: _assemble(folder, *pending[id(value)]) if id(value) in pending else value
            for key, value in state.items()
        }

    return Contents("distributed", top, whole.hexdigest(), finish=finish)


def _damaged(folder: str, seen: str) -> CheckpointError:
    return refuse(folder, f"has {seen} in its {DISTRIBUTED}", AGAIN, "a distributed checkpoint")


def _read_metadata(folder: str) -> tuple[bytes, _Record]:
    with open(inner_file(folder, DISTRIBUTED), "rb") as file:
        data = file.read(_MAX_METADATA + 1)
    scan = scan_pickles(data)
    excess = scan.excess
    if len(data) > _MAX_METADATA:
        excess = f"has more than {_MAX_METADATA} bytes"
    if excess:
        raise _damaged(folder, f"a pickle that {excess}")
    names = [name for name in sorted(scan.names) if _stand_in(name) is None]
    if names:
        seen = f"has a {DISTRIBUTED} that names {shown(names)}"
        expected = "classes of torch.distributed.checkpoint alone"
        raise refuse(folder, seen, "It may run code: do not use it", expected)
    if not scan.complete:  # What the scan did not follow, it could not bound.
        raise _damaged(folder, "a damaged pickle")
    try:
        value = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:
        raise _damaged(folder, f"a pickle that is refused ({reason(error)})") from error
    if not isinstance(value, _Metadata):
        raise _damaged(folder, f"a {type(value).__name__} instead of metadata")
    return data, value


def _mapping(value: object, folder: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _damaged(folder, f"a {type(value).__name__} where a mapping belongs")
    return value


def _numbers(value: object, folder: str, what: str) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, tuple | list) else (None,)
    if len(numbers) <= _MAX_DIMENSIONS and all(
        type(number) is int and 0 <= number < 1 << 62 for number in numbers
    ):
        return numbers
    raise _damaged(folder, f"{shown([numbers])} as {what}")


def _places(storage: object, folder: str) -> dict[tuple[str, tuple[int, ...] | None], _Slice]:
    """Where every chunk is; slices must lie within their files and not overlap."""
    found = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for index, place in _mapping(storage, folder).items():
        if not (isinstance(index, _Index) and isinstance(place, _Place)):
            raise _damaged(folder, "entries of other classes")
        name, offset = index.get("fqn", 0), index.get("offset", 1)
        offset = None if offset is None else _numbers(offset, folder, "an offset")
        if place.get("transform_descriptors", 3):
            seen = f"stores {shown([name])} compressed or encrypted"
            raise refuse(folder, seen, "Save it without extensions", "plain tensors")
        start, length = _numbers(
            (place.get("offset", 1), place.get("length", 2)), folder, "a place in a file"
        )
        file = place.get("relative_path", 0)
        inner_file(folder, file)
        if not isinstance(name, str) or (name, offset) in found:
            raise _damaged(folder, f"the place of {shown([name])} twice, or without a name")
        found[name, offset] = _Slice(file, start, length)
        spans.setdefault(file, []).append((start, start + length))
    for file, each in spans.items():
        size = os.stat(inner_file(folder, file)).st_size
        ends = 0
        for start, end in sorted(each):
            if end > size:
                seen = f"has {size} bytes of {shown([file])}, and {end} are asked for"
                raise refuse(folder, seen, AGAIN, "whole shards")
            if start < ends:
                raise _damaged(folder, f"overlapping pieces of {shown([file])}")
            ends = end
    return found


def _entry(
    name: str,
    item: _TensorEntry,
    places: Mapping[tuple[str, tuple[int, ...] | None], _Slice],
    folder: str,
) -> _Entry:
    """The chunks of one tensor, of which the file holds as many bytes as they declare."""
    properties = item.get("properties", 0)
    dtype = properties.get("dtype", 0) if isinstance(properties, _Properties) else None
    shape = _numbers(item.get("size", 1), folder, f"the shape of {shown([name])}")
    chunks = item.get("chunks", 2)
    if not isinstance(dtype, torch.dtype) or not isinstance(chunks, list):
        raise _damaged(folder, f"no type or no pieces of {shown([name])}")
    slices = []
    for chunk in chunks:
        if not isinstance(chunk, _Chunk):
            raise _damaged(folder, f"a piece of {shown([name])} of another class")
        offsets = _numbers(chunk.get("offsets", 0), folder, "an offset")
        sizes = _numbers(chunk.get("sizes", 1), folder, "a size")
        place = places.get((name, offsets))
        if place is None:
            raise refuse(folder, f"lacks a piece of {shown([name])}", AGAIN, "all of them")
        inside = len(offsets) == len(sizes) == len(shape) and all(
            start + size <= whole for start, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if not inside or math.prod(sizes) * dtype.itemsize > place.length:
            raise _damaged(folder, f"a piece of {shown([name])} that does not fit")
        slices.append(_Slice(place.file, place.start, place.length, offsets, sizes))
    if sum(math.prod(piece.sizes) for piece in slices) != math.prod(shape):
        raise _damaged(folder, f"pieces that do not add up to {shown([name])}")
    if len({piece.offsets for piece in slices if math.prod(piece.sizes)}) < sum(
        math.prod(piece.sizes) > 0 for piece in slices
    ):
        raise _damaged(folder, f"a piece of {shown([name])} twice")
    return _Entry(shape, dtype, tuple(slices))


def _assemble(folder: str, name: str, entry: _Entry) -> Tensor:
    result = torch.empty(entry.shape, dtype=entry.dtype)
    covered = torch.zeros(entry.shape if len(entry.slices) > 1 else (), dtype=torch.bool)
    for piece in entry.slices:
        value = _load(folder, piece)
        if not isinstance(value, Tensor):
            raise refuse(folder, f"holds no tensor for {shown([name])}", AGAIN, "one")
        check_tensor(name, value, folder)
        if tuple(value.shape) != piece.sizes or value.dtype != entry.dtype:
            seen = f"holds {value.dtype} {tuple(value.shape)} for a piece of {shown([name])}"
            raise refuse(folder, seen, AGAIN, f"{entry.dtype} {piece.sizes}")
        where = tuple(
            slice(offset, offset + size)
            for offset, size in zip(piece.offsets, piece.sizes, strict=True)
        )
        result[where] = value
        if len(entry.slices) > 1:
            covered[where] = True
    if len(entry.slices) > 1 and not bool(covered.all()):
        raise _damaged(folder, f"pieces that do not cover {shown([name])}")
    return result


def _load(folder: str, piece: _Slice) -> object:
    with open(inner_file(folder, piece.file), "rb") as file:
        file.seek(piece.start)
        data = file.read(piece.length)
    path = os.path.join(folder, piece.file)
    kind = sniff(data[:4096], len(data), path)
    if kind == "safetensors":
        raise refuse(path, "holds safetensors pieces", "Save it without that option", "torch.save")
    value, stored = load_torch(io.BytesIO(data), path, kind, len(data))
    if isinstance(value, Tensor):
        check_stored({"": value}, stored, path)
    return value


def _note(folder: str, place: _Slice | None) -> object:
    """A small number beside the tensors, or None where it is no plain value."""
    if place is None or place.length > _MAX_NOTE:
        return None
    try:
        value = _load(folder, place)
    except CheckpointError:
        return None
    return value if isinstance(value, int | float | str | Tensor) else None


def _path(path: object, name: str, folder: str) -> tuple[Any, ...]:
    """The keys that lead to an entry in the dict that was saved."""
    parts = path if isinstance(path, tuple) else ()
    if 0 < len(parts) <= _MAX_DEPTH and all(isinstance(part, str | int) for part in parts):
        return parts
    raise _damaged(folder, f"no usable path to {shown([name])}")


def _insert(top: dict[Any, Any], path: tuple[Any, ...], value: object, folder: str) -> None:
    for part in path[:-1]:
        top = top.setdefault(part, {})
        if not isinstance(top, dict):
            break
    if not isinstance(top, dict) or path[-1] in top:
        raise _damaged(folder, f"contradicting paths ({shown(['.'.join(map(str, path))])})")
    top[path[-1]] = value
