"""Reading the graph: one forward pass is watched, function by function.

A recorded pass rather than a symbolic one: it works wherever the model runs (shapes from
``torch.arange``, loops, branches), sees functions that are called without modules, and knows every
shape. Only one pass is seen: a branch that another example takes is not, so that what is found is
verified before it is reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.flat import layers, shape_rules
from landscape.flat.attention import HEADS, AttentionWeights, attention_weights, record_attention
from landscape.flat.graph import Graph
from landscape.flat.recorder import Record, Unsupported
from landscape.flat.rules import ALIASES, RULES
from landscape.risk import differentiable_twice

__all__ = ["read_activations", "read_graph"]

assert layers  # Rules are entered when their modules are imported.
assert shape_rules


def read_graph(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> Graph:
    """The sites of a model's forward pass and what connects them.

    Args:
        model: in eval mode.
        forward: runs it on some examples and returns its outputs.

    Returns:
        the graph; an empty one, with the reason among its notes, where the pass cannot be watched.

    Cost: one forward pass.
    """
    record = Record(model)
    try:
        outputs = _watched(model, forward, record)
        if not isinstance(outputs, Tensor):
            return Graph(notes=(f"the model returns a {type(outputs).__name__}, not a tensor",))
        return record.graph(outputs)
    except Exception as error:  # Whatever a model may raise: symmetries are no reason to stop.
        text = (str(error).splitlines() or [""])[0]
        return Graph(notes=(f"the forward pass was not read: {type(error).__name__}: {text}",))


def read_activations(
    model: nn.Module, forward: Callable[[nn.Module], Tensor]
) -> list[tuple[int, Tensor]]:
    """Sites of a model's forward pass, as :func:`read_graph` numbers them, and their activations.

    Args:
        model: in eval mode; its graph can be read.
        forward: runs it on some examples and returns its outputs.

    Returns:
        for every tensor that a site indexes, in the order of the pass, the site and the values
        (units, everything else).

    Cost: one forward pass, all of whose activations are held.
    """
    record = Record(model)
    _watched(model, forward, record)
    return record.activations()


def _watched(model: nn.Module, forward: Callable[[nn.Module], Tensor], record: Record) -> Tensor:
    with torch.no_grad(), differentiable_twice(model), _leaves(model, record) as watch, watch:
        return forward(model)


class _Watch(TorchFunctionMode):
    """Hands every torch function of the pass to its rule."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.inside = 0  # Modules that are entered as a whole.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.inside:
            self._note(_name(func), args, kwargs, result)
        return result

    def _note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        r = self.record
        touched = [t for t in _tensors((args, kwargs)) if _matters(r, t)]
        results = _tensors(result)
        if not touched or not results or name == "__setitem__":
            if name == "__setitem__":
                for tensor in touched:
                    r.pin_tensor(tensor, "numbers are written into it")
            return
        rule = RULES.get(ALIASES.get(name, name))
        try:
            if rule is None or len(results) != 1:
                raise Unsupported(f"the function {name!r}")
            rule(r, results[0], *args, **kwargs)
        except (Unsupported, TypeError, IndexError, ValueError) as error:
            why = str(error) if isinstance(error, Unsupported) else f"the function {name!r}"
            r.notes.append(f"units that meet {why} ({name}) are left alone")
            for tensor in touched:
                r.pin_tensor(tensor, f"it meets {why}")


def _name(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if name == "__get__":  # A property, such as x.T.
        return f"get:{getattr(func.__self__, '__name__', '')}"
    return name


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _matters(r: Record, tensor: Tensor) -> bool:
    return r.label(tensor) is not None or r.name(tensor) is not None or id(tensor) in r.views


@contextlib.contextmanager
def _leaves(model: nn.Module, record: Record) -> Iterator[_Watch]:
    """Hooks on the modules that are entered as a whole, removed afterwards."""
    watch = _Watch(record)
    handles: list[Any] = []

    def enter(*_: Any) -> None:
        watch.inside += 1

    def leave(act: Callable[[list[Tensor], Any], None]) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            watch.inside -= 1
            if not watch.inside:
                arguments = _tensors((args, kwargs))
                result = output[0] if isinstance(output, tuple | list) else output
                act(arguments, result)

        return hook

    for name, module in model.named_modules():
        weights = attention_weights(module)
        act = None
        if weights is not None and not weights.heads:
            record.notes.append(
                f"{name or 'the model'} looks like attention, but does not say how many heads it "
                f"has, so its symmetries stay unexplained: set one of its attributes "
                f"{', '.join(HEADS)}"
            )
        elif weights is not None:
            act = _attention(record, name, weights)
        elif _is_rms(module):
            act = _rms(record, module)
        if act is not None:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave(act), with_kwargs=True))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _attention(
    record: Record, name: str, weights: AttentionWeights
) -> Callable[[list[Tensor], Any], None]:
    def act(arguments: list[Tensor], result: Any) -> None:
        floats = [t for t in arguments if t.is_floating_point() and t.dim() >= 2]
        try:
            record_attention(record, name, weights, floats, result)
        except Unsupported as error:
            record.notes.append(f"attention {name!r} is left alone: {error}")
            for tensor in (*floats, *(w for w, _, _ in weights.inputs), weights.output[0]):
                record.pin_tensor(tensor, "attention that was not read")

    return act


def _is_rms(module: nn.Module) -> bool:
    """A hand-written root-mean-square normalisation, of which there are many."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    return named and isinstance(weight, nn.Parameter) and weight.dim() == 1


def _rms(record: Record, module: Any) -> Callable[[list[Tensor], Any], None]:
    def act(arguments: list[Tensor], result: Any) -> None:
        eps = getattr(module, "eps", getattr(module, "variance_epsilon", 0.0))
        try:
            RULES["rms_norm"](record, result, arguments[0], module.weight.shape, module.weight, eps)
        except Unsupported as error:
            record.notes.append(f"a normalisation is left alone: {error}")
            for tensor in (arguments[0], module.weight):
                record.pin_tensor(tensor, str(error))

    return act
