"""``landscape init-task``: a commented task file to complete."""

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import DebugOption, JsonOption, QuietOption, examples
from landscape_cli.reporting import REPORT, printable

__all__ = ["register"]


def init_task(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A checkpoint: a file or a folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.py", help="The task file to write.")
    ] = Path("task.py"),
    weights_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Where the weights are inside the checkpoint.")
    ] = None,
    unsafe_pickle: Annotated[
        bool,
        typer.Option("--unsafe-pickle", help="Load a checkpoint that may run code."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that exists.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a commented task file for a checkpoint, its architecture guessed from the shapes.

    A plain sequence of layers loads the checkpoint as it stands; the activation, the data and the
    criterion are yours to complete. Of other networks the file lists the modules.
    """
    from landscape.checkpoint import read_checkpoint
    from landscape.errors import UsageError
    from landscape.folders import expand_checkpoints
    from landscape.origin import recognise
    from landscape.skeleton import task_skeleton

    paths = expand_checkpoints([checkpoint])  # Of a series, the architecture is the same.
    REPORT.checkpoint = str(paths[0])
    if out.suffix != ".py":
        raise UsageError(f"--out {out}: expected a name that ends in .py")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(f"--out {out} exists. Choose another name, or --overwrite")
    stored = read_checkpoint(paths[0], weights_key=weights_key, unsafe_pickle=unsafe_pickle)
    skeleton = task_skeleton(stored.tensors, checkpoint=str(paths[0]), file=str(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(skeleton.text, "utf-8")
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written ({error.strerror or error}). Choose another name"
        ) from error
    REPORT.say(f"{printable(out)}: {printable(skeleton.guess)}; complete what is marked TODO")
    origin = recognise(stored)
    if origin.task is not None:
        REPORT.say(
            f"{printable(origin.library)}: {origin.task} needs no task file: "
            f"{printable(origin.command)}"
        )
    REPORT.add(
        {
            "file": str(out),
            "checkpoint": str(paths[0]),
            "step": stored.step,
            "status": "complete",
            "config": {"weights_key": weights_key},
            "values": {"guess": skeleton.guess, "runs": skeleton.runs},
            "warnings": [],
        }
    )


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "init-task",
        epilog=examples(
            "landscape init-task my_model.pt -o task.py",
            "landscape check my_model.pt --task task.py",
        ),
    )(init_task)
