"""The part of a result file that ``landscape volume`` writes; see :mod:`landscape.store`."""

from __future__ import annotations

import dataclasses
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.anneal_store import read_annealing, write_annealing
from landscape.results import Result, RunInfo
from landscape.store import (
    group_at,
    read_fields,
    read_shaped,
    scalars,
    write_array,
    write_attributes,
)
from landscape.volume.records import (
    CLASSES,
    Directions,
    PriorTable,
    Rays,
    VolumeEstimate,
    VolumeResult,
)

__all__ = [
    "read_estimate",
    "read_prior",
    "read_volume",
    "write_estimate",
    "write_prior",
    "write_volume",
]

_TABLE = ("sizes", "mean", "scale", "anchor", "location")


def write_volume(file: h5py.File, result: Result) -> None:
    """Write everything but the run's record and the examples' indices."""
    if not isinstance(result, VolumeResult):
        raise TypeError(f"a {type(result).__name__} has no place in a volume's result file")
    for method, estimate in result.estimates.items():
        write_estimate(group_at(file, f"volume/{method}"), estimate)
    if result.rays is not None:
        # Beside the estimate, whose cutoffs they share.
        group = group_at(file, "volume/radial")
        write_array(group, "ray", result.rays.index, ("ray",))
        _write_arrays(group, result.rays, {2: ("cutoff", "ray")})
    if result.directions is not None:
        group = group_at(file, "directions")
        write_array(group, "cutoff", result.directions.cutoff, ("cutoff",))
        write_array(group, "remainder", result.directions.remainder, ("cutoff",))
        names = {f.name for f in dataclasses.fields(Directions)} - {"cutoff", "remainder"}
        for name in sorted(names):
            values = getattr(result.directions, name)
            axes = ("direction",) if values.ndim == 1 else ("cutoff", "direction")
            write_array(group, _stored(name), values, axes)
    if result.annealing is not None:
        write_annealing(file, result.annealing, result.estimates["anneal"].cutoff)
    write_prior(group_at(file, "prior"), result.prior)


def write_estimate(group: h5py.Group, estimate: VolumeEstimate) -> None:
    """Write log V by one method."""
    write_attributes(group, scalars(estimate))
    _write_arrays(group, estimate, {1: ("cutoff",)})


def write_prior(group: h5py.Group, prior: PriorTable) -> None:
    """Write the table of a prior: a row for every tensor."""
    group.create_dataset("name", data=[n.encode() for n in prior.names]).make_scale("name")
    for name in _TABLE:
        write_array(group, name, np.asarray(getattr(prior, name)), ("name",))


def _write_arrays(group: h5py.Group, record: Any, axes: dict[int, tuple[str, ...]]) -> None:
    for field in dataclasses.fields(record):
        values = getattr(record, field.name)
        known = field.name == "index" or field.name in group
        if isinstance(values, np.ndarray) and values.ndim in axes and not known:
            write_array(group, field.name, values, axes[values.ndim])


def read_volume(file: h5py.File, info: RunInfo, indices: NDArray[np.int64] | None) -> VolumeResult:
    """The result that a file holds.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    estimates = {name: read_estimate(node, name) for name, node in file["volume"].items()}
    if not estimates:
        raise ValueError("volume: there is no method")
    rays = None
    if "radial" in file["volume"] and "ray" in file["volume/radial"]:
        node = file["volume/radial"]
        cutoff, index = read_shaped(node, "cutoff", (None,)), read_shaped(node, "ray", (None,))
        shape = (len(cutoff), len(index))
        values = {f.name: read_shaped(node, f.name, shape) for f in dataclasses.fields(Rays)[2:]}
        rays = Rays(cutoff=cutoff, index=index, **values)
    directions = _directions(file["directions"]) if "directions" in file else None
    annealing = None
    if "anneal" in file:
        if "anneal" not in estimates:
            raise ValueError("anneal: it has no estimate")
        annealing = read_annealing(file["anneal"], estimates["anneal"].cutoff)
    cutoffs = [estimate.cutoff for estimate in estimates.values()]
    cutoffs += [] if directions is None else [directions.cutoff]
    if any(not np.array_equal(one, cutoffs[0]) for one in cutoffs):
        raise ValueError("the cutoffs of the methods and the directions differ")
    return VolumeResult(
        info=info,
        indices=indices,
        estimates=estimates,
        rays=rays,
        directions=directions,
        annealing=annealing,
        prior=read_prior(file["prior"]),
    )


def read_estimate(node: h5py.Group, method: str) -> VolumeEstimate:
    """Log V by one method, from its group; raises as :func:`read_volume`."""
    found: VolumeEstimate = read_fields(VolumeEstimate, node, method)
    _same_length(found, len(found.cutoff), f"volume/{method}")
    return found


def _directions(node: h5py.Group) -> Directions:
    c, d = (len(read_shaped(node, name, (None,))) for name in ("cutoff", "eigenvalue"))
    shapes = {"eigenvalue": (d,), "multiplicity": (d,), "location": (d,)}
    shapes |= {"cutoff": (c,), "remainder": (c,)}
    values = {
        f.name: read_shaped(node, _stored(f.name), shapes.get(f.name, (c, d)))
        for f in dataclasses.fields(Directions)
    }
    if not np.isin(values["kind"], range(len(CLASSES))).all():
        raise ValueError(f"directions: a class is none of 0 to {len(CLASSES) - 1}")
    return Directions(**values)


def _stored(name: str) -> str:
    """What a field of the directions is called in the file."""
    return "class" if name == "kind" else name


def read_prior(node: h5py.Group) -> PriorTable:
    """The table of a prior that a group holds; raises as :func:`read_volume`."""
    names = tuple(text.decode() for text in node["name"][()])
    columns = {name: tuple(read_shaped(node, name, (len(names),)).tolist()) for name in _TABLE}
    return PriorTable(names=names, **columns)


def _same_length(record: Any, length: int, where: str) -> None:
    for field in dataclasses.fields(record):
        values = getattr(record, field.name)
        if isinstance(values, np.ndarray) and values.shape != (length,):
            raise ValueError(f"{where}: {field.name} has shape {values.shape}")
