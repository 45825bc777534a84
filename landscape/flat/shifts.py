"""Constants that one part of the network adds and another takes away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.flat.family import Act, Family
from landscape.flat.graph import Graph, LinearMap, Op, Slot
from landscape.flat.scales import combinations, independent
from landscape.flat.spans import Written

__all__ = ["logit_shift", "shift_families"]

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Event:
    """A writer that can add a constant t (h,) to a site, or a reader that can take it away.

    Attributes:
        time: when it runs.
        name: the parameter that it changes.
        change: the change of that parameter.
        what: ``bias``, ``embedding``, ...
    """

    time: int
    name: str
    change: Callable[[Parameters, Tensor], Tensor]
    what: str


def _along(slot: Slot, parameters: Parameters, t: Tensor) -> Tensor:
    """``t`` along the units of a parameter's axis, everywhere else the same."""
    like = parameters[slot.parameter]
    rest = like.numel() // len(t)
    return slot.tensor(t[:, None].expand(len(t), rest), like.shape)


def _directly(_: Parameters, t: Tensor) -> Tensor:
    return t


def _writers(graph: Graph, site: int) -> list[_Event]:
    found: list[_Event] = []

    def along(slot: Slot) -> Callable[[Parameters, Tensor], Tensor]:
        return lambda parameters, t: _along(slot, parameters, t)

    for m in graph.maps:
        if m.target == site and m.bias is not None:
            found.append(_Event(time=m.time, name=m.bias, change=_directly, what="bias"))
        elif m.target == site and m.kind == "embedding":
            found.append(_Event(time=m.time, name=m.weight, change=along(m.rows), what="embedding"))
    for a in graph.added:
        if a.site == site:
            event = _Event(
                time=a.time, name=a.slot.parameter, change=along(a.slot), what="embedding"
            )
            found.append(event)
    for op in graph.ops:
        if op.target == site and op.kind == "diagonal" and op.bias is not None:
            name = op.bias.parameter
            found.append(_Event(time=op.time, name=name, change=along(op.bias), what=op.function))
    return found


def _undo_map(m: LinearMap, unit: Tensor | None) -> _Event | None:
    """The bias of a reading map takes ``W t`` away, or what stands for a bias."""
    columns = m.columns
    if m.border or columns is None:
        return None
    if m.bias is None:
        return None if unit is None else _undo_by_weights(m, columns, unit)

    def change(parameters: Parameters, t: Tensor) -> Tensor:
        product = parameters[m.weight] * _along(columns, parameters, t)
        return -m.rows.matrix(product, product.shape[m.rows.axis]).sum(1)

    return _Event(time=m.time, name=m.bias, change=change, what="bias")


def _undo_by_weights(m: LinearMap, columns: Slot, unit: Tensor) -> _Event | None:
    """Where ``u x = 1`` for whatever is read, ``W - W t u / (1 + u t)`` takes W t away."""
    if columns.outer * columns.inner != 1 or m.kind != "linear":
        return None

    def change(parameters: Parameters, t: Tensor) -> Tensor:
        weight = parameters[m.weight]
        image = t @ columns.matrix(weight, len(t))
        step = -unit[:, None] * image / (1 + unit @ t)
        return columns.tensor(step, weight.shape)

    return _Event(time=m.time, name=m.weight, change=change, what="bias")


def _undo_op(op: Op) -> _Event | None:
    """The bias of a diagonal map takes ``a t`` away."""
    if op.kind != "diagonal" or op.bias is None or op.function == "convolution":
        return None

    def change(parameters: Parameters, t: Tensor) -> Tensor:
        factor = torch.ones_like(t)
        if op.weight is not None:
            factor = op.weight.matrix(parameters[op.weight.parameter], len(t))[:, 0]
        if op.deviation is not None:
            factor = factor / op.deviation
        return -factor * t

    return _Event(time=op.time, name=op.bias.parameter, change=change, what=op.function)


