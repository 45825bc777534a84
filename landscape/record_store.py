"""Records as groups of a result file: numbers as attributes, arrays and texts over named axes.

What is read is of the kinds that the record's fields declare, or refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.store import read_shaped, write_array

__all__ = [
    "Axes",
    "read_arrays",
    "read_column",
    "read_numbers",
    "read_rows",
    "read_texts",
    "record_numbers",
    "write_arrays",
    "write_rows",
    "write_texts",
]

Axes = Mapping[str, tuple[str, ...]]
"""Axes of the arrays of a group, in the order in which they are read."""

# Kinds of arrays by the declared type of a record's field, or of a column of records.
_KINDS = {
    "FloatArray": "f",
    "IntArray": "iu",
    "BoolArray": "b",
    "NDArray[np.bool_]": "b",
    "float": "f",
    "int": "iu",
    "bool": "b",
}
_COLUMNS = {"float": np.float64, "int": np.int64, "bool": np.bool_}


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{value!r} is neither 0 nor 1")
    return bool(value)


_NUMBERS: Mapping[str, Callable[[Any], Any]] = {"float": float, "int": int, "bool": _flag}


def _declared(kind: type[Any]) -> dict[str, str]:
    return {f.name: str(f.type) for f in dataclasses.fields(kind)}


def record_numbers(record: Any) -> dict[str, Any]:
    """Numbers and flags of a record; netCDF knows no booleans."""
    kinds = _declared(type(record))
    found = {n: _NUMBERS[k](getattr(record, n)) for n, k in kinds.items() if k in _NUMBERS}
    return {name: int(v) if isinstance(v, bool) else v for name, v in found.items()}


def read_numbers(node: h5py.Group, kind: type[Any], *, suffix: str = "") -> dict[str, Any]:
    """The numbers and flags of a record from attributes, whose names end in the suffix.

    Raises:
        KeyError, ValueError, TypeError: one is missing or of another kind.
    """
    found = {}
    for name, declared in _declared(kind).items():
        if declared in _NUMBERS:
            if name + suffix not in node.attrs:
                raise KeyError(f"{node.name}: the attribute {name + suffix!r} is missing")
            found[name] = _NUMBERS[declared](node.attrs[name + suffix])
    return found


def write_arrays(group: h5py.Group, record: Any, axes: Axes) -> None:
    """Write arrays of a record."""
    for name, labels in axes.items():
        write_array(group, name, getattr(record, name), labels)


def read_arrays(
    node: h5py.Group, kind: type[Any], axes: Axes, sizes: dict[str, int]
) -> dict[str, Any]:
    """Arrays of a record, of its declared kinds; axes of one name have one size, also returned.

    Raises:
        KeyError, ValueError, TypeError: one is missing, or of another shape or kind.
    """
    declared = _declared(kind)
    found = {}
    for name, labels in axes.items():
        values = read_shaped(node, name, tuple(sizes.get(label) for label in labels))
        sizes.update(zip(labels, values.shape, strict=True))
        found[name] = _of_kind(values, declared[name], node, name)
    return found


def _of_kind(values: NDArray[Any], declared: str, node: h5py.Group, name: str) -> NDArray[Any]:
    if values.dtype.kind not in _KINDS[declared]:
        raise TypeError(f"{node.name}: the array {name!r} holds {values.dtype}")
    return values


def write_rows(group: h5py.Group, records: Sequence[Any], kind: type[Any], axis: str) -> None:
    """Write records of numbers, flags and texts as columns over an axis."""
    texts = {}
    for name, declared in _declared(kind).items():
        column = [getattr(record, name) for record in records]
        if declared == "str":
            texts[name] = column
        else:
            values: NDArray[Any] = np.array(column, dtype=_COLUMNS[declared])
            write_array(group, name, values, (axis,))
    for name, column in texts.items():
        write_texts(group, name, column, axis)


def read_rows(node: h5py.Group, kind: type[Any], axis: str) -> tuple[Any, ...]:
    """Records of numbers, flags and texts from columns over an axis.

    Raises:
        KeyError, ValueError, TypeError: a column is missing, or of another length or kind.
    """
    count = len(read_shaped(node, axis, (None,)))
    columns = {
        name: read_texts(node, name, count)
        if declared == "str"
        else read_column(node, name, declared, count)
        for name, declared in _declared(kind).items()
    }
    return tuple(kind(**{n: values[row] for n, values in columns.items()}) for row in range(count))


def read_column(node: h5py.Group, name: str, declared: str, count: int) -> list[Any]:
    """A column of numbers or flags; raises as the above."""
    values = read_shaped(node, name, (count,))
    column: list[Any] = _of_kind(values, declared, node, name).tolist()
    return column


def write_texts(group: h5py.Group, name: str, texts: Sequence[str], axis: str) -> None:
    """Write texts over an axis, whose scale is there already."""
    # Names of modules need not be UTF-8, but HDF5's strings are.
    plain = [text.encode(errors="backslashreplace").decode() for text in texts]
    kind = h5py.string_dtype()
    data = group.create_dataset(name, data=np.array(plain, dtype=object), dtype=kind)
    data.dims[0].attach_scale(group[axis])


def read_texts(node: h5py.Group, name: str, count: int) -> tuple[str, ...]:
    """Texts over an axis of that length.

    Raises:
        KeyError, ValueError, TypeError: they are missing, of another number, or no texts.
    """
    if name not in node:
        raise KeyError(f"{node.name}: the array {name!r} is missing")
    values = node[name].asstr()[()]
    if np.shape(values) != (count,):
        raise ValueError(f"{node.name}: the array {name!r} has shape {np.shape(values)}")
    return tuple(str(text) for text in values)
