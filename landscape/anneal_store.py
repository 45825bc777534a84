"""The part of a volume's result file that ``anneal`` adds; see :mod:`landscape.volume_store`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.store import group_at, read_shaped, write_array, write_attributes
from landscape.volume.anneal_records import Annealing, Check, Curve
from landscape.volume.islands import BY_LEVEL, Islands

__all__ = ["read_annealing", "write_annealing"]

# Axes of the arrays of every group, in the order in which they are read.
_Axes = Mapping[str, tuple[str, ...]]
_CURVE: _Axes = {f.name: ("radius",) for f in dataclasses.fields(Curve)}
_ISLANDS: _Axes = {
    "beta": ("level",),
    "tether": ("level",),
    **dict.fromkeys(BY_LEVEL, ("level", "island")),
    "marks": ("mark",),
    "log_scale": ("mark", "island"),
    "draw_loss": ("mark", "draw", "island", "particle"),
    "draw_distance": ("mark", "draw", "island", "particle"),
}
_BOUNDS: _Axes = dict.fromkeys(("marks", "markov", "reverse"), ("cutoff",))
_SYMMETRIES: _Axes = {"log_orders": ("symmetry",)}
_CHECKS: _Axes = dict.fromkeys(("value", "limit", "at_least", "passed"), ("check",))
_TEXTS = ("name", "remedy")

# Kinds of arrays by the declared type of a record's field, or of a column of records.
_KINDS = {"FloatArray": "f", "IntArray": "iu", "BoolArray": "b", "float": "f", "bool": "b"}


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{value!r} is neither 0 nor 1")
    return bool(value)


_NUMBERS: Mapping[str, Callable[[Any], Any]] = {"float": float, "int": int, "bool": _flag}


def write_annealing(file: h5py.File, annealing: Annealing, cutoff: NDArray[np.float64]) -> None:
    """Write a record below ``/anneal``.

    Args:
        file: the file.
        annealing: the record.
        cutoff: largest excess losses, which its bounds belong to, (c,).
    """
    group = group_at(file, "anneal")
    write_attributes(group, _scalars(annealing))
    _write(group_at(file, "anneal/curve"), annealing.curve, _CURVE)
    for name in ("ladder", "outward"):
        islands = getattr(annealing, name)
        if islands is not None:
            node = group_at(file, f"anneal/{name}")
            write_attributes(node, _scalars(islands))
            _write(node, islands, _ISLANDS)
    bounds = group_at(file, "anneal/bounds")
    write_array(bounds, "cutoff", cutoff, ("cutoff",))
    _write(bounds, annealing, _BOUNDS)
    symmetries = group_at(file, "anneal/symmetries")
    _write(symmetries, annealing, _SYMMETRIES)
    _write_texts(symmetries, "name", annealing.symmetries, "symmetry")
    checks = group_at(file, "anneal/checks")
    for name, axes in _CHECKS.items():
        kind = np.bool_ if name in ("at_least", "passed") else np.float64
        values: NDArray[Any] = np.array(
            [getattr(check, name) for check in annealing.checks], dtype=kind
        )
        write_array(checks, name, values, axes)
    for name in _TEXTS:
        _write_texts(checks, name, [getattr(check, name) for check in annealing.checks], "check")


def _scalars(record: Any) -> dict[str, Any]:
    """Numbers and flags; netCDF knows no booleans."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(record)}
    found = {n: _NUMBERS[k](getattr(record, n)) for n, k in kinds.items() if k in _NUMBERS}
    return {name: int(v) if isinstance(v, bool) else v for name, v in found.items()}


def _write(group: h5py.Group, record: Any, axes: _Axes) -> None:
    for name, labels in axes.items():
        write_array(group, name, getattr(record, name), labels)


def _write_texts(group: h5py.Group, name: str, texts: Sequence[str], axis: str) -> None:
    # Names of modules need not be UTF-8, but HDF5's strings are.
    plain = [text.encode(errors="backslashreplace").decode() for text in texts]
    kind = h5py.string_dtype()
    data = group.create_dataset(name, data=np.array(plain, dtype=object), dtype=kind)
    data.dims[0].attach_scale(group[axis])


