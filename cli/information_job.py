"""What ``landscape information`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape.information.options import InformationOptions
from landscape.information.records import InformationResult
from landscape.information_runs import InformationRun
from landscape.units import MemoryUnits
from landscape_cli.measuring import Job
from landscape_cli.render_information import report_information
from landscape_cli.reporting import REPORT

__all__ = ["InformationJob"]


class InformationJob(Job[InformationRun, InformationResult]):
    """Gradients, activations and GGN + residual of every checkpoint.

    Args:
        options: what to measure.
    """

    remedy = "use another --tol, or --dtype float64"

    def __init__(self, options: InformationOptions) -> None:
        self.options = options
        self.results: list[InformationResult] = []

    def run(self, **shared: Any) -> InformationRun:
        """The measurement of one checkpoint."""
        return InformationRun(**shared, options=self.options)

    def report(self, file: Path, result: InformationResult, *, new: bool) -> None:
        """Show a result."""
        self.results.append(result)
        report_information(REPORT, file, result, new=new)

    def converged(self, result: InformationResult) -> bool:
        """Whether the tolerance decides none of the gradients' ranks."""
        return all(rank.clear for rank in result.gradients.ranks)

    def satisfied(self, result: InformationResult, run: InformationRun) -> bool:
        """Whether a stored result has the probes that are asked for."""
        return result.info.status == "complete" and not run.missing(result)

    def extend(self, earlier: InformationResult, run: InformationRun, units: MemoryUnits) -> None:
        """Take over what an earlier run has measured."""
        run.earlier = earlier
        for number, squares in enumerate(earlier.split.squares):
            units.put(f"probe-{number}", {"squares": squares})
        if not units.n_resumed:
            units.seconds = earlier.info.wall_seconds
