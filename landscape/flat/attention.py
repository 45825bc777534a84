"""Attention modules, known by the names of what they hold; what they do is verified later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from landscape.flat.graph import Attention, HeadSlot
from landscape.flat.recorder import Axis, Record

__all__ = ["HEADS", "AttentionWeights", "attention_weights", "head_slots", "record_attention"]

_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
_FUSED = ("qkv", "c_attn", "qkv_proj", "Wqkv")
_OUT = ("out_proj", "o_proj", "out", "c_proj", "proj", "wo", "to_out", "o")
HEADS = ("heads", "num_heads", "n_heads", "n_head", "num_attention_heads", "nhead")


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionWeights:
    """The weights of an attention module.

    Attributes:
        inputs: (weight, axis of the outputs, bias) of the maps of q, k and v: three, or one for
            all of them.
        output: the same of the output map.
        heads: number of query heads; 0 where the module does not say.
    """

    inputs: tuple[tuple[Tensor, int, Tensor | None], ...]
    output: tuple[Tensor, int, Tensor | None]
    heads: int


def _map(module: nn.Module | None) -> tuple[Tensor, int, Tensor | None] | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        return None
    # Hugging Face's Conv1D keeps its matrix the other way round.
    return weight, 1 if type(module).__name__ == "Conv1D" else 0, getattr(module, "bias", None)


def attention_weights(module: nn.Module) -> AttentionWeights | None:
    """The weights of an attention module; None where it is none, or none that is known."""
    if isinstance(module, nn.MultiheadAttention):
        return _multihead(module)
    children = dict(module.named_children())
    output = next((m for m in (_map(children.get(n)) for n in _OUT) if m is not None), None)
    sources = (module, getattr(module, "config", None))
    values = [getattr(s, n, None) for s in sources for n in HEADS]
    heads = next((v for v in values if isinstance(v, int) and v > 0), 0)
    if output is None:
        return None
    for names in (*((name,) for name in _FUSED), *_SEPARATE):
        maps = [_map(children.get(name)) for name in names]
        found = tuple(m for m in maps if m is not None)
        if len(found) == len(names):
            return AttentionWeights(inputs=found, output=output, heads=heads)
    return None


def _multihead(module: nn.MultiheadAttention) -> AttentionWeights | None:
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return None
    bias = module.in_proj_bias
    if module.in_proj_weight is not None:
        inputs: tuple[Any, ...] = ((module.in_proj_weight, 0, bias),)
    else:
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        inputs = tuple((weight, 0, bias) for weight in separate)
    out = module.out_proj
    return AttentionWeights(inputs=inputs, output=(out.weight, 0, out.bias), heads=module.num_heads)


def record_attention(
    r: Record, name: str, found: AttentionWeights, arguments: list[Tensor], result: Tensor
) -> None:
    """Enter the maps of an attention module and what it does with their heads.

    Args:
        r: what is known so far.
        name: the module's name.
        found: its weights.
        arguments: its tensor arguments in order.
        result: its first result.
    """
    axes: list[Axis | None] = []
    for argument in arguments:
        label = r.label(argument)
        axes.append(None if label is None else label[-1])
    sites = {axis for axis in axes if axis is not None}
    if len(found.inputs) == 1 and len(sites) > 1:
        first, *others = sorted(sites, key=lambda axis: axis.site)
        for other in others:  # One weight reads them all.
            r.join(first, other)
    shared_bias = len({id(bias) for _, _, bias in found.inputs if bias is not None})
    for place, (weight, rows, bias) in enumerate(found.inputs):
        source = axes[min(place, len(axes) - 1)] if axes else None
        own = bias if len(found.inputs) == 1 or shared_bias > 1 else None
        r.linear(
            weight, rows=rows, columns=1 - rows, source=source, bias=own, why="it is cut into heads"
        )
    weight, rows, bias = found.output
    inside = Axis(r.site(weight.shape[1 - rows], "it is cut into heads"))
    target = r.linear(weight, rows=rows, columns=1 - rows, source=inside, bias=bias)
    r.put(result, [None] * (result.dim() - 1) + [Axis(target)])
    attention = head_slots(r.name, name, found)
    if attention is None:
        r.notes.append(f"attention {name!r}: its heads could not be told apart")
    else:
        r.attentions.append(attention)


def head_slots(
    name_of: Callable[[object], str | None], name: str, found: AttentionWeights
) -> Attention | None:
    """Where the heads lie: parts of q, k, v one after the other, heads in each.

    Args:
        name_of: the name of a parameter; None of any other object.
        name: the module's name.
        found: its weights, with the number of heads.

    Returns:
        None where they cannot be told apart. Whether they lie there is to be verified.
    """
    weight, rows, bias = found.output
    inner = weight.shape[1 - rows]
    if inner % found.heads:
        return None
    width = inner // found.heads
    slots: list[HeadSlot] = []
    start = bias_start = 0
    for place in range(3):
        w, axis, b = found.inputs[min(place, len(found.inputs) - 1)]
        if len(found.inputs) == 3:
            start, size = 0, w.shape[axis]
        elif place == 0:
            size = inner
        else:
            size, uneven = divmod(w.shape[axis] - inner, 2)
            if uneven:
                return None
        head = slots[0].width if slots and place == 1 else width
        count = found.heads if place == 0 else size // head
        if size % max(count, 1) or not count or found.heads % count:
            return None
        if b is not None and len(found.inputs) == 3 and len(b) == w.shape[axis]:
            bias_start = 0
        slots.append(
            HeadSlot(
                weight=str(name_of(w)),
                axis=axis,
                start=start,
                heads=count,
                width=size // count,
                bias=name_of(b),
                bias_start=start if len(found.inputs) == 1 else bias_start,
            )
        )
        start += size
        bias_start += size
    q, k, v = slots
    if q.width != k.width or k.heads != v.heads or v.width != width:
        return None
    o = HeadSlot(
        weight=str(name_of(weight)), axis=1 - rows, start=0, heads=found.heads, width=width
    )
    return Attention(layer=name, q=q, k=k, v=v, o=o, output_bias=name_of(bias))
