"""Matrices that act on all units of a site: linear units, and units between normalisations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from landscape.flat.actions import cayley, linear_action
from landscape.flat.family import Act, Family
from landscape.flat.graph import Graph, Op
from landscape.flat.scales import untouched

__all__ = ["linear_families", "rotation_families", "skew"]


def skew(size: int) -> tuple[Tensor, Tensor]:
    """Places (row, column) of the free entries of an antisymmetric matrix."""
    places = torch.triu_indices(size, size, offset=1)
    return places[0], places[1]


def _antisymmetric(c: Tensor, size: int) -> Tensor:
    row, column = skew(size)
    upper = torch.zeros(size, size, dtype=c.dtype).index_put((row, column), c)
    return upper - upper.T


def _tied(graph: Graph, site: int) -> bool:
    """Whether one axis of a parameter both writes and reads the site."""
    written = {(m.weight, m.rows.axis) for m in graph.maps if m.target == site}
    written |= {(a.slot.parameter, a.slot.axis) for a in graph.added if a.site == site}
    read = {(m.weight, m.columns.axis) for m in graph.maps if m.source == site and m.columns}
    return bool(written & read)


def linear_families(graph: Graph) -> Iterator[Family]:
    """``GL(h)`` of every site that only linear maps use: h^2; O(h) where it is tied."""
    for site, units in enumerate(graph.sizes):
        writers = [m for m in graph.maps if m.target == site]
        readers = [m for m in graph.maps if m.source == site]
        if not untouched(graph, site) or not readers or not (writers or graph.added):
            continue
        simple = len(writers) == len(readers) == 1
        name = "linear pair" if simple else "linear residual stream"
        if _tied(graph, site):
            size = units * (units - 1) // 2
            act = _rotation(graph, [site], {}, torch.eye(units, dtype=torch.float64))
            yield Family(name=f"{name} rotation", layer=graph.layer(site), size=size, act=act)
        else:
            act = _general(graph, site, units)
            yield Family(name=name, layer=graph.layer(site), size=units**2, act=act)


def _general(graph: Graph, site: int, units: int) -> Act:
    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        return linear_action(graph, parameters, {site: cayley(c.reshape(units, units))})

    return act


def rotation_families(graph: Graph) -> Iterator[Family]:
    """Rotations that normalisations let through, where all that reads them are linear maps.

    Root-mean-square: so(h). Layer normalisation: rotations that keep its mean direction, so(h - 1).
    Weights behind it stay: with ``y = g x + b`` the readers take ``diag(g) Q diag(1/g)``.
    """
    for sites in graph.coupled():
        ops = [op for op in graph.ops if op.target in sites]
        norms = [op for op in ops if op.kind == "norm"]
        if not norms or any(site in graph.pinned for site in sites):
            continue
        if any(op.function not in ("layer_norm", "rms_norm") for op in norms):
            continue
        hats = {op.target for op in norms}
        diagonals = [op for op in ops if op.kind != "norm"]
        read = {source for op in ops for source in op.sources}
        if any(not _plain(op, hats, read) for op in diagonals):
            continue
        units = graph.sizes[sites[0]]
        centred = any(op.function == "layer_norm" for op in norms)
        frame = _centred(units) if centred else torch.eye(units, dtype=torch.float64)
        size = len(frame) * (len(frame) - 1) // 2
        if size:
            yield Family(
                name=f"{norms[0].function} rotation",
                layer=graph.layer(sites),
                size=size,
                act=_rotation(graph, sites, {op.target: op for op in diagonals}, frame),
            )


def _plain(op: Op, hats: set[int], read: set[int]) -> bool:
    """Whether it is the diagonal map behind a normalisation, with linear maps behind it."""
    frozen = op.mean is not None or op.weight is None
    behind = op.sources[0] in hats and op.target not in read
    return op.kind == "diagonal" and not frozen and behind


def _centred(units: int) -> Tensor:
    """An orthonormal basis of the vectors whose entries add up to 0, rows (units - 1, units)."""
    ones = torch.ones(units, 1, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.cat([ones, torch.eye(units, dtype=torch.float64)[:, 1:]], 1))
    basis: Tensor = q[:, 1:].T.contiguous()
    return basis


def _rotation(
    graph: Graph, sites: Sequence[int], diagonals: Mapping[int, Op], frame: Tensor
) -> Act:
    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        q, back = cayley(frame.T @ _antisymmetric(c, len(frame)) @ frame)
        transforms: dict[int, tuple[Tensor, Tensor]] = {}
        for site in sites:
            op = diagonals.get(site)
            if op is None or op.weight is None:
                transforms[site] = (q, back)
                continue
            weight = op.weight.matrix(parameters[op.weight.parameter], len(q))[:, 0]
            transforms[site] = (
                weight[:, None] * q / weight,
                weight[:, None] * back / weight,
            )
        return linear_action(graph, parameters, transforms)

    return act
