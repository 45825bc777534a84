"""A stored result as tables, whatever command it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landscape.compare.records import CompareResult
from landscape.errors import UsageError
from landscape.flat.records import FlatResult
from landscape.information.records import InformationResult
from landscape.modules.records import ModulesResult
from landscape.results import HessianResult, Result
from landscape.slices.records import SliceResult
from landscape.volume.records import VolumeResult
from landscape_cli.render import Sums, report_result
from landscape_cli.render_compare import report_compare
from landscape_cli.render_flat import report_flat
from landscape_cli.render_information import report_information
from landscape_cli.render_modules import report_modules
from landscape_cli.render_slice import report_slice
from landscape_cli.render_volume import report_volume
from landscape_cli.reporting import Report

__all__ = ["report_any"]

_REPORTS: Mapping[type[Result], Callable[[Report, Path, Any], None]] = {
    VolumeResult: report_volume,
    FlatResult: report_flat,
    CompareResult: report_compare,
    SliceResult: report_slice,
    InformationResult: report_information,
    ModulesResult: report_modules,
}


def report_any(report: Report, file: Path, result: Result, *, sums: Sums) -> None:
    """Show a result.

    Raises:
        UsageError: sums over a spectrum that the result does not have.
    """
    if isinstance(result, HessianResult):
        report_result(report, file, result, sums=sums)
        return
    if sums.scales or sums.thresholds:
        raise UsageError(
            f"--log-det and --threshold: {file} is a result of landscape {result.info.command}, "
            "which has no spectral density. Use them on a result of landscape hessian"
        )
    _REPORTS[type(result)](report, file, result)
