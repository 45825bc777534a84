"""``[resources]`` of a sweep file: what a Slurm job of one unit asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Resources", "read_resources"]

# Slurm's own forms: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_MEMORY = re.compile(r"(\d+)\s*([KMGT])i?B?", re.IGNORECASE)
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
# Set from other keys, or what the commands rely on.
_OWN = {"time", "mem", "cpus-per-task", "gpus-per-node", "partition", "account", "array", "signal"}
_OWN |= {"output", "error", "open-mode", "job-name", "nodes", "ntasks", "ntasks-per-node", "chdir"}
_OWN |= {"wrap", "no-requeue", "parsable", "test-only", "wait", "help"}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one unit of a sweep asks of Slurm.

    Attributes:
        time: limit in minutes.
        memory: per unit, such as ``4G``; None for the cluster's default.
        cpus: cores, and threads of the computation.
        gpus: devices.
        partition: or None for the default one.
        account: or None for the default one.
        array_parallelism: units at the same time.
        setup: shell lines that run before the command, such as ``module load cuda``.
        save_seconds: how long before the time limit a unit is told to save and be requeued.
        requeues: time limits after which a unit is requeued.
        parameters: other options of ``sbatch``, without ``--``; True for one without a value.
    """

    time: int = 60
    memory: str | None = None
    cpus: int = 1
    gpus: int = 0
    partition: str | None = None
    account: str | None = None
    array_parallelism: int = 256
    setup: tuple[str, ...] = ()
    save_seconds: int = 90
    requeues: int = 10
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def read_resources(
    table: Mapping[str, Any], wrong: Callable[[str, str, str], Exception]
) -> Resources:
    """Check the table.

    Args:
        table: as TOML gives it.
        wrong: makes the error of a key, from what was seen and what was expected.

    Raises:
        Exception: what ``wrong`` made.
    """
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise wrong(key, "an unknown key", f"one of {', '.join(sorted(_KEYS))}")
        convert, expected = _KEYS[key]
        values[key] = convert(value)
        if values[key] is None:
            raise wrong(key, repr(value), expected)
    for name, value in values.get("parameters", {}).items():
        where = f"parameters: {name}"
        if name in _OWN:
            raise wrong(where, "an option that landscape sets itself", "another option of sbatch")
        if not _OPTION.fullmatch(name):
            raise wrong(where, repr(name), "the long name of an option of sbatch, without --")
        if value is False or not isinstance(value, str | int | float) or "\n" in str(value):
            raise wrong(where, repr(value), "a string of one line, a number, or true")
    return Resources(**values)


def _minutes(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value > 0 else None
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return None
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:
        units = (3600, 60, 1)
    else:
        units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]  # type: ignore[assignment]
    seconds = 86400 * int(days or 0) + sum(n * u for n, u in zip(numbers, units, strict=False))
    return -(-seconds // 60) or None


def _memory(value: Any) -> str | None:
    found = _MEMORY.fullmatch(value) if isinstance(value, str) else None
    return f"{found[1]}{found[2].upper()}" if found and int(found[1]) else None


def _whole(least: int) -> Callable[[Any], int | None]:
    def convert(value: Any) -> int | None:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return value if whole else None

    return convert


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[^\s'\"]+", value) else None


def _lines(value: Any) -> tuple[str, ...] | None:
    fine = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return tuple(value) if fine else None


def _table(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


_KEYS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "time": (_minutes, "minutes as a whole number, or a string such as '02:30:00' or '1-12:00'"),
    "memory": (_memory, "a string such as '500MB' or '16GB'"),
    "cpus": (_whole(1), "a whole number of at least 1"),
    "gpus": (_whole(0), "a whole number"),
    "partition": (_name, "a partition's name"),
    "account": (_name, "an account's name"),
    "array_parallelism": (_whole(1), "a whole number of at least 1"),
    "setup": (_lines, "a list of shell lines"),
    "save_seconds": (_whole(1), "seconds before the time limit, at least 1"),
    "requeues": (_whole(0), "a whole number"),
    "parameters": (_table, "a table of options of sbatch, without --"),
}
