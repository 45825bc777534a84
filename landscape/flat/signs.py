"""Which signs of a site's units can be flipped: linear equations over the two-element field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from landscape.flat.graph import Graph, Op

__all__ = ["SignGroup", "sign_group"]

Bits = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SignGroup:
    """Sign flips of the units of some sites that are coupled.

    Attributes:
        sites: those that flip in some element.
        single: independent patterns over the sites that every unit may choose from, (k, sites).
        common: further patterns that all units of a group must choose together, (e, sites).
        units: units of each site.
        groups: groups of units that choose together.
    """

    sites: tuple[int, ...]
    single: Bits
    common: Bits
    units: int
    groups: int

    @property
    def log_order(self) -> float:
        """Log of the number of elements, in nats."""
        return (len(self.single) * self.units + len(self.common) * self.groups) * math.log(2)

    def draw(self, generator: Generator) -> dict[int, Tensor]:
        """A random element: factors of +-1, (units,), by site."""
        chosen = torch.randint(2, (self.units, len(self.single)), generator=generator)
        bits = chosen @ torch.from_numpy(self.single)
        shared = torch.randint(2, (self.groups, len(self.common)), generator=generator)
        bits = bits + (shared @ torch.from_numpy(self.common)).repeat_interleave(
            self.units // self.groups, dim=0
        )
        factors = 1.0 - 2.0 * (bits % 2).double()
        return {site: factors[:, place] for place, site in enumerate(self.sites)}


def sign_group(graph: Graph, sites: Sequence[int]) -> SignGroup:
    """The sign flips of a class of coupled sites that the operations between them allow."""
    touching = [op for op in graph.ops if op.target in sites]
    units = graph.sizes[sites[0]]
    single = _solutions(_equations(graph, sites, touching, units, apart=True), len(sites))
    common = _solutions(_equations(graph, sites, touching, units, apart=False), len(sites))
    # Independent of what single units can do already.
    extra: list[Bits] = []
    for row in common:
        known = np.concatenate([single, *[e[None] for e in extra]]) if len(sites) else single
        if len(_reduced(np.concatenate([known, row[None]]))) > len(_reduced(known)):
            extra.append(row)
    bound = [op.groups for op in touching if op.kind == "norm" and not _each(op, units)]
    used = np.concatenate([single, *[e[None] for e in extra]])
    moved: NDArray[np.bool_] = np.asarray(used.any(axis=0)).reshape(len(sites))
    return SignGroup(
        sites=tuple(s for s, m in zip(sites, moved.tolist(), strict=True) if m),
        single=single[:, moved],
        common=np.array(extra, dtype=np.int64).reshape(len(extra), -1)[:, moved]
        if extra
        else np.zeros((0, int(moved.sum())), dtype=np.int64),
        units=units,
        groups=min(bound, default=1),
    )


def _each(op: Op, units: int) -> bool:
    """Whether a normalisation lets every unit's sign through on its own."""
    return op.function == "rms_norm" or op.groups == units


def _equations(
    graph: Graph, sites: Sequence[int], ops: Sequence[Op], units: int, *, apart: bool
) -> Bits:
    """Rows that every pattern of signs must be orthogonal to."""
    rows: list[list[int]] = [[site] for site in sites if site in graph.pinned]
    for op in ops:
        if op.kind == "diagonal" and op.weight is not None:
            continue  # The weight takes any sign.
        if op.kind == "norm":
            through = _each(op, units) or not apart
        else:
            through = op.odd or op.kind in ("product", "diagonal")
        ends = [*op.sources, op.target]
        rows += [ends] if through else [[end] for end in ends]
    matrix = np.zeros((len(rows), len(sites)), dtype=np.int64)
    for place, row in enumerate(rows):
        for site in row:
            matrix[place, list(sites).index(site)] += 1
    return matrix % 2


def _reduced(matrix: Bits) -> Bits:
    """The rows of the reduced echelon form that are not zero."""
    rows = matrix.copy() % 2
    rank = 0
    for column in range(rows.shape[1]):
        pivots = np.flatnonzero(rows[rank:, column])
        if not len(pivots):
            continue
        pivot = rank + int(pivots[0])
        rows[[rank, pivot]] = rows[[pivot, rank]]
        others = np.flatnonzero(rows[:, column])
        for other in others[others != rank]:
            rows[other] ^= rows[rank]
        rank += 1
    return rows[:rank]


def _solutions(equations: Bits, size: int) -> Bits:
    """A basis of the patterns that fulfil the equations, (k, size)."""
    rows = _reduced(equations)
    leads = [int(np.flatnonzero(row)[0]) for row in rows]
    found = []
    for free in sorted(set(range(size)) - set(leads)):
        pattern = np.zeros(size, dtype=np.int64)
        pattern[free] = 1
        for row, lead in zip(rows, leads, strict=True):
            pattern[lead] = row[free]
        found.append(pattern)
    return np.array(found, dtype=np.int64).reshape(len(found), size)
