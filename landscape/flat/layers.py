"""Rules of functions with weights: linear maps, convolutions, embeddings and normalisations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from landscape.flat.recorder import Axis, Record, Unsupported
from landscape.flat.rules import known, positive, rule

__all__: list[str] = []


def last(r: Record, x: Tensor) -> Axis | None:
    """The axis of the last dimension."""
    label = r.label(x)
    return None if label is None else label[-1]


def read_columns(r: Record, x: Tensor, size: int) -> Axis | None:
    """The axis that a dense map contracts; other dimensions' sites go through it unchanged."""
    axis = last(r, x)
    if axis is not None and r.size(axis.site) * axis.outer * axis.inner != size:
        raise Unsupported("a layout that does not fit the weights")
    return axis


@rule("linear")
def linear(r: Record, result: Tensor, x: Tensor, weight: Tensor, bias: Any = None) -> None:
    """``x W^T + b``."""
    source = read_columns(r, x, weight.shape[1])
    target = r.linear(weight, rows=0, columns=1, source=source, bias=bias)
    label = r.label(x) or (None,) * x.dim()
    r.put(result, [*label[:-1], Axis(target)])


@rule("matmul")
def matmul(r: Record, result: Tensor, x: Tensor, weight: Tensor) -> None:
    """``x W`` with a parameter W, or with the transpose of one."""
    rows, columns, matrix = 1, 0, weight
    if id(weight) in r.views:
        rows, columns, matrix = 0, 1, r.views[id(weight)][1]
    if r.name(matrix) is None or matrix.dim() != 2:
        raise Unsupported("a product of two computed tensors")
    source = read_columns(r, x, matrix.shape[columns])
    target = r.linear(matrix, rows=rows, columns=columns, source=source)
    label = r.label(x) or (None,) * x.dim()
    r.put(result, [*label[:-1], Axis(target)])


@rule("addmm")
def addmm(r: Record, result: Tensor, bias: Tensor, x: Tensor, weight: Tensor, **other: Any) -> None:
    """``b + x W`` with parameters."""
    if any(value != 1 for value in other.values()):
        raise Unsupported("a scaled sum")
    source = read_columns(r, x, weight.shape[0])
    target = r.linear(weight, rows=1, columns=0, source=source, bias=bias)
    label = r.label(x) or (None,) * x.dim()
    r.put(result, [*label[:-1], Axis(target)])


@rule("t")
def transposed(r: Record, result: Tensor, x: Tensor, *_: Any) -> None:
    """The transpose of a matrix of parameters is still one."""
    name = r.name(x)
    if name is None or x.dim() != 2:
        raise Unsupported("a transpose")
    r.keep(result, name, x)


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    r: Record,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    """A linear map of channels at every place; depthwise ones are diagonal."""
    channel = 1 if x.dim() == weight.dim() else 0
    label = r.label(x)
    source = None if label is None else label[channel]
    if label is not None and any(a is not None for d, a in enumerate(label) if d != channel):
        raise Unsupported("a convolution over units")
    new: list[Axis | None] = [None] * result.dim()
    if groups != 1:
        name = r.name(weight)
        if source is None or name is None or not groups == weight.shape[0] == x.shape[channel]:
            raise Unsupported("a grouped convolution")
        after = r.step("diagonal", "convolution", [source])
        slot = r.slot(name, 0, after)
        shift = None if bias is None else r.slot(str(r.name(bias)), 0, after)
        r.ops[-1] = replace(r.ops[-1], weight=slot, bias=shift)
        new[channel] = after
        r.put(result, new)
        return
    if source is not None and (source.outer, source.inner) != (1, 1):
        raise Unsupported("a layout that does not fit the weights")
    zeros = padding in ("same",) or any(
        p for p in (padding if isinstance(padding, tuple | list) else (padding,)) if p != "valid"
    )
    new[channel] = Axis(
        r.linear(
            weight,
            rows=0,
            columns=1,
            source=source,
            bias=bias,
            border=bool(zeros),
            kind="convolution",
        )
    )
    r.put(result, new)


