"""Targets from a table's column: classes by name or number, and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import UsageError


def class_indices(
    column: Any, path: Path, name: str, classes: int, names: Mapping[str, int]
) -> Tensor:
    """Class indices (N,) from a column of class names or of whole numbers below ``classes``.

    Args:
        column: a pandas Series.
        path: where it comes from, for messages.
        name: the column's.
        classes: how many there are.
        names: index of every named class.

    Raises:
        UsageError: a value that is neither, with its row.
    """
    found = []
    for row, value in enumerate(column.tolist()):
        index = names.get(str(value))
        if index is None and not isinstance(value, bool):
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            index = int(value) if whole and 0 <= value < classes else None
        if index is None:
            known = f"0 to {classes - 1}"
            known += f" or one of {', '.join(sorted(names)[:10])}" if names else ""
            raise UsageError(
                f"{path}: row {row + 1} has the label {value!r} in {name!r}; expected {known}"
            )
        found.append(index)
    return torch.tensor(found)


def numbers(column: Any, path: Path, name: str) -> Tensor:
    """A column of finite numbers as float32 (N, 1).

    Raises:
        UsageError: a value that is none, with its row.
    """
    values = []
    for row, value in enumerate(column.tolist()):
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
        if number is None or not abs(number) < float("inf"):
            raise UsageError(
                f"{path}: row {row + 1} has {value!r} in {name!r}; expected a finite number"
            )
        values.append(float(number))
    return torch.tensor(values)[:, None]
