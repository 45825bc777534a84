"""Counts of flat directions of many checkpoints joined over the training step; needs only numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.agreement import MAY, MUST, Rules, joined, option
from landscape.flat.records import FlatResult, PriorCounts
from landscape.series_records import TrainingSeries

__all__ = ["FlatSeries", "RankSeries", "collect_flat"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RankSeries:
    """The rank of one matrix at t steps; every array is (t,).

    Attributes:
        operator: ``jacobian``, ``ggn`` or ``hessian``; for what follows see
            :class:`landscape.flat.records.RankCount`.
    """

    operator: str
    rank: IntArray
    null: IntArray
    looser: IntArray
    tighter: IntArray
    last_kept: FloatArray
    first_dropped: FloatArray
    participation: FloatArray


@dataclass(frozen=True, kw_only=True)
class FlatSeries(TrainingSeries):
    """Counts of flat directions over the training step.

    Attributes:
        operators: ranks, by matrix.
        symmetry: names of the symmetries of any step and of what the data cause, (s,).
        by_data: whether the data cause it, (s,).
        explained: null directions that each explains beyond those before it, over all layers,
            (t, s).
        symmetry_total: null directions that symmetries explain, (t,).
        data_total: further ones that the data cause, (t,).
        unexplained: the rest, (t,).
        layer: names of the modules, (l,).
        share: part of the unexplained directions in each, (t, l).
        cutoff: largest excess losses, (c,); empty where no result has counts by prior.
        steep: directions of the class, (t, c); NaN where a result has none, as the next.
        intermediate: likewise.
        flat: likewise.
        n_eff: MacKay's number of well-determined directions, (t, c).
        effective_dimension: ``2 d log V / d log cutoff``, (t, c).
        learning: the learning coefficient of the quadratic model, (t,); NaN where it was refused.
        learning_stderr: its standard error, (t,).
        walked: mean straight distance of the walks in prior standard deviations, (t,); NaN without.
        walks_left: share of the walks that left the basin, (t,); NaN without.
    """

    operators: Mapping[str, RankSeries]
    symmetry: tuple[str, ...]
    by_data: NDArray[np.bool_]
    explained: IntArray
    symmetry_total: IntArray
    data_total: IntArray
    unexplained: IntArray
    layer: tuple[str, ...]
    share: FloatArray
    cutoff: FloatArray
    steep: FloatArray
    intermediate: FloatArray
    flat: FloatArray
    n_eff: FloatArray
    effective_dimension: FloatArray
    learning: FloatArray
    learning_stderr: FloatArray
    walked: FloatArray
    walks_left: FloatArray


def _depth(result: FlatResult) -> tuple[Any, ...]:
    return (result.info.status == "complete", result.walk is not None, result.sweep is not None)


_RULES = Rules(
    must={
        **MUST,
        "the matrices": lambda r: sorted(r.ranks),
        "the tolerance (--tol)": option("tol"),
        "the cutoffs (--cutoff)": option("cutoffs"),
        "the prior's mean (--mean)": option("mean"),
        "the prior's standard deviation (--sigma; a number, or one command for all checkpoints, "
        "keeps it the same)": option("sigma"),
        "the multiplicity (--multiplicity)": option("multiplicity"),
        "the layers": lambda r: r.symmetries.layers,
    },
    may=MAY,
    depth=_depth,
)


def collect_flat(results: Sequence[FlatResult], names: Sequence[str]) -> FlatSeries:
    """Join results over the training step: what :func:`landscape.series.collect` does with counts.

    Args:
        results: at least one.
        names: where each comes from, for messages.

    Raises:
        UsageError: the results do not belong to one series.
    """
    order, rows = joined(results, names, _RULES)
    chosen = [results[i] for i in order]
    warnings, notices = (tuple(rows.pop(key)) for key in ("warnings", "notices"))
    tables = [result.symmetries for result in chosen]
    kinds = list(
        dict.fromkeys((entry.name, entry.by_data) for table in tables for entry in table.entries)
    )
    kinds.sort(key=lambda kind: kind[1])
    explained = np.zeros((len(chosen), len(kinds)), dtype=np.int64)
    for row, table in enumerate(tables):
        for entry in table.entries:
            explained[row, kinds.index((entry.name, entry.by_data))] += entry.added

    def total(name: str) -> IntArray:
        return np.array([getattr(table, name) for table in tables], dtype=np.int64)

    walks = [result.walk for result in chosen]
    return FlatSeries(
        **rows,
        operators={name: _ranks(name, chosen) for name in chosen[0].ranks},
        symmetry=tuple(name for name, _ in kinds),
        by_data=np.array([data for _, data in kinds], dtype=np.bool_),
        explained=explained,
        symmetry_total=total("symmetry_total"),
        data_total=total("data_total"),
        unexplained=total("unexplained"),
        layer=tables[0].layers,
        share=np.array([table.share for table in tables]),
        **_counts(chosen),
        learning=_numbers(None if r.learning is None else r.learning.value for r in chosen),
        learning_stderr=_numbers(None if r.learning is None else r.learning.stderr for r in chosen),
        walked=_numbers(w.distance.mean() if w and len(w.distance) else None for w in walks),
        walks_left=_numbers(w.left.mean() if w and len(w.left) else None for w in walks),
        warnings=warnings,
        notices=notices,
    )


def _numbers(values: Any) -> FloatArray:
    return np.array([np.nan if value is None else float(value) for value in values])


def _ranks(name: str, results: Sequence[FlatResult]) -> RankSeries:
    found = [result.ranks[name] for result in results]
    whole = ("rank", "null", "looser", "tighter")
    return RankSeries(
        operator=name,
        **{key: np.array([getattr(r, key) for r in found], dtype=np.int64) for key in whole},
        last_kept=np.array([r.last_kept for r in found]),
        first_dropped=np.array([r.first_dropped for r in found]),
        participation=np.array([r.participation.get(name, np.nan) for r in results]),
    )


def _counts(results: Sequence[FlatResult]) -> dict[str, Any]:
    """Arrays over cutoffs, (t, c), and the cutoffs themselves."""
    found = [result.counts for result in results]
    cutoff = next((c.cutoff for c in found if c is not None), np.zeros(0))
    none = np.full(len(cutoff), np.nan)
    names = [f.name for f in fields(PriorCounts) if f.name != "cutoff"]
    rows = {n: np.stack([none if c is None else getattr(c, n) for c in found]) for n in names}
    return {"cutoff": cutoff, **rows}
