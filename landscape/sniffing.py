"""Files of unknown origin: what kind a file is, told by its content; the error that refuses one."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from landscape.errors import CheckpointError, UsageError
from landscape.text import shown

__all__ = ["AGAIN", "check_is_file", "read_json", "reason", "refuse", "sniff"]

_EXPECTED = "a safetensors file or a file written by torch.save"
# The format's own limit is 100 MB, which takes gigabytes to parse; 200 000 tensors fit in this.
_MAX_HEADER = 32 << 20
AGAIN = "Copy or download it again"
_FOREIGN = {
    b"PK\x05\x06": "is an empty zip archive",
    b"\x1f\x8b": "is gzip-compressed",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed",
    b"\x93NUMPY": "is a NumPy array file",
    b"GGUF": "is a GGUF file",
}


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
    if size == 0:
        raise refuse(path, "is empty (0 bytes)", AGAIN)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise refuse(path, "is an HDF5 file and looks like a result file", "See landscape show")
    if head.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if head[257:262] == b"ustar":
        raise refuse(path, "is a tar archive (PyTorch before 0.2)", "Save it again")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < 1 << 48:  # beyond that the bytes are text
        if length > _MAX_HEADER:
            seen = f"declares a safetensors header of {length} bytes"
            raise refuse(path, seen, AGAIN, f"at most {_MAX_HEADER}")
        if length + 8 > size:
            seen = f"is a truncated safetensors file ({size} bytes, the header takes {length})"
            raise refuse(path, seen, AGAIN)
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
        if path.endswith(".json"):
            todo = f"Name the folder that holds it: {os.path.dirname(path) or '.'}"
            raise refuse(path, "is plain text, such as a configuration or an index", todo)
        raise refuse(path, "is plain text", "A failed download may look so: open it and see")
    raise refuse(path, "is of no known format", "It may be damaged or encrypted")


def read_json(data: bytes, path: str, what: str) -> dict[str, Any]:
    """A JSON object of unknown origin: no key twice, no depth that ends the interpreter.

    Args:
        data: its text.
        path: the checkpoint's name, for messages.
        what: what it is, for messages, such as ``index``.

    Raises:
        CheckpointError: not JSON, not an object, or with a key twice.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise refuse(path, f"has a damaged {what} ({reason(error)})", AGAIN, "JSON") from error
    if not isinstance(value, dict):
        raise refuse(path, f"has a {what} that is no JSON object", AGAIN, "an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Readers differ in which of two values they take.
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown([key])} stands there twice")
        found[key] = value
    return found


def reason(error: BaseException) -> str:
    """An error of a library in one line, for a message."""
    # torch wraps the cause in advice to load unsafely, which is not ours to give.
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation", "(1)")
    lines = [line for line in str(error).splitlines() if not any(word in line for word in advice)]
    text = " ".join(" ".join(lines).split())
    return shown([f"{type(error).__name__}: {text}" if text else type(error).__name__])
