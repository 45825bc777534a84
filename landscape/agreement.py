"""Whether results belong to one series over training: the same network, loss and options."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.results import Result
from landscape.text import natural_key

__all__ = ["MAY", "MUST", "Rules", "joined", "option", "require_one_command"]

Value = Callable[[Any], Any]

_SHOWN = 3  # Names in a message.


def option(name: str) -> Value:
    """Reads an option of a result."""
    return lambda result: result.info.config.get(name)


MUST: Mapping[str, Value] = {
    "the loss (--loss)": option("loss"),
    "the parameters (--params)": option("params"),
    "the number of examples (--examples)": option("examples"),
    "the task's settings (--set)": option("set"),
    "the task's criterion": option("criterion"),
    "the number of measured parameters": lambda r: r.info.n_parameters,
    "the number of measured examples": lambda r: r.info.n_examples,
}
"""What must agree whatever was measured, as it is called in a message."""

MAY: Mapping[str, Value] = {
    "the task's source": lambda r: r.info.task_sha256[:12],
    "--dtype": lambda r: r.info.dtype,
}
"""What may differ whatever was measured."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When results of one command belong to one series.

    Attributes:
        must: what must agree, as it is called in a message.
        may: what may differ, with a warning: the precision of numbers, but not what they mean.
        depth: how much a result knows, to choose among several of one checkpoint.
    """

    must: Mapping[str, Value]
    may: Mapping[str, Value]
    depth: Value


def require_one_command(results: Sequence[Result], names: Sequence[str], remedy: str) -> None:
    """Check that results are of one command.

    Raises:
        UsageError: they are of several; the message ends in the remedy.
    """
    first = results[0].info.command
    for name, result in zip(names, results, strict=True):
        if result.info.command != first:
            raise UsageError(
                f"{names[0]} is a result of landscape {first}, but {name} is one of landscape "
                f"{result.info.command}; expected results of one command. {remedy}"
            )


def joined(
    results: Sequence[Result], names: Sequence[str], rules: Rules
) -> tuple[list[int], dict[str, Any]]:
    """The rows of a series, and what every series says of them.

    Returns:
        indices of the results in the order of the rows, and the fields of
        :class:`landscape.series_records.TrainingSeries`, with lists of warnings and notices.

    Raises:
        UsageError: the results do not belong to one series.
    """
    warnings = _require_agreement(results, names, rules)
    order, numbered, notices = _in_order(results, names, rules.depth)
    infos = [results[i].info for i in order]
    steps = [index if i.step is None else i.step for index, i in enumerate(infos)]
    return order, {
        "step": np.array(steps, dtype=np.int64),
        "numbered": numbered,
        "checkpoint": tuple(i.checkpoint for i in infos),
        "checkpoint_sha256": tuple(i.checkpoint_sha256 for i in infos),
        "source": tuple(names[i] for i in order),
        "key": tuple(i.key for i in infos),
        "loss": np.array([i.loss for i in infos]),
        "gradient_norm": np.array([i.gradient_norm for i in infos]),
        "wall_seconds": np.array([i.wall_seconds for i in infos]),
        "n_matvecs": np.array([i.n_matvecs for i in infos], dtype=np.int64),
        "task": infos[0].task,
        "n_parameters": infos[0].n_parameters,
        "n_examples": infos[0].n_examples,
        "config": _common(infos[0].config, [i.config for i in infos]),
        "warnings": warnings,
        "notices": notices,
    }


def _common(first: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = {k: v for k, v in first.items() if all(k in c and c[k] == v for c in configs)}
    return {**kept, "command": "collect"}


def _require_agreement(results: Sequence[Result], names: Sequence[str], rules: Rules) -> list[str]:
    """Warnings of what differs, where that is no error."""
    if len(names) != len(results):
        raise ValueError(f"{len(names)} sources of {len(results)} results")
    first = results[0]
    for what, value_of in rules.must.items():
        for name, result in zip(names, results, strict=True):
            if value_of(result) != value_of(first):
                raise UsageError(
                    f"{what} differs: {_short(value_of(first))} in {names[0]}, but "
                    f"{_short(value_of(result))} in {name}. Results of one series measure the "
                    "same thing; collect each kind by itself"
                )
    for name, result in zip(names, results, strict=True):
        if not np.array_equal(_indices(result), _indices(first)):
            raise UsageError(
                f"the random subset of examples (--seed) differs between {names[0]} and {name}. "
                "Results of one series measure the same thing; use one --seed for all"
            )
    return [*_differences(results, rules), *_unfinished(results, names)]


def _indices(result: Result) -> Any:
    return np.zeros(0) if result.indices is None else result.indices


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _differences(results: Sequence[Result], rules: Rules) -> list[str]:
    found = []
    for what, value_of in rules.may.items():
        counts: dict[str, int] = {}
        for result in results:
            text = _short(value_of(result))
            counts[text] = counts.get(text, 0) + 1
        if len(counts) > 1:
            seen = ", ".join(f"{text} ({count} results)" for text, count in counts.items())
            found.append(f"{what} differs between results: {seen}")
    return found


def _unfinished(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    cut = [name for name, r in zip(names, results, strict=True) if r.info.status != "complete"]
    if not cut:
        return []
    return [f"cut short by --budget: {_list(cut)}; continue them with a larger one"]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _in_order(
    results: Sequence[Result], names: Sequence[str], depth: Value
) -> tuple[list[int], bool, list[str]]:
    """The rows of a series: by training step, or by name where no result has a step.

    Returns:
        indices of the results, whether they are ordered by step, and notices of results that are
        left out because another one is of the same checkpoint.

    Raises:
        UsageError: only some results have a step, or one step has two different checkpoints.
    """
    infos = [r.info for r in results]
    without = [name for name, info in zip(names, infos, strict=True) if info.step is None]
    if without and len(without) < len(results):
        raise UsageError(
            f"{_list(without)} has no training step, but other results have one; expected a step "
            "in every checkpoint's name or metadata. Leave it out, or name it like step_1000"
        )

    def place(index: int) -> Any:
        info = infos[index]
        return info.step if info.step is not None else natural_key(info.checkpoint)

    kept: dict[tuple[int | None, str], int] = {}
    notices = []
    for index, (info, result) in enumerate(zip(infos, results, strict=True)):
        same = (info.step, info.checkpoint_sha256)
        if same not in kept:
            kept[same] = index
            continue
        other = kept[same]
        better = index if depth(result) > depth(results[other]) else other
        worse = other if better == index else index
        kept[same] = better
        notices.append(f"{names[worse]} is left out: {names[better]} is of the same checkpoint")
    order = sorted(kept.values(), key=place)
    for one, two in itertools.pairwise(order):
        step = infos[one].step
        if step is not None and step == infos[two].step:
            raise UsageError(
                f"step {step} has two different checkpoints: {infos[one].checkpoint} in "
                f"{names[one]} and {infos[two].checkpoint} in {names[two]}. A series is one "
                "training run; collect each run by itself"
            )
    return order, not without, notices
