"""``landscape hessian``: the spectrum of the Hessian around checkpoints."""

from typing import Annotated

import typer

from landscape_cli.options import (
    CheckpointsArgument,
    Common,
    LogDetOption,
    PlotOption,
    ThresholdOption,
    examples,
    shared_options,
)

__all__ = ["register"]

_WHAT = "Measurement"


@shared_options()
def hessian(
    checkpoints: CheckpointsArgument,
    common: Common,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_WHAT,
            help="hessian (default), ggn, fisher, empirical-fisher, residual (repeatable).",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", rich_help_panel=_WHAT, help="Largest eigenvalues (default 10)."),
    ] = None,
    bottom: Annotated[
        int, typer.Option(metavar="K", rich_help_panel=_WHAT, help="Smallest eigenvalues.")
    ] = 0,
    tol: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            rich_help_panel=_WHAT,
            help="Largest residual over the largest |eigenvalue| (default 1e-6 in float32, 1e-8 "
            "in float64).",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|lanczos",
            rich_help_panel=_WHAT,
            help="exact builds the matrix and finds every eigenvalue; auto does so up to 4096 "
            "parameters.",
        ),
    ] = "auto",
    density: Annotated[
        bool,
        typer.Option(rich_help_panel=_WHAT, help="Spectral density, trace and negative mass."),
    ] = True,
    steps: Annotated[
        int,
        typer.Option(metavar="M", rich_help_panel=_WHAT, help="Lanczos steps per probe."),
    ] = 100,
    probes: Annotated[
        int,
        typer.Option(
            metavar="P",
            rich_help_panel=_WHAT,
            help="Random probes of the density; more of them continue the same file.",
        ),
    ] = 8,
    error: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            rich_help_panel=_WHAT,
            help="Add probes until the trace is known to this relative error (95%), such as 0.02.",
        ),
    ] = None,
    multiplicity: Annotated[
        str,
        typer.Option(
            metavar="auto|always",
            rich_help_panel=_WHAT,
            help="always: look for further copies of every wanted eigenvalue; auto: of zeros.",
        ),
    ] = "auto",
    per_module: Annotated[
        bool,
        typer.Option(
            "--per-module", rich_help_panel=_WHAT, help="The diagonal block of every layer, too."
        ),
    ] = False,
    log_det: LogDetOption = None,
    threshold: ThresholdOption = None,
    save_vectors: Annotated[
        bool,
        typer.Option("--save-vectors", rich_help_panel=_WHAT, help="Store the eigenvectors."),
    ] = False,
    plot: PlotOption = None,
) -> None:
    """Eigenvalues, spectral density and trace of the Hessian, each with its error.

    Eigenvalues carry their residual |Hv - θv|, stochastic quantities a standard error over
    probes. One result file is written per checkpoint; the same command again does nothing, and an
    interrupted one continues where it was.
    """
    from landscape.hessian import HessianOptions
    from landscape_cli.hessian_job import HessianJob
    from landscape_cli.measuring import measure_checkpoints
    from landscape_cli.plot import drawing
    from landscape_cli.render import Sums

    draw = drawing(plot)
    options = HessianOptions(
        operators=tuple(dict.fromkeys(operator or ["hessian"])),
        top=top,
        bottom=bottom,
        tol=tol,
        method=_method(method),
        density=density,
        steps=steps,
        probes=probes,
        error=error,
        multiplicity=multiplicity,  # type: ignore[arg-type]  # checked by HessianOptions
        per_module=per_module,
        save_vectors=save_vectors,
    )
    sums = Sums.of(log_det, threshold)
    measure_checkpoints(checkpoints, common, HessianJob(options, sums), then=draw)


def _method(name: str):  # type: ignore[no-untyped-def]  # a Literal once checked
    from landscape.errors import UsageError

    if name not in ("auto", "exact", "lanczos"):
        raise UsageError(f"--method {name!r}: expected auto, exact or lanczos")
    return name


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "hessian",
        epilog=examples(
            "landscape hessian runs/step_001000.safetensors --task digits-mlp",
            "landscape hessian 'runs/*.safetensors' --task digits-mlp --operator ggn --top 20",
            "landscape hessian model.pt --task my_task.py --set width=64 --plot spectrum.png",
        ),
    )(hessian)
