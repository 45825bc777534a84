"""The tensors of a pickle that names code, taken out without running any of it.

Every class and function that the pickle names is replaced by a stand-in that does nothing: objects
of unknown classes become bare records of their state. Only what rebuilds a dense tensor is
understood, by its name, and done here. A module that was pickled whole still has its parameters and
buffers in its state, so that its weights are found.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from landscape.contents import Contents, digest, read_file
from landscape.errors import CheckpointError
from landscape.pickle_scan import full_name
from landscape.pickles import check_pickle
from landscape.sniffing import AGAIN, check_is_file, reason, refuse, sniff
from landscape.text import shown

__all__ = ["read_without_code"]

_MAX_DEPTH = 100
_STORAGES: dict[str, torch.dtype] = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8}


class _StandIn:
    """Any object of a class that is not known: its state and its items, no behaviour."""

    def __new__(cls, *_args: object, **_options: object) -> _StandIn:
        made = super().__new__(cls)
        made.state, made.items = {}, {}
        return made

    def __init__(self, *_args: object, **_options: object) -> None: ...

    state: dict[Any, Any]
    items: dict[Any, Any]

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0]
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, _value: object) -> None:
        """Take an element of a list of an unknown class, and forget it."""

    extend = add = append


@dataclass(frozen=True)
class _Storage:
    """Which bytes of the archive belong to a storage, seen as which numbers."""

    dtype: torch.dtype
    key: str
    size: int


class _Dict(dict[Any, Any]):
    def __setstate__(self, _state: object) -> None: ...


class _StorageClass:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    # BUILD on an instance would set attributes otherwise.
    def __setstate__(self, _state: object) -> None: ...


class _Rebuilt:
    """A tensor's place in a storage, before its bytes are read."""

    args: tuple[object, ...] = ()

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, _state: object) -> None: ...


class _RebuiltParameter(_Rebuilt):
    """A parameter around a tensor; the tensor is all that counts."""


_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _Rebuilt,
    "torch._utils._rebuild_tensor_v3": _Rebuilt,
    "torch._utils._rebuild_parameter": _RebuiltParameter,
    "torch._utils._rebuild_parameter_with_state": _RebuiltParameter,
    "torch.Size": tuple,
    "builtins.set": set,  # Protocol 2 has no opcode for it.
    "collections.OrderedDict": _Dict,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.left_out: set[str] = set()

    def find_class(self, module: str, name: str, /) -> Any:
        full = full_name(module, name)
        if full in _KNOWN:
            return _KNOWN[full]
        if full in _STORAGES:
            return _StorageClass(_STORAGES[full])
        dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if full.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")):
            raise pickle.UnpicklingError(f"a tensor of a special kind ({shown([full])})")
        self.left_out.add(full)
        return _StandIn

    def persistent_load(self, pid: Any, /) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown storage {shown([pid])}")
        _, kind, key, _location, size = pid[:5]
        good = isinstance(kind, _StorageClass) and isinstance(key, str) and type(size) is int
        if not good or size < 0:
            raise pickle.UnpicklingError(f"damaged storage {shown([key])}")
        return _Storage(kind.dtype, key, size)


def read_without_code(path: str) -> tuple[Contents, tuple[str, ...]]:
    """Read a file written by ``torch.save`` with stand-ins for all code that it names.

    Returns:
        What it holds, and the names of the classes and functions that were left out.

    Raises:
        UsageError: no such file.
        CheckpointError: unreadable, damaged, of the format before PyTorch 1.6, or beyond the limits
            on what it declares.
    """
    check_is_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        kind = sniff(file.read(4096), size, path)
        if kind == "safetensors":
            return read_file(path), ()
        _, scan = check_pickle(file, path, kind, size)
        if kind == "torch-legacy":
            seen = "is a pickle that names code, in the format before PyTorch 1.6"
            todo = "Only --unsafe-pickle loads it, and only for a file that you trust"
            raise refuse(path, seen, todo, "the zip format of torch.save")
        if not scan.complete:  # What the scan did not follow, it could not bound.
            raise refuse(path, "holds a damaged pickle", AGAIN)
        sha256 = digest(file)
        try:
            value, left_out = _read_zip(file, path)
        except CheckpointError:
            raise
        except Exception as error:
            seen = f"is damaged or beyond reading without its code ({reason(error)})"
            raise refuse(path, seen, AGAIN) from error
    return Contents(kind, value, sha256), tuple(sorted(left_out))


