"""``landscape demo``: from nothing to figures of a real network's loss in about a minute."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import Common, DebugOption, JsonOption, QuietOption, examples
from landscape_cli.reporting import REPORT, printable

__all__ = ["register"]


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to write checkpoints and results.")
    ] = Path("landscape-demo"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the training run.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a small network on real digits and measure its Hessian and basin along the way.

    Trains digits-mlp (scikit-learn's handwritten digits), computes the spectrum and the log-volume
    at several checkpoints, and writes result files and figures. About a minute on two cores.
    """
    from landscape.hessian import HessianOptions
    from landscape.plotting import plot_results
    from landscape.store import load
    from landscape.training import train
    from landscape.volume.options import VolumeOptions
    from landscape_cli.hessian_job import HessianJob
    from landscape_cli.measuring import measure_checkpoints
    from landscape_cli.render import Sums
    from landscape_cli.train import training_table
    from landscape_cli.volume_job import VolumeJob

    runs, results = folder / "checkpoints", folder / "results"
    REPORT.say("[bold]1. training[/bold] digits-mlp on 8x8 handwritten digits")
    points = train("digits-mlp", seed=seed, checkpoints=5, out=runs)
    REPORT.table(training_table(points))
    REPORT.say(f"[bold]2. Hessian spectra[/bold] of {len(points)} checkpoints (a few seconds each)")
    paths = [str(point.path) for point in points]
    common = Common(task="digits-mlp", out=results, json=json, quiet=quiet, seed=seed)
    with REPORT.without_tables():
        files = measure_checkpoints(paths, common, HessianJob(HessianOptions(), Sums()))
    spectra, volumes = folder / "spectrum.png", folder / "volume.png"
    plot_results(files, spectra)
    REPORT.table(_table([load(file) for file in files]))
    REPORT.say("[bold]3. log-volumes[/bold] under a Gaussian prior (a few seconds each)")
    options = VolumeOptions(cutoffs=(1e-3, 1e-2, 1e-1), samples=64)
    behaviour = dataclasses.replace(common, loss="behaviour")
    with REPORT.without_tables():
        basins = measure_checkpoints(paths, behaviour, VolumeJob(options, behaviour))
    plot_results(basins, volumes)
    REPORT.table(_volumes([load(file) for file in basins]))
    last = points[-1].path
    REPORT.table(
        "\n".join(
            (
                f"[bold]figures[/bold]  {printable(spectra)}, {printable(volumes)}",
                f"[bold]results[/bold]  {printable(results)}/*.h5",
                "",
                "[bold]What to try next[/bold]",
                f"  landscape show {printable(files[-1])}",
                f"  landscape check {printable(last)} --task digits-mlp",
                f"  landscape hessian {printable(last)} --task digits-mlp --operator ggn",
                f"  landscape volume {printable(last)} --task digits-mlp --cutoff 1e-4:1:13",
                "  landscape train modular-addition -o runs/grok",
                "  landscape hessian model.pt --task my_task.py        # your own network",
            )
        )
    )


def _table(results: list[object]) -> object:
    from rich.table import Table

    from landscape.results import HessianResult

    table = Table(title="Hessian of the training loss", title_justify="left")
    for column in ("step", "loss", "largest", "smallest", "trace", "negative mass"):
        table.add_column(column, justify="right")
    for result in results:
        if not isinstance(result, HessianResult):
            continue
        spectrum, moments = result.spectra["hessian"], result.moments["hessian"]
        table.add_row(
            str(result.info.step),
            f"{result.info.loss:.4g}",
            f"{spectrum.eigenvalues[0]:.4g}",
            f"{spectrum.eigenvalues[-1]:.2g}",
            f"{moments.trace.value:.4g}",
            f"{moments.negative_mass.value:.1%}",
        )
    return table


def _volumes(results: list[object]) -> object:
    from rich.table import Table

    from landscape.volume.records import VolumeResult

    table = Table(
        title="log V in nats where outputs change by at most a KL of 0.01", title_justify="left"
    )
    for column in ("step", "quadratic", "radial", "steep", "intermediate", "flat"):
        table.add_column(column, justify="right")
    for result in results:
        if not isinstance(result, VolumeResult) or result.directions is None:
            continue
        place = list(result.directions.cutoff).index(0.01)
        quadratic, radial = result.estimates["quadratic"], result.estimates["radial"]
        star = f"{radial.log_volume[place]:.1f}"
        if radial.lower_bound[place]:
            star = f"≥ {radial.lower[place]:.1f}"
        table.add_row(
            str(result.info.step),
            f"{quadratic.log_volume[place]:.1f}",
            star,
            *(f"{count:.0f}" for count in result.directions.counts()[place]),
        )
    return table


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "demo", epilog=examples("landscape demo", "landscape demo /tmp/first-look --seed 3")
    )(demo)
