"""Shards of one run of ``landscape volume`` joined to the result of all their rays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.results import Result, RunInfo
from landscape.volume.radial_job import estimate_rays
from landscape.volume.records import Rays, VolumeEstimate, VolumeResult

__all__ = ["covers", "merge_volumes", "same_rays"]

_TOLERANCE = 0.01  # Nats between shards: what a ray's own radius is found to.
_SHOWN = 5  # Missing rays in a warning.
_SUMS = ("wall_seconds", "n_matvecs", "n_forward", "n_gradient")


def merge_volumes(
    results: Sequence[Result], *, sources: Sequence[str] | None = None, argv: Sequence[str] = ()
) -> VolumeResult:
    """One result from results of different rays of the same run.

    Its rays and estimates are those of one run of that many samples: ``radial`` is estimated from
    all rays, what other methods found is the same in every shard. ``anneal`` may be in some only.

    Args:
        results: shards of one run (``--shard I/M``), in any order.
        sources: where each comes from, for messages; default: its checkpoint.
        argv: the command line, for the record.

    Raises:
        UsageError: there are none, they are not of one run, or a ray is in two of them.
    """
    if not results:
        raise UsageError("no result to merge; expected shards of one run of landscape volume")
    names = [r.info.checkpoint for r in results] if sources is None else list(sources)
    shards, rays = _shards(results, names)
    first = next((shard for shard in shards if "anneal" in shard.estimates), shards[0])
    merged = _merged_rays(rays)
    error = max(float(shard.info.config.get("error", 0.0)) for shard in shards)
    path = first.estimates["radial"].path
    estimate, notes = estimate_rays(merged, path=path, error=error)
    warnings = list(dict.fromkeys(_kept(shards) + notes + _missing(shards, merged)))
    return dataclasses.replace(
        first,
        info=_info(shards, merged, error=error, argv=argv, warnings=warnings),
        estimates={**first.estimates, "radial": estimate},
        rays=merged,
    )


def _shards(
    results: Sequence[Result], names: Sequence[str]
) -> tuple[list[VolumeResult], list[Rays]]:
    """The results and their rays, after checking that they are of one run."""
    shards: list[VolumeResult] = []
    rays: list[Rays] = []
    owner: dict[int, str] = {}
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, VolumeResult) or result.rays is None:
            raise UsageError(
                f"{name} is a result of landscape {result.info.command} without rays; expected "
                "shards of one run of landscape volume (--shard I/M). Leave it out"
            )
        for other, one in zip(names, shards, strict=False):
            # Any two that know it must agree on what only some have.
            if one is shards[0] or "anneal" in one.estimates:
                _require_same_run(one, other, result, name)
        for index in result.rays.index.tolist():
            if index in owner:
                raise UsageError(
                    f"ray {index} is in {owner[index]} and in {name}; expected every ray once. "
                    "Merge each shard of a run once"
                )
            owner[index] = name
        shards.append(result)
        rays.append(result.rays)
    return shards, rays


def _require_same_run(first: VolumeResult, other: str, result: VolumeResult, name: str) -> None:
    if result.info.key != first.info.key:
        raise UsageError(
            f"{other} and {name} are of different runs (keys {first.info.key[:8]} and "
            f"{result.info.key[:8]}); expected shards of one checkpoint with the same options. "
            "Merge each run by itself"
        )
    for method, found in first.estimates.items():
        same = result.estimates.get(method)
        if same is None and method == "anneal":
            continue
        if same is None or not np.array_equal(same.cutoff, found.cutoff):
            raise UsageError(
                f"{method} has other cutoffs in {other} than in {name}, or is missing, though "
                "both are of one run; one of the files is damaged. Measure it again with "
                "--overwrite"
            )
        if method != "radial" and not _agree(found, same):
            raise UsageError(
                f"{method} differs between {other} and {name}; expected the same in every shard. "
                "Measure all shards with the same --probes, --error and --budget"
                + ", or anneal by itself, without --shard"
                * (method == "anneal")
            )


def _agree(one: VolumeEstimate, two: VolumeEstimate) -> bool:
    """Whether two machines found the same, but for rounding."""
    values = (one.log_volume, two.log_volume)
    close = np.isclose(*values, rtol=1e-9, atol=_TOLERANCE, equal_nan=True)
    return bool(close.all()) and np.array_equal(one.n_samples, two.n_samples)


def _merged_rays(rays: Sequence[Rays]) -> Rays:
    index = np.concatenate([part.index for part in rays])
    order = np.argsort(index)
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in rays], axis=1)[:, order]
        for field in dataclasses.fields(Rays)
        if field.name not in ("cutoff", "index")
    }
    return Rays(cutoff=rays[0].cutoff, index=index[order], **columns)


def _missing(shards: Sequence[VolumeResult], merged: Rays) -> list[str]:
    asked = max(int(shard.info.config.get("samples", 0)) for shard in shards)
    wanted = np.arange(max(asked, int(merged.index.max(initial=-1)) + 1))
    missing = np.setdiff1d(wanted, merged.index)
    if not len(missing):
        return []
    named = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
    return [
        f"radial: {len(missing)} of {len(wanted)} rays are missing ({named}): the estimate is of "
        "the rays at hand. Merge the other shards too, or let landscape volume find them"
    ]


def _kept(shards: Sequence[VolumeResult]) -> list[str]:
    """Warnings that the rays of all shards do not answer anew."""
    found = [warning for shard in shards for warning in shard.info.warnings]
    return [warning for warning in found if not warning.startswith("radial:")]


def _info(
    shards: Sequence[VolumeResult],
    merged: Rays,
    *,
    error: float,
    argv: Sequence[str],
    warnings: Sequence[str],
) -> RunInfo:
    infos = [shard.info for shard in shards]
    sums = {name: sum(getattr(info, name) for info in infos) for name in _SUMS}
    whole = all(info.status == "complete" for info in infos)
    config = {**infos[0].config, "samples": len(merged.index), "error": error, "shard": None}
    return dataclasses.replace(
        infos[0],
        argv=tuple(argv) or infos[0].argv,
        config=config,
        device=", ".join(dict.fromkeys(info.device for info in infos)),
        status="complete" if whole else "budget",
        started=min(info.started for info in infos),
        finished=max(info.finished for info in infos),
        warnings=tuple(warnings),
        **sums,
    )


def covers(results: Sequence[VolumeResult], other: VolumeResult) -> bool:
    """Whether every ray of another result of the same run is among those of the results."""
    known = [result.rays.index for result in results if result.rays is not None]
    return other.rays is not None and bool(
        np.isin(other.rays.index, np.concatenate([np.zeros(0, dtype=np.int64), *known])).all()
    )


def same_rays(one: VolumeResult, two: VolumeResult) -> bool:
    """Whether two results of one run hold the same rays."""
    if one.rays is None or two.rays is None:
        return False
    pairs = [
        (getattr(one.rays, field.name), getattr(two.rays, field.name))
        for field in dataclasses.fields(Rays)
    ]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
