"""What is known of every tensor of one forward pass: the sites that its dimensions index.

Nothing is guessed: what an unknown operation touches is pinned, so that no symmetry is claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from landscape.flat.graph import Added, Attention, Graph, LinearMap, Op, Partition, Slot

__all__ = ["Axis", "Label", "Record", "Unsupported"]


class Unsupported(Exception):  # noqa: N818  (never leaves this package)
    """A known operation in a form whose symmetries are not known."""


@dataclass(frozen=True)
class Axis:
    """A dimension of size ``outer * units * inner`` that a site's units index."""

    site: int
    outer: int = 1
    inner: int = 1


Label = tuple[Axis | None, ...]


class Record:
    """Sites, maps and operations met so far, and the label of every tensor.

    Args:
        model: its parameters are known by their names, tied ones by the first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.maps: list[LinearMap] = []
        self.ops: list[Op] = []
        self.attentions: list[Attention] = []
        self.added: list[Added] = []
        self.notes: list[str] = []
        self.views: dict[int, tuple[str, Tensor]] = {}  # Transposes of parameters.
        self._time = 0
        self._sizes: list[int] = []
        self._equal = Partition()
        self._pinned: list[tuple[int, str]] = []
        self._slots: dict[tuple[str, int], tuple[int, int, int]] = {}
        self._tainted: dict[str, str] = {}
        self._labels: dict[int, Label] = {}
        self._alive: list[object] = []  # Numbers of objects must not be used again.

    # Labels ----------------------------------------------------------------------------------

    def label(self, tensor: object) -> Label | None:
        """The axes of a tensor's dimensions; None where no site is known."""
        found = self._labels.get(id(tensor))
        return found if found is not None and any(found) else None

    def put(self, tensor: Tensor, label: Iterable[Axis | None]) -> None:
        """Note a tensor's label."""
        self._labels[id(tensor)] = tuple(label)
        self._alive.append(tensor)

    def keep(self, tensor: Tensor, name: str, original: Tensor) -> None:
        """Note that a tensor is the transpose of a parameter."""
        self.views[id(tensor)] = (name, original)
        self._alive.append(tensor)

    def name(self, tensor: object) -> str | None:
        """The name of a parameter; None of any other object."""
        return self.names.get(id(tensor))

    # Sites -----------------------------------------------------------------------------------

    def site(self, size: int, pinned: str = "") -> int:
        """A new site of so many units."""
        self._sizes.append(size)
        index = self._equal.add()
        if pinned:
            self.pin(index, pinned)
        return index

    def size(self, site: int) -> int:
        """Number of units of a site."""
        return self._sizes[site]

    def pin(self, site: int, why: str) -> None:
        """Say that a site cannot be transformed."""
        self._pinned.append((site, why))

    def pin_tensor(self, tensor: object, why: str) -> None:
        """Pin every site of a tensor; a parameter's sites are pinned too."""
        for axis in self.label(tensor) or ():
            if axis is not None:
                self.pin(axis.site, why)
        name = self.name(tensor) or self.views.get(id(tensor), ("",))[0]
        if name:
            self._tainted.setdefault(name, why)

    def tick(self) -> int:
        """The next moment."""
        self._time += 1
        return self._time

    def join(self, first: Axis, second: Axis) -> Axis:
        """Make two axes one, or pin both where their units lie differently."""
        same = (first.outer, first.inner) == (second.outer, second.inner)
        if same and self._sizes[first.site] == self._sizes[second.site]:
            return replace(first, site=self._equal.join(first.site, second.site))
        for axis in (first, second):
            self.pin(axis.site, "axes of different layouts meet")
        return first

    def slot(self, parameter: str, axis: int, place: Axis) -> Slot:
        """Say that a parameter's axis is indexed by a site's units; shared ones are made one."""
        new = (place.site, place.outer, place.inner)
        old = self._slots.setdefault((parameter, axis), new)
        if old != new:
            self.join(Axis(*old), place)
        return Slot(parameter=parameter, axis=axis, outer=place.outer, inner=place.inner)

    def linear(
        self,
        weight: Tensor,
        *,
        rows: int,
        columns: int,
        source: Axis | None,
        size: int | None = None,
        bias: object = None,
        border: bool = False,
        kind: str = "linear",
        why: str = "",
    ) -> int:
        """Add a linear map and return the site that it writes.

        Args:
            weight: the parameter.
            rows: the axis of its outputs.
            columns: the axis of its inputs.
            source: the site that it reads; None for data.
            size: units of its output, all of the axis where None.
            bias: the parameter, or None.
            border: whether places are padded with zeros.
            kind: ``linear``, ``convolution`` or ``embedding``.
            why: pin the output for this reason.

        Raises:
            Unsupported: the weight or the bias is not a parameter of the model.
        """
        name = self.name(weight)
        if name is None or (bias is not None and self.name(bias) is None):
            raise Unsupported("weights computed from parameters")
        target = self.site(weight.shape[rows] if size is None else size, why)
        if source is None:
            data = Axis(self.site(weight.shape[columns], "the data index it"))
            self.slot(name, columns, data)
        columns_slot = None if source is None else self.slot(name, columns, source)
        rows_slot = self.slot(name, rows, Axis(target))
        if bias is not None:
            self.slot(str(self.name(bias)), 0, Axis(target))
        self.maps.append(
            LinearMap(
                weight=name,
                rows=rows_slot,
                columns=columns_slot,
                bias=self.name(bias),
                source=None if source is None else source.site,
                target=target,
                border=border,
                kind=kind,
                time=self.tick(),
            )
        )
        return target

    def step(self, kind: str, function: str, sources: Sequence[Axis], **options: Any) -> Axis:
        """Add an operation and return the axis of its result."""
        target = self.site(self._sizes[sources[0].site])
        places = tuple(axis.site for axis in sources)
        self.ops.append(
            Op(
                kind=kind,
                function=function,
                sources=places,
                target=target,
                time=self.tick(),
                **options,
            )
        )
        return replace(sources[0], site=target)

    # The result ------------------------------------------------------------------------------

    def _numbers(self) -> tuple[list[int], dict[int, int]]:
        """Sites that stand for others, and of every site the place of its own among them."""
        root = self._equal.root
        used = sorted({root(site) for site in range(len(self._sizes))})
        place = {site: index for index, site in enumerate(used)}
        return used, {site: place[root(site)] for site in range(len(self._sizes))}

    def activations(self) -> list[tuple[int, Tensor]]:
        """Every tensor of the pass that a site indexes: the site, and values (units, rest)."""
        _, number = self._numbers()
        tensors = {id(t): t for t in self._alive if isinstance(t, Tensor)}
        found = []
        for key, tensor in tensors.items():
            for dim, axis in enumerate(self._labels.get(key, ())):
                if axis is not None:
                    slot = Slot(parameter="", axis=dim, outer=axis.outer, inner=axis.inner)
                    values = slot.matrix(tensor.detach(), self._sizes[axis.site])
                    found.append((number[axis.site], values))
        return found

    def graph(self, outputs: Tensor) -> Graph:
        """Everything with one number for each site, after the model has returned."""
        returned = [axis.site for axis in self.label(outputs) or () if axis is not None]
        used, number = self._numbers()
        pinned: dict[int, str] = {}
        for site, why in self._pinned:
            pinned.setdefault(number[site], why)
        for (name, _), (site, _, _) in self._slots.items():
            if name in self._tainted:
                pinned.setdefault(number[site], self._tainted[name])
        for site in returned:
            pinned.setdefault(number[site], "it is the output")
        return Graph(
            sizes=tuple(self._sizes[site] for site in used),
            maps=tuple(
                replace(
                    m,
                    source=None if m.source is None else number[m.source],
                    target=number[m.target],
                )
                for m in self.maps
            ),
            ops=tuple(
                replace(op, sources=tuple(number[s] for s in op.sources), target=number[op.target])
                for op in self.ops
            ),
            attentions=tuple(self.attentions),
            added=tuple(replace(a, site=number[a.site]) for a in self.added),
            pinned=pinned,
            outputs=tuple(number[site] for site in returned),
            notes=tuple(dict.fromkeys(self.notes)),
        )
