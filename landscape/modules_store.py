"""The part of a result file that ``landscape modules`` writes; see :mod:`landscape.store`."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.modules.records import ModuleCoupling, ModulesResult
from landscape.record_store import Axes, read_arrays, read_texts, write_arrays, write_texts
from landscape.results import Result, RunInfo
from landscape.store import group_at, read_fields, scalars, write_attributes
from landscape.volume_store import read_prior, write_prior

__all__ = ["read_modules", "write_modules"]

_PAIRS = ("norm", "rank", "coupling")


def _axes(name: str) -> tuple[str, ...]:
    if name == "correlations":
        return "a", "b", "correlation"
    if name == "region":
        return "r", "a"
    if name in ("log_det_high", "log_det_low"):
        return "r", "probe"
    return ("a", "b") if name.startswith(_PAIRS) else ("a",)


_ARRAYS: Axes = {
    f.name: _axes(f.name) for f in dataclasses.fields(ModuleCoupling) if "Array" in str(f.type)
}


def write_modules(file: h5py.File, result: Result) -> None:
    """Write everything but the run's record and the examples' indices."""
    if not isinstance(result, ModulesResult):
        raise TypeError(f"a {type(result).__name__} has no place in a file of modules")
    group = group_at(file, "modules")
    found = result.modules
    write_attributes(group, scalars(found))
    # Named for readers of the file; they follow from the others.
    for name in ("lowest_diagonal", "highest_diagonal", "n_probes"):
        write_attributes(group, {name: getattr(found, name)})
    write_arrays(group, found, _ARRAYS)
    write_texts(group, "name", result.names, "a")
    write_prior(group_at(file, "prior"), result.prior)


def read_modules(
    file: h5py.File, info: RunInfo, indices: NDArray[np.int64] | None
) -> ModulesResult:
    """The result that a file holds.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    node = file["modules"]
    sizes: dict[str, int] = {}
    read_arrays(node, ModuleCoupling, _ARRAYS, sizes)  # Of their kinds, axes of one length each.
    if sizes["a"] != sizes["b"] or sizes["a"] < 2:
        raise ValueError(f"modules: blocks of {sizes['a']} by {sizes['b']} groups")
    found: ModuleCoupling = read_fields(ModuleCoupling, node, "")
    if int(found.size.sum()) != info.n_parameters:
        raise ValueError(f"modules: the groups do not have {info.n_parameters} parameters")
    return ModulesResult(
        info=info,
        indices=indices,
        names=read_texts(node, "name", sizes["a"]),
        modules=found,
        prior=read_prior(file["prior"]),
    )
