"""The checkpoints of a training run: which steps, atomic safetensors files, one run a folder."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from landscape.errors import UsageError

__all__ = ["claim_folder", "log_spaced_steps", "write_checkpoint", "write_tensors"]

_NAME = re.compile(r"step_\d+\.safetensors")


def log_spaced_steps(steps: int, checkpoints: int) -> list[int]:
    """Steps to save at: 0 and the last, the others as even on a log scale as integers allow.

    Exactly ``checkpoints`` distinct steps, or all of 0 to ``steps`` where these are fewer. One
    checkpoint is the last step.

    Raises:
        UsageError: negative steps or no checkpoint.
    """
    if steps < 0:
        raise UsageError(f"steps {steps}: expected 0 or more")
    if checkpoints < 1:
        raise UsageError(f"checkpoints {checkpoints}: expected 1 or more")
    if checkpoints == 1:
        return [steps]
    later = min(checkpoints - 1, steps)
    chosen = [0]
    for place in range(later):
        ideal = steps ** (place / (later - 1)) if later > 1 else steps
        # Early ideal steps round to the same integer; each takes the next free one.
        latest = steps - (later - 1 - place)
        chosen.append(min(max(round(ideal), chosen[-1] + 1), latest))
    return chosen


def claim_folder(out: Path, run: Mapping[str, str], *, overwrite: bool) -> None:
    """Create the folder of a run's checkpoints, or check that it holds no other run's.

    Args:
        out: the folder.
        run: the metadata that all checkpoints of the run share and another run's do not.
        overwrite: delete another run's checkpoints, so that no series mixes two runs.

    Raises:
        UsageError: the folder cannot be written, it holds another run's checkpoints and
            ``overwrite`` is false, or it holds checkpoints that no training run here wrote.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = sorted(path for path in out.iterdir() if _NAME.fullmatch(path.name))
    except OSError as error:
        raise _unwritable(out, error) from None
    others = []
    for path in present:
        found = _metadata(path)
        if not run.keys() <= found.keys():
            raise UsageError(
                f"{str(path)!r} was not written by a training run of this program; it is left "
                "alone. Choose another output folder or move it away."
            )
        changed = [key for key, value in run.items() if found[key] != value]
        if changed:
            others.append(path)
            if not overwrite:
                raise UsageError(
                    f"{str(out)!r} holds checkpoints of another run: {path.name} differs in "
                    f"{', '.join(changed)} ({changed[0]} is {found[changed[0]]!r} there, "
                    f"{run[changed[0]]!r} here). Choose another output folder, or overwrite them "
                    "with --overwrite."
                )
    try:
        # Tried before the old run is given up.
        with tempfile.NamedTemporaryFile(dir=out, prefix=".step_", suffix=".tmp"):
            pass
        for path in others:
            path.unlink()
    except OSError as error:
        raise _unwritable(out, error) from None


def write_checkpoint(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Save a model's state dict, whole or not at all, under the name of its path.

    Of tensors that share memory (tied weights) only the first in the order of the state dict is
    kept, the one that ``named_parameters()`` names too.

    Raises:
        UsageError: the file cannot be written.
    """
    write_tensors(path, _untied(model), metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; equal contents give equal files.

    Args:
        path: the file, which is replaced where it exists.
        tensors: contiguous ones on the CPU that share no memory.
        metadata: strings by name.

    Raises:
        UsageError: the file cannot be written.
    """
    content = _canonical_header(save(dict(tensors), dict(metadata)))
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}_", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, without the later names of tied tensors."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    # keep_vars gives the parameters themselves, so that identity tells tied ones.
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[key] = tensor.detach().cpu().contiguous()
    return kept


def _canonical_header(content: bytes) -> bytes:
    """The same file with its header's keys sorted.

    safetensors writes the metadata in a random order, and equal runs are to give equal files.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the tensors to 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded + content[start:]


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{str(path)!r} cannot be written: {error.strerror or error}. Choose another output folder."
    )
