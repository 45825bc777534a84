"""The part of a result file that ``landscape compare`` writes; see :mod:`landscape.store`."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.compare.records import (
    Behaviour,
    CompareResult,
    Eigenspaces,
    Matching,
    Volumes,
    WeightPath,
)
from landscape.record_store import (
    Axes,
    read_arrays,
    read_numbers,
    read_rows,
    record_numbers,
    write_arrays,
    write_rows,
)
from landscape.results import Result, RunInfo
from landscape.store import group_at, read_fields, scalars, write_array, write_attributes
from landscape.volume_store import read_estimate, write_estimate

__all__ = ["read_compare", "write_compare"]

_EXAMPLES: Axes = {
    f"example_{name}": ("example",) for name in ("kl_ab", "kl_ba", "js", "excess_loss", "terms")
}
_PATH: Axes = {"t": ("t",), "loss": ("t",)}
_SPACES: Axes = {f"eigenvalues_{name}": ("k",) for name in "ab"}
_PATHS = ("path", "aligned")


def write_compare(file: h5py.File, result: Result) -> None:
    """Write everything but the run's record and the examples' indices."""
    if not isinstance(result, CompareResult):
        raise TypeError(f"a {type(result).__name__} has no place in a file of a comparison")
    group = group_at(file, "behaviour")
    write_attributes(group, scalars(result.behaviour))
    write_arrays(group, result.behaviour, _EXAMPLES)
    for name in _PATHS:
        path = getattr(result, name)
        if path is not None:
            node = group_at(file, name)
            write_attributes(node, record_numbers(path))
            write_arrays(node, path, _PATH)
    if result.eigenspaces is not None:
        node = group_at(file, "eigenspaces")
        write_attributes(node, record_numbers(result.eigenspaces))
        write_arrays(node, result.eigenspaces, _SPACES)
    if result.volume is not None:
        _write_volumes(group_at(file, "volume"), result.volume)
    write_rows(group_at(file, "matching"), result.matching, Matching, "layer_index")


def read_compare(
    file: h5py.File, info: RunInfo, indices: NDArray[np.int64] | None
) -> CompareResult:
    """The result that a file holds.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    node = file["behaviour"]
    read_arrays(node, Behaviour, _EXAMPLES, {})  # Of one length.
    behaviour: Behaviour = read_fields(Behaviour, node, "")
    if behaviour.n_terms != int(behaviour.example_terms.sum()):
        raise ValueError(f"behaviour: the examples do not have {behaviour.n_terms} terms")
    paths = {name: _path(file[name]) for name in _PATHS if name in file}
    return CompareResult(
        info=info,
        indices=indices,
        behaviour=behaviour,
        matching=read_rows(file["matching"], Matching, "layer_index"),
        eigenspaces=_spaces(file["eigenspaces"]) if "eigenspaces" in file else None,
        volume=_volumes(file["volume"]) if "volume" in file else None,
        **paths,
    )


def _write_volumes(group: h5py.Group, volumes: Volumes) -> None:
    write_attributes(group, {"loss": volumes.loss, **record_numbers(volumes)})
    write_estimate(group_at(group, "a"), volumes.a)
    write_estimate(group_at(group, "b"), volumes.b)
    node = group_at(group, "difference")
    write_array(node, "cutoff", volumes.a.cutoff, ("cutoff",))
    for name in ("difference", "stderr", "lower", "upper"):  # For other readers of the file.
        write_array(node, name, getattr(volumes, name), ("cutoff",))


def _volumes(node: h5py.Group) -> Volumes:
    a, b = (read_estimate(node[name], "quadratic") for name in "ab")
    if not np.array_equal(a.cutoff, b.cutoff):
        raise ValueError("volume: the cutoffs of both networks differ")
    return Volumes(loss=str(node.attrs["loss"]), a=a, b=b, **read_numbers(node, Volumes))


def _spaces(node: h5py.Group) -> Eigenspaces:
    arrays: dict[str, Any] = read_arrays(node, Eigenspaces, _SPACES, {})
    return Eigenspaces(**read_numbers(node, Eigenspaces), **arrays)


def _path(node: h5py.Group) -> WeightPath:
    arrays: dict[str, Any] = read_arrays(node, WeightPath, _PATH, {})
    return WeightPath(**read_numbers(node, WeightPath), **arrays)
