"""Opening files of unknown origin: what kind a file is, and reading its tensors safely.

The boundary is ``torch.load(weights_only=True)``. The scans here run before it, execute nothing,
and serve the message (which globals a file names) and the limits (sizes that a file declares).
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import pickletools
import re
import stat
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError, LandscapeError, UsageError
from landscape.text import escape_name

__all__ = ["check_is_file", "check_tensor", "escape_name", "is_readable", "load_safetensors"]
__all__ += ["check_stored", "is_state", "load_torch", "lookup", "mapping", "refuse", "scalars"]
__all__ += ["shown", "sniff", "state_paths"]

_EXPECTED = "a safetensors file or a file written by torch.save"
# The first pickle of a legacy torch.save file holds this number and nothing else.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys
_MAX_SCAN_BYTES = 64 << 20
_MAX_SCAN_OPCODES = 5_000_000
_MAX_HEADER = 100_000_000
_MAX_RATIO = 100
_BOMB_FLOOR = 1 << 20
_MAX_EXPANSION = 64 << 20
_MAX_TEXT = 1000
# Allowed by torch, but bytearray(10**10) takes 10 GB from a file of a hundred bytes.
_MEMORY_BOMBS = frozenset({"builtins.bytearray"})
_COMPUTED = "(a name computed while loading)"
_FOREIGN = {
    b"PK\x05\x06": "is an empty zip archive",
    b"\x1f\x8b": "is gzip-compressed",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed",
    b"\x93NUMPY": "is a NumPy array file",
    b"GGUF": "is a GGUF file",
}
_DENSE = re.compile(
    r"torch\.(bool|u?int(8|16|32|64)|b?float(16|32|64)|complex(32|64|128)|float8_e.m.*)"
)


def shown(names: Iterable[object], limit: int = 5) -> str:
    """A few names for a message, escaped and shortened, with the count of those left out."""
    texts = [escape_name(str(name)) for name in names]
    texts = [text if len(text) <= 160 else text[:157] + "..." for text in texts]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def refuse(path: str, seen: str, todo: str, expected: str = _EXPECTED) -> CheckpointError:
    """The error that says what was seen in a file, what was expected and what to do next."""
    return CheckpointError(f"checkpoint {path!r} {seen}; expected {expected}. {todo}")


def check_is_file(path: str) -> None:
    """Raise unless the path is a regular file (UsageError where there is none)."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        todo = "Check the permissions of its folder"
        raise refuse(path, "cannot be reached (permission denied)", todo) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"checkpoint {path!r} does not exist (working directory {os.getcwd()}); expected a "
            "checkpoint file. Check the path"
        ) from error
    if stat.S_ISDIR(mode):
        inside = sorted(os.listdir(path)) if os.access(path, os.R_OK) else []
        files = [f for f in inside if f.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))]
        todo = f"Name a file in it: {shown(files)}" if files else "Name a file"
        if ".metadata" in inside:
            converter = "torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE"
            todo = f"It is a distributed checkpoint; convert it: python -m {converter}"
        raise refuse(path, "is a directory", todo)
    if not stat.S_ISREG(mode):
        raise refuse(path, "is a device, pipe or socket", "Save it to a file first")


def sniff(head: bytes, size: int, path: str) -> str:
    """The kind of file by its content: ``safetensors``, ``torch-zip`` or ``torch-legacy``.

    Args:
        head: the first bytes of the file (4096 are enough).
        size: its size in bytes.
        path: its name, for messages only; the ending decides nothing.

    Raises:
        CheckpointError: any other kind of file, with what it looks like.
    """
    again = "Copy or download it again"
    if size == 0:
        raise refuse(path, "is empty (0 bytes)", again)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise refuse(path, "is an HDF5 file and looks like a result file", "See landscape show")
    if head.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if head[257:262] == b"ustar":
        raise refuse(path, "is a tar archive (PyTorch before 0.2)", "Save it again")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= _MAX_HEADER:
        if length + 8 > size:
            seen = f"is a truncated safetensors file ({size} bytes, the header takes {length})"
            raise refuse(path, seen, again)
        return "safetensors"
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "torch-legacy"
    for magic, seen in _FOREIGN.items():
        if head.startswith(magic):
            raise refuse(path, seen, "Unpack it or name the checkpoint itself")
    # The last character may be cut in the middle.
    text = head.decode("utf-8", errors="replace").rstrip("\ufffd")
    if text and all(c.isprintable() or c in "\t\n\r\f\ufeff" for c in text):
        if text.startswith("version https://git-lfs"):
            raise refuse(path, "is a Git LFS pointer (plain text)", "Fetch it: git lfs pull")
        raise refuse(path, "is plain text", "A failed download may look so: open it and see")
    raise refuse(path, "is of no known format", "It may be damaged or encrypted")


