"""What ``landscape compare`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape.checkpoint import Checkpoint
from landscape.compare.options import CompareOptions
from landscape.compare.records import CompareResult
from landscape.compare_runs import CompareRun
from landscape.units import MemoryUnits
from landscape_cli.measuring import Job
from landscape_cli.options import Common
from landscape_cli.render_compare import report_compare
from landscape_cli.reporting import REPORT

__all__ = ["CompareJob"]


class CompareJob(Job[CompareRun, CompareResult]):
    """Comparison of every checkpoint with network B.

    Args:
        options: what to measure.
        other: weights of B; the checkpoint's own, with ablations, where None.
        common: the options that all commands share.
    """

    def __init__(self, options: CompareOptions, other: Checkpoint | None, common: Common) -> None:
        self.options = options
        self.other = other
        self._access = {"weights_key": common.weights_key, "unsafe_pickle": common.unsafe_pickle}
        self._sigma: tuple[float, ...] | None = None

    def run(self, **shared: Any) -> CompareRun:
        """The measurement of one checkpoint."""
        run = CompareRun(
            **shared,
            other=self.other,
            options=self.options,
            sigma=self._sigma,
            prior_access=self._access,
        )
        # That of the first checkpoint, so that the others compare.
        self._sigma = run.sigma
        return run

    def report(self, file: Path, result: CompareResult, *, new: bool) -> None:
        """Show a result."""
        report_compare(REPORT, file, result, new=new)

    def converged(self, result: CompareResult) -> bool:
        """Whether eigenpairs are converged and log V is as exact as asked for, where there are."""
        spaces, volume = result.eigenspaces, result.volume
        wanted = self.options.volume
        exact = (
            volume is None
            or wanted is None
            or all((found.stderr <= wanted.error).all() for found in (volume.a, volume.b))
        )
        return exact and (spaces is None or spaces.converged)

    def satisfied(self, result: CompareResult, run: CompareRun) -> bool:
        """A stored result of one key has all that is asked for."""
        return result.info.status == "complete"

    def extend(self, earlier: CompareResult, run: CompareRun, units: MemoryUnits) -> None:
        """Nothing is added to a complete result."""
