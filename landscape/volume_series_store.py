"""The part of a series file that only log-volumes have; see :mod:`landscape.series_store`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import h5py
import numpy as np

from landscape.store import group_at, read_shaped, write_array
from landscape.volume.records import CLASSES
from landscape.volume_series import MethodSeries, VolumeSeries

__all__ = ["read_volume_series", "write_volume_series"]

_CURVES = tuple(field.name for field in fields(MethodSeries) if field.name != "method_name")
_BY_CLASS = ("counts", "nats")


def write_volume_series(file: h5py.Group, series: VolumeSeries) -> None:
    """Write everything but what all series have."""
    write_array(file["run"], "n_forward", series.n_forward, ("step",))
    for name, method in series.methods.items():
        group = _with_axes(file, f"volume/{name}", series)
        for curve in _CURVES:
            write_array(group, curve, getattr(method, curve), ("step", "cutoff"))
    group = _with_axes(file, "classes", series)
    group.create_dataset("class", data=[name.encode() for name in CLASSES]).make_scale("class")
    for name in _BY_CLASS:
        write_array(group, name, getattr(series, name), ("step", "cutoff", "class"))


def _with_axes(file: h5py.Group, path: str, series: VolumeSeries) -> h5py.Group:
    group = group_at(file, path)
    write_array(group, "step", series.step, ("step",))
    write_array(group, "cutoff", series.cutoff, ("cutoff",))
    return group


def read_volume_series(file: h5py.Group, rows: dict[str, Any]) -> VolumeSeries:
    """The series that a file holds.

    Args:
        file: the file.
        rows: what all series have.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    cutoff = read_shaped(file["classes"], "cutoff", (None,))
    t, c = len(rows["step"]), len(cutoff)
    methods = {}
    for name, node in file["volume"].items():
        if not np.array_equal(read_shaped(node, "cutoff", (c,)), cutoff):
            raise ValueError(f"{node.name}: its cutoffs are not those of the classes")
        arrays = {curve: read_shaped(node, curve, (t, c)) for curve in _CURVES}
        methods[name] = MethodSeries(method_name=name, **arrays)
    counts, nats = (read_shaped(file["classes"], n, (t, c, len(CLASSES))) for n in _BY_CLASS)
    return VolumeSeries(
        **rows,
        cutoff=cutoff,
        n_forward=read_shaped(file["run"], "n_forward", (t,)),
        methods=methods,
        counts=counts,
        nats=nats,
    )
