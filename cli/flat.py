"""``landscape flat``: how many directions are flat, and why."""

from typing import Annotated

import typer

from landscape_cli.options import (
    CheckpointsArgument,
    Common,
    PlotOption,
    examples,
    shared_options,
)
from landscape_cli.prior_options import (
    PRIOR_PANEL,
    CutoffOption,
    DryRunOption,
    MeanOption,
    SigmaOption,
)

__all__ = ["register"]

_WHAT = "Measurement"
_WALKS = 4  # Random null directions.


@shared_options(loss="behaviour", without=("compiled", "graph_memory"))
def flat(
    checkpoints: CheckpointsArgument,
    common: Common,
    prior: Annotated[
        str,
        typer.Option(
            metavar="gaussian",
            rich_help_panel=PRIOR_PANEL,
            help="Law of the parameters, whose width directions are compared with.",
        ),
    ] = "gaussian",
    mean: MeanOption = None,
    sigma: SigmaOption = None,
    cutoff: CutoffOption = "0.01",
    tol: Annotated[
        float,
        typer.Option(
            metavar="R",
            rich_help_panel=_WHAT,
            help="A value counts above this part of the largest: singular values of the Jacobian "
            "and of the factor of the GGN, absolute eigenvalues of the Hessian.",
        ),
    ] = 1e-10,
    multiplicity: Annotated[
        int,
        typer.Option(
            metavar="M",
            rich_help_panel=_WHAT,
            help="Multiplicity of the learning coefficient, which noisy values cannot tell.",
        ),
    ] = 1,
    walk: Annotated[
        bool,
        typer.Option(
            "--walk/--no-walk",
            rich_help_panel=_WHAT,
            help="Walk along four random null directions and see how far the behaviour stays the "
            "same; hundreds of Jacobians.",
        ),
    ] = False,
    examples_sweep: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            rich_help_panel=_WHAT,
            help="Null directions on the first N examples in one random order, too: does the count "
            "rest on too few of them?",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    plot: PlotOption = None,
) -> None:
    """Count flat directions by rank, by prior and by scale, and say which symmetries explain them.

    Every count names its definition, its tolerance and the gap around it. Exact in float64, up to
    4096 parameters. The same command again does nothing, an interrupted one continues; --walk and
    --examples-sweep add to the same file.
    """
    from landscape.flat.options import FlatOptions, parse_sizes
    from landscape.volume.options import parse_cutoffs
    from landscape_cli.flat_job import FlatJob
    from landscape_cli.measuring import measure_checkpoints
    from landscape_cli.plot import drawing

    draw = drawing(plot)
    options = FlatOptions(
        prior=prior,  # type: ignore[arg-type]  # checked by FlatOptions
        mean=mean,
        sigma=sigma,
        cutoffs=parse_cutoffs(cutoff),
        tol=tol,
        multiplicity=multiplicity,
        walks=_WALKS if walk else 0,
        sizes=() if examples_sweep is None else parse_sizes(examples_sweep),
    )
    if dry_run:
        FlatJob(options, common).show_plans(checkpoints, common)
        return
    measure_checkpoints(checkpoints, common, FlatJob(options, common), then=draw)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "flat",
        epilog=examples(
            "landscape flat runs/step_001000.safetensors --task digits-mlp --set width=4",
            "landscape flat 'runs/*.safetensors' --task my_task.py --plot flat.png",
            "landscape flat model.pt --task my_task.py --cutoff 1e-4:1e-1:7 --walk",
            "landscape flat model.pt --task my_task.py --examples-sweep 16,64,256",
        ),
    )(flat)
