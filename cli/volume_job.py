"""What ``landscape volume`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from landscape.units import MemoryUnits
from landscape.volume.anneal_job import keep_annealing, reaches_further
from landscape.volume.anneal_records import Annealing
from landscape.volume.options import VolumeOptions
from landscape.volume.radial_job import keep_rays
from landscape.volume.records import VolumeResult
from landscape.volume_anneal import anneal_limit
from landscape.volume_runs import VolumeRun
from landscape_cli.measuring import PriorJob
from landscape_cli.render_volume import anneal_allowance, report_volume, volume_plan
from landscape_cli.reporting import REPORT

__all__ = ["VolumeJob"]


def _islands(annealing: Annealing) -> tuple[int, int]:
    """Numbers of islands of both starts."""
    outward = annealing.outward
    return annealing.ladder.loss.shape[1], 0 if outward is None else outward.loss.shape[1]


class VolumeJob(PriorJob[VolumeRun, VolumeResult]):
    """Log-volumes under one prior."""

    kind = VolumeRun
    options: VolumeOptions
    remedy = (
        "what is asked for is an estimate with a standard error within --error of every number: "
        "use a larger --budget, more --samples (radial) or --probes (quadratic), a smaller "
        "--tether (anneal), or a larger --error"
    )

    def suffix(self) -> str:
        """What a shard's file name ends in."""
        shard = self.options.shard
        return "" if shard is None else f".{shard[0]}-of-{shard[1]}"

    def report(self, file: Path, result: VolumeResult, *, new: bool) -> None:
        """Show a result."""
        report_volume(REPORT, file, result, new=new)

    def converged(self, result: VolumeResult) -> bool:
        """Whether every number is an estimate within the error asked for."""
        return all(
            not bool(found.lower_bound.any()) and bool((found.stderr <= self.options.error).all())
            for found in result.estimates.values()
        )

    def satisfied(self, result: VolumeResult, run: VolumeRun) -> bool:
        """Whether a stored result has as many rays and is as precise as is asked for."""
        if result.info.status != "complete":
            return False
        options = run.options
        if "anneal" in options.methods:
            if result.annealing is None or "anneal" not in result.estimates:
                return False
            imprecise = not (result.estimates["anneal"].stderr <= options.error).all()
            limit = anneal_limit(run.settings, explicit=True)
            if imprecise and reaches_further(result.annealing, options.chains, limit):
                return False
        for name, found in result.estimates.items():
            wanted = options.samples
            if options.shard is not None:
                wanted = len(range(options.shard[0] - 1, wanted, options.shard[1]))
            elif options.error < float(result.info.config.get("error", 0.0)):
                return False
            if name == "radial" and int(found.n_samples.min()) < wanted:
                return False
            if name == "quadratic" and 0 < int(found.n_samples.min()) < options.probes:
                return False
        return True

    def extend(self, earlier: VolumeResult, run: VolumeRun, units: MemoryUnits) -> None:
        """Take the rays and the annealed runs of a complete result as finished work."""
        if earlier.rays is not None:
            keep_rays(earlier.rays, units)
        if earlier.annealing is not None:
            keep_annealing(earlier.annealing, run.options.chains, units)

    def lacks(self, result: VolumeResult, earlier: VolumeResult) -> bool:
        """Whether an annealed run was cut short of what the result has, or added nothing to it."""
        old, new = earlier.annealing, result.annealing
        if old is None:
            return False
        if new is None or (old.outward is not None and new.outward is None):
            return True
        if result.info.status == "complete":
            return False
        nearer = np.nan_to_num(new.agreed_radius) < np.nan_to_num(old.agreed_radius)
        same = (new.ladder_levels, new.outward_levels) == (old.ladder_levels, old.outward_levels)
        return bool(nearer) or (same and _islands(new) == _islands(old))

    def plan(self, run: VolumeRun, n: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """What a run would do: for JSON, and as rows of a table."""
        values = {"route": run.route, "anneal": anneal_allowance(run)}
        return values, volume_plan(run, n)