def _read_zip(file: BinaryIO, path: str) -> tuple[object, set[str]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folder = names[0].partition("/")[0]
        order = f"{folder}/byteorder"
        if order in names and archive.read(order) != sys.byteorder.encode():
            raise refuse(path, "was written on a machine of the other byte order", "Save it here")
        unpickler = _Unpickler(archive.read(f"{folder}/data.pkl"))
        value = unpickler.load()
        return _Plain(archive, folder, path).of(value), unpickler.left_out


class _Plain:
    """Values with their tensors read, and stand-ins replaced by the tensors in their state."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, path: str) -> None:
        self._archive, self._folder, self._path = archive, folder, path
        self._done: dict[int, Any] = {}
        self._storages: dict[str, Tensor] = {}

    def of(self, value: object, depth: int = 0) -> object:
        """The value without stand-ins; the same object is made once."""
        if isinstance(value, str | int | float | None):
            return value
        if depth > _MAX_DEPTH:
            raise refuse(self._path, "is nested too deeply", "Save model.state_dict()", "weights")
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, _RebuiltParameter):
            made: object = self.of(value.args[0] if value.args else None, depth + 1)
        elif isinstance(value, _Rebuilt):
            made = self._tensor(*value.args)
        elif isinstance(value, _StandIn) and "_parameters" in value.state:
            self._done[id(value)] = None  # A module within itself adds nothing.
            made = dict(self._module(value.state, depth))
        elif isinstance(value, dict | _StandIn):
            found = self._done[id(value)] = {}
            entries = value if isinstance(value, dict) else {**value.state, **value.items}
            found |= {key: self.of(entry, depth + 1) for key, entry in entries.items()}
            made = found
        else:  # Tensors without names are no weights; what held them is told in messages.
            made = type(value)() if type(value) in (list, tuple) else None
        self._done[id(value)] = made
        return made

    def _module(self, state: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, object]]:
        """The state dict of a module that was pickled whole."""
        skipped = state.get("_non_persistent_buffers_set")
        for part in ("_parameters", "_buffers"):
            entries = self.of(state.get(part), depth + 1)
            for name, entry in (entries if isinstance(entries, dict) else {}).items():
                temporary = isinstance(skipped, set) and part == "_buffers" and name in skipped
                if isinstance(entry, Tensor) and not temporary:
                    yield str(name), entry
        modules = self.of(state.get("_modules"), depth + 1)
        for name, entry in (modules if isinstance(modules, dict) else {}).items():
            for inner, tensor in (entry if isinstance(entry, dict) else {}).items():
                if isinstance(tensor, Tensor):
                    yield f"{name}.{inner}", tensor

    def _tensor(self, *args: Any) -> Tensor:
        storage, offset, shape, strides, *more = args
        numbers = (offset, *shape, *strides)
        good = isinstance(storage, _Storage) and len(shape) == len(strides)
        if not good or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError("a tensor of no known form")
        flat = self._storage(storage.key)
        dtype = next((value for value in more if isinstance(value, torch.dtype)), storage.dtype)
        if flat.numel() < storage.size * storage.dtype.itemsize:
            raise ValueError(f"storage {shown([storage.key])} is shorter than declared")
        whole = flat[: flat.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        return whole.as_strided(shape, strides, offset)

    def _storage(self, key: str) -> Tensor:
        if key not in self._storages:
            data = self._archive.read(f"{self._folder}/data/{key}")
            self._storages[key] = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
        return self._storages[key]
