"""What ``landscape flat`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape.flat.options import FlatOptions
from landscape.flat.records import FlatResult
from landscape.flat_runs import FlatRun
from landscape.units import MemoryUnits
from landscape_cli.measuring import PriorJob
from landscape_cli.render_flat import report_flat
from landscape_cli.reporting import REPORT

__all__ = ["FlatJob"]


class FlatJob(PriorJob[FlatRun, FlatResult]):
    """Counts of flat directions under one prior."""

    kind = FlatRun
    options: FlatOptions
    remedy = "use another --tol, or more --examples"

    def report(self, file: Path, result: FlatResult, *, new: bool) -> None:
        """Show a result."""
        report_flat(REPORT, file, result, new=new)

    def converged(self, result: FlatResult) -> bool:
        """Whether the tolerance decides none of the ranks."""
        return all(rank.clear for rank in result.ranks.values())

    def satisfied(self, result: FlatResult, run: FlatRun) -> bool:
        """Whether a stored result has the walks and the sweep that are asked for."""
        return result.info.status == "complete" and run.missing(result) == (False, False)

    def extend(self, earlier: FlatResult, run: FlatRun, units: MemoryUnits) -> None:
        """Take over what an earlier run has counted."""
        run.earlier = earlier
        if not units.n_resumed:
            units.seconds = earlier.info.wall_seconds

    def plan(self, run: FlatRun, n: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """What a run would do: for JSON, and as rows of a table."""
        rows = run.factor_rows(n)
        jacobian = "very many" if rows is None else f"about {rows}"
        wanted = run.options.walks
        walks = f"{wanted} walks of some hundred Jacobians each" if wanted else "no"
        return {"rows": rows}, [
            ("Jacobian", f"{jacobian} vector-Jacobian products, each of a micro-batch"),
            ("Hessian", f"{n} products"),
            ("walk", walks),
            ("examples", ", ".join(map(str, run.sizes)) or "no sweep"),
        ]
