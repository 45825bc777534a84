"""What ``landscape modules`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape.modules.options import ModulesOptions
from landscape.modules.records import ModulesResult
from landscape.modules.regions import regions
from landscape.modules.stochastic import stored_units
from landscape.modules_runs import ModulesRun
from landscape.units import MemoryUnits
from landscape_cli.measuring import PriorJob
from landscape_cli.render_modules import report_modules
from landscape_cli.reporting import REPORT, printable

__all__ = ["ModulesJob"]

_EXTREMES = 100  # Products of a pair of extreme eigenvalues, about.


class ModulesJob(PriorJob[ModulesRun, ModulesResult]):
    """Coupling between groups of parameters under one prior."""

    kind = ModulesRun
    options: ModulesOptions
    remedy = "use more --steps, or --method exact"

    def report(self, file: Path, result: ModulesResult, *, new: bool) -> None:
        """Show a result."""
        report_modules(REPORT, file, result, new=new)

    def converged(self, result: ModulesResult) -> bool:
        """Whether the extremes are, and enough Lanczos steps were made."""
        return bool(result.modules.converged) and not result.modules.unresolved

    def satisfied(self, result: ModulesResult, run: ModulesRun) -> bool:
        """Whether a stored result has the probes and the pairs that are asked for."""
        return not run.missing(result.modules)

    def extend(self, earlier: ModulesResult, run: ModulesRun, units: MemoryUnits) -> None:
        """Take over what an earlier run has measured."""
        if units.n_resumed or earlier.modules.exact:
            return
        for name, unit in stored_units(earlier.modules, earlier.info.n_matvecs).items():
            units.put(name, unit)
        units.seconds = earlier.info.wall_seconds

    def plan(self, run: ModulesRun, n: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """What a run would do: for JSON, and as rows of a table."""
        grouping, options = run.grouping, run.options
        sizes = grouping.sizes
        count = len(sizes)
        groups = dict(zip(grouping.names, sizes, strict=True))
        named = ", ".join(f"{printable(name)} ({size})" for name, size in list(groups.items())[:12])
        rows = [("groups", f"{count}: {named}{', ...' if count > 12 else ''}")]
        products = n
        if run.route == "lanczos":
            wanted, base = regions(count)
            chosen = wanted if run.pairs else wanted[:base]
            steps = [min(options.steps, sum(sizes[a] for a in region)) for region in chosen]
            sketches = sum(min(options.sketch, size) for size in sizes)
            probes = options.probes * sum(steps)
            products = probes + sketches + _EXTREMES * (count + 1)
            pairs = "with" if run.pairs else "without"
            rows += [
                ("extremes", f"about {_EXTREMES * (count + 1)} products"),
                ("blocks", f"{sketches} products"),
                (
                    "log-determinants",
                    f"{probes} products: {options.probes} probes of {len(chosen)} regions, "
                    f"{pairs} pairs",
                ),
            ]
            if options.tilt is None:
                rows.append(("tilt", "some hundred products"))
        else:
            rows.append(("method", f"exact ({run.route}): every eigenvalue, and a factorisation"))
        return {"groups": groups, "products": products, "route": run.route}, rows
