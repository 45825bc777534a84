"""``landscape slice``: the loss on lines and planes through a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import (
    CheckpointsArgument,
    Common,
    PlotOption,
    examples,
    shared_options,
)

__all__ = ["register"]

_WHAT = "Measurement"


def _complete_along(incomplete: str) -> list[str]:
    """Directions that begin so, for the shell's tab completion."""
    if incomplete.startswith("to:"):
        start = Path(incomplete.removeprefix("to:"))
        folder = start if incomplete.endswith("/") else start.parent
        name = "" if incomplete.endswith("/") else start.name
        return [f"to:{path}" for path in sorted(folder.glob(f"{name}*"))]
    known = ["eigen:1", "eigen:2", "eigen:-1", "random", "to:", "pca:1", "pca:2"]
    return [text for text in known if text.startswith(incomplete)]


@shared_options(without=("compiled", "products", "budget"))
def slice_(
    checkpoints: CheckpointsArgument,
    common: Common,
    along: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIRECTION",
            rich_help_panel=_WHAT,
            autocompletion=_complete_along,
            help="eigen:K: eigenvector K of the Hessian, -1 is the lowest. random: "
            "filter-normalised. to:CHECKPOINT: 1 is there. pca:K: principal component K of the "
            "trajectory. Once for a line, twice for a plane (default: eigen:1).",
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_WHAT,
            help="Points on each axis, ends included (default: 41 on a line, 21 in a plane).",
        ),
    ] = None,
    span: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LO,HI",
            rich_help_panel=_WHAT,
            help="Ends of the axes in units of the directions, once for all or once for each "
            "(default: by the direction's kind).",
        ),
    ] = None,
    trajectory: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            rich_help_panel=_WHAT,
            help="Checkpoints of a training run, quoted: for pca:K, and drawn into the figure.",
        ),
    ] = None,
    plot: PlotOption = None,
    surface: Annotated[
        bool,
        typer.Option(
            "--surface", rich_help_panel=_WHAT, help="Draw a plane as a 3-D surface (--plot)."
        ),
    ] = False,
) -> None:
    """Evaluate the loss on a line or in a plane through each checkpoint.

    The excess loss at equidistant points, beside what gradient and Hessian at the checkpoint
    predict. A finer or wider grid computes only the points that are new; the same command again
    does nothing, an interrupted one continues.
    """
    from landscape.errors import UsageError
    from landscape.folders import expand_checkpoints, one_checkpoint
    from landscape.slices.options import SliceOptions, parse_span
    from landscape_cli.measuring import measure_checkpoints, read_named
    from landscape_cli.plot import drawing
    from landscape_cli.slice_job import SliceJob

    draw = drawing(plot, surface=surface)
    options = SliceOptions(
        along=tuple(along or ("eigen:1",)),
        points=points,
        spans=tuple(parse_span(text) for text in span or ()),
    )
    if surface and plot is None:
        raise UsageError("--surface: there is no figure; expected --plot FILE with it")
    if surface and len(options.along) < 2:
        raise UsageError("--surface: a line has no surface; expected --along twice, for a plane")
    others = [
        read_named(one_checkpoint(one.path, "--along to"), common)
        for one in options.directions
        if one.kind == "to"
    ]
    visited = [] if trajectory is None else expand_checkpoints([trajectory])
    job = SliceJob(
        options, others=others, trajectory=[read_named(path, common) for path in visited]
    )
    measure_checkpoints(checkpoints, common, job, then=draw)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "slice",
        epilog=examples(
            "landscape slice runs/step_001000.safetensors --task digits-mlp --plot line.png",
            "landscape slice runs/step_001000.safetensors --task digits-mlp --along eigen:1 "
            "--along eigen:2 --plot plane.png",
            "landscape slice a.pt --task my_task.py --along to:b.pt --along random",
            "landscape slice runs/step_001000.safetensors --task digits-mlp --along pca:1 "
            "--along pca:2 --trajectory 'runs/*.safetensors' --plot path.png --surface",
        ),
    )(slice_)
