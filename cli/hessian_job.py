"""What ``landscape hessian`` does with one checkpoint, and how a stored result continues."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from landscape.hessian import HessianOptions, too_wide
from landscape.results import HessianResult
from landscape.runs import HessianRun
from landscape.units import MemoryUnits
from landscape_cli.measuring import Job
from landscape_cli.render import Sums, report_result
from landscape_cli.reporting import REPORT

__all__ = ["HessianJob"]


class HessianJob(Job[HessianRun, HessianResult]):
    """Spectra of the operators that the options name.

    Args:
        options: what to measure.
        sums: functions of the whole spectrum to show.
    """

    def __init__(self, options: HessianOptions, sums: Sums) -> None:
        self.options, self.sums = options, sums

    def run(self, **shared: Any) -> HessianRun:
        """The measurement of one checkpoint."""
        return HessianRun(**shared, options=self.options)

    def report(self, file: Path, result: HessianResult, *, new: bool) -> None:
        """Show a result."""
        report_result(REPORT, file, result, new=new, sums=self.sums)

    def converged(self, result: HessianResult) -> bool:
        """Whether every eigenvalue is within its tolerance."""
        return all(bool(s.converged.all()) for s in result.spectra.values())

    def satisfied(self, result: HessianResult, run: HessianRun) -> bool:
        """Whether a complete result has all that is asked for; a larger request continues it."""
        return _satisfies(result, run)

    def as_asked(self, result: HessianResult, run: HessianRun) -> HessianResult:
        """The result with as many eigenvalues as are asked for: exact ones are all in the file."""
        return _as_asked(result, run)

    def extend(self, earlier: HessianResult, run: HessianRun, units: MemoryUnits) -> None:
        """Let a run add to a complete result without losing anything of it."""
        run.options = _extended(run.options, earlier)
        _reuse_probes(earlier, units)


def _as_asked(result: HessianResult, run: HessianRun) -> HessianResult:
    """A result that shows as many eigenvalues as are asked for: exact ones are all in the file."""
    top, bottom = run.wanted
    spectra = {
        name: dataclasses.replace(spectrum, top=top, bottom=bottom) if spectrum.exact else spectrum
        for name, spectrum in result.spectra.items()
    }
    return dataclasses.replace(result, spectra=spectra)


def _satisfies(result: HessianResult, run: HessianRun) -> bool:
    """Whether a complete result has all that is asked for; a larger request continues it."""
    options = run.options
    if result.info.status != "complete":
        return False
    for name in options.operators:
        if name not in result.spectra:
            return False
        spectrum = result.spectra[name]
        stored = (spectrum.top, spectrum.bottom)
        if options.save_vectors and (spectrum.eigenvectors is None or stored != run.wanted):
            return False
        found = result.moments.get(name)
        if found is not None and 0 < found.n_probes < options.probes:
            return False
        if found is not None and options.error is not None and too_wide(found, options.error):
            return False
    return True


def _extended(options: HessianOptions, earlier: HessianResult) -> HessianOptions:
    """The options that add to a complete result without losing anything of it."""
    probes = [moments.n_probes for moments in earlier.moments.values()]
    stored = any(s.eigenvectors is not None for s in earlier.spectra.values())
    return dataclasses.replace(
        options,
        probes=max(options.probes, *probes),
        save_vectors=options.save_vectors or stored,
    )


def _reuse_probes(result: HessianResult, units: MemoryUnits) -> None:
    """Take the probes of a complete result as finished units."""
    for name, density in result.densities.items():
        d, unit = density.n_deflated, name.replace("/", "|")
        if result.spectra[name].exact:
            continue
        for index, (nodes, weights) in enumerate(zip(density.nodes, density.weights, strict=True)):
            kept = np.flatnonzero(weights[d:] > 0) + d
            bulk = weights[kept] / weights[kept].sum()
            units.put(f"probe-{unit}-{index}", {"nodes": nodes[kept], "weights": bulk})
