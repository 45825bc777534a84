"""How each torch function maps the labels of its arguments to that of its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from landscape.flat.graph import Added
from landscape.flat.recorder import Axis, Label, Record, Unsupported

__all__ = ["ALIASES", "RULES"]

Rule = Callable[..., None]
RULES: dict[str, Rule] = {}

ALIASES = {
    "__add__": "add",
    "__radd__": "add",
    "__iadd__": "add",
    "add_": "add",
    "__sub__": "sub",
    "__rsub__": "rsub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "mul_": "mul",
    "__imul__": "mul",
    "multiply": "mul",
    "__truediv__": "div",
    "div_": "div",
    "true_divide": "div",
    "__matmul__": "matmul",
    "mm": "matmul",
    "swapaxes": "transpose",
    "view": "reshape",
    "__neg__": "neg",
    "moveaxis": "movedim",
    "get:T": "t",
    "get:mT": "t",
}

# x -> f(x) for every unit alike: what it lets through.
_LINEAR = (
    "clone contiguous detach dropout dropout1d dropout2d feature_dropout identity neg to double "
    "float requires_grad_ alias"
)
_HOMOGENEOUS = "relu relu_ leaky_relu leaky_relu_ rrelu abs"
_ODD = "tanh tanh_ sin erf atan asinh softsign tanhshrink hardshrink softshrink sign"
_OTHER = (
    "gelu silu silu_ sigmoid elu celu selu softplus mish hardtanh hardswish hardsigmoid relu6 "
    "logsigmoid exp cos square sigmoid_ elu_ selu_"
)
# Pooling works on places, which have no units.
_POOLS = "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
_MAX_POOLS = "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of functions."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def known(r: Record, x: Any) -> Label:
    """The label of a tensor, which must have one."""
    found = r.label(x)
    if found is None:
        raise Unsupported("an argument in an unusual place")
    return found


@rule(*_LINEAR.split(), *_POOLS.split())
def unchanged(r: Record, result: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    """Linear in every unit alike."""
    r.put(result, known(r, x))


def elementwise(name: str, *, homogeneous: bool = False, odd: bool = False) -> Rule:
    """The rule of one function of single numbers."""

    def apply(r: Record, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
        slope = math.nan
        if name.startswith("relu"):
            slope = 0.0
        elif name.startswith("leaky_relu"):
            slope = float(kwargs.get("negative_slope", args[0] if args else 0.01))
        new: list[Axis | None] = []
        for dim, axis in enumerate(known(r, x)):
            if axis is None:
                new.append(None)
                continue
            options: dict[str, Any] = {"homogeneous": homogeneous, "odd": odd, "slope": slope}
            if homogeneous:
                # An inplace function has overwritten its input: signs of results tell the same.
                options |= positive(result, dim, axis, r.size(axis.site))
            new.append(r.step("elementwise", name.rstrip("_"), [axis], **options))
        r.put(result, new)

    return apply


def positive(x: Tensor, dim: int, axis: Axis, units: int) -> dict[str, Any]:
    """How many times every unit is positive, and of how many."""
    cut = x.movedim(dim, 0).reshape(axis.outer, units, -1) > 0
    return {"on": cut.sum((0, 2)).cpu(), "seen": cut.shape[0] * cut.shape[2]}


for _name in _HOMOGENEOUS.split():
    RULES[_name] = elementwise(_name, homogeneous=True)
for _name in _ODD.split():
    RULES[_name] = elementwise(_name, odd=True)
for _name in _OTHER.split():
    RULES[_name] = elementwise(_name)
for _name in _MAX_POOLS.split():
    RULES[_name] = elementwise("max_pool", homogeneous=True)


@rule("pow", "__pow__")
def power(r: Record, result: Tensor, x: Tensor, exponent: Any) -> None:
    """Odd for odd whole exponents."""
    if not isinstance(exponent, int | float):
        raise Unsupported("a power with a tensor")
    elementwise("pow", odd=exponent % 2 == 1)(r, result, x)


def aligned(x: Any, dims: int) -> Any:
    """Values of a tensor's dimensions, aligned from the last one, with None in front."""
    return (None,) * (dims - len(x)) + tuple(x)


@rule("add", "sub", "rsub")
def add(r: Record, result: Tensor, x: Any, y: Any, *, alpha: Any = 1) -> None:
    """Equal transformations of both terms; a parameter follows the site it is added to."""
    if alpha != 1:
        raise Unsupported("a scaled sum")
    if r.label(x) is None:
        x, y = y, x
    dims = result.dim()
    label = list(aligned(known(r, x), dims))
    if not isinstance(y, Tensor):
        elementwise("add")(r, result, x)
        return
    other = aligned(r.label(y) or (None,) * y.dim(), dims)
    sizes = aligned(y.shape, dims)
    constant = False
    for d, axis in enumerate(label):
        if axis is None:
            label[d] = other[d]  # Broadcast over the units of the second term.
            constant |= other[d] is not None
        elif other[d] is not None:
            label[d] = r.join(axis, other[d])
        elif sizes[d] in (None, 1):
            constant = True
        elif r.name(y) is not None:
            slot = r.slot(str(r.name(y)), d - dims + y.dim(), axis)
            r.added.append(Added(site=axis.site, slot=slot, time=r.tick()))
        else:
            raise Unsupported("a sum with numbers of other origin")
    r.put(result, label)
    if constant:
        elementwise("add")(r, result, result)


@rule("mul", "div")
def multiply(r: Record, result: Tensor, x: Any, y: Any) -> None:
    """Scalars and masks are linear; a parameter multiplies unit by unit; so do two sites."""
    swapped = r.label(x) is None
    if swapped:
        x, y = y, x
    dims = result.dim()
    label = list(aligned(known(r, x), dims))
    if not isinstance(y, Tensor):
        if swapped and not isinstance(y, int | float):
            raise Unsupported("a quotient")
        r.put(result, label)
        return
    other = aligned(r.label(y) or (None,) * y.dim(), dims)
    sizes = aligned(y.shape, dims)
    for d, axis in enumerate(label):
        if axis is None:
            if other[d] is not None:
                raise Unsupported("a product over units of one factor")
        elif other[d] is not None:
            if (axis.outer, axis.inner) != (other[d].outer, other[d].inner):
                raise Unsupported("a product of different layouts")
            if r.size(axis.site) != r.size(other[d].site):
                raise Unsupported("a product of different sizes")
            label[d] = r.step("product", "mul", [axis, other[d]])
        elif sizes[d] not in (None, 1):
            if r.name(y) is None:
                raise Unsupported("a product with numbers of other origin")
            after = r.step("diagonal", "mul", [axis])
            slot = r.slot(str(r.name(y)), d - dims + y.dim(), after)
            r.ops[-1] = replace(r.ops[-1], weight=slot)
            label[d] = after
    r.put(result, label)


@rule("masked_fill", "masked_fill_")
def masked(r: Record, result: Tensor, x: Tensor, mask: Tensor, value: Any) -> None:
    """Zeros in places without units."""
    label = known(r, x)
    sizes = aligned(mask.shape, x.dim())
    if value != 0 or any(a is not None and n not in (None, 1) for a, n in zip(label, sizes)):  # noqa: B905
        raise Unsupported("a mask")
    r.put(result, label)
