"""How permutations and scalings of a site's units act on the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from landscape.flat.graph import Attention, Graph, HeadSlot, Op, Slot

__all__ = ["cayley", "linear_action", "monomial", "moved_parameters", "permute_heads"]


def moved_parameters(graph: Graph, sites: Sequence[int]) -> tuple[str, ...]:
    """Names of the parameters that a transformation of some sites moves."""
    names: dict[str, None] = {}
    for m in graph.maps:
        if m.target in sites or m.source in sites:
            names[m.weight] = None
        if m.target in sites and m.bias is not None:
            names[m.bias] = None
    for added in graph.added:
        if added.site in sites:
            names[added.slot.parameter] = None
    for op in graph.ops:
        if op.target in sites or set(op.sources) & set(sites):
            for slot_ in (op.weight, op.bias):
                if slot_ is not None:
                    names[slot_.parameter] = None
    return tuple(names)


def monomial(
    graph: Graph,
    parameters: Mapping[str, Tensor],
    sites: Sequence[int],
    order: Tensor,
    factors: Mapping[int, Tensor],
) -> dict[str, Tensor]:
    """Parameters after ``x -> (factor * x)[order]`` at some sites.

    Args:
        graph: where the parameters are used.
        parameters: all of them, by name.
        sites: sites of one size h that are transformed, all those of a coupled class.
        order: a permutation, (h,).
        factors: of sites, (h,); 1 where none is given.

    Returns:
        the parameters that move.
    """
    one = torch.ones(len(order), dtype=torch.float64)
    changed: dict[str, Tensor] = {}
    done: set[tuple[str, int]] = set()

    def move(slot: Slot, factor: Tensor) -> None:
        # A tied parameter has one axis in two places, which follow one transformation.
        if (slot.parameter, slot.axis) not in done:
            done.add((slot.parameter, slot.axis))
            now = changed.get(slot.parameter, parameters[slot.parameter])
            changed[slot.parameter] = slot.move(now, order, factor)

    for m in graph.maps:
        if m.target in sites:
            factor = factors.get(m.target, one)
            move(m.rows, factor)
            if m.bias is not None:
                move(Slot(parameter=m.bias, axis=0), factor)
        if m.source in sites and m.columns is not None and m.source is not None:
            move(m.columns, 1 / factors.get(m.source, one))
    for added in graph.added:
        if added.site in sites:
            move(added.slot, factors.get(added.site, one))
    for op in graph.ops:
        if op.target not in sites and not set(op.sources) & set(sites):
            continue
        after = factors.get(op.target, one)
        before = factors.get(op.sources[0], one)
        if op.mean is not None:
            changed |= _frozen(op, {**parameters, **changed}, order, before, after)
        elif op.kind == "diagonal":
            if op.weight is not None:
                move(op.weight, after / before)
            if op.bias is not None:
                move(op.bias, after)
        elif op.weight is not None:  # Slopes belong to units, whatever their scale.
            move(op.weight, one)
    return changed


def _frozen(
    op: Op, parameters: Mapping[str, Tensor], order: Tensor, before: Tensor, after: Tensor
) -> dict[str, Tensor]:
    """Weights and biases around frozen statistics, which stay where they are.

    ``y = a x + c`` with ``a = weight / deviation`` and ``c = bias - a mean`` is what must follow.
    """
    if op.weight is None or op.bias is None or op.mean is None or op.deviation is None:
        return {}
    weight = parameters[op.weight.parameter]
    mean, deviation = op.mean.to(weight), op.deviation.to(weight)
    a = weight / deviation
    c = parameters[op.bias.parameter] - a * mean
    place = order.to(weight.device)
    a = (a * (after / before).to(weight))[place]
    c = (c * after.to(weight))[place]
    return {op.weight.parameter: a * deviation, op.bias.parameter: c + a * mean}


def permute_heads(
    attention: Attention, parameters: Mapping[str, Tensor], kv: Tensor, q: Tensor
) -> dict[str, Tensor]:
    """Parameters after the heads of an attention module change places.

    Args:
        attention: the module.
        parameters: all of them, by name.
        kv: a permutation of the key and value heads.
        q: the permutation of the query heads that goes with it.
    """
    changed: dict[str, Tensor] = {}

    def move(slot: HeadSlot, order: Tensor) -> None:
        for name, axis, start in (
            (slot.weight, slot.axis, slot.start),
            (slot.bias, 0, slot.bias_start),
        ):
            if name is None:
                continue
            tensor = changed.get(name, parameters[name]).clone()
            part = tensor.narrow(axis, start, slot.heads * slot.width)
            place = torch.arange(len(order) * slot.width).reshape(-1, slot.width)[order].flatten()
            part.copy_(part.index_select(axis, place.to(tensor.device)))
            changed[name] = tensor

    for slot, order in ((attention.q, q), (attention.k, kv), (attention.v, kv), (attention.o, q)):
        move(slot, order)
    return changed


def cayley(algebra: Tensor) -> tuple[Tensor, Tensor]:
    """``T = (I - A/2)^-1 (I + A/2)`` and its inverse, for A (h, h).

    To first order ``I + A``; orthogonal for antisymmetric A; and what A maps to 0, T leaves alone.
    """
    one = torch.eye(len(algebra), dtype=algebra.dtype)
    up, down = one + algebra / 2, one - algebra / 2
    return torch.linalg.solve(down, up), torch.linalg.solve(up, down)


def linear_action(
    graph: Graph, parameters: Mapping[str, Tensor], transforms: Mapping[int, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Parameters after ``x -> T x`` at some sites.

    Args:
        graph: where the parameters are used.
        parameters: all of them, by name.
        transforms: T and its inverse, (h, h) each, by site.

    Returns:
        the parameters that move. Weights of diagonal maps do not: T must fit them.
    """
    changed: dict[str, Tensor] = {}
    done: set[tuple[str, int]] = set()

    def move(slot: Slot, matrix: Tensor) -> None:
        # Of a tied axis the first use counts: T is then the same for all if it is orthogonal.
        if (slot.parameter, slot.axis) not in done:
            done.add((slot.parameter, slot.axis))
            now = changed.get(slot.parameter, parameters[slot.parameter])
            changed[slot.parameter] = slot.tensor(matrix @ slot.matrix(now, len(matrix)), now.shape)

    for m in graph.maps:
        if m.target in transforms:
            move(m.rows, transforms[m.target][0])
            if m.bias is not None:
                move(Slot(parameter=m.bias, axis=0), transforms[m.target][0])
        if m.source in transforms and m.columns is not None and m.source is not None:
            move(m.columns, transforms[m.source][1].T)
    for added in graph.added:
        if added.site in transforms:
            move(added.slot, transforms[added.site][0])
    for op in graph.ops:
        if op.kind == "diagonal" and op.bias is not None and op.target in transforms:
            move(op.bias, transforms[op.target][0])
    return changed
