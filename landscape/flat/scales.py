"""Scalings and shifts of units that later operations undo, from linear equations over sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.flat.actions import monomial
from landscape.flat.family import Act, Family
from landscape.flat.graph import Graph, Op

__all__ = ["combinations", "scale_families", "untouched"]

Rows = NDArray[np.float64]


def combinations(equations: Sequence[Mapping[int, float]], unknowns: Sequence[int]) -> Rows:
    """A sparse basis of the solutions of homogeneous equations, (k, unknowns)."""
    place = {unknown: index for index, unknown in enumerate(unknowns)}
    matrix = np.zeros((len(equations), len(unknowns)))
    for row, equation in enumerate(equations):
        for unknown, factor in equation.items():
            matrix[row, place[unknown]] += factor
    leads: list[int] = []
    for column in range(len(unknowns)):
        rank = len(leads)
        below = np.abs(matrix[rank:, column])
        if not len(below) or below.max() < 1e-12:
            continue
        pivot = rank + int(below.argmax())
        matrix[[rank, pivot]] = matrix[[pivot, rank]]
        matrix[rank] /= matrix[rank, column]
        others = np.arange(len(matrix)) != rank
        matrix[others] -= np.outer(matrix[others, column], matrix[rank])
        leads.append(column)
    found = []
    for free in sorted(set(range(len(unknowns))) - set(leads)):
        solution = np.zeros(len(unknowns))
        solution[free] = 1
        for row, lead in enumerate(leads):
            solution[lead] = -matrix[row, free]
        found.append(solution)
    return np.array(found).reshape(len(found), len(unknowns))


def independent(more: Rows, known: Rows) -> Rows:
    """Rows of ``more`` that no combination of ``known`` and of the rows before gives."""
    kept = list(known)
    fresh = []
    for row in more:
        if np.linalg.matrix_rank(np.array([*kept, row])) > len(kept):
            kept.append(row)
            fresh.append(row)
    return np.array(fresh).reshape(len(fresh), more.shape[1])


def untouched(graph: Graph, site: int) -> bool:
    """Whether only linear maps use a site, so that any matrix may act on it."""
    ends = {end for op in graph.ops for end in (*op.sources, op.target)}
    return site not in ends and site not in graph.pinned


def _scale_equations(
    graph: Graph, sites: Sequence[int], ops: Sequence[Op], *, apart: bool
) -> list[dict[int, float]]:
    """What logarithms of scales must fulfil, unit by unit or for all units alike."""
    rows: list[dict[int, float]] = [{site: 1.0} for site in sites if site in graph.pinned]
    for op in ops:
        if op.kind == "diagonal" and op.weight is not None:
            continue  # The weight makes up for any scale.
        if op.kind == "norm":
            rows.append({op.target: 1.0})
            rows += [{op.sources[0]: 1.0}] if apart else []
        elif op.homogeneous or op.kind in ("product", "diagonal"):
            row = {op.target: 1.0}
            for source in op.sources:
                row[source] = row.get(source, 0.0) - 1.0
            rows.append(row)
        else:
            rows += [{end: 1.0} for end in (*op.sources, op.target)]
    return rows


def scale_families(graph: Graph, taken: Mapping[int, set[int]]) -> Iterator[Family]:
    """Scalings of single units, and of all units of a normalisation's input.

    Args:
        graph: the sites.
        taken: units of a site that another family moves already, such as dead ones.
    """
    for sites in graph.coupled():
        if len(sites) == 1 and untouched(graph, sites[0]):
            continue  # The general linear group holds its scalings.
        ops = [op for op in graph.ops if op.target in sites]
        single = combinations(_scale_equations(graph, sites, ops, apart=True), sites)
        common = combinations(_scale_equations(graph, sites, ops, apart=False), sites)
        units = graph.sizes[sites[0]]
        for row in single:
            moved = {s: float(f) for s, f in zip(sites, row, strict=True) if f}
            out = set().union(*(taken.get(site, set()) for site in moved))
            free = torch.tensor([u for u in range(units) if u not in out], dtype=torch.int64)
            if len(free):
                yield Family(
                    name=_scale_name(ops, moved),
                    layer=graph.layer(tuple(moved)),
                    size=len(free),
                    act=_scaling(graph, moved, free, units),
                )
        for row in independent(common, single):
            moved = {s: float(f) for s, f in zip(sites, row, strict=True) if f}
            norms = [op for op in ops if op.kind == "norm" and op.sources[0] in moved]
            groups = min((op.groups for op in norms), default=1)
            yield Family(
                name=f"{norms[0].function if norms else 'common'} input scale",
                layer=graph.layer(tuple(moved)),
                size=groups,
                act=_common_scaling(graph, moved, groups, units),
            )


def _scale_name(ops: Sequence[Op], moved: Mapping[int, float]) -> str:
    ends = [op for op in ops if {*op.sources, op.target} & set(moved)]
    for op in ends:
        if op.kind == "elementwise" and op.function != "max_pool":
            return f"{op.function} rescaling"
    for op in ends:
        if op.kind == "product":
            return "gate rescaling"
    return f"{ends[0].function} scale" if ends else "rescaling"


def _scaling(graph: Graph, moved: Mapping[int, float], free: Tensor, units: int) -> Act:
    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        log = torch.zeros(units, dtype=c.dtype).index_put((free,), c)
        factors = {site: torch.exp(power * log) for site, power in moved.items()}
        return monomial(graph, parameters, tuple(moved), torch.arange(units), factors)

    return act


def _common_scaling(graph: Graph, moved: Mapping[int, float], groups: int, units: int) -> Act:
    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        log = c[:, None].expand(groups, units // groups).reshape(units)
        factors = {site: torch.exp(power * log) for site, power in moved.items()}
        return monomial(graph, parameters, tuple(moved), torch.arange(units), factors)

    return act