def shift_families(graph: Graph, parameters: Parameters) -> Iterator[Family]:
    """Shifts of units between biases, embeddings and what reads them.

    A constant that a writer adds is seen by every reader that runs later, as in a residual stream.
    """
    written = Written(graph, parameters)
    for site, units in enumerate(graph.sizes):
        if site in graph.pinned and site not in graph.outputs:
            continue
        writers = _writers(graph, site)
        maps = [m for m in graph.maps if m.source == site]
        ops = [op for op in graph.ops if site in op.sources]
        single, common = [], []
        undo: list[_Event] = []
        readers: list[LinearMap | Op] = [*maps, *ops]
        for reader in readers:
            if isinstance(reader, LinearMap):
                event = _undo_map(reader, written.unit(reader))
            else:
                event = _undo_op(reader)
            if event is not None:
                undo.append(event)
                continue
            seen = {i: 1.0 for i, w in enumerate(writers) if w.time < reader.time}
            single.append(seen)
            if not (isinstance(reader, Op) and reader.function in ("layer_norm", "group_norm")):
                common.append(seen)
        if site in graph.outputs:
            everything = dict.fromkeys(range(len(writers)), 1.0)
            single.append(everything)
            common.append(everything)
        names = range(len(writers))
        alone = combinations(single, names)
        for row in alone:
            used = [w.what for w, factor in zip(writers, row, strict=True) if factor]
            kind = next((what for what in used if what != "bias"), "bias")
            yield Family(
                name=f"{kind} shift",
                layer=graph.layer(site),
                size=units,
                act=_shift(writers, undo, row.tolist(), lambda t: t),
            )
        if maps == [] and ops and all(op.function == "layer_norm" for op in ops):
            yield from _through_weights(graph, site, parameters)
        cells = [op.groups for op in ops if op.kind == "norm"]
        groups = min(cells, default=1)
        for row in independent(combinations(common, names), alone):
            yield Family(
                name="normalisation input shift",
                layer=graph.layer(site),
                size=groups,
                act=_shift(
                    writers,
                    undo,
                    row.tolist(),
                    lambda t, each=units // groups: t.repeat_interleave(each),
                ),
            )


def _shift(
    writers: Sequence[_Event],
    undo: Sequence[_Event],
    factors: Sequence[float],
    spread: Callable[..., Tensor],
) -> Act:
    def act(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        t = spread(c)
        changed: dict[str, Tensor] = {}

        def add(event: _Event, shift: Tensor) -> None:
            now = changed.get(event.name, parameters[event.name])
            step = event.change(parameters, shift)
            changed[event.name] = now + step.reshape(now.shape)

        for writer, factor in zip(writers, factors, strict=True):
            if factor:
                add(writer, factor * t)
        for event in undo:
            pairs = zip(writers, factors, strict=True)
            seen = sum(factor for w, factor in pairs if w.time < event.time)
            if seen:
                add(event, seen * t)
        return changed

    return act


def _through_weights(graph: Graph, site: int, parameters: Parameters) -> Iterator[Family]:
    """What is equal in all units is taken away by the normalisation, whatever the data say."""
    if site not in graph.pinned:
        for m in graph.maps:
            if m.target == site:
                yield _equal_rows(graph, m, parameters, "layer_norm input shift")


def _equal_rows(graph: Graph, m: LinearMap, parameters: Parameters, name: str) -> Family:
    """The same row added to all rows of a map, and the same number to all its biases."""
    units = graph.sizes[m.target]
    rest = parameters[m.weight].numel() // units

    def act(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        weight = parameters[m.weight]
        rows = c[:rest].expand(units, rest)
        changed = {m.weight: weight + m.rows.tensor(rows, weight.shape)}
        if m.bias is not None:
            changed[m.bias] = parameters[m.bias] + c[rest]
        return changed

    layer = m.weight.rpartition(".")[0] or m.weight
    return Family(name=name, layer=layer, size=rest + (m.bias is not None), act=act)


def logit_shift(graph: Graph, parameters: Parameters) -> Iterator[Family]:
    """A common shift of all logits, of every map that writes them: h + 1 with a bias."""
    for m in graph.maps:
        if m.target in graph.outputs:
            yield _equal_rows(graph, m, parameters, "softmax shift")
