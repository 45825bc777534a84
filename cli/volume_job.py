"""What ``landscape volume`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoint import expand_checkpoints, read_checkpoint
from landscape.partial import PartialFile
from landscape.priors import prior_table
from landscape.volume.anneal_job import keep_annealing
from landscape.volume.options import VolumeOptions
from landscape.volume.radial_job import keep_rays
from landscape.volume.records import VolumeResult
from landscape.volume_runs import VolumeRun
from landscape_cli.measuring import Job, prepare_task, settings_from
from landscape_cli.options import Common
from landscape_cli.render_volume import plan_tables, report_volume
from landscape_cli.reporting import REPORT, printable

__all__ = ["VolumeJob", "dry_run_tables"]


class VolumeJob(Job[VolumeRun, VolumeResult]):
    """Log-volumes under one prior.

    The prior's standard deviation is that of the first checkpoint, so that the others compare.

    Args:
        options: what to measure.
        common: the options that all commands share.
    """

    remedy = "use more --samples or --probes, a larger --budget, or a larger --error"

    def __init__(self, options: VolumeOptions, common: Common) -> None:
        self.options = options
        self._access = {"weights_key": common.weights_key, "unsafe_pickle": common.unsafe_pickle}
        self._sigma: tuple[float, ...] | None = None

    def run(self, **shared: Any) -> VolumeRun:
        """The measurement of one checkpoint."""
        run = VolumeRun(
            **shared, options=self.options, sigma=self._sigma, prior_access=self._access
        )
        self._sigma = run.sigma
        return run

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
            given = run.settings.budget.gradients
            more = given is not None and given > result.annealing.n_gradients
            if more and (result.estimates["anneal"].stderr > options.error).any():
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

    def extend(self, earlier: VolumeResult, run: VolumeRun, units: PartialFile) -> None:
        """Take the rays and the annealed runs of a complete result as finished work."""
        if earlier.rays is not None:
            keep_rays(earlier.rays, units)
        if earlier.annealing is not None:
            keep_annealing(earlier.annealing, run.options.chains, units)


def dry_run_tables(patterns: Sequence[str], common: Common, options: VolumeOptions) -> None:
    """Show the prior of every tensor and what would be done."""
    settings = settings_from(common)
    resolved, data = prepare_task(common, settings)
    job = VolumeJob(options, common)
    for path in expand_checkpoints(patterns):
        checkpoint = read_checkpoint(
            path, weights_key=common.weights_key, unsafe_pickle=common.unsafe_pickle
        )
        run = job.run(resolved=resolved, data=data, checkpoint=checkpoint, settings=settings)
        space = run.load()
        anchor = space.vector().double().cpu()
        prior = run.prior(space, anchor)
        table = prior_table(prior, space, anchor)
        for note in (*run.notes, *prior.notes):
            REPORT.warn(note)
        REPORT.add(
            {
                "file": None,
                "checkpoint": str(path),
                "step": checkpoint.step,
                "status": "dry run",
                "config": run.config,
                "values": {
                    "n_parameters": space.n,
                    "route": run.route,
                    "prior": {
                        name: dict(zip(table.names, getattr(table, name), strict=True))
                        for name in ("sizes", "mean", "scale", "anchor", "location")
                    },
                },
                "warnings": [*run.notes, *prior.notes],
            }
        )
        REPORT.table(*plan_tables(printable(path), run, table, space.n, data.n_examples))
