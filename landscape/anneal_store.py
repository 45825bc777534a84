"""The part of a volume's result file that ``anneal`` adds; see :mod:`landscape.volume_store`."""

from __future__ import annotations

import dataclasses
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.record_store import (
    Axes,
    read_arrays,
    read_numbers,
    read_rows,
    read_texts,
    record_numbers,
    write_arrays,
    write_rows,
    write_texts,
)
from landscape.store import group_at, read_shaped, write_array, write_attributes
from landscape.volume.anneal_records import Annealing, Check, Curve
from landscape.volume.islands import BY_LEVEL, Islands

__all__ = ["read_annealing", "write_annealing"]

_CURVE: Axes = {f.name: ("radius",) for f in dataclasses.fields(Curve) if f.name != "findings"}
_ISLANDS: Axes = {
    "beta": ("level",),
    "tether": ("level",),
    **dict.fromkeys(BY_LEVEL, ("level", "island")),
    "marks": ("mark",),
    "log_scale": ("mark", "island"),
    "draw_loss": ("mark", "draw", "island", "particle"),
    "draw_distance": ("mark", "draw", "island", "particle"),
}
_BOUNDS: Axes = dict.fromkeys(("marks", "markov", "reverse"), ("cutoff",))
_SYMMETRIES: Axes = {"log_orders": ("symmetry",)}


def write_annealing(file: h5py.File, annealing: Annealing, cutoff: NDArray[np.float64]) -> None:
    """Write a record below ``/anneal``.

    Args:
        file: the file.
        annealing: the record.
        cutoff: largest excess losses, which its bounds belong to, (c,).
    """
    group = group_at(file, "anneal")
    write_attributes(group, record_numbers(annealing))
    curve = group_at(file, "anneal/curve")
    write_arrays(curve, annealing.curve, _CURVE)
    write_texts(curve, "findings", annealing.curve.findings, "radius")
    for name in ("ladder", "outward"):
        islands = getattr(annealing, name)
        if islands is not None:
            node = group_at(file, f"anneal/{name}")
            write_attributes(node, record_numbers(islands))
            write_arrays(node, islands, _ISLANDS)
    bounds = group_at(file, "anneal/bounds")
    write_array(bounds, "cutoff", cutoff, ("cutoff",))
    write_arrays(bounds, annealing, _BOUNDS)
    symmetries = group_at(file, "anneal/symmetries")
    write_arrays(symmetries, annealing, _SYMMETRIES)
    write_texts(symmetries, "name", annealing.symmetries, "symmetry")
    write_rows(group_at(file, "anneal/checks"), annealing.checks, Check, "check")


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
    arrays = read_arrays(bounds, Annealing, _BOUNDS, {"cutoff": c})
    _require_places(arrays["marks"], len(ladder.marks), bounds)
    arrays |= read_arrays(symmetries, Annealing, _SYMMETRIES, {})
    return Annealing(
        **read_numbers(node, Annealing),
        **arrays,
        symmetries=read_texts(symmetries, "name", len(arrays["log_orders"])),
        checks=read_rows(node["checks"], Check, "check"),
        curve=_curve(node["curve"]),
        ladder=ladder,
        outward=_islands(node["outward"]) if "outward" in node else None,
    )


def _curve(node: h5py.Group) -> Curve:
    arrays = read_arrays(node, Curve, _CURVE, {})
    radius = arrays["radius"]
    curve = Curve(**arrays, findings=read_texts(node, "findings", len(radius)))
    # Not by differences, which are undefined between infinities.
    if not (radius > 0).all() or not np.array_equal(np.sort(radius), radius):
        raise ValueError(f"{node.name}: the radii are not positive and ascending")
    return curve


def _islands(node: h5py.Group) -> Islands:
    """One path's islands, from which volumes can be computed."""
    sizes: dict[str, int] = {}
    arrays = read_arrays(node, Islands, _ISLANDS, sizes)
    some = ("level", "island", *(("draw", "particle") if sizes["mark"] else ()))
    for axis in some:
        if sizes[axis] == 0:
            raise ValueError(f"{node.name}: there is no {axis}")
    for name in ("beta", "tether"):
        if not (np.isfinite(arrays[name]) & (arrays[name] >= 0)).all():
            raise ValueError(f"{node.name}: a {name} is negative or not finite")
    _require_places(arrays["marks"], sizes["level"], node)
    return Islands(**read_numbers(node, Islands), **arrays)


def _require_places(places: NDArray[Any], count: int, node: h5py.Group) -> None:
    if ((places < 0) | (places >= count)).any():
        raise ValueError(f"{node.name}: a mark is none of 0 to {count - 1}")
