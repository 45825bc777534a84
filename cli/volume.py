"""``landscape volume``: how much of the prior's mass a basin holds."""

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


@shared_options(loss="behaviour", without=("compiled", "products"))
def volume(
    checkpoints: CheckpointsArgument,
    common: Common,
    prior: Annotated[
        str,
        typer.Option(
            metavar="gaussian|uniform", rich_help_panel=PRIOR_PANEL, help="Law of the parameters."
        ),
    ] = "gaussian",
    mean: MeanOption = None,
    sigma: SigmaOption = None,
    uniform: Annotated[
        str | None,
        typer.Option(
            metavar="box|ball", rich_help_panel=PRIOR_PANEL, help="Shape of a uniform prior (box)."
        ),
    ] = None,
    half_width: Annotated[
        float | None,
        typer.Option(
            metavar="H",
            rich_help_panel=PRIOR_PANEL,
            help="Half-width of the box, or radius of the ball, in the parameters' units.",
        ),
    ] = None,
    cutoff: CutoffOption = "0.01",
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|quadratic|radial|anneal",
            rich_help_panel=_WHAT,
            help="quadratic: exact for the quadratic model. radial: rays to the true boundary. "
            "anneal: Monte Carlo from the prior and from the checkpoint, the reference. auto "
            "(default): all, but anneal only where it takes few gradients (repeatable).",
        ),
    ] = None,
    curvature: Annotated[
        str,
        typer.Option(
            metavar="auto|ggn|hessian",
            rich_help_panel=_WHAT,
            help="Matrix of the quadratic model; auto: the GGN for behaviour, whose Hessian it is.",
        ),
    ] = "auto",
    exact: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|lanczos",
            rich_help_panel=_WHAT,
            help="exact builds the matrix or its factor; auto does so up to 4096 rows.",
        ),
    ] = "auto",
    samples: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=_WHAT, help="Rays; more of them continue the same file."
        ),
    ] = 200,
    error: Annotated[
        float,
        typer.Option(
            metavar="NATS",
            rich_help_panel=_WHAT,
            help="Add rays, probes and runs until the standard error is at most this.",
        ),
    ] = 1.0,
    chains: Annotated[
        int,
        typer.Option(
            metavar="C",
            rich_help_panel=_WHAT,
            help="Particles of a run of anneal, a multiple of 8, at least 32.",
        ),
    ] = 64,
    tether: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            rich_help_panel=_WHAT,
            help="Only the part within R prior standard deviations (rms over parameters).",
        ),
    ] = None,
    directions: Annotated[
        str,
        typer.Option(
            metavar="tilted|symmetric",
            rich_help_panel=_WHAT,
            help="Law of the rays: tilted by the curvature, or symmetric about the checkpoint (for "
            "comparison: it misses by far where the prior is centred elsewhere).",
        ),
    ] = "tilted",
    top: Annotated[
        int,
        typer.Option(
            metavar="K", rich_help_panel=_WHAT, help="Eigenpairs deflated on the matrix-free path."
        ),
    ] = 100,
    steps: Annotated[
        int,
        typer.Option(metavar="M", rich_help_panel=_WHAT, help="Lanczos steps per probe there."),
    ] = 40,
    probes: Annotated[
        int, typer.Option(metavar="P", rich_help_panel=_WHAT, help="Random probes there, at least.")
    ] = 10,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/M",
            rich_help_panel=_WHAT,
            help="The I-th of M shares of the rays; landscape collect --merge joins the files.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    plot: PlotOption = None,
) -> None:
    """Log of the prior's mass whose excess loss is below a cutoff, with its interval.

    quadratic is exact for the quadratic model of the loss, radial samples the star-shaped region
    around the checkpoint with importance weights and says when it is only a lower bound, anneal
    follows chains from the prior into the basin and believes them only where chains that start at
    the checkpoint agree. The same command again does nothing, an interrupted one continues.
    """
    from landscape.volume.options import VolumeOptions, parse_cutoffs, parse_shard
    from landscape_cli.measuring import measure_checkpoints
    from landscape_cli.plot import drawing
    from landscape_cli.volume_job import VolumeJob

    draw = drawing(plot)
    options = VolumeOptions(
        prior=prior,  # type: ignore[arg-type]  # checked by VolumeOptions, as the next
        mean=mean,
        sigma=sigma,
        uniform=uniform,  # type: ignore[arg-type]
        half_width=half_width,
        cutoffs=parse_cutoffs(cutoff),
        methods=tuple(dict.fromkeys(method or ["auto"])),
        curvature=curvature,  # type: ignore[arg-type]
        exact=exact,  # type: ignore[arg-type]
        top=top,
        steps=steps,
        probes=probes,
        samples=samples,
        chains=chains,
        error=error,
        tether=tether,
        directions=directions,  # type: ignore[arg-type]
        shard=None if shard is None else parse_shard(shard),
    )
    if dry_run:
        VolumeJob(options, common).show_plans(checkpoints, common)
        return
    measure_checkpoints(checkpoints, common, VolumeJob(options, common), then=draw)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "volume",
        epilog=examples(
            "landscape volume runs/step_001000.safetensors --task digits-mlp",
            "landscape volume 'runs/*.safetensors' --task digits-mlp --cutoff 1e-4:1:13",
            "landscape volume model.pt --task my_task.py --sigma init --plot volume.png",
            "landscape volume model.pt --task my_task.py --method anneal --budget 1e6grad",
            "landscape volume model.pt --task my_task.py --dry-run",
        ),
    )(volume)