def read_annealing(node: h5py.Group, cutoff: NDArray[np.float64]) -> Annealing:
    """The record that a group holds.

    Args:
        node: ``/anneal``.
        cutoff: of the estimate that it belongs to, (c,).

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    bounds, symmetries = node["bounds"], node["symmetries"]
    c = len(cutoff)
    if not np.array_equal(read_shaped(bounds, "cutoff", (c,)), cutoff):
        raise ValueError(f"{bounds.name}: its cutoffs are not those of the estimate")
    ladder = _islands(node["ladder"])
    arrays = _read(bounds, Annealing, _BOUNDS, {"cutoff": c})
    _require_places(arrays["marks"], len(ladder.marks), bounds)
    arrays |= _read(symmetries, Annealing, _SYMMETRIES, {})
    return Annealing(
        **_read_scalars(node, Annealing),
        **arrays,
        symmetries=_read_texts(symmetries, "name", len(arrays["log_orders"])),
        checks=_checks(node["checks"]),
        curve=_curve(node["curve"]),
        ladder=ladder,
        outward=_islands(node["outward"]) if "outward" in node else None,
    )


def _curve(node: h5py.Group) -> Curve:
    curve = Curve(**_read(node, Curve, _CURVE, {}))
    radius = curve.radius
    # Not by differences, which are undefined between infinities.
    if not (radius > 0).all() or not np.array_equal(np.sort(radius), radius):
        raise ValueError(f"{node.name}: the radii are not positive and ascending")
    return curve


def _islands(node: h5py.Group) -> Islands:
    """One path's islands, from which volumes can be computed."""
    sizes: dict[str, int] = {}
    arrays = _read(node, Islands, _ISLANDS, sizes)
    some = ("level", "island", *(("draw", "particle") if sizes["mark"] else ()))
    for axis in some:
        if sizes[axis] == 0:
            raise ValueError(f"{node.name}: there is no {axis}")
    for name in ("beta", "tether"):
        if not (np.isfinite(arrays[name]) & (arrays[name] >= 0)).all():
            raise ValueError(f"{node.name}: a {name} is negative or not finite")
    _require_places(arrays["marks"], sizes["level"], node)
    return Islands(**_read_scalars(node, Islands), **arrays)


def _checks(node: h5py.Group) -> tuple[Check, ...]:
    arrays = {n: v.tolist() for n, v in _read(node, Check, _CHECKS, {}).items()}
    count = len(arrays["value"])
    columns = arrays | {name: _read_texts(node, name, count) for name in _TEXTS}
    return tuple(
        Check(**{name: values[index] for name, values in columns.items()}) for index in range(count)
    )


def _require_places(places: NDArray[Any], count: int, node: h5py.Group) -> None:
    if ((places < 0) | (places >= count)).any():
        raise ValueError(f"{node.name}: a mark is none of 0 to {count - 1}")


def _read(node: h5py.Group, kind: type[Any], axes: _Axes, sizes: dict[str, int]) -> dict[str, Any]:
    """Arrays of a record, of its declared kinds; axes of one name have one size, also returned."""
    declared = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    found = {}
    for name, labels in axes.items():
        values = read_shaped(node, name, tuple(sizes.get(label) for label in labels))
        sizes.update(zip(labels, values.shape, strict=True))
        if values.dtype.kind not in _KINDS[declared[name]]:
            raise TypeError(f"{node.name}: the array {name!r} holds {values.dtype}")
        found[name] = values
    return found


def _read_scalars(node: h5py.Group, kind: type[Any]) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(kind):
        if str(field.type) in _NUMBERS:
            if field.name not in node.attrs:
                raise KeyError(f"{node.name}: the attribute {field.name!r} is missing")
            found[field.name] = _NUMBERS[str(field.type)](node.attrs[field.name])
    return found


def _read_texts(node: h5py.Group, name: str, count: int) -> tuple[str, ...]:
    if name not in node:
        raise KeyError(f"{node.name}: the array {name!r} is missing")
    values = node[name].asstr()[()]
    if np.shape(values) != (count,):
        raise ValueError(f"{node.name}: the array {name!r} has shape {np.shape(values)}")
    return tuple(str(text) for text in values)
