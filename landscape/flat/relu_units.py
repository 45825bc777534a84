"""Units of ReLU and its kin that do not switch: dead ones, and ones that are always on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.flat.actions import cayley, linear_action
from landscape.flat.family import Act, Family, null_rows
from landscape.flat.graph import Graph, LinearMap, Op
from landscape.flat.spans import kernel_family, range_family

__all__ = ["SwitchedLayer", "switched_families", "switched_layers"]

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class SwitchedLayer:
    """A layer between linear maps whose units are linear on either side of zero.

    Attributes:
        op: the activation function.
        writers: maps that write its input, and nothing else does.
        readers: maps that read its output, perhaps behind pooling.
        dead: units that are off for every example and have no slope there.
        linear: units that never switch otherwise.
        gain: what each of those multiplies its input by: 1, or the slope below zero.
        direct: whether nothing but linear maps reads the output itself.
    """

    op: Op
    writers: tuple[LinearMap, ...]
    readers: tuple[LinearMap, ...]
    dead: tuple[int, ...]
    linear: tuple[int, ...]
    gain: tuple[float, ...]
    direct: bool


def switched_layers(graphs: Sequence[Graph]) -> list[SwitchedLayer]:
    """The layers whose units can be looked at one by one.

    Args:
        graphs: one graph, as read on each part of the data.
    """
    graph = graphs[0]
    found = []
    for place, op in enumerate(graph.ops):
        if math.isnan(op.slope):
            continue
        before, after = op.sources[0], op.target
        behind, ends = _behind(graph, after)
        if any(site in graph.pinned for site in (before, *behind)) or ends:
            continue
        writers = tuple(m for m in graph.maps if m.target == before)
        others = [o for o in graph.ops if before in (*o.sources, o.target) and o is not op]
        added = any(a.site in (before, *behind) for a in graph.added)
        read = any(m.source == before for m in graph.maps)
        rewritten = any(m.target in behind for m in graph.maps)
        if others or added or read or rewritten or not writers:
            continue
        counts = [g.ops[place].on for g in graphs]
        on = torch.stack([count for count in counts if count is not None]).sum(0)
        seen = sum(g.ops[place].seen for g in graphs)
        never = torch.nonzero(on == 0).flatten().tolist()
        always = torch.nonzero(on == seen).flatten().tolist()
        off = [] if op.slope == 0 else never
        found.append(
            SwitchedLayer(
                op=op,
                writers=writers,
                readers=tuple(m for m in graph.maps if m.source in behind),
                dead=() if off else tuple(never),
                linear=(*always, *off),
                gain=(*[1.0] * len(always), *[op.slope] * len(off)),
                direct=len(behind) == 1,
            )
        )
    return found


def _behind(graph: Graph, site: int) -> tuple[list[int], bool]:
    """Sites that are zero where this one is, and whether other operations read them."""
    behind = [site]
    ends = False
    for op in sorted(graph.ops, key=lambda o: o.time):
        if set(op.sources) & set(behind):
            if op.kind == "elementwise" and op.homogeneous:
                behind.append(op.target)
            else:
                ends = True
    return behind, ends


def switched_families(
    graph: Graph, layer: SwitchedLayer, parameters: Parameters
) -> Iterator[Family]:
    """What the units of one layer that never switch leave free."""
    name = graph.layer((*layer.op.sources, layer.op.target))
    units = graph.sizes[layer.op.target]
    function = layer.op.function
    if layer.dead:
        size = len(layer.dead) * sum(
            parameters[m.weight].numel() // units for m in (*layer.writers, *layer.readers)
        )
        size += len(layer.dead) * sum(m.bias is not None for m in layer.writers)
        act = _dead(layer, torch.tensor(layer.dead), units)
        yield Family(name=f"dead {function} units", layer=name, size=size, act=act, local=True)
    if layer.linear and layer.direct:
        yield from _always_on(graph, layer, parameters, name, units)


def _dead(layer: SwitchedLayer, dead: Tensor, units: int) -> Act:
    """Everything that leads into a unit that stays off, and everything that leads out of it."""

    def act(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        changed: dict[str, Tensor] = {}
        start = 0
        slots = [(m.weight, m.rows) for m in layer.writers]
        slots += [(m.weight, m.columns) for m in layer.readers if m.columns is not None]
        for name, slot in slots:
            now = changed.get(name, parameters[name])
            rest = now.numel() // units
            part = c[start : start + len(dead) * rest].reshape(len(dead), rest)
            rows = torch.zeros(units, rest, dtype=c.dtype).index_put((dead,), part)
            changed[name] = now + slot.tensor(rows, now.shape)
            start += len(dead) * rest
        for m in layer.writers:
            if m.bias is not None:
                now = changed.get(m.bias, parameters[m.bias])
                changed[m.bias] = now.index_put(
                    (dead,), c[start : start + len(dead)], accumulate=True
                )
                start += len(dead)
        return changed

    return act


def _always_on(
    graph: Graph, layer: SwitchedLayer, parameters: Parameters, name: str, units: int
) -> Iterator[Family]:
    """Units that never switch are a linear pair: k^2, and k more with biases on both sides."""
    on, gain = torch.tensor(layer.linear), torch.tensor(layer.gain, dtype=torch.float64)
    k = len(on)
    kind = f"{layer.op.function} units that never switch"
    before, after = layer.op.sources[0], layer.op.target
    scale = torch.ones(units, dtype=torch.float64)
    scale[on] = gain

    def mix(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        whole = torch.zeros(units, units, dtype=c.dtype)
        whole = whole.index_put((on[:, None], on[None, :]), c.reshape(k, k))
        t, back = cayley(whole)
        behind = (scale[:, None] * t / scale, scale[:, None] * back / scale)
        return linear_action(graph, parameters, {before: (t, back), after: behind})

    yield Family(name=kind, layer=name, size=k * k, act=mix, local=True)
    readers, writers = layer.readers, layer.writers
    columns = [
        gain[:, None] * m.columns.matrix(parameters[m.weight], units)[on]
        for m in readers
        if m.columns is not None
    ]
    kernel = _embedded(null_rows(torch.cat(columns, dim=1).T), on, units)
    for m in writers if len(kernel) else ():
        yield _local(kernel_family(m, kernel, parameters, kind))
    if len(writers) != 1:
        return
    (writer,) = writers
    rows = writer.rows.matrix(parameters[writer.weight], units)[on]
    bias = torch.zeros(units, dtype=torch.float64)
    if writer.bias is not None:
        bias = parameters[writer.bias]
    one = torch.cat([bias[on], torch.ones(1, dtype=torch.float64)])[None]
    unseen = null_rows(torch.cat([torch.nn.functional.pad(rows.T, (0, 1)), one]))
    unseen = torch.cat([_embedded(unseen[:, :-1] / gain, on, units), unseen[:, -1:]], dim=1)
    for m in readers:
        family = range_family(m, unseen, parameters, kind)
        if family is not None:
            yield _local(family)
    if writer.bias is not None and all(m.bias is not None and not m.border for m in readers):
        act = _shift(writer, readers, on, gain, units)
        yield Family(name=kind, layer=name, size=k, act=act, local=True)


def _embedded(rows: Tensor, on: Tensor, units: int) -> Tensor:
    whole = torch.zeros(len(rows), units, dtype=torch.float64)
    whole[:, on] = rows
    return whole


def _local(family: Family) -> Family:
    return Family(**{**vars(family), "local": True})


def _shift(
    writer: LinearMap, readers: Sequence[LinearMap], on: Tensor, gain: Tensor, units: int
) -> Act:
    def act(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        t = torch.zeros(units, dtype=c.dtype).index_put((on,), c)
        changed = {str(writer.bias): parameters[str(writer.bias)] + t}
        t = torch.zeros(units, dtype=c.dtype).index_put((on,), gain * c)
        for m in readers:
            if m.columns is None or m.bias is None:
                continue
            weight = parameters[m.weight]
            everywhere = t[:, None].expand(units, weight.numel() // units)
            along = m.columns.tensor(everywhere, weight.shape)
            product = weight * along
            step = m.rows.matrix(product, product.shape[m.rows.axis]).sum(1)
            changed[m.bias] = changed.get(m.bias, parameters[m.bias]) - step
        return changed

    return act
