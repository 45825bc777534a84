"""``landscape show``: results as tables in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import (
    DebugOption,
    JsonOption,
    LogDetOption,
    QuietOption,
    RunOption,
    ThresholdOption,
    examples,
    require_run,
)
from landscape_cli.reporting import REPORT

__all__ = ["register"]


def show(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Result files (.h5).")],
    log_det: LogDetOption = None,
    threshold: ThresholdOption = None,
    run: RunOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Tables of what each result file holds: eigenvalues, log-volumes, directions, slices.

    A series of landscape collect has a row per training step.
    """
    from landscape.errors import UsageError
    from landscape.series_store import kind_of, load_series
    from landscape.store import load
    from landscape.sweep_store import load_sweep
    from landscape_cli.render import Sums
    from landscape_cli.render_any import report_any
    from landscape_cli.render_series import report_series, report_sweep

    sums = Sums.of(log_det, threshold)
    for path in results:
        kind = kind_of(path)
        require_run(path, kind, run)
        if kind == "result":
            report_any(REPORT, path, load(path), sums=sums)
        elif log_det or threshold:
            raise UsageError(
                f"--log-det and --threshold: {path} is a series, which has no probes to sum over. "
                "Use them on the results that it was collected from"
            )
        elif kind == "series":
            report_series(REPORT, path, load_series(path))
        else:
            report_sweep(REPORT, path, load_sweep(path), run=run)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "show",
        epilog=examples(
            "landscape show results/step_001000.hessian.1a2b3c4d.h5",
            "landscape show results/*.h5 --json",
            "landscape show results/*.h5 --log-det 100 --threshold 0.1",
            "landscape show series.h5",
            "landscape show series.h5 --run 2",
        ),
    )(show)
