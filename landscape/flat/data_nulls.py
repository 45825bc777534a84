"""Null directions that the data cause: they are no symmetries, and more data may remove them.

A weight's row matters through the inputs that it meets where its unit is *live*: where some output
depends on the unit. Units of ReLU that are off, and places that no output reads, are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from landscape.flat.family import Act, Family, null_rows
from landscape.flat.subject import Subject
from landscape.rng import stream

__all__ = ["data_families"]

CONSTANT = "inputs that never vary in the data"
FEW = "weights that too few inputs reach"
UNUSED = "rows that no example looks up"


def data_families(subject: Subject) -> Iterator[Family]:
    """What the data leave free in every dense map and embedding.

    ``d_in + 1 - rank [X 1]`` combinations of inputs for each output; for a unit that is live for
    some inputs only the rank over those; and the rows of an embedding that are not looked up, or
    only where no output depends on them. Maps inside ``nn.MultiheadAttention`` are not looked at.

    Cost: a forward and a backward pass, and a singular value decomposition of each layer's inputs
    and of each unit's that is not live for all of them.
    """
    for use in _uses(subject):
        layer = use.weight.rpartition(".")[0] or use.weight
        if use.embedding:
            yield from _unused(subject, use, layer)
            continue
        x = use.inputs
        if use.bias is not None:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        free = null_rows(_compressed(x))
        if len(free):
            act = _rows(use, [free] * use.units)
            size = use.units * len(free)
            yield Family(name=CONSTANT, layer=layer, size=size, act=act, symmetry=False)
        bases = [_beyond(x, use.live[:, unit], free) for unit in range(use.units)]
        size = sum(map(len, bases))
        if size:
            act = _rows(use, bases)
            yield Family(name=FEW, layer=layer, size=size, act=act, local=True, symmetry=False)


def _compressed(x: Tensor) -> Tensor:
    """Rows of the same span, as many as columns at most."""
    if len(x) <= x.shape[1]:
        return x
    small: Tensor = torch.linalg.qr(x, mode="r").R
    return small


def _beyond(x: Tensor, live: Tensor, free: Tensor) -> Tensor:
    """Directions that no input met where the unit was live has, where there are more than all's."""
    if bool(live.all()):
        return free[:0]
    if not bool(live.any()):
        return torch.eye(x.shape[1], dtype=torch.float64)
    rows = null_rows(_compressed(x[live]))
    return rows if len(rows) > len(free) else rows[:0]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Use:
    """What one weight met.

    Attributes:
        weight: its name.
        bias: the name of the bias that goes with it.
        rows: the axis of its outputs.
        units: their number.
        inputs: (times, inputs); of an embedding the rows that were looked up, (times,).
        live: whether an output depends on each unit there, (times, units).
        embedding: whether it is one.
    """

    weight: str
    bias: str | None
    rows: int
    units: int
    inputs: Tensor
    live: Tensor
    embedding: bool


class _Calls(TorchFunctionMode):
    """Notes inputs and results of dense maps and embeddings."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in subject.model.named_parameters()}
        self.found: list[tuple[str, str | None, int, Tensor, Tensor, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        given = [*args, *(kwargs or {}).values()]
        if name == "linear":
            x, weight, bias, rows = given[0], given[1], (*given, None)[2], 0
        elif name == "addmm":
            bias, x, weight, rows = given[0], given[1], given[2], 1
        elif name == "embedding":
            x, weight, bias, rows = given[0], given[1], None, 1
        else:
            return result
        own = self._names.get(id(weight))
        known = bias is None or id(bias) in self._names
        if own is not None and known and result.requires_grad:
            bias_name = None if bias is None else self._names[id(bias)]
            self.found.append((own, bias_name, rows, x.detach(), result, name == "embedding"))
        return result


def _uses(subject: Subject) -> list[_Use]:
    """All inputs of each weight over all parts of the data."""
    parts: dict[tuple[str, str | None, int, bool], list[tuple[Tensor, Tensor]]] = {}
    for place, (run, view) in enumerate(subject.passes):
        calls = _Calls(subject)
        with torch.enable_grad(), subject.differentiable(), calls:
            outputs = run(subject.model)
        seen = view(outputs)
        # A random functional of the outputs depends on whatever any of them depends on.
        weights = torch.randn(
            seen.shape, generator=stream(0, "live", place), dtype=torch.float64
        ).to(seen)
        results = [call[4] for call in calls.found]
        slopes: Sequence[Tensor | None] = (
            torch.autograd.grad((seen * weights).sum(), results, allow_unused=True)
            if results and seen.requires_grad
            else [None] * len(results)
        )
        for (name, bias, rows, x, result, embedding), slope in zip(
            calls.found, slopes, strict=True
        ):
            units = result.shape[-1]
            live = torch.zeros_like(result, dtype=torch.bool) if slope is None else slope != 0
            flat = x.reshape(-1) if embedding else x.reshape(-1, x.shape[-1]).double()
            parts.setdefault((name, bias, rows, embedding), []).append(
                (flat.cpu(), live.reshape(-1, units).cpu())
            )
    counts: dict[str, int] = {}
    for name, *_ in parts:
        counts[name] = counts.get(name, 0) + 1
    return [
        _Use(
            weight=name,
            bias=bias,
            rows=rows,
            units=pairs[0][1].shape[1],
            inputs=torch.cat([x for x, _ in pairs]),
            live=torch.cat([live for _, live in pairs]),
            embedding=embedding,
        )
        for (name, bias, rows, embedding), pairs in parts.items()
        if counts[name] == 1  # A weight that is used in two ways is met by more than either tells.
    ]


def _rows(use: _Use, bases: Sequence[Tensor]) -> Act:
    """Combinations of directions (q, inputs) added to each unit's row and bias."""
    sizes = [len(basis) for basis in bases]

    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        parts = torch.split(c, sizes)
        rows = torch.stack([part @ basis for part, basis in zip(parts, bases, strict=True)])
        weight = parameters[use.weight]
        width = weight.shape[1 - use.rows]
        step = rows[:, :width]
        changed = {use.weight: weight + (step if use.rows == 0 else step.T)}
        if use.bias is not None:
            changed[use.bias] = parameters[use.bias] + rows[:, width]
        return changed

    return act


def _unused(subject: Subject, use: _Use, layer: str) -> Iterator[Family]:
    weight = subject.parameters[use.weight]
    seen = set(use.inputs[use.live.any(1)].tolist())
    place = torch.tensor(sorted(set(range(len(weight))) - seen), dtype=torch.int64)
    if not len(place):
        return

    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        now = parameters[use.weight]
        rows = c.reshape(len(place), -1)
        return {use.weight: now.index_put((place,), rows, accumulate=True)}

    size = len(place) * weight.shape[1]
    yield Family(name=UNUSED, layer=layer, size=size, act=act, symmetry=False)
