"""Rules of functions that move numbers: reshapes, transposes, indices, sums over places, copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.flat.recorder import Axis, Record, Unsupported
from landscape.flat.reshaping import reshaped
from landscape.flat.rules import known, rule

__all__: list[str] = []


@rule("reshape", "unflatten", "flatten", "squeeze", "unsqueeze")
def reshape(r: Record, result: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    """The same numbers in the same order."""
    r.put(result, reshaped(known(r, x), x.shape, result.shape))


@rule("permute")
def permute(r: Record, result: Tensor, x: Tensor, *dims: Any, **_: Any) -> None:
    """Dimensions in another order."""
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    label = known(r, x)
    r.put(result, [label[d] for d in order])


@rule("transpose", "movedim")
def transpose(r: Record, result: Tensor, x: Tensor, first: Any, second: Any) -> None:
    """Two dimensions exchanged, or some moved."""
    places = torch.arange(x.dim()).tolist()
    probe = torch.empty([0, *range(1, x.dim())]) if x.dim() else torch.empty(0)
    # Sizes 0, 1, 2, ... tell where every dimension went.
    moved = (
        probe.transpose(first, second) if isinstance(first, int) else probe.movedim(first, second)
    )
    label = known(r, x)
    r.put(result, [label[places[size]] for size in moved.shape])


@rule("__getitem__")
def item(r: Record, result: Tensor, x: Tensor, index: Any) -> None:
    """Whole units only: integers and slices of dimensions without units."""
    keys = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(k, int | slice) and k is not None and k is not Ellipsis for k in keys):
        raise Unsupported("an index with a tensor")
    taken = sum(k is not None and k is not Ellipsis for k in keys)
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    place = keys.index(Ellipsis)
    keys[place : place + 1] = [slice(None)] * (x.dim() - taken)
    label, dim = known(r, x), 0
    new: list[Axis | None] = []
    for key in keys:
        if key is None:
            new.append(None)
            continue
        axis = label[dim]
        if axis is not None and key != slice(None):
            raise Unsupported("some units of a site")
        if isinstance(key, slice):
            new.append(axis)
        dim += 1
    r.put(result, new)


@rule("mean", "sum")
def reduce(
    r: Record, result: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any
) -> None:
    """Linear over dimensions without units."""
    label = known(r, x)
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % x.dim() for d in dims}
    if any(label[d] is not None for d in gone):
        raise Unsupported("a reduction over units")
    kept = [None if d in gone else axis for d, axis in enumerate(label)]
    r.put(result, kept if keepdim else [a for d, a in enumerate(kept) if d not in gone])


@rule("expand", "repeat_interleave", "expand_as", "interpolate", "pad", "upsample_nearest2d")
def spread(r: Record, result: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    """Copies along dimensions without units."""
    label = (None,) * (result.dim() - x.dim()) + known(r, x)
    if any(
        axis is not None and size != result.shape[d - x.dim() + result.dim()]
        for d, (axis, size) in enumerate(zip(known(r, x), x.shape, strict=True))
    ):
        raise Unsupported("copies of units")
    r.put(result, label)


@rule("cat", "stack")
def joined(r: Record, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """Side by side along a dimension without units."""
    if any(r.label(t) is None for t in tensors) or result.dim() != tensors[0].dim():
        raise Unsupported("joined tensors")
    label = list(known(r, tensors[0]))
    for tensor in tensors[1:]:
        for d, (mine, other) in enumerate(zip(label, known(r, tensor), strict=True)):
            if (mine is None) != (other is None):
                raise Unsupported("joined tensors")
            if mine is not None and other is not None:
                label[d] = r.join(mine, other)
    if label[dim] is not None:
        raise Unsupported("units of two sites side by side")
    r.put(result, label)
