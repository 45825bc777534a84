"""Folders of checkpoints: which files are one checkpoint, which are a series, and their steps."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from landscape.errors import CheckpointError, UsageError
from landscape.paths import expand_paths
from landscape.sniffing import refuse, sniff
from landscape.text import natural_key, shown

__all__ = [
    "DISTRIBUTED",
    "INDEX",
    "SHARDED",
    "expand_checkpoints",
    "holds_checkpoints",
    "inner_file",
    "one_checkpoint",
    "series_in",
    "training_step",
    "weights_file",
]

DISTRIBUTED = ".metadata"
INDEX = ".index.json"
# What Hugging Face libraries call the weights, in the order in which they look for them.
_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")
_WEIGHTS = tuple(
    f"{stem}{end}{index}"
    for end in (".safetensors", ".bin")
    for stem in _STEMS
    for index in ("", INDEX)
)
_STEP_WORDS = (r"(?:global[_-]?)?step", r"iter(?:ation)?", r"(?:checkpoint|ckpt)")
_EPOCH = re.compile(r"(?<![a-z])epoch[_=-]?[0-9]")
_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
SHARDED = (
    "a folder of one checkpoint (model.safetensors, pytorch_model.bin, their index, .metadata), "
    "or of a series with steps in their names"
)


def weights_file(folder: str | os.PathLike[str]) -> str | None:
    """The file that makes a folder one checkpoint, by name; None where it is none.

    That is ``.metadata`` of a distributed checkpoint, the weights of a Hugging Face model, or the
    index of its shards.
    """
    return next(
        (n for n in (DISTRIBUTED, *_WEIGHTS) if os.path.isfile(os.path.join(folder, n))), None
    )


def inner_file(folder: str, name: object) -> str:
    """The path of a file that an untrusted folder names, which must lie in it.

    A link may lead to the ``blobs`` of the Hugging Face cache that the folder is a snapshot of, and
    nowhere else.

    Raises:
        CheckpointError: another place, or no regular file.
    """
    todo = "Copy or download all of it again"
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {*"/\\:\0"}
    if not plain:
        seen = f"names a file {shown([name])} outside of its folder"
        raise refuse(folder, seen, "Do not use it", "plain file names")
    path = os.path.join(folder, str(name))
    if not os.path.isfile(path):
        raise refuse(folder, f"lacks the file {shown([name])}", todo, "all files that it names")
    home, real = os.path.realpath(folder), os.path.realpath(path)
    allowed = [home]
    if os.path.basename(os.path.dirname(home)) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(os.path.dirname(home)), "blobs"))
    if os.path.dirname(real) not in allowed:
        seen = f"has a link {shown([name])} that leads out of it"
        raise refuse(folder, seen, "Copy the file itself there", "files of its own")
    return path


def series_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a training run in a folder, in natural order.

    They are files, or folders that are one checkpoint, with a step or an epoch in their names;
    others (``last.ckpt``, ``optimizer.pt``) are left out.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(folder) / entry.name
            numbered = _step_in(entry.name) is not None or _EPOCH.search(entry.name.lower())
            if numbered and not entry.name.startswith("."):
                whole = weights_file(path) is not None if entry.is_dir() else _is_weights(path)
                found += [path] if whole else []
    return sorted(found, key=lambda path: natural_key(path.name))


def holds_checkpoints(path: str) -> bool:
    """Whether a path is a folder that is one checkpoint or holds a series; one level, no error."""
    try:
        return os.path.isdir(path) and bool(weights_file(path) or series_in(path))
    except OSError:
        return False


def _is_weights(path: Path) -> bool:
    """Whether a file looks like a checkpoint; a damaged one counts, so that it is not passed by."""
    if path.name.endswith(_ENDINGS):
        return True
    try:
        with open(path, "rb") as file:
            return bool(sniff(file.read(4096), path.stat().st_size, str(path)))
    except (OSError, CheckpointError):
        return False


def expand_checkpoints(patterns: Sequence[str]) -> list[Path]:
    """The checkpoints that paths and glob patterns stand for, in the order given, each once.

    A path that exists is taken literally, whatever characters it has; matches of one pattern are
    in natural order. A folder that is not one checkpoint stands for the series in it.

    Raises:
        UsageError: a path that does not exist, a pattern without a match, or a folder that is both
            a checkpoint and a series.
    """
    found = expand_paths(patterns, what="checkpoint", expected="a file or a quoted glob pattern")
    if not found:
        raise UsageError("no checkpoint given; expected a file or a quoted glob pattern. Name one")
    each: dict[str, Path] = {}
    for path in found:
        for member in _members(path):
            each.setdefault(os.path.abspath(member), member)
    return list(each.values())


def _members(path: Path) -> list[Path]:
    try:
        series = series_in(path) if path.is_dir() else []
    except OSError as error:
        raise refuse(
            str(path), f"cannot be read ({error.strerror})", "Check its permissions"
        ) from error
    own = weights_file(path) if series else None
    if own:
        raise UsageError(
            f"{str(path)!r} holds {shown([own])} and a series ({shown(p.name for p in series)}); "
            f"expected one of them. Name {str(path / own)!r}, or the series by a quoted glob such "
            f"as {str(path / re.sub('[0-9]+', '*', series[0].name))!r}"
        )
    return series or [path]


def training_step(path_or_name: str | os.PathLike[str], metadata: Mapping[str, str]) -> int | None:
    """The training step from the metadata, else from the name; None where neither tells it.

    Metadata ``step`` or ``global_step``; in the name ``step_100``, ``step=100``, ``iter100``,
    ``checkpoint-100``, ``ckpt_100``, digits alone, or a parent folder such as ``checkpoint-100``.
    An epoch is not a step.
    """
    for key in ("step", "global_step"):
        if match := re.fullmatch(r"\s*([0-9]{1,18})(?:\.0*)?\s*", metadata.get(key, "")):
            return int(match[1])
    path = Path(path_or_name)
    step = _step_in(path.name)
    if step is None:
        for word in _STEP_WORDS:
            if match := re.fullmatch(word + _NUMBER, path.parent.name.lower()):
                return int(match[1])
    return step


_NUMBER = r"[_=-]?([0-9]{1,18})"


def _step_in(name: str) -> int | None:
    stem = Path(name).stem.lower()
    if re.fullmatch(r"[0-9]{1,18}", stem):
        return int(stem)
    for word in _STEP_WORDS:
        if found := re.findall(rf"(?<![a-z]){word}{_NUMBER}(?!\.?[0-9]|[a-z])", stem):
            return int(found[-1])
    return None


def one_checkpoint(pattern: str, command: str) -> Path:
    """The only checkpoint that a pattern stands for, for a command that takes one.

    Raises:
        UsageError: as :func:`expand_checkpoints`, or there are several.
    """
    paths = expand_checkpoints([pattern])
    if len(paths) != 1:
        raise UsageError(
            f"{pattern!r} matches {len(paths)} checkpoints; {command} takes one. "
            f"Name one: {shown(paths)}"
        )
    return paths[0]
