"""What a forward pass does with the parameters, as far as symmetries care.

A *site* is a feature axis whose h units may be transformed together, ``x -> T x``. Linear maps
write it (their rows follow T) and read it (their columns follow T^-1); other operations lead from
one site to another and tell which T they let through. Tensors that are added share one site, so
that a whole residual stream is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Added", "Attention", "Graph", "HeadSlot", "LinearMap", "Op", "Partition", "Slot"]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An axis of a parameter that a site's units index: position ``(outer, unit, inner)``.

    Attributes:
        parameter: its name.
        axis: the axis, of size ``outer * units * inner``.
        outer: slower index beside the unit.
        inner: faster index beside the unit, such as the places of a flattened channel.
    """

    parameter: str
    axis: int
    outer: int = 1
    inner: int = 1

    def move(self, tensor: Tensor, order: Tensor, factor: Tensor) -> Tensor:
        """``(factor * tensor)[order]`` along the units of the axis, (h,) each."""
        shape = tensor.shape
        h = len(order)
        cut = tensor.reshape(
            *shape[: self.axis], self.outer, h, self.inner, *shape[self.axis + 1 :]
        )
        place = self.axis + 1
        view = factor.to(tensor).reshape(-1, *[1] * (cut.dim() - place - 1))
        return (cut * view).index_select(place, order.to(tensor.device)).reshape(shape)

    def matrix(self, tensor: Tensor, h: int) -> Tensor:
        """The tensor as (h, rest): the units first, everything else behind."""
        shape = tensor.shape
        cut = tensor.reshape(
            *shape[: self.axis], self.outer, h, self.inner, *shape[self.axis + 1 :]
        )
        return cut.movedim(self.axis + 1, 0).reshape(h, -1)

    def tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`matrix`; leading dimensions of a batch (k, h, rest) are kept."""
        h = matrix.shape[-2]
        lead = matrix.shape[:-2]
        rest = (*shape[: self.axis], self.outer, self.inner, *shape[self.axis + 1 :])
        cut = matrix.reshape(*lead, h, *rest)
        return cut.movedim(len(lead), len(lead) + self.axis + 1).reshape(*lead, *shape)


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """``target = W source + b``: dense, a convolution over places, or an embedding's look-up.

    Attributes:
        weight: name of W.
        rows: where the target's units index W.
        columns: where the source's units index W; None where the input is data.
        bias: name of b, (units of the target,).
        source: the site that is read, or None.
        target: the site that is written.
        border: whether places beyond the border are padded with zeros.
        kind: ``linear``, ``convolution`` or ``embedding``.
        time: when it ran, among everything that was recorded.
    """

    weight: str
    rows: Slot
    columns: Slot | None
    bias: str | None
    source: int | None
    target: int
    border: bool = False
    kind: str = "linear"
    time: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """An operation that leads from one site to another, unit by unit.

    Attributes:
        kind: ``elementwise``, ``product``, ``norm`` or ``diagonal`` (weights of single units).
        function: ``relu``, ``layer_norm``, ...
        sources: sites that it reads.
        target: the site that it writes.
        homogeneous: ``f(c x) = c f(x)`` for c > 0.
        odd: ``f(-x) = -f(x)``.
        weight: of a ``diagonal``: what multiplies; of ``prelu``: its slopes.
        bias: of a ``diagonal``: what is added.
        mean: of batch normalisation: the frozen means, (h,).
        deviation: likewise ``sqrt(variance + eps)``, (h,).
        groups: of a norm: how many groups of units are normalised apart; 1 for all together.
        eps: of a norm.
        on: of ``relu`` and its kin: how many times each unit's input was positive, (h,).
        slope: of ``relu`` and its kin: the slope below zero; NaN where it is not one number.
        seen: how many times it was looked at: examples times places.
        time: when it ran.
    """

    kind: str
    function: str
    sources: tuple[int, ...]
    target: int
    homogeneous: bool = False
    odd: bool = False
    weight: Slot | None = None
    bias: Slot | None = None
    mean: Tensor | None = None
    deviation: Tensor | None = None
    groups: int = 1
    eps: float = 0.0
    on: Tensor | None = None
    seen: int = 0
    slope: float = math.nan
    time: int = 0


@dataclass(frozen=True, kw_only=True)
class Added:
    """A parameter that is added to a site, such as the embeddings of positions.

    Attributes:
        site: the site.
        slot: where its units index the parameter.
        time: when it was added.
    """

    site: int
    slot: Slot
    time: int = 0


@dataclass(frozen=True, kw_only=True)
class HeadSlot:
    """The heads of one of q, k, v (rows of a weight) or of the output (columns).

    Attributes:
        weight: name of the weight.
        axis: the axis that the heads index.
        start: where they start on it.
        heads: their number.
        width: coordinates of each.
        bias: name of the bias that goes with the rows, or None.
        bias_start: where their part of it starts.
    """

    weight: str
    axis: int
    start: int
    heads: int
    width: int
    bias: str | None = None
    bias_start: int = 0


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention: ``softmax(q k^T) v`` per head, ``kv`` heads each serving equally many.

    Attributes:
        layer: name of the module.
        q: query heads.
        k: key heads; fewer than the queries' where they are grouped.
        v: value heads.
        o: how the output map reads them.
        output_bias: name of the output map's bias, or None.
    """

    layer: str
    q: HeadSlot
    k: HeadSlot
    v: HeadSlot
    o: HeadSlot
    output_bias: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Sites and what connects them.

    Attributes:
        sizes: units h of every site.
        maps: linear maps.
        ops: other operations.
        attentions: attention modules; their maps are among ``maps``.
        added: parameters that are added to a site, other than biases of maps.
        pinned: sites that no transformation can move, with the reason.
        outputs: sites that the model returns; they are pinned too.
        notes: what could not be read, one line each.
    """

    sizes: tuple[int, ...] = ()
    maps: tuple[LinearMap, ...] = ()
    ops: tuple[Op, ...] = ()
    attentions: tuple[Attention, ...] = ()
    added: tuple[Added, ...] = ()
    pinned: Mapping[int, str] = field(default_factory=dict)
    outputs: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def layer(self, sites: int | tuple[int, ...]) -> str:
        """The module that writes the first of the sites that a module writes, for the user."""
        chosen = (sites,) if isinstance(sites, int) else sites
        writers = [m.weight for m in self.maps if m.target in chosen]
        writers += [a.slot.parameter for a in self.added if a.site in chosen]
        writers += [op.weight.parameter for op in self.ops if op.weight and op.target in chosen]
        name = writers[0] if writers else ""
        return name.rpartition(".")[0] or name

    def coupled(self) -> tuple[tuple[int, ...], ...]:
        """Sites whose units have one common order, because operations work unit by unit."""
        classes = Partition(len(self.sizes))
        for op in self.ops:
            for source in op.sources:
                classes.join(source, op.target)
        return classes.groups()


class Partition:
    """Disjoint sets of numbers (union-find)."""

    def __init__(self, count: int = 0) -> None:
        self._parent = list(range(count))

    def add(self) -> int:
        """A new number in a set of its own."""
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def root(self, item: int) -> int:
        """The number that stands for the item's set, its smallest."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: int, second: int) -> int:
        """Unite two sets and return the number that stands for them."""
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low
        return low

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """All sets, each in ascending order."""
        found: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            found.setdefault(self.root(item), []).append(item)
        return tuple(tuple(group) for group in found.values())