def load_safetensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned: the tensors map the file, and a training run may overwrite it meanwhile.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except OSError:
        raise
    except Exception as error:
        seen = f"is a damaged or truncated safetensors file ({_reason(error)})"
        raise refuse(path, seen, "Copy or download it again") from error


def load_torch(
    file: BinaryIO, path: str, kind: str, size: int, *, unsafe_pickle: bool = False
) -> tuple[object, int]:
    """Read a file written by ``torch.save``, on the CPU, without running code from it.

    Args:
        file: the open file.
        path: its name, for messages.
        kind: ``torch-zip`` or ``torch-legacy``, from :func:`sniff`.
        size: its size in bytes.
        unsafe_pickle: run the code that the file names. Never set by itself: a file that needs it
            is refused with the globals that it names.

    Returns:
        The object, and an upper bound on the bytes of tensors that the file can hold.

    Raises:
        CheckpointError: refused or unreadable.
    """
    stored, scan = _check_zip(file, path, size) if kind == "torch-zip" else (size, None)
    scan = scan or _check_legacy(file, path)
    names = [] if unsafe_pickle else _unsafe_globals(file, kind, scan)
    if names:
        raise refuse(
            path,
            f"is a pickle that runs code when loaded: it names {shown(names)}",
            "Only --unsafe-pickle loads it, and only for a file that you trust with your account. "
            "Better convert it where it was made: safetensors.torch.save_file(model.state_dict(), "
            "OUT)",
            "tensors and plain values only",
        )
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            safe = not unsafe_pickle
            value = torch.load(file, map_location="cpu", weights_only=safe, mmap=False)
    except (Exception, SystemExit) as error:
        seen = f"is damaged, truncated or beyond safe loading ({_reason(error)})"
        todo = "Copy or download it again"
        if unsafe_pickle:
            seen = f"does not load even with --unsafe-pickle ({_reason(error)})"
            todo = "The classes that it names must be importable, and the file whole"
        elif scan.complete and scan.protocol > 2:
            seen = f"uses pickle protocol {scan.protocol}, which safe loading does not read"
            todo = "Save it again with torch.save's default; else only --unsafe-pickle loads it"
        raise refuse(path, seen, todo) from error
    return value, stored


def _reason(error: BaseException) -> str:
    # torch wraps the cause in advice to load unsafely, which is not ours to give.
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation", "(1)")
    lines = [line for line in str(error).splitlines() if not any(word in line for word in advice)]
    text = " ".join(" ".join(lines).split())
    return shown([f"{type(error).__name__}: {text}" if text else type(error).__name__])


# What the pickles name, without loading them ---------------------------------------------------


@dataclass(frozen=True)
class _Scan:
    names: frozenset[str]
    protocol: int
    complete: bool


