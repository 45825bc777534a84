"""``landscape inspect``: what is in a checkpoint; runs no task code."""

import dataclasses
from typing import Annotated

import typer

from landscape_cli.options import DebugOption, JsonOption, QuietOption, examples
from landscape_cli.reporting import REPORT, printable

__all__ = ["register"]


def inspect(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A checkpoint: a file or a folder.")
    ],
    weights_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Where the weights are inside the checkpoint.")
    ] = None,
    unsafe_pickle: Annotated[
        bool,
        typer.Option("--unsafe-pickle", help="Load a checkpoint that may run code."),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Tensors, shapes, dtypes, parameter count, norms, NaN and Inf counts, metadata.

    Tells what wrote the checkpoint, and the command to go on with.

    Runs no code from the checkpoint or from a task: unsafe pickles are refused, and the globals
    they ask for are named.
    """
    from rich.table import Table

    from landscape.checkpoint import read_checkpoint
    from landscape.folders import one_checkpoint
    from landscape.origin import recognise
    from landscape.summary import summarise

    path = one_checkpoint(checkpoint, "inspect")
    REPORT.checkpoint = str(path)
    stored = read_checkpoint(path, weights_key=weights_key, unsafe_pickle=unsafe_pickle)
    summary, origin = summarise(stored), recognise(stored)
    for warning in summary.warnings:
        REPORT.warn(warning)
    REPORT.add(
        {
            "file": None,
            "checkpoint": str(path),
            "step": summary.step,
            "status": "complete",
            "config": {"weights_key": weights_key},
            "values": {**dataclasses.asdict(summary), "origin": dataclasses.asdict(origin)},
            "warnings": list(summary.warnings),
        }
    )
    table = Table(title=printable(path), title_justify="left")
    for column in ("tensor", "shape", "dtype", "norm", "NaN", "Inf"):
        text = column in ("tensor", "shape", "dtype")
        table.add_column(column, justify="left" if text else "right")
    for row in summary.tensors:
        shape = "x".join(map(str, row.shape)) or "scalar"
        bad = "[bold red]{}[/bold red]"
        table.add_row(
            printable(row.name),
            shape,
            row.dtype,
            f"{row.norm:.4g}",
            bad.format(row.nan) if row.nan else "0",
            bad.format(row.inf) if row.inf else "0",
        )
    facts = Table(show_header=False, box=None)
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("format", summary.format)
    if origin.library:
        facts.add_row("written by", printable(origin.library))
    facts.add_row("sha256", summary.sha256)
    facts.add_row("step", "unknown" if summary.step is None else str(summary.step))
    facts.add_row("parameters", f"{summary.n_parameters} (buffers of floating point included)")
    facts.add_row("size", f"{summary.n_bytes} bytes")
    facts.add_row("norm", f"{summary.norm:.6g}")
    facts.add_row("NaN / Inf", f"{summary.nan} / {summary.inf}")
    if summary.weights_key is not None:
        facts.add_row("weights key", printable(summary.weights_key))
    if summary.others:
        facts.add_row("other keys", printable(", ".join(summary.others)))
    for key, value in sorted(summary.metadata.items()):
        if key == "step":
            continue
        # safetensors files of PyTorch have a key "format" of their own: "pt".
        facts.add_row("metadata format" if key == "format" else printable(key), printable(value))
    facts.add_row("next", printable(origin.command))
    REPORT.table(table, facts)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "inspect",
        epilog=examples(
            "landscape inspect model.safetensors",
            "landscape inspect last.ckpt --weights-key state_dict --json",
            "landscape inspect models/gpt2",
        ),
    )(inspect)
