"""Any checkpoint as a safetensors file, which holds tensors and strings and cannot run code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from landscape import __version__
from landscape.checkpoint import Checkpoint, choose_weights, read_checkpoint
from landscape.errors import CheckpointError, UsageError
from landscape.inert import read_without_code
from landscape.sniffing import reason, refuse
from landscape.training_files import write_tensors

__all__ = ["Conversion", "convert"]

_MAX_METADATA = 1000


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        checkpoint: what was read.
        left_out: classes and functions that the file names; none of them was loaded or run.
        written: False where the output was there already, with the same content.
    """

    checkpoint: Checkpoint
    left_out: tuple[str, ...]
    written: bool


def convert(
    source: str | os.PathLike[str],
    out: Path,
    *,
    weights_key: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the weights of a checkpoint to a safetensors file.

    Runs no code of the source: a pickle that names code is read with stand-ins for it. The
    metadata are the source's, with ``source``, ``source_sha256``, ``source_format``,
    ``weights_key`` and ``step`` where these are known.

    Args:
        source: a checkpoint of any format.
        out: the file to write; its name ends in ``.safetensors``.
        weights_key: where in the source the weights are.
        overwrite: replace another file of that name.

    Raises:
        UsageError: ``out`` exists with other content, is the source, or cannot be written.
        CheckpointError: the source cannot be read, or has tensors that safetensors cannot hold.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"output {str(out)!r}: expected a name that ends in .safetensors")
    if out.is_dir():
        raise UsageError(f"output {str(out)!r} is a folder; expected the name of a file in it")
    if out.exists() and os.path.exists(source) and os.path.samefile(source, out):
        raise UsageError(f"output {str(out)!r} is the checkpoint itself; choose another name")
    checkpoint, left_out = _read(os.fspath(source), weights_key)
    metadata = _metadata(checkpoint)
    if out.exists() and not overwrite:
        if _source_of(out) == (metadata["source_sha256"], metadata.get("weights_key")):
            return Conversion(checkpoint, left_out, written=False)
        raise UsageError(
            f"output {str(out)!r} exists and was not made from this checkpoint. Choose another "
            "name, or --overwrite"
        )
    tensors = {name: t.contiguous().clone() for name, t in checkpoint.tensors.items()}
    try:
        write_tensors(out, tensors, metadata)
    except UsageError:
        raise
    except Exception as error:
        seen = f"has tensors that safetensors cannot hold ({reason(error)})"
        raise refuse(checkpoint.path, seen, "Convert their type first", "plain ones") from error
    return Conversion(checkpoint, left_out, written=True)


def _read(path: str, weights_key: str | None) -> tuple[Checkpoint, tuple[str, ...]]:
    try:
        return read_checkpoint(path, weights_key=weights_key), ()
    except CheckpointError:
        if os.path.isdir(path):
            raise
        try:
            contents, left_out = read_without_code(path)
        except CheckpointError:
            contents = None
        if contents is None:
            raise
    return choose_weights(contents, path, weights_key), left_out


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    notes = list(checkpoint.metadata.items())[:_MAX_METADATA]
    kept = {key: value for key, value in notes if len(key) <= _MAX_METADATA}
    own = {
        "source": os.path.basename(os.path.abspath(checkpoint.path)),
        "source_sha256": checkpoint.sha256,
        "source_format": checkpoint.format,
        "converted_by": f"landscape {__version__}",
    }
    if checkpoint.weights_key is not None:
        own["weights_key"] = checkpoint.weights_key
    if checkpoint.step is not None:
        own["step"] = str(checkpoint.step)
    return kept | own


def _source_of(out: Path) -> tuple[str | None, str | None]:
    """What a file was converted from; None where it was not."""
    try:
        found = read_checkpoint(out).metadata
    except CheckpointError:
        return None, None
    return found.get("source_sha256"), found.get("weights_key")
