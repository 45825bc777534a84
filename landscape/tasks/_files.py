"""Files that a task's settings name: paths, arrays and tables, none of which can run code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import UsageError
from landscape.tasks._extras import optional

ARRAYS = (".npy", ".npz", ".safetensors")
TABLES = (".csv", ".tsv", ".jsonl")


def existing(setting: str, value: object, *, folder: bool = False, what: str = "") -> Path:
    """The path that a setting names.

    Raises:
        UsageError: the setting is missing or no path, or nothing of that kind is there.
    """
    kind = "folder" if folder else "file"
    if value is None:
        raise UsageError(f"--set {setting}=PATH is missing; expected {what or f'a {kind}'}")
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"setting {setting}={value!r}: expected the path of a {kind}")
    path = Path(value).expanduser()
    if not path.exists():
        raise UsageError(
            f"setting {setting}={str(value)!r}: no such {kind} (working directory {Path.cwd()})"
        )
    if path.is_dir() != folder:
        seen = "a file" if folder else "a folder"
        raise UsageError(f"setting {setting}={str(value)!r} is {seen}; expected a {kind}")
    return path


def read_text(path: Path) -> str:
    """A UTF-8 text file.

    Raises:
        UsageError: it cannot be read as one.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected a text file in UTF-8 ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        UsageError: it does not.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def read_arrays(
    path: Path, names: Sequence[str], *, what: str = ".npz, .npy or .safetensors"
) -> dict[str, Tensor]:
    """The named arrays of a ``.npy``, ``.npz`` or ``.safetensors`` file.

    Args:
        path: the file; a single array goes by the first name.
        names: the arrays looked for; others are left unread.
        what: what is expected, for the message about a file of another kind.

    Raises:
        UsageError: a file of another kind, an unreadable file, pickled objects, or the first name
            is not there.
    """
    try:
        if path.suffix == ".safetensors":
            found, present = _safetensors(path, names)
        else:
            with path.open("rb") as file:
                known = file.read(6).startswith((b"PK", b"\x93NUMPY"))
            if not known:  # NumPy takes anything else for a pickle, and advises to load it.
                raise UsageError(f"{path} is no file of arrays; expected {what}")
            found, present = _numpy(path, names)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as arrays of numbers ({type(error).__name__}: {error})"
        ) from error
    if names[0] not in found:
        raise UsageError(
            f"{path} holds {', '.join(present) or 'nothing'}; expected an array {names[0]!r}"
        )
    return found


def _safetensors(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        present = list(file.keys())
        if len(present) == 1:
            return {names[0]: file.get_tensor(present[0])}, present
        return {name: file.get_tensor(name) for name in names if name in present}, present


def _numpy(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {names[0]: _tensor(loaded)}, [names[0]]
    with loaded:
        present = list(loaded.files)
        if len(present) == 1:
            return {names[0]: _tensor(loaded[present[0]])}, present
        return {name: _tensor(loaded[name]) for name in names if name in present}, present


def _tensor(array: NDArray[Any]) -> Tensor:
    # torch has no arithmetic for most unsigned types.
    wide = array.dtype.kind == "u" and array.dtype != np.uint8
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64) if wide else array))


def read_table(path: Path, columns: Sequence[str], extra: str) -> Any:
    """A CSV, TSV or JSON-lines file as a pandas DataFrame that has the columns.

    Args:
        path: the file, by its ending.
        columns: must be present.
        extra: the extra that installs pandas.

    Raises:
        UsageError: an unreadable or empty file, or a missing column.
    """
    pandas = optional("pandas", extra)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                table = pandas.read_json(file, lines=True, dtype=False)
            else:
                separator = "\t" if path.suffix == ".tsv" else ","
                table = pandas.read_csv(file, sep=separator, keep_default_na=False, na_values=[""])
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as {path.suffix.lstrip('.').upper() or 'a table'} "
            f"({type(error).__name__}: {error}); expected one of {', '.join(TABLES)}"
        ) from error
    for column in columns:
        if column not in table.columns:
            known = ", ".join(map(str, table.columns[:20]))
            raise UsageError(f"{path} has no column {column!r}; its columns: {known}")
    if not len(table):
        raise UsageError(f"{path} has no rows; expected at least one example")
    return table
