"""What linear parts of a network cannot say or cannot see, beyond their groups.

Where a site has more units than pass through it, rows may change along what nobody reads, and
columns along what nobody writes. With the groups of all sites this makes the n - r(M + N - r) null
directions of a deep linear network of smallest width r.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from landscape.flat.family import Family, null_rows, orthonormal
from landscape.flat.graph import Graph, LinearMap, Op
from landscape.flat.scales import untouched

__all__ = ["Written", "kernel_family", "range_family", "span_families"]

Parameters = Mapping[str, Tensor]


def span_families(graph: Graph, parameters: Parameters) -> Iterator[Family]:
    """Directions along the kernels and outside the ranges of linear parts."""
    read, written = _Read(graph, parameters), Written(graph, parameters)
    for m in graph.maps:
        if read.linear[m.target] and any(o.source == m.target for o in graph.maps):
            kernel = null_rows(read.after(m.target, m.time))
            if len(kernel):
                yield kernel_family(m, kernel, parameters, "linear units that nothing reads")
        if m.source is not None and m.columns is not None:
            unseen = null_rows(written.before(m.source, m.time))
            family = range_family(m, unseen, parameters, "inputs that never vary by construction")
            if family is not None:
                yield family


class _Read:
    """What is read of a site, directly or through linear sites behind it."""

    def __init__(self, graph: Graph, parameters: Parameters) -> None:
        self.graph, self.parameters = graph, parameters
        self.linear = [untouched(graph, site) for site in range(len(graph.sizes))]

    def after(self, site: int, time: int) -> Tensor:
        """Rows (k, h) that span what is read later than a time."""
        h = self.graph.sizes[site]
        if not self.linear[site]:
            return torch.eye(h, dtype=torch.float64)
        parts = [torch.zeros(0, h, dtype=torch.float64)]
        for m in self.graph.maps:
            if m.source != site or m.columns is None or m.time <= time:
                continue
            weight = self.parameters[m.weight]
            basis = self.after(m.target, m.time)
            rows = m.rows.matrix(weight, basis.shape[1])
            through = m.rows.tensor(basis.T @ (basis @ rows), weight.shape)
            parts.append(m.columns.matrix(through, h).T)
        return orthonormal(torch.cat(parts))


class Written:
    """What a site can hold by construction: an affine space ``{o + l}``, as rows (l, 0), (o, 1)."""

    def __init__(self, graph: Graph, parameters: Parameters) -> None:
        self.graph, self.parameters = graph, parameters

    def before(self, site: int, time: int) -> Tensor:
        """Rows (k, h + 1) that span (x, 1) as written before a time; sums add their parts up."""
        h = self.graph.sizes[site]
        parts = [self._map(m, h) for m in self.graph.maps if m.target == site and m.time < time]
        parts += [self._op(op, h) for op in self.graph.ops if op.target == site and op.time < time]
        parts += [_whole(h) for a in self.graph.added if a.site == site and a.time < time]
        if not parts:
            return torch.eye(h + 1, dtype=torch.float64)
        constant = torch.stack([offset for _, offset in parts]).sum(0)
        lines = torch.nn.functional.pad(torch.cat([line for line, _ in parts]), (0, 1))
        point = torch.cat([constant, constant.new_ones(1)])[None]
        return orthonormal(torch.cat([lines, point]))

    def unit(self, m: LinearMap) -> Tensor | None:
        """A vector (h,) whose product with whatever a map reads is 1; None where there is none.

        With it the map's weights can do what a bias does.
        """
        if m.source is None or m.columns is None or m.border:
            return None
        unseen = null_rows(self.before(m.source, m.time))
        vector = unseen[:, -1] @ unseen
        return -vector[:-1] / vector[-1] if float(vector[-1]) > 1e-6 else None

    def _parts(self, site: int, time: int) -> tuple[Tensor, Tensor]:
        """Lines (k, h) and a point (h,) of the affine space."""
        rows = self.before(site, time)
        x, one = rows[:, :-1], rows[:, -1]
        point = (one @ x) / one.square().sum()
        return x - one[:, None] * point, point

    def _map(self, m: LinearMap, h: int) -> tuple[Tensor, Tensor]:
        weight = self.parameters[m.weight]
        bias = torch.zeros(h, dtype=torch.float64) if m.bias is None else self.parameters[m.bias]
        rows = m.rows.matrix(weight, h)
        units = 0 if m.source is None else self.graph.sizes[m.source]
        if m.source is None or weight.dim() != 2 or rows.shape[1] != units:
            return rows.T, bias  # Data, or several places of a unit: any input.
        lines, point = self._parts(m.source, m.time)
        return lines @ rows.T, rows @ point + bias

    def _op(self, op: Op, h: int) -> tuple[Tensor, Tensor]:
        if op.kind == "norm" and op.function in ("layer_norm", "rms_norm"):
            # Scaled by a number of its own, what was a point spans a line.
            lines = self.before(op.sources[0], op.time)[:, :-1]
            if op.function == "layer_norm":
                lines = lines - lines.mean(1, keepdim=True)
            return lines, torch.zeros(h, dtype=torch.float64)
        if op.kind != "diagonal" or op.function == "convolution" or op.mean is not None:
            return _whole(h)
        lines, point = self._parts(op.sources[0], op.time)
        if op.weight is not None:
            weight = op.weight.matrix(self.parameters[op.weight.parameter], h)[:, 0]
            lines, point = lines * weight, point * weight
        if op.bias is not None:
            point = point + op.bias.matrix(self.parameters[op.bias.parameter], h)[:, 0]
        return lines, point


def _whole(h: int) -> tuple[Tensor, Tensor]:
    return torch.eye(h, dtype=torch.float64), torch.zeros(h, dtype=torch.float64)


def kernel_family(m: LinearMap, kernel: Tensor, parameters: Parameters, name: str) -> Family:
    """Any change of a map's outputs along directions (q, h) that nothing reads."""
    weight = parameters[m.weight]
    q, h = kernel.shape
    rest = weight.numel() // h

    def act(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        now = parameters[m.weight]
        rows = kernel.T @ c[: q * rest].reshape(q, rest)
        changed = {m.weight: now + m.rows.tensor(rows, now.shape)}
        if m.bias is not None:
            changed[m.bias] = parameters[m.bias] + c[q * rest :] @ kernel
        return changed

    size = q * rest + (q if m.bias is not None else 0)
    return Family(name=name, layer=_layer(m), size=size, act=act)


def range_family(m: LinearMap, unseen: Tensor, parameters: Parameters, name: str) -> Family | None:
    """Any change of a map's columns along directions of (x, 1), (q, h + 1), that never occur.

    None where there are no such directions. Without a bias, or with a border of zeros, only those
    of x alone count.
    """
    if m.columns is None:
        return None
    columns = m.columns
    if m.bias is None or m.border:
        unseen = torch.nn.functional.pad(_without_constant(unseen), (0, 1))
    if not len(unseen):
        return None
    weight = parameters[m.weight]
    q, h = unseen.shape[0], unseen.shape[1] - 1
    rest = weight.numel() // h

    def act(parameters: Parameters, c: Tensor) -> dict[str, Tensor]:
        now = parameters[m.weight]
        free = c.reshape(q, rest)
        step = columns.tensor(unseen[:, :-1].T @ free, now.shape)
        changed = {m.weight: now + step}
        if m.bias is not None:
            # Every column carries its own share of the constant.
            share = (unseen[:, -1] @ free).expand(h, rest) / h
            spread = columns.tensor(share, now.shape)
            total = m.rows.matrix(spread, now.shape[m.rows.axis]).sum(1)
            changed[m.bias] = parameters[m.bias] + total
        return changed

    return Family(name=name, layer=_layer(m), size=q * rest, act=act)


def _without_constant(rows: Tensor) -> Tensor:
    """Combinations of rows (q, h + 1) whose last entry is 0, without it: (q', h)."""
    return null_rows(rows[:, -1:].T, scale=1.0) @ rows[:, :-1] if len(rows) else rows[:, :-1]


def _layer(m: LinearMap) -> str:
    return m.weight.rpartition(".")[0] or m.weight
