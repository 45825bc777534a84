"""``landscape convert``: the safe way out of pickles."""

from pathlib import Path
from typing import Annotated

import typer

from landscape_cli.options import DebugOption, JsonOption, QuietOption, ReplaceOption, examples
from landscape_cli.reporting import REPORT, printable

__all__ = ["register"]


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A checkpoint: a file or a folder.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", help="The safetensors file to write.")
    ],
    weights_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Where the weights are inside the checkpoint.")
    ] = None,
    overwrite: ReplaceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a checkpoint's weights to a safetensors file, which cannot run code.

    Runs no code of the checkpoint: what a pickle names beside tensors is left out, and named. The
    weights of a module that was pickled whole are found too.
    """
    from landscape.conversion import convert as run
    from landscape.folders import one_checkpoint
    from landscape.text import shown

    path = one_checkpoint(checkpoint, "convert")
    REPORT.checkpoint = str(path)
    done = run(path, out, weights_key=weights_key, overwrite=overwrite)
    warnings = []
    if done.left_out:
        warnings = [f"left out and not run: {shown(done.left_out, 20)}"]
        REPORT.warn(warnings[0])
    count = len(done.checkpoint.tensors)
    if done.written:
        REPORT.say(f"{printable(out)}: {count} tensors of {printable(path)}")
    else:
        REPORT.say(f"{printable(out)} is up to date; nothing to do")
    REPORT.add(
        {
            "file": str(out),
            "checkpoint": str(path),
            "step": done.checkpoint.step,
            "status": "complete",
            "config": {"weights_key": weights_key},
            "values": {
                "tensors": count,
                "source_sha256": done.checkpoint.sha256,
                "source_format": done.checkpoint.format,
                "weights_key": done.checkpoint.weights_key,
                "left_out": list(done.left_out),
                "written": done.written,
            },
            "warnings": warnings,
        }
    )


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "convert",
        epilog=examples(
            "landscape convert last.ckpt last.safetensors",
            "landscape convert run.pt ema.safetensors --weights-key ema",
            "landscape convert checkpoints/step_000100 step_000100.safetensors",
        ),
    )(convert)
