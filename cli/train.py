"""``landscape train``: train a built-in task, saving checkpoints along the way."""

from pathlib import Path
from typing import Annotated, Any

import typer

from landscape_cli.options import (
    DebugOption,
    JsonOption,
    QuietOption,
    SetOption,
    complete_builtin,
    examples,
)
from landscape_cli.reporting import REPORT, printable

__all__ = ["register", "training_table"]


def train(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", autocompletion=complete_builtin, help="A built-in task."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the checkpoints.")
    ],
    set_: SetOption = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Optimiser steps (default: the task's own).")
    ] = None,
    checkpoints: Annotated[
        int, typer.Option(metavar="K", help="Checkpoints at log-spaced steps, 0 and last included.")
    ] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of weights and minibatches.")] = 0,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to train.")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another run's checkpoints.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a built-in task and save checkpoints at log-spaced steps.

    Writes OUT/step_000000.safetensors and so on, with the step, the seed, the settings and the
    losses in each file's metadata. The same command writes the same files again.

    Tasks: digits-mlp, digits-cnn, modular-addition, char-lm, regression-mlp, two-tasks, sparse-mlp.
    """
    from landscape.task import parse_settings
    from landscape.training import train as run

    points = run(
        task,
        parse_settings(set_ or []),
        steps=steps,
        checkpoints=checkpoints,
        seed=seed,
        out=out,
        device=device,
        overwrite=overwrite,
        progress=lambda p: REPORT.say(f"step {p.step}: training loss {p.train_loss:.4g}"),
    )
    for point in points:
        REPORT.add(
            {
                "file": str(point.path),
                "checkpoint": str(point.path),
                "step": point.step,
                "status": "complete",
                "config": {"task": task, "seed": seed},
                "values": {
                    "train_loss": point.train_loss,
                    "test_loss": point.test_loss,
                    "train_accuracy": point.train_accuracy,
                    "test_accuracy": point.test_accuracy,
                },
                "warnings": [],
            }
        )
    REPORT.table(training_table(points))


def training_table(points: list[Any]) -> Any:
    """The checkpoints of a training run with their losses and accuracies."""
    from rich.table import Table

    table = Table()
    classified = points[0].train_accuracy is not None
    table.add_column("checkpoint")
    for column in ("step", "train loss", "test loss"):
        table.add_column(column, justify="right")
    if classified:
        table.add_column("train accuracy", justify="right")
        table.add_column("test accuracy", justify="right")
    for point in points:
        row = [printable(point.path), str(point.step)]
        row += [f"{point.train_loss:.4g}", f"{point.test_loss:.4g}"]
        if classified:
            row += [f"{point.train_accuracy:.1%}", f"{point.test_accuracy:.1%}"]
        table.add_row(*row)
    return table


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "train",
        epilog=examples(
            "landscape train digits-mlp -o runs/digits",
            "landscape train digits-mlp -o runs/wide --set width=64 --set activation=gelu --seed 1",
            "landscape train modular-addition -o runs/grok --checkpoints 20",
        ),
    )(train)
