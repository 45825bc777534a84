"""Matrices inside the heads of attention: between queries and keys, values and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from landscape.flat.actions import cayley
from landscape.flat.family import Act, Family
from landscape.flat.graph import Attention, Graph, HeadSlot
from landscape.flat.spans import Written

__all__ = ["head_families"]

Parameters = Mapping[str, Tensor]
Changed = dict[str, Tensor]


def head_families(graph: Graph, parameters: Parameters) -> Iterator[Family]:
    """d_head^2 per key head for QK and for OV each, and d_head for each of their biases.

    With rotary positions QK keeps only what commutes with the rotations: a complex number for each
    pair of coordinates, d_head per key head. Which coordinates are paired is found by trying.
    """
    written = Written(graph, parameters)
    for attention in graph.attentions:
        groups, width = attention.k.heads, attention.k.width
        rotary = [
            _family(attention, "attention QK, rotary", groups * width, _planes(attention, pairs))
            for pairs in _pairs(width)
        ]
        whole = _family(
            attention, "attention QK", groups * width**2, _square(attention, attention.k)
        )
        yield Family(**{**vars(whole), "alternatives": tuple(rotary)})
        inner = attention.v.width
        yield _family(attention, "attention OV", groups * inner**2, _square(attention, attention.v))
        if attention.k.bias is not None:
            act = _key_bias(attention.k)
            yield _family(attention, "attention key bias", groups * width, act)
        else:
            for m in graph.maps:
                unit = written.unit(m) if m.weight == attention.k.weight else None
                if unit is not None:
                    act = _key_constant(attention.k, unit)
                    yield _family(attention, "attention key constant", groups * width, act)
        if attention.v.bias is not None and attention.output_bias is not None:
            act = _value_bias(attention)
            yield _family(attention, "attention value bias", groups * inner, act)


def _family(attention: Attention, name: str, size: int, act: Act) -> Family:
    return Family(name=name, layer=attention.layer, size=size, act=act)


def _pairs(width: int) -> Sequence[Tensor]:
    """The usual pairings: halves against each other, neighbours."""
    if width % 2:
        return ()
    index = torch.arange(width)
    return index.reshape(2, -1), index.reshape(-1, 2).T


def _apply(changed: Changed, parameters: Parameters, slot: HeadSlot, matrices: Tensor) -> None:
    """Multiply the coordinates of each head by its matrix, (heads, width, width)."""
    for name, axis, start in (
        (slot.weight, slot.axis, slot.start),
        (slot.bias, 0, slot.bias_start),
    ):
        if name is None:
            continue
        tensor = changed.get(name, parameters[name])
        stop = start + slot.heads * slot.width
        front = tensor.movedim(axis, 0)
        part = front[start:stop].reshape(slot.heads, slot.width, -1)
        moved = (matrices @ part).reshape(front[start:stop].shape)
        changed[name] = torch.cat([front[:start], moved, front[stop:]]).movedim(0, axis)


def _square(attention: Attention, slot: HeadSlot) -> Act:
    def algebra(c: Tensor) -> Tensor:
        return c.reshape(slot.heads, slot.width, slot.width)

    return _acting(attention, slot, algebra)


def _planes(attention: Attention, pairs: Tensor) -> Act:
    """``a + i b`` in the plane of every pair of coordinates."""
    slot = attention.k

    def algebra(c: Tensor) -> Tensor:
        a, b = c.reshape(2, slot.heads, -1)
        first, second = pairs
        zero = torch.zeros(slot.heads, slot.width, slot.width, dtype=c.dtype)
        head = torch.arange(slot.heads)[:, None]
        zero = zero.index_put((head, first, first), a).index_put((head, second, second), a)
        return zero.index_put((head, first, second), -b).index_put((head, second, first), b)

    return _acting(attention, slot, algebra)


def _acting(attention: Attention, slot: HeadSlot, algebra: Callable[[Tensor], Tensor]) -> Act:
    each = attention.q.heads // attention.k.heads

    def act(parameters: Parameters, c: Tensor) -> Changed:
        changed: Changed = {}
        pairs = [cayley(a) for a in algebra(c)]
        forth = torch.stack([t for t, _ in pairs])
        back = torch.stack([inverse for _, inverse in pairs]).mT.repeat_interleave(each, dim=0)
        _apply(changed, parameters, slot, forth)
        _apply(changed, parameters, attention.q if slot is attention.k else attention.o, back)
        return changed

    return act


def _key_bias(slot: HeadSlot) -> Act:
    """A constant in all keys shifts all logits of a query alike."""

    def act(parameters: Parameters, c: Tensor) -> Changed:
        name = str(slot.bias)
        return {name: _shifted(parameters[name], slot, c)}

    return act


def _key_constant(slot: HeadSlot, unit: Tensor) -> Act:
    """The same by weights, where the product of what they read with a vector is always 1."""

    def act(parameters: Parameters, c: Tensor) -> Changed:
        weight = parameters[slot.weight].movedim(slot.axis, 0)
        stop = slot.start + len(c)
        moved = weight[slot.start : stop] + c[:, None] * unit
        parts = (weight[: slot.start], moved, weight[stop:])
        return {slot.weight: torch.cat(parts).movedim(0, slot.axis)}

    return act


def _shifted(bias: Tensor, slot: HeadSlot, c: Tensor) -> Tensor:
    stop = slot.bias_start + len(c)
    return torch.cat([bias[: slot.bias_start], bias[slot.bias_start : stop] + c, bias[stop:]])


def _value_bias(attention: Attention) -> Act:
    """A constant in all values reaches the output as it is, since weights add up to 1."""
    slot, out = attention.v, attention.o
    each = attention.q.heads // attention.k.heads

    def act(parameters: Parameters, c: Tensor) -> Changed:
        name, output = str(slot.bias), str(attention.output_bias)
        per_head = c.reshape(slot.heads, -1).repeat_interleave(each, dim=0).reshape(-1)
        columns = parameters[out.weight].movedim(out.axis, -1)
        return {
            name: _shifted(parameters[name], slot, c),
            output: parameters[output] - columns @ per_head,
        }

    return act
