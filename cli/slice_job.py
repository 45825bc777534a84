"""What ``landscape slice`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoint import Checkpoint
from landscape.slice_runs import SliceRun, keep_slice
from landscape.slices.options import SliceOptions
from landscape.slices.records import SliceResult
from landscape.units import MemoryUnits
from landscape_cli.measuring import Job
from landscape_cli.render_slice import report_slice
from landscape_cli.reporting import REPORT

__all__ = ["SliceJob"]


class SliceJob(Job[SliceRun, SliceResult]):
    """The loss on one line or plane through every checkpoint.

    Args:
        options: where to evaluate.
        others: checkpoints of the directions ``to:``.
        trajectory: checkpoints in the order of training.
    """

    remedy = "use --dtype float64, or eigenvectors nearer to an end of the spectrum"

    def __init__(
        self,
        options: SliceOptions,
        *,
        others: Sequence[Checkpoint],
        trajectory: Sequence[Checkpoint],
    ) -> None:
        self.options, self.others, self.trajectory = options, others, trajectory

    def run(self, **shared: Any) -> SliceRun:
        """The measurement of one checkpoint."""
        return SliceRun(
            **shared, options=self.options, others=self.others, trajectory=self.trajectory
        )

    def report(self, file: Path, result: SliceResult, *, new: bool) -> None:
        """Show a result."""
        report_slice(REPORT, file, result, new=new)

    def converged(self, result: SliceResult) -> bool:
        """Whether every eigenvector is converged."""
        return all(direction.converged for direction in result.directions)

    def satisfied(self, result: SliceResult, run: SliceRun) -> bool:
        """Whether a stored result is of the grid that is asked for."""
        stored = result.info.config
        return all(stored.get(name) == run.config[name] for name in ("points", "span"))

    def extend(self, earlier: SliceResult, run: SliceRun, units: MemoryUnits) -> None:
        """Take the points, eigenvectors and products of another grid as finished work."""
        keep_slice(earlier, units)
