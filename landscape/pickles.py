"""Files written by ``torch.save``: checked first, then read without running code from them.

The boundary is ``torch.load(weights_only=True)``. The checks here run before it, execute nothing,
and serve the message (which globals a file names) and the limits (what a file declares).
"""

from __future__ import annotations

import importlib
import itertools
import pickletools
import warnings
import zipfile
from typing import BinaryIO

import torch

from landscape.errors import LandscapeError
from landscape.pickle_scan import Scan, scan_pickles
from landscape.sniffing import AGAIN, reason, refuse
from landscape.text import shown

__all__ = ["check_pickle", "load_torch"]

# The first pickle of a legacy torch.save file holds this number and nothing else.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys
_MAX_SCAN_BYTES = 64 << 20
_MAX_RATIO = 100
_BOMB_FLOOR = 1 << 20
# Allowed by torch, but bytearray(10**10) takes 10 GB from a file of a hundred bytes.
_MEMORY_BOMBS = frozenset({"builtins.bytearray"})


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
    stored, scan = check_pickle(file, path, kind, size)
    names = [] if unsafe_pickle else _unsafe_globals(file, kind, scan)
    if names:
        raise refuse(
            path,
            f"is a pickle that runs code when loaded: it names {shown(names)}",
            "landscape convert takes its tensors out without running that code. Only "
            "--unsafe-pickle loads it, and only for a file that you trust with your account",
            "tensors and plain values only",
        )
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            safe = not unsafe_pickle
            value = torch.load(file, map_location="cpu", weights_only=safe, mmap=False)
    except (Exception, SystemExit) as error:
        seen = f"is damaged, truncated or beyond safe loading ({reason(error)})"
        todo = AGAIN
        if unsafe_pickle:
            seen = f"does not load even with --unsafe-pickle ({reason(error)})"
            todo = "The classes that it names must be importable, and the file whole"
        elif scan.complete and scan.protocol > 2:
            seen = f"uses pickle protocol {scan.protocol}, which safe loading does not read"
            todo = "Save it again with torch.save's default; else only --unsafe-pickle loads it"
        raise refuse(path, seen, todo) from error
    return value, stored


# What the pickles name, without loading them ---------------------------------------------------


def check_pickle(file: BinaryIO, path: str, kind: str, size: int) -> tuple[int, Scan]:
    """An upper bound on the bytes of tensors in a file, and what its pickle names.

    Raises:
        CheckpointError: damaged, not written by ``torch.save``, or beyond the limits on what it
            declares.
    """
    if kind == "torch-zip":
        return _check_zip(file, path, size)
    return size, _check_legacy(file, path)


def _check_zip(file: BinaryIO, path: str, size: int) -> tuple[int, Scan]:
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
                scan = _scan(member.read(_MAX_SCAN_BYTES + 1), 1, path)
    except LandscapeError:
        raise
    except Exception as error:
        seen = f"is a truncated or damaged zip file ({reason(error)})"
        raise refuse(path, seen, AGAIN) from error
    return sum(member.file_size for member in members), scan


def _check_bomb(members: list[zipfile.ZipInfo], size: int, path: str) -> None:
    # torch.save stores without compression; only a repacked archive has anything to expand.
    total = sum(member.file_size for member in members)
    whole = ("the whole archive", total, size)
    for name, big, small in [*((m.filename, m.file_size, m.compress_size) for m in members), whole]:
        if big > _BOMB_FLOOR and big > _MAX_RATIO * small:
            seen = f"is a zip bomb: {shown([name])} expands from {small} to {big} bytes"
            raise refuse(path, seen, "Store it uncompressed, as torch.save does")
    if len({member.filename for member in members}) < len(members):
        raise refuse(path, "is a zip file with two members of one name", "Save it again")
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise refuse(path, "is a zip file with overlapping members", "Save it again")
        # The local header has 30 bytes, then the name and extra fields.
        end = member.header_offset + 30 + len(member.filename) + member.compress_size
    if end > size:
        raise refuse(path, "is a zip file whose members pass its end", AGAIN)


def _check_legacy(file: BinaryIO, path: str) -> Scan:
    file.seek(0)
    data = file.read(_MAX_SCAN_BYTES)
    scan = _scan(data, _LEGACY_PICKLES, path)
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


def _scan(data: bytes, pickles: int, path: str) -> Scan:
    """The globals that pickles name, after refusing those that would take too much to load."""
    scan = scan_pickles(data[:_MAX_SCAN_BYTES], pickles)
    excess = scan.excess
    if not scan.complete and pickles == 1 and len(data) > _MAX_SCAN_BYTES:
        excess = f"takes more than {_MAX_SCAN_BYTES} bytes beside its tensors"
    if excess:
        seen = f"holds a pickle that {excess}"
        raise refuse(path, seen, "Save model.state_dict() alone", "names and tensors")
    return scan


def _unsafe_globals(file: BinaryIO, kind: str, scan: Scan) -> list[str]:
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
