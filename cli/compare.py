"""``landscape compare``: do two networks behave alike, and is there a barrier between them?"""

from typing import TYPE_CHECKING, Annotated

import typer

from landscape_cli.options import Common, PlotOption, examples, shared_options
from landscape_cli.prior_options import CutoffOption, MeanOption, SigmaOption

if TYPE_CHECKING:
    from landscape.volume.options import VolumeOptions

__all__ = ["register"]

_WHAT = "Measurement"
_CUTOFF = "0.01"
_ERROR = 1.0


@shared_options(without=("loss", "params", "compiled", "graph_memory", "products", "budget"))
def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="Checkpoint of network A (or a quoted glob of them).")
    ],
    common: Common,
    second: Annotated[
        str | None,
        typer.Argument(metavar="[B]", help="Checkpoint of network B (default: A, with --ablate)."),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE[:UNITS]=zero|mean|resample",
            rich_help_panel=_WHAT,
            help="Change what a module of B returns, or with weights:NAME[:ROWS]=... a parameter. "
            "resample takes it from other examples (repeatable).",
        ),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=_WHAT, help="Resamples behind the intervals."),
    ] = 1000,
    over: Annotated[
        str,
        typer.Option(
            metavar="examples|terms",
            rich_help_panel=_WHAT,
            help="What is drawn anew: examples with all their tokens, or single tokens.",
        ),
    ] = "examples",
    points: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=_WHAT,
            help="Points of the straight path between the weights; 0 for no path.",
        ),
    ] = 11,
    align: Annotated[
        str,
        typer.Option(
            metavar="weights|activations|none",
            rich_help_panel=_WHAT,
            help="A second path, after hidden units of B were matched to those of A: by the "
            "weights around them, or by the correlation of their activations on the data.",
        ),
    ] = "weights",
    eigenspaces: Annotated[
        int,
        typer.Option(
            metavar="K",
            rich_help_panel=_WHAT,
            help="Overlap of the spaces of the K largest eigenvalues of both Hessians; 0 for none.",
        ),
    ] = 0,
    volume: Annotated[
        str | None,
        typer.Option(
            metavar="behaviour|task|relabelled",
            rich_help_panel=_WHAT,
            help="Also the difference of log V under one Gaussian prior, by the quadratic model of "
            "this loss.",
        ),
    ] = None,
    mean: MeanOption = None,
    sigma: SigmaOption = None,
    cutoff: CutoffOption = _CUTOFF,
    error: Annotated[
        float,
        typer.Option(
            metavar="NATS",
            rich_help_panel=_WHAT,
            help="Probes are added until the standard error of each log V is at most so large.",
        ),
    ] = _ERROR,
    plot: PlotOption = None,
) -> None:
    """Compare two networks, or a network and its ablated copy: behaviour, loss and barrier.

    KL both ways and Jensen-Shannon with bootstrap intervals, agreement of predictions, excess task
    loss, and the barrier on the straight path between the weights, before and after hidden units
    are matched. The same command again does nothing, an interrupted one continues.
    """
    from landscape.compare.ablation import parse_ablations
    from landscape.compare.options import CompareOptions
    from landscape.errors import UsageError
    from landscape.folders import one_checkpoint
    from landscape_cli.compare_job import CompareJob
    from landscape_cli.measuring import measure_checkpoints, read_named
    from landscape_cli.plot import drawing

    draw = drawing(plot)
    options = CompareOptions(
        ablate=tuple(ablate or ()),
        bootstrap=bootstrap,
        over=over,  # type: ignore[arg-type]  # checked by CompareOptions
        points=points,
        align=align,  # type: ignore[arg-type]  # checked by CompareOptions, as the next
        eigenspaces=eigenspaces,
        volume=None if volume is None else _volume_options(mean, sigma, cutoff, error),
        volume_loss=volume or "behaviour",  # type: ignore[arg-type]
    )
    if volume is None and (mean, sigma, cutoff, error) != (None, None, _CUTOFF, _ERROR):
        raise UsageError(
            "--mean, --sigma, --cutoff and --error belong to the difference of log V; expected "
            "--volume behaviour with them"
        )
    parse_ablations(options.ablate)
    other = None
    if second is not None:
        other = read_named(one_checkpoint(second, "B"), common)
    measure_checkpoints([first], common, CompareJob(options, other, common), then=draw)


def _volume_options(
    mean: str | None, sigma: str | None, cutoff: str, error: float
) -> "VolumeOptions":
    from landscape.volume.options import VolumeOptions, parse_cutoffs

    return VolumeOptions(
        methods=("quadratic",),
        mean=mean,
        sigma=sigma,
        cutoffs=parse_cutoffs(cutoff),
        error=error,
    )


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "compare",
        epilog=examples(
            "landscape compare runs/step_000100.safetensors runs/step_001000.safetensors "
            "--task digits-mlp",
            "landscape compare a.pt b.pt --task my_task.py --plot compare.png",
            "landscape compare a.pt --task my_task.py --ablate blocks.0.mlp:3-5=resample",
            "landscape compare a.pt --task my_task.py --ablate weights:head.weight:0=zero",
            "landscape compare a.pt b.pt --task my_task.py --align activations --volume behaviour "
            "--sigma 0.1 --cutoff 1e-3,1e-2",
        ),
    )(compare)