@rule("embedding")
def embedding(
    r: Record,
    result: Tensor,
    index: Tensor,
    weight: Tensor,
    padding_idx: Any = None,
    max_norm: Any = None,
    *_: Any,
    **__: Any,
) -> None:
    """Rows of a table, chosen by the data."""
    if max_norm is not None:
        raise Unsupported("an embedding that is renormalised")
    target = r.linear(weight, rows=1, columns=0, source=None, kind="embedding")
    r.put(result, [None] * index.dim() + [Axis(target)])


@rule("prelu")
def prelu(r: Record, result: Tensor, x: Tensor, weight: Tensor) -> None:
    """Linear on either side of zero, with one slope or one for each channel."""
    label = list(known(r, x))
    channel = min(1, x.dim() - 1)
    name = r.name(weight)
    for d, axis in enumerate(label):
        if axis is None:
            continue
        found = positive(x, d, axis, r.size(axis.site))
        after = r.step("elementwise", "prelu", [axis], homogeneous=True, **found)
        if weight.numel() > 1:
            if d != channel or name is None:
                raise Unsupported("slopes of another axis")
            r.ops[-1] = replace(r.ops[-1], weight=r.slot(name, 0, after))
        label[d] = after
    r.put(result, label)


def affine(r: Record, axis: Axis, function: str, weight: Any, bias: Any, place: int) -> Axis:
    """A diagonal map behind a normalisation, where it has weights."""
    for tensor in (weight, bias):
        if tensor is not None and r.name(tensor) is None:
            raise Unsupported("weights computed from parameters")
    if weight is None and bias is None:
        return axis
    after = r.step("diagonal", function, [axis])
    r.ops[-1] = replace(
        r.ops[-1],
        weight=None if weight is None else r.slot(str(r.name(weight)), place, after),
        bias=None if bias is None else r.slot(str(r.name(bias)), place, after),
    )
    return after


@rule("layer_norm")
def layer_norm(
    r: Record,
    result: Tensor,
    x: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = None,
    *,
    function: str = "layer_norm",
) -> None:
    """Normalised over the last dimensions, which must hold the units."""
    label = list(r.label(x) or (None,) * x.dim())
    first = x.dim() - len(normalized_shape)
    eps = torch.finfo(x.dtype).eps if eps is None else float(eps)
    held = [d for d in range(first, x.dim()) if label[d] is not None]
    if not held and len(normalized_shape) == 1:
        # Data that are normalised: the units are the data's, which stay where they are.
        label[-1] = Axis(r.site(x.shape[-1], "it is the data"))
        held = [first]
    if len(held) != 1:
        raise Unsupported("a normalisation over units of several sites")
    (d,) = held
    axis = label[d]
    if axis is None:
        raise Unsupported("a normalisation")
    after = r.step("norm", function, [axis], eps=eps)
    label[d] = affine(r, after, function, weight, bias, d - first)
    r.put(result, label)


@rule("rms_norm")
def rms_norm(
    r: Record, result: Tensor, x: Tensor, shape: Any, weight: Any = None, eps: Any = None
) -> None:
    """Without means and biases."""
    layer_norm(r, result, x, shape, weight, None, eps, function="rms_norm")


@rule("group_norm")
def group_norm(
    r: Record,
    result: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> None:
    """Normalised over places and the channels of each group."""
    label = list(known(r, x))
    axis = label[1]
    if axis is None or (axis.outer, axis.inner) != (1, 1):
        raise Unsupported("a normalisation over units of several sites")
    after = r.step("norm", "group_norm", [axis], groups=num_groups, eps=float(eps))
    label[1] = affine(r, after, "group_norm", weight, bias, 0)
    r.put(result, label)


@rule("batch_norm")
def batch_norm(
    r: Record,
    result: Tensor,
    x: Tensor,
    mean: Any,
    variance: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> None:
    """With frozen statistics: a diagonal map with constants of its own."""
    if training or mean is None or variance is None:
        raise Unsupported("batch normalisation with the batch's own statistics")
    label = list(known(r, x))
    axis = label[1]
    if axis is None or (axis.outer, axis.inner) != (1, 1) or weight is None or bias is None:
        raise Unsupported("batch normalisation without weights")
    label[1] = affine(r, axis, "batch_norm", weight, bias, 0)
    deviation = (variance.detach().double() + eps).sqrt().cpu()
    r.ops[-1] = replace(r.ops[-1], mean=mean.detach().double().cpu(), deviation=deviation)
    r.put(result, label)
