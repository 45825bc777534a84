"""The part of a result file that ``landscape flat`` writes; see :mod:`landscape.store`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.flat.records import (
    DiscreteCount,
    ExampleSweep,
    FlatResult,
    LearningCoefficient,
    NullWalk,
    PriorCounts,
    RankCount,
    Symmetry,
    SymmetryTable,
)
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
from landscape.results import Result, RunInfo
from landscape.store import group_at, write_array, write_attributes
from landscape.volume_store import read_prior, write_prior

__all__ = ["OPERATORS", "read_flat", "write_flat"]

OPERATORS = ("jacobian", "ggn", "hessian")

_COUNTS: Axes = {f.name: ("cutoff",) for f in dataclasses.fields(PriorCounts)}
_WALK: Axes = {f.name: ("walk",) for f in dataclasses.fields(NullWalk) if "Array" in str(f.type)}
_SWEEP: Axes = {f.name: ("examples",) for f in dataclasses.fields(ExampleSweep)}


def write_flat(file: h5py.File, result: Result) -> None:
    """Write everything but the run's record and the examples' indices."""
    if not isinstance(result, FlatResult):
        raise TypeError(f"a {type(result).__name__} has no place in a file of flat directions")
    group = group_at(file, "flat")
    write_attributes(group, {"n_parameters": result.info.n_parameters})
    for name, rank in result.ranks.items():
        write_attributes(group, _suffixed(record_numbers(rank), name))
        # Named for readers of the file; they follow from the others.
        derived = ("null", "gap", "resolution", "near_zero")
        write_attributes(group, _suffixed({key: getattr(rank, key) for key in derived}, name))
    write_attributes(group, {f"participation_{k}": v for k, v in result.participation.items()})
    _write_symmetries(file, group, result.symmetries)
    write_rows(group_at(file, "flat/discrete"), result.discrete, DiscreteCount, "discrete")
    if result.counts is not None:
        write_arrays(group, result.counts, _COUNTS)
    if result.learning is not None:
        node = group_at(file, "flat/learning")
        write_attributes(node, record_numbers(result.learning))
        write_attributes(node, {"reason": result.learning.reason})
    if result.walk is not None:
        node = group_at(file, "flat/walk")
        write_attributes(node, record_numbers(result.walk))
        write_arrays(node, result.walk, _WALK)
    if result.sweep is not None:
        write_arrays(group_at(file, "flat/sweep"), result.sweep, _SWEEP)
    if result.prior is not None:
        write_prior(group_at(file, "prior"), result.prior)


def _suffixed(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {f"{key}_{name}": value for key, value in values.items()}


def _write_symmetries(file: h5py.File, group: h5py.Group, table: SymmetryTable) -> None:
    write_attributes(group, {**record_numbers(table), "notes": table.notes})
    write_rows(group, table.entries, Symmetry, "symmetry")
    layers = group_at(file, "flat/layers")
    write_array(layers, "share", table.share, ("layer",))
    write_texts(layers, "name", table.layers, "layer")


def read_flat(file: h5py.File, info: RunInfo, indices: NDArray[np.int64] | None) -> FlatResult:
    """The result that a file holds.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    node = file["flat"]
    n = int(node.attrs["n_parameters"])
    if n != info.n_parameters:
        raise ValueError(f"flat: {n} parameters, but the run has {info.n_parameters}")
    ranks = {name: _rank(node, name, n) for name in OPERATORS if f"rank_{name}" in node.attrs}
    if "jacobian" not in ranks:
        raise KeyError("flat: the attribute 'rank_jacobian' is missing")
    walk = sweep = learning = None
    if "learning" in node:
        learning = LearningCoefficient(
            **read_numbers(node["learning"], LearningCoefficient),
            reason=str(node["learning"].attrs["reason"]),
        )
    if "walk" in node:
        arrays = read_arrays(node["walk"], NullWalk, _WALK, {})
        walk = NullWalk(**read_numbers(node["walk"], NullWalk), **arrays)
    if "sweep" in node:
        sweep = _sweep(node["sweep"], n)
    return FlatResult(
        info=info,
        indices=indices,
        ranks=ranks,
        participation={
            name: float(node.attrs[f"participation_{name}"])
            for name in OPERATORS
            if f"participation_{name}" in node.attrs
        },
        symmetries=_symmetries(node, ranks["jacobian"]),
        discrete=read_rows(node["discrete"], DiscreteCount, "discrete"),
        counts=_counts(node, n) if "cutoff" in node else None,
        learning=learning,
        walk=walk,
        sweep=sweep,
        prior=read_prior(file["prior"]) if "prior" in file else None,
    )


def _rank(node: h5py.Group, name: str, n: int) -> RankCount:
    rank = RankCount(**read_numbers(node, RankCount, suffix=f"_{name}"))
    if rank.n != n or not 0 <= rank.tighter <= rank.rank <= rank.looser <= n or rank.n_rows < 0:
        raise ValueError(f"flat: the rank of the {name} does not fit {n} parameters")
    return rank


def _symmetries(node: h5py.Group, rank: RankCount) -> SymmetryTable:
    layers = node["layers"]
    share = read_arrays(layers, SymmetryTable, {"share": ("layer",)}, {})["share"]
    table = SymmetryTable(
        **read_numbers(node, SymmetryTable),
        entries=read_rows(node, Symmetry, "symmetry"),
        layers=read_texts(layers, "name", len(share)),
        share=share,
        notes=tuple(map(str, json.loads(node.attrs["notes"]))),
    )
    parts = (table.symmetry_total, table.data_total, table.unexplained)
    if min(parts) < 0 or sum(parts) != table.null or table.null != rank.null:
        raise ValueError(f"flat: {parts} do not add up to the {rank.null} null directions")
    if any(entry.added < 0 for entry in table.entries):
        raise ValueError("flat: a symmetry explains less than nothing")
    return table


def _counts(node: h5py.Group, n: int) -> PriorCounts:
    counts = PriorCounts(**read_arrays(node, PriorCounts, _COUNTS, {}))
    classes = np.stack([counts.steep, counts.intermediate, counts.flat])
    if not len(counts.cutoff) or not (counts.cutoff > 0).all():
        raise ValueError("flat: a cutoff is not positive, or there is none")
    if not (classes >= 0).all() or not np.allclose(classes.sum(0), n):
        raise ValueError(f"flat: the classes of directions do not add up to {n} parameters")
    return counts


def _sweep(node: h5py.Group, n: int) -> ExampleSweep:
    sweep = ExampleSweep(**read_arrays(node, ExampleSweep, _SWEEP, {}))
    if not np.array_equal(sweep.rank + sweep.null, np.full(len(sweep.examples), n)):
        raise ValueError(f"{node.name}: rank and null directions do not add up to {n}")
    return sweep
