"""``sweep.toml``: which checkpoints are measured by which commands with which options."""

from __future__ import annotations

import itertools
import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import UsageError
from landscape.folders import expand_checkpoints
from landscape.resources import Resources, read_resources

__all__ = ["COMMANDS", "OptionSpec", "Run", "Sweep", "read_sweep"]

COMMANDS = ("hessian", "volume", "flat", "modules", "information", "slice")
_KEYS = {"checkpoints", "task", "set", "out", "runs", "resources"}
# The sweep sets these itself, or they make no sense for a unit of work.
_RESERVED = {"task", "set", "out", "overwrite", "json", "config", "quiet", "debug", "budget"}
_RESERVED |= {"plot", "dry-run", "shard", "strict", "help"}


@dataclass(frozen=True, kw_only=True)
class OptionSpec:
    """How a command line takes one option: as a flag, with a way to negate it, several times."""

    flag: bool
    negation: str | None
    repeatable: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """One command with one combination of options, as a person names it and as arguments."""

    command: str
    label: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep file; all paths are absolute but ``task``, which is relative to the file."""

    file: Path
    checkpoints: tuple[Path, ...]
    task: str
    settings: tuple[str, ...]
    out: Path
    runs: tuple[Run, ...]
    resources: Resources


def read_sweep(file: Path, known: Mapping[str, Mapping[str, OptionSpec]]) -> Sweep:
    """Read and check a sweep file.

    Args:
        file: the TOML file.
        known: for every command, how it takes each of its options (names without ``--``).

    Raises:
        UsageError: the file is unreadable, has an unknown or a wrong key, or matches no checkpoint.
    """
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: not readable as TOML ({error}). Correct the file") from error
    for key in content:
        if key not in _KEYS:
            raise _wrong(file, key, "an unknown key", f"one of {', '.join(sorted(_KEYS))}")
    folder = file.absolute().parent
    patterns = _typed(file, content, "checkpoints", list, "a list of paths or globs")
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise _wrong(file, "checkpoints", repr(patterns), "a list of paths or globs")
    try:
        found = expand_checkpoints(
            [os.path.join(folder, os.path.expanduser(pattern)) for pattern in patterns]
        )
    except UsageError as error:
        raise UsageError(f"{file}: checkpoints: {error}") from error
    settings = _typed(file, content, "set", dict, "a table of task arguments", {})
    resources = read_resources(
        _typed(file, content, "resources", dict, "a table", {}),
        lambda key, seen, expected: _wrong(file, f"resources: {key}", seen, expected),
    )
    entries = _typed(file, content, "runs", list, "[[runs]] entries")
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(file, "runs", repr(entries), "at least one [[runs]] entry")
    runs = [run for i, entry in enumerate(entries, 1) for run in _runs(file, i, entry, known)]
    return Sweep(
        file=file,
        checkpoints=tuple(path.absolute() for path in found),
        task=_typed(file, content, "task", str, "a task, as --task takes it"),
        settings=tuple(f"{k}={_literal(file, 'set', k, v)}" for k, v in settings.items()),
        out=folder / _typed(file, content, "out", str, "a folder", "results"),
        runs=tuple(dict.fromkeys(runs)),
        resources=resources,
    )


def _runs(
    file: Path, number: int, entry: dict[str, Any], known: Mapping[str, Mapping[str, OptionSpec]]
) -> Iterator[Run]:
    where = f"runs {number}"
    options = dict(entry)
    command = options.pop("command", None)
    if command == "compare":
        raise _wrong(
            file,
            f"{where}: command",
            "'compare', whose second network a sweep cannot name",
            f"one of {', '.join(COMMANDS)} (landscape compare takes a glob of checkpoints itself)",
        )
    if command not in COMMANDS:
        raise _wrong(file, f"{where}: command", repr(command), f"one of {', '.join(COMMANDS)}")
    specs = known[command]
    for name in options:
        if name in _RESERVED or name not in specs:
            raise _wrong(
                file,
                f"{where}: {name}",
                "no option that a sweep can set",
                f"an option of landscape {command}, without --",
            )
    if "sigma" in specs:
        for sigma in _choices(options.get("sigma", "rms")):
            if sigma != "init" and (isinstance(sigma, bool) or not isinstance(sigma, int | float)):
                # Other rules take the prior from the checkpoint, of which each unit has its own.
                raise _wrong(
                    file,
                    f"{where}: sigma",
                    repr(sigma),
                    "a number or 'init', so that all checkpoints have one prior",
                )
    for values in itertools.product(*(_choices(value) for value in options.values())):
        arguments: list[str] = []
        for (name, choices), value in zip(options.items(), values, strict=True):
            if choices == []:
                raise _wrong(file, f"{where}: {name}", "an empty list", "a value or several")
            arguments += _arguments(file, f"{where}: {name}", name, value, specs[name])
        label = " ".join([command, *arguments])
        yield Run(command=command, label=label, arguments=tuple(arguments))


def _choices(value: Any) -> list[Any]:
    # An empty list must not make the whole product vanish before it is refused.
    return (value or [None]) if isinstance(value, list) else [value]


def _arguments(file: Path, where: str, name: str, value: Any, spec: OptionSpec) -> list[str]:
    if spec.flag:
        if not isinstance(value, bool):
            raise _wrong(file, where, repr(value), "true or false")
        return [f"--{name}"] if value else [spec.negation] if spec.negation else []
    if isinstance(value, list):
        if not spec.repeatable:
            raise _wrong(file, where, repr(value), "one value: the option is not repeatable")
        return [part for item in value for part in _arguments(file, where, name, item, spec)]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(file, where, repr(value), "a number or a string")
    return [f"--{name}={value}"]


def _literal(file: Path, where: str, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # The command line reads TOML first: quotes keep "3" a string.
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise _wrong(file, f"{where}: {name}", repr(value), "a number, a string, true or false")


def _typed(
    file: Path, content: dict[str, Any], key: str, kind: type, expected: str, default: Any = None
) -> Any:
    value = content.get(key, default)
    if not isinstance(value, kind):
        seen = "no such key" if value is None else repr(value)
        raise _wrong(file, key, seen, expected)
    return value


def _wrong(file: Path, key: str, seen: str, expected: str) -> UsageError:
    return UsageError(f"{file}: {key}: {seen}; expected {expected}. Correct the file")
