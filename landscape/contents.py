"""What a checkpoint file or folder holds, read without running code from it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, BinaryIO

from torch import Tensor

from landscape.errors import CheckpointError
from landscape.folders import INDEX, inner_file
from landscape.pickles import load_torch
from landscape.sniffing import AGAIN, check_is_file, read_json, reason, refuse, sniff
from landscape.states import check_stored, is_state, mapping
from landscape.text import shown

__all__ = ["Contents", "digest", "read_file", "read_model_folder", "read_note"]

_MAX_INDEX = 32 << 20
_MAX_NOTE = 16 << 20


def _as_read(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return state


@dataclass(frozen=True)
class Contents:
    """What was read, before the weights are looked for in it.

    Attributes:
        format: as in :class:`landscape.checkpoint.Checkpoint`.
        value: tensors by name, or what the pickle held.
        sha256: of all files that were read.
        metadata: strings by name, for formats that keep these apart.
        finish: applied to the state dict once it is chosen; checks it, or reads its tensors.
        unsafe_pickle: whether code of the file was run.
    """

    format: str
    value: object
    sha256: str
    metadata: dict[str, str] = field(default_factory=dict)
    finish: Callable[[Mapping[Any, Any]], Mapping[Any, Any]] = _as_read
    unsafe_pickle: bool = False


def read_file(path: str, *, unsafe_pickle: bool = False) -> Contents:
    """Read a safetensors file or one written by ``torch.save``.

    Raises:
        UsageError: no such file.
        CheckpointError: unreadable, of another kind, or refused for safety.
    """
    check_is_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        kind = sniff(file.read(4096), size, path)
        sha256 = digest(file)
        if kind == "safetensors":
            tensors, metadata = _load_safetensors(file, path)
            return Contents(kind, tensors, sha256, metadata)
        value, stored = load_torch(file, path, kind, size, unsafe_pickle=unsafe_pickle)

    def finish(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
        if not unsafe_pickle:
            check_stored(state, stored, path)
        return state

    return Contents(kind, value, sha256, finish=finish, unsafe_pickle=unsafe_pickle)


def digest(file: BufferedReader) -> str:
    """The SHA-256 of a whole file, whose position is left at its end."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _load_safetensors(file: BinaryIO, path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    from safetensors import safe_open

    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    read_json(file.read(length), path, "header")  # The library takes a name twice.
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            # Cloned: the tensors map the file, and a training run may overwrite it meanwhile.
            names = list(opened.keys())
            tensors = {name: opened.get_tensor(name).clone() for name in names}
            return tensors, dict(opened.metadata() or {})
    except OSError:
        raise
    except Exception as error:
        seen = f"is a damaged or truncated safetensors file ({reason(error)})"
        raise refuse(path, seen, AGAIN) from error


# Folders of Hugging Face libraries -------------------------------------------------------------


def read_model_folder(folder: str, weights: str, *, unsafe_pickle: bool = False) -> Contents:
    """Read the weights of a Hugging Face model folder, in one file or in shards.

    Args:
        folder: the folder.
        weights: the name of the file of weights or of the index of shards.
        unsafe_pickle: run the code that pickles name.

    Raises:
        CheckpointError: unreadable or refused files, or an index that does not fit them.
    """
    shards = [weights]
    owner: dict[str, str] = {}
    whole = hashlib.sha256()
    if weights.endswith(INDEX):
        text = _small_file(folder, weights, _MAX_INDEX)
        whole.update(text)
        owner = _weight_map(text, folder, weights)
        shards = list(dict.fromkeys(owner.values()))
    paths = [inner_file(folder, shard) for shard in shards]  # All, before any is read.
    tensors: dict[str, Tensor] = {}
    unsafe = False
    for shard, path in zip(shards, paths, strict=True):
        part = read_file(path, unsafe_pickle=unsafe_pickle)
        state = mapping(part.value)
        if state is None or not is_state(state):
            raise refuse(path, "holds no flat dict of tensors", "Name the checkpoint itself")
        state = part.finish(state)
        if twice := [name for name in state if name in tensors]:
            raise refuse(folder, f"has {shown(twice)} in several shards", AGAIN, "each in one")
        tensors |= state
        whole.update(f"{shard}\0{part.sha256}\0".encode())
        unsafe = unsafe or part.unsafe_pickle
        absent = [name for name, place in owner.items() if place == shard and name not in state]
        if absent:
            seen = f"lacks {shown(absent)} in {shown([shard])}, where its index puts it"
            raise refuse(folder, seen, AGAIN, "shards that fit the index")
    kind = "huggingface-safetensors" if ".safetensors" in weights else "huggingface-torch"
    return Contents(kind, tensors, whole.hexdigest(), _trainer_state(folder), unsafe_pickle=unsafe)


def _weight_map(text: bytes, folder: str, weights: str) -> dict[str, str]:
    found = read_json(text, folder, weights).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise refuse(folder, f"has no weight_map in {weights}", AGAIN, "the shard of every tensor")
    for name, shard in found.items():
        if not isinstance(shard, str) or not shard.endswith((".safetensors", ".bin")):
            seen = f"puts {shown([name])} into {shown([shard])}, by {weights}"
            raise refuse(folder, seen, AGAIN, "the name of a .safetensors or .bin file")
    return found


def _small_file(folder: str, name: str, limit: int) -> bytes:
    path = inner_file(folder, name)
    size = os.stat(path).st_size
    if size > limit:
        raise refuse(path, f"has {size} bytes", AGAIN, f"at most {limit} bytes of JSON")
    with open(path, "rb") as file:
        return file.read(limit)


def read_note(folder: str, name: str) -> dict[str, Any]:
    """A JSON file beside the weights; empty where there is none.

    Raises:
        CheckpointError: it is no JSON object, too large, or a link that leads out of the folder.
    """
    if not os.path.lexists(os.path.join(folder, name)):
        return {}
    return read_json(_small_file(folder, name, _MAX_NOTE), folder, name)


def _trainer_state(folder: str) -> dict[str, str]:
    """Step and epoch that a trainer noted beside the weights."""
    try:
        found = read_note(folder, "trainer_state.json")
    except (CheckpointError, OSError):
        return {}  # It is not needed.
    numbers = {key: found.get(key) for key in ("global_step", "epoch")}
    return {
        key: str(value)[:30]
        for key, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
