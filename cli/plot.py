"""``landscape plot``: figures from result files."""

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import DebugOption, JsonOption, examples
from landscape_cli.reporting import REPORT, printable

__all__ = ["check_ending", "draw", "register"]


def plot(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Result files (.h5).")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Figure file: .png, .pdf or .svg (default: beside)."
        ),
    ] = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notices.")] = False,
    debug: DebugOption = False,
) -> None:
    """Figures of spectra, of log-volumes or of counts of directions.

    Of landscape hessian: spectral density on a log scale and the largest eigenvalues with their
    residuals. Of landscape volume: the width of every direction beside the prior's, log V and the
    effective dimension over the cutoff; of an annealed one also its path, both starts over the
    radius, and its islands. Of landscape flat: a stacked bar per checkpoint, the counts over the
    training step or the cutoff, walks and the sweep over examples. Of landscape compare: divergence
    of examples and the loss between the weights. Several results are drawn together, in the
    order of their training steps; a series of landscape collect over the training step.
    """
    target = results[0].with_suffix(".png") if out is None else out
    draw(results, target)
    REPORT.add(
        {
            "file": str(target),
            "checkpoint": None,
            "step": None,
            "status": "complete",
            "config": {"results": [str(path) for path in results]},
            "values": {},
            "warnings": [],
        }
    )


def draw(results: list[Path], figure: Path) -> None:
    """Draw result files and say where."""
    from landscape.plotting import plot_results

    plot_results(results, figure)
    REPORT.say(f"figure: {printable(figure)}")


def check_ending(figure: Path, option: str) -> None:
    """Find out before the computation, not after it.

    Raises:
        UsageError: the figure's ending is not known.
    """
    from landscape.errors import UsageError

    if figure.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(
            f"{option} {figure}: the ending {figure.suffix!r} is not known; expected .png, .pdf, "
            ".svg"
        )


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "plot",
        epilog=examples(
            "landscape plot results/step_001000.hessian.1a2b3c4d.h5",
            "landscape plot results/*.hessian.*.h5 -o spectrum.pdf",
            "landscape plot results/*.volume.*.h5 -o volume.pdf",
            "landscape plot results/*.flat.*.h5 -o flat.png",
            "landscape plot results/*.compare.*.h5 -o compare.png",
            "landscape plot series.h5 -o series.pdf",
        ),
    )(plot)
