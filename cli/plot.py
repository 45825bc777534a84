"""``landscape plot``: figures from result files."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import (
    DebugOption,
    JsonOption,
    QuietOption,
    RunOption,
    examples,
    require_run,
)
from landscape_cli.reporting import REPORT, printable

__all__ = ["check_ending", "draw", "drawing", "register"]


def plot(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Result files (.h5).")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Figure file: .png, .pdf or .svg (default: beside)."
        ),
    ] = None,
    surface: Annotated[
        bool,
        typer.Option("--surface", help="Of landscape slice: draw planes as 3-D surfaces."),
    ] = False,
    run: RunOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Figures of spectra, of log-volumes or of counts of directions.

    Of landscape hessian: spectral density on a log scale and the largest eigenvalues with their
    residuals. Of landscape volume: the width of every direction beside the prior's, log V and the
    effective dimension over the cutoff; of an annealed one also its path, both starts over the
    radius, and its islands. Of landscape flat: a stacked bar per checkpoint, the counts over the
    training step or the cutoff, walks and the sweep over examples. Of landscape modules: coupling
    of every pair of groups and extreme eigenvalues. Of landscape compare: divergence of examples
    and the loss between the weights. Of landscape slice: the excess loss on a line, or contours of
    it in a plane (--surface: in 3-D), with the quadratic prediction. Of landscape information: the
    Gram matrix of the gradients, its spectrum and ranks by layer, or ranks and norms over
    checkpoints. Several results are drawn together, in the order of their training steps; a series
    of landscape collect over the training step; of landscape batch collect every run in a figure of
    its own.
    """
    target = results[0].with_suffix(".png") if out is None else out
    check_ending(target, "--out")
    for number, figure in _figures(results, target, run).items():
        draw(results, figure, run=number, surface=surface)
        REPORT.add(
            {
                "file": str(figure),
                "checkpoint": None,
                "step": None,
                "status": "complete",
                "config": {"results": [str(path) for path in results]},
                "values": {},
                "warnings": [],
            }
        )


def _figures(results: list[Path], target: Path, run: int | None) -> dict[int | None, Path]:
    """The figures to draw: of a sweep one for every run, of anything else one."""
    from landscape.series_store import kind_of
    from landscape.sweep_store import load_sweep

    kind = kind_of(results[0])
    require_run(results[0], kind, run)
    if kind != "sweep" or len(results) > 1:
        return {None: target}
    sweep = load_sweep(results[0])
    found = sweep.only(run)
    if len(found) == 1:
        return dict.fromkeys(found, target)
    return {
        n: target.with_name(f"{target.stem}.{n}.{sweep.label(n).split()[0]}{target.suffix}")
        for n in found
    }


def draw(
    results: list[Path], figure: Path, *, run: int | None = None, surface: bool = False
) -> None:
    """Draw result files and say where."""
    from landscape.plotting import plot_results

    plot_results(results, figure, run=run, surface=surface)
    REPORT.say(f"figure: {printable(figure)}")


def drawing(figure: Path | None, *, surface: bool = False) -> Callable[[list[Path]], None]:
    """What draws result files once they are there; it does nothing without a figure.

    Raises:
        UsageError: the figure's ending is not known.
    """
    if figure is None:
        return lambda results: None
    check_ending(figure, "--plot")
    return lambda results: draw(results, figure, surface=surface)


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
            "landscape plot results/*.modules.*.h5 -o modules.png",
            "landscape plot results/*.compare.*.h5 -o compare.png",
            "landscape plot results/*.slice.*.h5 --surface -o slice.png",
            "landscape plot results/*.information.*.h5 -o information.png",
            "landscape plot series.h5 -o series.pdf",
            "landscape plot series.h5 --run 2 -o volumes.pdf",
        ),
    )(plot)
