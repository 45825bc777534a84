"""The coordinates of single attention heads, and whether they are what they are taken for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from landscape.errors import UsageError
from landscape.flat.attention import HEADS, attention_weights, head_slots
from landscape.flat.graph import Attention, HeadSlot
from landscape.flat.subject import Subject
from landscape.params import ParameterSpace
from landscape.rng import stream

__all__ = ["check_heads", "find_heads", "head_coordinates"]

_SAME = 1e-4  # Outputs that differ by less, relative to the largest, are the same.


def find_heads(model: nn.Module, space: ParameterSpace) -> tuple[Attention, ...]:
    """The attention modules of a model of which some parameter is selected, with their heads.

    Raises:
        UsageError: there are none, or a module does not tell its heads apart.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    for layer, module in model.named_modules():
        weights = attention_weights(module)
        if weights is None:
            continue
        if not weights.heads:
            raise UsageError(
                f"--groups head: {layer or 'the model'} looks like attention, but does not say how "
                f"many heads it has; expected one of the attributes {', '.join(HEADS)}. Use "
                "--groups layer"
            )
        slots = head_slots(lambda tensor: names.get(id(tensor)), layer, weights)
        if slots is None:
            raise UsageError(
                f"--groups head: the heads of attention {layer or 'the model'} could not be told "
                "apart; expected rows in which queries, keys and values follow one another. Use "
                "--groups layer"
            )
        if {slots.q.weight, slots.k.weight, slots.v.weight, slots.o.weight} & {*space.names}:
            found.append(slots)
    if not found:
        raise UsageError(
            "--groups head: no attention among the selected parameters; expected a "
            "MultiheadAttention or a module with maps of queries, keys, values and outputs. Use "
            "--groups layer"
        )
    return tuple(found)


def head_coordinates(
    attentions: Sequence[Attention],
    starts: Mapping[str, int],
    shapes: Mapping[str, torch.Size],
) -> Iterator[tuple[str, Tensor]]:
    """The coordinates of every head that has selected ones, ascending, by the head's name.

    Query heads that share keys and values belong to one group.

    Args:
        attentions: attention modules.
        starts: first coordinate of every selected parameter.
        shapes: its shape.
    """
    for attention in attentions:
        for head in range(attention.k.heads):
            parts = []
            for slot, chosen in _slots(attention, head):
                for name, axis, start in (
                    (slot.weight, slot.axis, slot.start),
                    (slot.bias, 0, slot.bias_start),
                ):
                    if name is None or name not in starts:
                        continue
                    size = shapes[name].numel()
                    grid = starts[name] + torch.arange(size).reshape(shapes[name])
                    rows = start + slot.width * chosen.start, start + slot.width * chosen.stop
                    parts.append(grid.movedim(axis, 0)[slice(*rows)].reshape(-1))
            if parts:
                # One bias can serve several maps.
                index: Tensor = torch.unique(torch.cat(parts))
                yield f"{attention.layer}.head.{head}".removeprefix("."), index


def _slots(attention: Attention, head: int) -> Iterator[tuple[HeadSlot, range]]:
    """The four maps, with the heads of each that belong to one head of keys."""
    each = attention.q.heads // attention.k.heads
    served = range(head * each, (head + 1) * each)
    yield attention.q, served
    yield attention.k, range(head, head + 1)
    yield attention.v, range(head, head + 1)
    yield attention.o, served


def check_heads(subject: Subject, attentions: Sequence[Attention], *, seed: int = 0) -> None:
    """See by the outputs that heads are what they are taken for.

    Keys may grow as queries shrink, values as outputs shrink, head by head; and where a head's
    values are zero its queries do not matter. What was read in another order fails.

    Args:
        subject: the network with some examples.
        attentions: its attention modules.
        seed: seed of the factors.

    Raises:
        UsageError: a module fails.

    Cost: about ``2 + 4 log2(heads)`` forward passes for each module.
    """
    for attention in attentions:
        heads = attention.k.heads
        generator = stream(seed, "heads", attention.layer)
        c = 0.5 + 1.5 * torch.rand(heads, generator=generator, dtype=torch.float64)

        def scaled(attention: Attention = attention, **factors: Tensor) -> dict[str, Tensor]:
            return _scaled(subject.parameters, attention, factors)

        pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]]
        pairs = [({}, scaled(q=c, k=1 / c)), ({}, scaled(v=c, o=1 / c))]
        number = torch.arange(heads)
        for bit in range((heads - 1).bit_length()):
            for side in (0, 1):
                gone = ((number >> bit) & 1 == side).double()
                pairs.append((scaled(v=1 - gone), scaled(v=1 - gone, q=1 + 2 * gone)))
        if not all(_same(subject, *pair) for pair in pairs):
            raise UsageError(
                f"--groups head: the heads of attention {attention.layer or 'the model'} do not "
                "lie where they were looked for; expected rows in which queries, keys and values "
                "follow one another, heads in each. Use --groups layer"
            )


def _scaled(
    parameters: Mapping[str, Tensor], attention: Attention, factors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Maps with the coordinates of every head times a factor, (key heads,) by q, k, v and o."""
    changed: dict[str, Tensor] = {}
    for place, factor in factors.items():
        slot: HeadSlot = getattr(attention, place)
        rows = factor.repeat_interleave(slot.heads // len(factor) * slot.width)
        for name, axis, start in (
            (slot.weight, slot.axis, slot.start),
            (slot.bias, 0, slot.bias_start),
        ):
            if name is not None:
                tensor = changed.get(name, parameters[name]).clone()
                tensor.movedim(axis, -1)[..., start : start + len(rows)].mul_(rows)
                changed[name] = tensor
    return changed


def _same(subject: Subject, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    for a, b in zip(subject.at(one), subject.at(other), strict=True):
        if a.numel() and float((a - b).abs().max()) > _SAME * float(a.abs().max()):
            return False
    return True