def _check_zip(file: BinaryIO, path: str, size: int) -> tuple[int, _Scan]:
    """The bytes of the archive's members and the globals of its pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_bomb(members, size, path)
            # As torch does: everything lies in the folder of the first member.
            folder = members[0].filename.partition("/")[0] + "/" if members else ""
            names = {member.filename.removeprefix(folder): member for member in members}
            if "constants.pkl" in names:
                todo = "Save the weights alone: torch.save(torch.jit.load(FILE).state_dict(), OUT)"
                raise refuse(path, "is a TorchScript archive, which carries code", todo)
            if "data.pkl" not in names:
                seen = f"is a zip file that torch.save did not write (in it: {shown(names, 3)})"
                raise refuse(path, seen, "Name the checkpoint itself")
            with archive.open(names["data.pkl"]) as member:
                scan = _scan(member.read(_MAX_SCAN_BYTES), 1)
    except LandscapeError:
        raise
    except Exception as error:
        seen = f"is a truncated or damaged zip file ({_reason(error)})"
        raise refuse(path, seen, "Copy or download it again") from error
    return sum(member.file_size for member in members), scan


def _check_bomb(members: list[zipfile.ZipInfo], size: int, path: str) -> None:
    # torch.save stores without compression; only a repacked archive has anything to expand.
    total = sum(member.file_size for member in members)
    whole = ("the whole archive", total, size)
    for name, big, small in [*((m.filename, m.file_size, m.compress_size) for m in members), whole]:
        if big > _BOMB_FLOOR and big > _MAX_RATIO * small:
            seen = f"is a zip bomb: {shown([name])} expands from {small} to {big} bytes"
            raise refuse(path, seen, "Store it uncompressed, as torch.save does")
    if sum(member.compress_size for member in members) > size:
        raise refuse(path, "is a zip file with overlapping members", "Save it again")


def _check_legacy(file: BinaryIO, path: str) -> _Scan:
    file.seek(0)
    data = file.read(_MAX_SCAN_BYTES)
    scan = _scan(data, _LEGACY_PICKLES)
    try:
        written_by_torch = any(
            arg == _LEGACY_MAGIC for _, arg, _ in itertools.islice(pickletools.genops(data), 4)
        )
    except Exception:
        written_by_torch = False
    if not written_by_torch:
        names = f" that names {shown(sorted(scan.names))}" if scan.names else ""
        seen = f"is a plain pickle{names}, not written by torch.save, and is never loaded"
        raise refuse(path, seen, "Save the tensors with torch.save or safetensors")
    return scan


def _scan(data: bytes, pickles: int) -> _Scan:
    """The globals that consecutive pickles name."""
    stream = io.BytesIO(data)
    names: set[str] = set()
    protocol = opcodes = 0
    try:
        for _ in range(pickles):
            memo: dict[int, str | None] = {}
            # The two newest values on the stack, where they are strings.
            below: str | None = None
            top: str | None = None
            for opcode, operand, _position in pickletools.genops(stream):
                arg: Any = operand
                opcodes += 1
                if opcodes > _MAX_SCAN_OPCODES:
                    return _Scan(frozenset(names), protocol, False)
                name = opcode.name
                if name == "PROTO":
                    protocol = max(protocol, arg)
                if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if arg is None else int(arg)] = top
                if name in ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    continue
                if name in ("GLOBAL", "INST"):
                    module, _space, attribute = arg.partition(" ")
                    names.add(_full_name(module, attribute))
                elif name == "STACK_GLOBAL":
                    known = below is not None and top is not None
                    names.add(_full_name(str(below), str(top)) if known else _COMPUTED)
                elif name.startswith("EXT"):
                    names.add(f"copyreg extension {arg}")
                below, top = top, arg if "UNICODE" in name else None
                if name in ("GET", "BINGET", "LONG_BINGET"):
                    top = memo.get(int(arg))
    except Exception:
        # Damaged or hostile: what was found so far still belongs in the message.
        return _Scan(frozenset(names), protocol, False)
    return _Scan(frozenset(names), protocol, True)


def _full_name(module: str, name: str) -> str:
    # torch.save writes protocol 2, whose names are those of Python 2.
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _unsafe_globals(file: BinaryIO, kind: str, scan: _Scan) -> list[str]:
    found = set(scan.names & _MEMORY_BOMBS)
    try:
        if kind != "torch-zip":
            raise ValueError("torch lists zip files only")
        file.seek(0)
        found |= set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:
        # Also the way for pickles that torch's lister cannot follow, such as protocol 4.
        found |= scan.names - _allowed_globals()
    return sorted(found)


def _allowed_globals() -> set[str]:
    try:
        unpickler = importlib.import_module("torch._weights_only_unpickler")
        return {*unpickler._get_allowed_globals(), *unpickler._get_user_allowed_globals()}
    except (ImportError, AttributeError):
        # A private interface: without it only the plainest legacy files load.
        return {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}


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
    """Whether a value is a mapping that holds tensors directly."""
    return any(isinstance(entry, Tensor) for entry in (mapping(value) or {}).values())


def state_paths(top: Mapping[Any, Any]) -> list[str]:
    """The keys of every mapping of tensors, down to two levels."""
    paths = []
    for outer, value in top.items():
        inner = mapping(value) or {}
        paths += [f"{outer}.{key}" for key in inner if is_state(inner[key])]
        paths += [str(outer)] if is_state(value) else []
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
