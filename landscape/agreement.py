"""Whether results belong to one series over training: the same network, loss and options."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.results import MODULES, HessianResult
from landscape.text import natural_key

__all__ = ["in_order", "require_agreement"]

_SHOWN = 3  # Names in a message.


def _option(name: str) -> Callable[[HessianResult], Any]:
    return lambda result: result.info.config.get(name)


def _operators(result: HessianResult) -> list[str]:
    return sorted(name for name in result.spectra if MODULES not in name)


def _modules(result: HessianResult) -> list[str]:
    return sorted(name for name in result.spectra if MODULES in name)


def _methods(result: HessianResult) -> dict[str, str]:
    return {name: result.spectra[name].method for name in _operators(result)}


# What must agree and what may differ, as it is called in a message.
_MUST: Mapping[str, Callable[[HessianResult], Any]] = {
    "the loss (--loss)": _option("loss"),
    "the operators (--operator)": _operators,
    "the parameters (--params)": _option("params"),
    "the number of examples (--examples)": _option("examples"),
    "the task's settings (--set)": _option("set"),
    "the task's criterion": _option("criterion"),
    "the number of measured parameters": lambda r: r.info.n_parameters,
    "the number of measured examples": lambda r: r.info.n_examples,
    "the diagonal blocks (--per-module)": _modules,
}
_MAY: Mapping[str, Callable[[HessianResult], Any]] = {
    "the task's source": lambda r: r.info.task_sha256[:12],
    "--dtype": lambda r: r.info.dtype,
    "--method": _methods,
    "--tol": _option("tol"),
}


def require_agreement(results: Sequence[HessianResult], names: Sequence[str]) -> list[str]:
    """Check that results can be joined.

    Returns:
        warnings of differences that change the precision of numbers, but not what they mean.

    Raises:
        UsageError: there are no results, or they measure different things.
    """
    if not results:
        raise UsageError("no result to collect; expected result files of landscape hessian")
    if len(names) != len(results):
        raise ValueError(f"{len(names)} sources of {len(results)} results")
    first = results[0]
    for what, value_of in _MUST.items():
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
    return [*_differences(results), *_unfinished(results, names)]


def _indices(result: HessianResult) -> Any:
    return np.zeros(0) if result.indices is None else result.indices


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _differences(results: Sequence[HessianResult]) -> list[str]:
    found = []
    for what, value_of in _MAY.items():
        counts: dict[str, int] = {}
        for result in results:
            text = _short(value_of(result))
            counts[text] = counts.get(text, 0) + 1
        if len(counts) > 1:
            seen = ", ".join(f"{text} ({count} results)" for text, count in counts.items())
            found.append(f"{what} differs between results: {seen}")
    return found


def _unfinished(results: Sequence[HessianResult], names: Sequence[str]) -> list[str]:
    cut = [name for name, r in zip(names, results, strict=True) if r.info.status != "complete"]
    if not cut:
        return []
    return [f"cut short by --budget: {_list(cut)}; continue them with a larger one"]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def in_order(
    results: Sequence[HessianResult], names: Sequence[str]
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
        better = index if _depth(result) > _depth(results[other]) else other
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


def _depth(result: HessianResult) -> tuple[Any, ...]:
    """How much a result knows, to choose among several of one checkpoint."""
    spectra, moments = result.spectra.values(), result.moments.values()
    return (
        result.info.status == "complete",
        sum(s.exact for s in spectra),
        len(moments),
        sum(len(s.eigenvalues) for s in spectra),
        sum(m.n_probes for m in moments),
    )
