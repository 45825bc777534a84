"""Log-volumes of many checkpoints joined over the training step; needs only numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.agreement import MAY, MUST, Rules, joined, option
from landscape.series_records import TrainingSeries
from landscape.volume.records import CLASSES, VolumeResult

__all__ = ["MethodSeries", "VolumeSeries", "collect_volumes"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MethodSeries:
    """``log V`` by one method at t steps and c cutoffs; every array is (t, c).

    Attributes:
        method_name: ``quadratic``, ``radial`` or ``anneal``; for what follows see
            :class:`landscape.volume.records.VolumeEstimate`.
    """

    method_name: str
    log_volume: FloatArray
    stderr: FloatArray
    lower: FloatArray
    upper: FloatArray
    lower_bound: NDArray[np.bool_]
    width: FloatArray
    location: FloatArray
    remainder: FloatArray
    effective_dimension: FloatArray
    n_samples: NDArray[np.int64]
    ess: FloatArray


@dataclass(frozen=True, kw_only=True)
class VolumeSeries(TrainingSeries):
    """Log-volumes over the training step.

    Attributes:
        cutoff: largest excess losses, (c,), in the units of the loss per example.
        n_forward: forward passes over the whole data set, (t,).
        methods: log-volumes by method.
        counts: number of directions of every class in :data:`landscape.volume.records.CLASSES`,
            (t, c, 3); NaN where a result has no table of directions.
        nats: their parts of -log V, (t, c, 3), likewise.
    """

    cutoff: FloatArray
    n_forward: NDArray[np.int64]
    methods: Mapping[str, MethodSeries]
    counts: FloatArray
    nats: FloatArray


def _cutoffs(result: VolumeResult) -> list[float]:
    found: list[float] = next(iter(result.estimates.values())).cutoff.tolist()
    return found


def _depth(result: VolumeResult) -> tuple[Any, ...]:
    return (
        result.info.status == "complete",
        result.info.config.get("shard") is None,
        sum(int(found.n_samples.max(initial=0)) for found in result.estimates.values()),
    )


_RULES = Rules(
    must={
        **MUST,
        # --method auto anneals only where it is cheap.
        "the methods (--method)": lambda r: sorted({*r.estimates} - {"anneal"}),
        "the cutoffs (--cutoff)": _cutoffs,
        "the prior (--prior)": option("prior"),
        "the prior's mean (--mean)": option("mean"),
        "the prior's standard deviation (--sigma; a number, or one command for all checkpoints, "
        "keeps it the same)": option("sigma"),
        "the prior's shape (--uniform)": option("uniform"),
        "the prior's half-width (--half-width)": option("half_width"),
        "the tether (--tether)": option("tether"),
        "the curvature (--curvature)": option("curvature"),
    },
    may={
        **MAY,
        "--exact": option("route"),
        "--directions": option("directions"),
        "--method anneal": lambda r: "a value" if "anneal" in r.estimates else "none",
    },
    depth=_depth,
)


def collect_volumes(results: Sequence[VolumeResult], names: Sequence[str]) -> VolumeSeries:
    """Join results over the training step: what :func:`landscape.series.collect` does with volumes.

    Args:
        results: at least one.
        names: where each comes from, for messages.

    Raises:
        UsageError: the results do not belong to one series.
    """
    order, rows = joined(results, names, _RULES)
    chosen = [results[i] for i in order]
    warnings = [*rows.pop("warnings"), *_unmerged(chosen, rows["source"])]
    counts, nats = (
        np.stack([_by_class(result, which) for result in chosen]) for which in ("counts", "shares")
    )
    return VolumeSeries(
        **{name: value for name, value in rows.items() if name != "notices"},
        cutoff=np.array(_cutoffs(chosen[0])),
        n_forward=np.array([r.info.n_forward for r in chosen], dtype=np.int64),
        methods={name: _method(name, chosen) for name in _names(chosen)},
        counts=counts,
        nats=nats,
        warnings=tuple(warnings),
        notices=tuple(rows["notices"]),
    )


def _unmerged(results: Sequence[VolumeResult], names: Sequence[str]) -> list[str]:
    found = []
    for name, result in zip(names, results, strict=True):
        shard = result.info.config.get("shard")
        if shard is not None:
            found.append(
                f"{name} holds the rays of shard {'/'.join(map(str, shard))} only; landscape "
                "collect --merge joins shards"
            )
    return found


def _names(results: Sequence[VolumeResult]) -> list[str]:
    """The methods of all results, in the order of the first; what only some have comes last."""
    return list(dict.fromkeys(name for result in results for name in result.estimates))


def _method(name: str, results: Sequence[VolumeResult]) -> MethodSeries:
    found = [result.estimates.get(name) for result in results]
    (first, *_) = [estimate for estimate in found if estimate is not None]
    arrays = {}
    for field in fields(MethodSeries):
        if field.name == "method_name":
            continue
        values = getattr(first, field.name)
        # No value where a result has none: NaN, of no samples and no bound.
        none = np.full_like(values, np.nan if values.dtype.kind == "f" else 0)
        rows = [none if e is None else getattr(e, field.name) for e in found]
        arrays[field.name] = np.stack(rows)
    return MethodSeries(method_name=name, **arrays)


def _by_class(result: VolumeResult, which: str) -> FloatArray:
    if result.directions is None:
        return np.full((len(_cutoffs(result)), len(CLASSES)), np.nan)
    found: FloatArray = getattr(result.directions, which)()
    return found
