"""``landscape modules``: how strongly groups of parameters are coupled."""

from typing import Annotated

import typer

from landscape_cli.options import (
    CheckpointsArgument,
    Common,
    PlotOption,
    examples,
    shared_options,
)
from landscape_cli.prior_options import PRIOR_PANEL, DryRunOption, MeanOption, SigmaOption

__all__ = ["register"]

_WHAT = "Measurement"
_CUTOFF = 0.01


@shared_options(loss="behaviour", without=("compiled", "products"))
def modules(
    checkpoints: CheckpointsArgument,
    common: Common,
    groups: Annotated[
        str,
        typer.Option(
            metavar="layer|block|head|FILE.toml",
            rich_help_panel=_WHAT,
            help="Groups of parameters: of one layer, of one block such as blocks.0, of one "
            "attention head, or by a file of patterns.",
        ),
    ] = "layer",
    prior: Annotated[
        str,
        typer.Option(
            metavar="gaussian",
            rich_help_panel=PRIOR_PANEL,
            help="Law of the parameters, whose standard deviations are the units of the curvature.",
        ),
    ] = "gaussian",
    mean: MeanOption = None,
    sigma: SigmaOption = None,
    cutoff: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            rich_help_panel=_WHAT,
            help="Excess loss per example that chooses the tilt s: the mean of the quadratic "
            f"model under M = I + s A. Default {_CUTOFF}.",
        ),
    ] = None,
    tilt: Annotated[
        float | None,
        typer.Option(metavar="S", rich_help_panel=_WHAT, help="The tilt itself, without a cutoff."),
    ] = None,
    curvature: Annotated[
        str,
        typer.Option(
            metavar="auto|ggn|hessian",
            rich_help_panel=_WHAT,
            help="auto: the GGN with --loss behaviour, whose Hessian it is, else the Hessian.",
        ),
    ] = "auto",
    method: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|matrix-free",
            rich_help_panel=_WHAT,
            help="exact builds the matrix or its factor; auto does so where they are small.",
        ),
    ] = "auto",
    tol: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            rich_help_panel=_WHAT,
            help="Singular values above this part of the largest eigenvalue count towards a rank "
            "(default: 1e-10, in float32 1e-5, in bfloat16 0.05).",
        ),
    ] = None,
    sketch: Annotated[
        int,
        typer.Option(
            metavar="K",
            rich_help_panel=_WHAT,
            help="Matrix-free: test vectors of every group, for norms and ranks up to K - 4.",
        ),
    ] = 24,
    steps: Annotated[
        int,
        typer.Option(
            metavar="M",
            rich_help_panel=_WHAT,
            help="Matrix-free: Lanczos steps of every log-determinant.",
        ),
    ] = 60,
    probes: Annotated[
        int,
        typer.Option(
            metavar="P",
            rich_help_panel=_WHAT,
            help="Matrix-free: probes of the log-determinants; more of them continue the same "
            "file.",
        ),
    ] = 10,
    pairs: Annotated[
        bool | None,
        typer.Option(
            "--pairs/--no-pairs",
            rich_help_panel=_WHAT,
            help="Matrix-free: the coupling of every pair of groups (default: up to 12 groups).",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    plot: PlotOption = None,
) -> None:
    """Coupling between layers, blocks or attention heads: norms, ranks, correlations and nats.

    Of the whitened curvature A and the precision M = I + s A: every off-diagonal block, the
    coupling of every pair and in total with errors, Schur complements, and the extreme
    eigenvalues of the whole against those of the block-diagonal part. The same command again does
    nothing, an interrupted one continues.
    """
    from landscape.errors import UsageError
    from landscape.modules.options import ModulesOptions
    from landscape_cli.measuring import measure_checkpoints
    from landscape_cli.modules_job import ModulesJob
    from landscape_cli.plot import drawing

    draw = drawing(plot)
    if tilt is not None and cutoff is not None:
        raise UsageError(
            f"--tilt {tilt:g} --cutoff {cutoff:g}: a cutoff chooses the tilt; expected one of them"
        )
    options = ModulesOptions(
        groups=groups,
        prior=prior,  # type: ignore[arg-type]  # checked by ModulesOptions
        mean=mean,
        sigma=sigma,
        cutoffs=(_CUTOFF if cutoff is None else cutoff,),
        tilt=tilt,
        curvature=curvature,  # type: ignore[arg-type]  # checked by ModulesOptions
        method=method,  # type: ignore[arg-type]  # checked by ModulesOptions
        tol=tol,
        sketch=sketch,
        steps=steps,
        probes=probes,
        pairs=pairs,
    )
    if dry_run:
        ModulesJob(options, common).show_plans(checkpoints, common)
        return
    measure_checkpoints(checkpoints, common, ModulesJob(options, common), then=draw)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "modules",
        epilog=examples(
            "landscape modules runs/step_001000.safetensors --task digits-mlp",
            "landscape modules 'runs/*.safetensors' --task two-tasks --plot modules.png",
            "landscape modules model.pt --task my_task.py --groups head --budget 600",
            "landscape modules model.pt --task my_task.py --groups groups.toml --cutoff 1e-3",
        ),
    )(modules)
