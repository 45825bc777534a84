"""``landscape information``: what the data distinguish, and what a non-zero loss brings in."""

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


@shared_options(without=("compiled", "products", "budget"))
def information(
    checkpoints: CheckpointsArgument,
    common: Common,
    tol: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            rich_help_panel=_WHAT,
            help="A singular value counts above this part of the largest, an eigenvalue of H as "
            "negative below minus that (default: 1e-10, in float32 1e-5).",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|probes",
            rich_help_panel=_WHAT,
            help="Build H and the GGN, or estimate their norms; auto builds up to 4096 parameters.",
        ),
    ] = "auto",
    probes: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=_WHAT,
            help="Random vectors behind every estimated norm; more continue the same file.",
        ),
    ] = 16,
    steps: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=_WHAT,
            help="Lanczos steps in search of negative eigenvalues where H is not built; 0 for "
            "none.",
        ),
    ] = 100,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESULT",
            rich_help_panel=_WHAT,
            help="Results of volume, flat or hessian of the same checkpoints, or a quoted glob: "
            "rank correlations of log V, N_eff and others with the effective ranks (repeatable).",
        ),
    ] = None,
    plot: PlotOption = None,
) -> None:
    """What the data distinguish: gradients of single examples, activations, and H = GGN + residual.

    Spectrum and effective ranks of the Gram matrix of the gradients, in all and by layer; ranks of
    the activations; distinct examples; norms of the Hessian, the GGN and what a non-zero loss adds
    to it; negative eigenvalues. The same command again does nothing, an interrupted one continues.
    """
    from landscape.information.options import InformationOptions
    from landscape_cli.information_job import InformationJob
    from landscape_cli.information_series import Against, show_series
    from landscape_cli.measuring import measure_checkpoints
    from landscape_cli.plot import drawing

    draw = drawing(plot)
    options = InformationOptions(
        tol=tol,
        method=method,  # type: ignore[arg-type]  # checked by InformationOptions
        probes=probes,
        steps=steps,
    )
    others = None if against is None else Against(against, checkpoints, common)
    job = InformationJob(options)

    def show(files: list[Path]) -> None:
        if others is not None:
            others.report(job.results, files)
        elif len(job.results) > 1:
            show_series(job.results)
        draw(files)

    measure_checkpoints(checkpoints, common, job, then=show)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "information",
        epilog=examples(
            "landscape information runs/step_001000.safetensors --task digits-mlp",
            "landscape information model.pt --task my_task.py --examples 1000 --plot info.png",
            "landscape information model.pt --task my_task.py --loss behaviour",
            "landscape information 'runs/*.safetensors' --task my_task.py --against "
            "'results/*.flat.*.h5' --against 'results/*.volume.*.h5'",
        ),
    )(information)
