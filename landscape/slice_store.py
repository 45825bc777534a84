"""The part of a result file that ``landscape slice`` writes; see :mod:`landscape.store`."""

from __future__ import annotations

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.record_store import read_rows, write_rows
from landscape.results import Result, RunInfo
from landscape.slices.records import Direction, Known, Position, SliceResult
from landscape.store import group_at, read_shaped, write_array

__all__ = ["read_slice", "write_slice"]

_GRIDS = ("loss", "excess_loss", "quadratic")


def write_slice(file: h5py.File, result: Result) -> None:
    """Write everything but the run's record and the examples' indices."""
    if not isinstance(result, SliceResult):
        raise TypeError(f"a {type(result).__name__} has no place in a file of a slice")
    group = group_at(file, "slice")
    group.attrs["mixed"] = result.mixed
    axes = {"x": result.x} if result.y is None else {"x": result.x, "y": result.y}
    for name, values in axes.items():
        write_array(group, name, values, (name,))
    for name in _GRIDS:
        write_array(group, name, getattr(result, name), tuple(axes))
    known = group_at(file, "known")
    write_array(known, "at", result.known.at, ("point", "axis"))
    write_array(known, "loss", result.known.loss, ("point",))
    write_rows(group_at(file, "directions"), result.directions, Direction, "direction")
    write_rows(group_at(file, "trajectory"), result.trajectory, Position, "position")
    if result.eigenvectors is not None:
        vectors = group_at(file, "eigenvectors")
        write_array(vectors, "vectors", result.eigenvectors, ("vector", "n"))


def read_slice(file: h5py.File, info: RunInfo, indices: NDArray[np.int64] | None) -> SliceResult:
    """The result that a file holds.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    group = file["slice"]
    directions = read_rows(file["directions"], Direction, "direction")
    x = read_shaped(group, "x", (None,))
    plane = "y" in group
    if len(directions) != 1 + plane:
        raise ValueError(f"slice: {len(directions)} directions for {1 + plane} axes")
    y = read_shaped(group, "y", (None,)) if plane else None
    shape = (len(x),) if y is None else (len(x), len(y))
    if min(shape) < 2:
        raise ValueError(f"slice: a grid of shape {shape}")
    loss = read_shaped(file["known"], "loss", (None,))
    at = read_shaped(file["known"], "at", (len(loss), len(directions)))
    eigen = sum(d.kind == "eigen" for d in directions)
    vectors = None
    if eigen:
        vectors = read_shaped(file["eigenvectors"], "vectors", (eigen, info.n_parameters))
    return SliceResult(
        info=info,
        indices=indices,
        directions=directions,
        x=x,
        y=y,
        mixed=float(group.attrs["mixed"]),
        known=Known(at=at, loss=loss),
        trajectory=read_rows(file["trajectory"], Position, "position"),
        eigenvectors=vectors,
        **{name: read_shaped(group, name, shape) for name in _GRIDS},
    )
