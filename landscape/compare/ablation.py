"""Ablations: a network with units silenced, averaged or taken from other examples.

``MODULE[:UNITS]=zero|mean|resample`` changes what a module returns, by a forward hook;
``weights:NAME[:ROWS]=...`` changes a parameter. UNITS are whole numbers and ranges, ``0,3-5``; for
activations they count channels (axis 1 of images and of what convolutions return, else the last
axis), for parameters the first axis. The module without a name is the model itself.

Means and resamples of activations are over all examples of the data, at every position apart, of
the network before any ablation. Resampling one activation over examples keeps its distribution and
destroys what it says about the example, as in causal scrubbing (Chan et al., Alignment Forum 2022).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.distributed import ALONE, Alone
from landscape.errors import UsageError
from landscape.rng import stream
from landscape.text import shown

__all__ = ["Ablation", "ablated", "parse_ablation", "parse_ablations"]

WAYS = ("zero", "mean", "resample")
WEIGHTS = "weights:"
_UNITS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_MOST_UNITS = 1 << 20

Forward = Callable[[int], Tensor]
"""Runs the model on micro-batch ``index`` and returns its outputs."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One ablation.

    Attributes:
        text: as the user wrote it.
        name: of the module or parameter.
        units: what is changed of it; all where empty.
        way: ``zero``, ``mean`` or ``resample``.
        weights: whether a parameter is meant.
    """

    text: str
    name: str
    units: tuple[int, ...]
    way: str
    weights: bool


def parse_ablation(text: str) -> Ablation:
    """Read ``module.path[:units]=way`` or ``weights:name[:units]=way``.

    Raises:
        UsageError: it has another form.
    """
    target, equals, way = text.rpartition("=")
    if not equals or way not in WAYS:
        raise UsageError(
            f"--ablate {text}: expected MODULE[:UNITS]=zero, mean or resample, such as "
            "blocks.0.mlp:3-5=zero, or weights:NAME[:ROWS]=zero"
        )
    weights = target.startswith(WEIGHTS)
    name, colon, units = target.removeprefix(WEIGHTS).partition(":")
    if colon and not _UNITS.fullmatch(units):
        raise UsageError(
            f"--ablate {text}: the units are {units!r}; expected numbers and ranges such as 0,3-5"
        )
    chosen: set[int] = set()
    for part in filter(None, units.split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high < _MOST_UNITS:
            raise UsageError(f"--ablate {text}: the range {part} is empty or absurdly large")
        chosen.update(range(low, high + 1))
    return Ablation(text=text, name=name, units=tuple(sorted(chosen)), way=way, weights=weights)


def parse_ablations(texts: Sequence[str]) -> tuple[Ablation, ...]:
    """Read several, of which no two may change the same units.

    Raises:
        UsageError: one has another form, or two overlap.
    """
    found = tuple(parse_ablation(text) for text in texts)
    for number, one in enumerate(found):
        for other in found[:number]:
            same = (one.weights, one.name) == (other.weights, other.name)
            if same and (not (one.units and other.units) or {*one.units} & {*other.units}):
                raise UsageError(
                    f"--ablate {other.text} and --ablate {one.text} change the same units; "
                    "expected each unit once. Leave one out"
                )
    return found


@contextlib.contextmanager
def ablated(
    model: nn.Module,
    ablations: Sequence[Ablation],
    forward: Forward,
    n_batches: int,
    *,
    seed: int,
    ranks: Alone = ALONE,
) -> Iterator[Forward]:
    """A network with ablations; the model is as before afterwards, whatever happens meanwhile.

    Args:
        model: in eval mode.
        ablations: all act together.
        forward: runs the model on a micro-batch.
        n_batches: number of micro-batches, which together are the data.
        seed: of the permutations, one stream for each ablation.
        ranks: processes that share out the examples; the micro-batches are those of this one.

    Yields:
        what runs the ablated model on a micro-batch.

    Raises:
        UsageError: no such module, parameter or unit, or a module that does not run exactly once
            in a forward pass or returns no tensor with one row for each example.

    Cost: one forward pass before, where an activation is averaged or resampled.
    """
    hooks = [_Hook(model, a, number, seed) for number, a in enumerate(ablations) if not a.weights]
    with contextlib.ExitStack() as undo:
        # The activations of the network before any ablation.
        if any(hook.ablation.way != "zero" for hook in hooks):
            with contextlib.ExitStack() as watching, torch.no_grad():
                for hook in hooks:
                    handle = hook.module.register_forward_hook(hook.watch)
                    watching.callback(handle.remove)
                with ranks.unanimous():
                    for index in range(n_batches):
                        _run(forward, index, hooks)
            for hook in hooks:
                hook.prepare(ranks)
        for number, ablation in enumerate(ablations):
            if ablation.weights:
                undo.enter_context(_changed(model, ablation, number, seed))
        for hook in hooks:
            undo.callback(hook.module.register_forward_hook(hook.change).remove)
        yield lambda index: _run(forward, index, hooks)


def _run(forward: Forward, index: int, hooks: Sequence[_Hook]) -> Tensor:
    for hook in hooks:
        hook.batch, hook.calls = index, 0
    outputs = forward(index)
    for hook in hooks:
        if hook.calls != 1:
            raise UsageError(
                f"--ablate {hook.ablation.text}: the module ran {hook.calls} times in a forward "
                "pass; expected once. Name another module"
            )
    return outputs


class _Hook:
    """Watches a module's activation and then changes it."""

    def __init__(self, model: nn.Module, ablation: Ablation, number: int, seed: int) -> None:
        modules = dict(model.named_modules())
        if ablation.name not in modules:
            raise UsageError(
                f"--ablate {ablation.text}: the model has no module {ablation.name!r}; expected "
                f"one of {shown(list(filter(None, modules)))}"
            )
        self.ablation = ablation
        self.module = modules[ablation.name]
        self.batch = self.calls = 0
        self._seen: list[Tensor] = []
        self._mean: Tensor | None = None
        self._drawn: tuple[Tensor, ...] = ()
        self._generator = stream(seed, "ablation", number)

    def watch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls += 1
        if self.ablation.way != "zero":
            self._seen.append(self._tensor(output).detach().clone())

    def prepare(self, ranks: Alone) -> None:
        """The mean over all examples, or this process's activations taken from other examples."""
        if self.ablation.way == "zero":
            return
        lengths = [len(tensor) for tensor in self._seen]
        with ranks.unanimous():
            whole = self._joined()
        counts = [int(count) for count in ranks.each(len(whole))]
        first = sum(counts[: ranks.rank])
        whole = ranks.joined(whole, counts)
        self._seen = []
        if self.ablation.way == "mean":
            self._mean = whole.mean(0, keepdim=True)
        else:
            if len(whole) < 2:
                raise UsageError(
                    f"--ablate {self.ablation.text}: there is one example, and no other whose "
                    "activation could be taken; expected two or more. Use more --examples, or zero"
                )
            order = torch.randperm(len(whole), generator=self._generator)
            own = order[first : first + counts[ranks.rank]]
            self._drawn = torch.split(whole[own.to(whole.device)], lengths)

    def _joined(self) -> Tensor:
        if len({tensor.shape[1:] for tensor in self._seen}) > 1:
            raise UsageError(
                f"--ablate {self.ablation.text}: the activation has other shapes in other "
                "micro-batches, so that examples cannot stand in for each other; use zero"
            )
        if not self._seen:
            raise UsageError(
                f"--ablate {self.ablation.text}: a process has no examples whose activations could "
                "be taken; expected no more processes than examples. Use fewer"
            )
        return torch.cat(self._seen)

    def change(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.calls += 1
        tensor = self._tensor(output)
        if self.ablation.way == "zero":
            other = torch.zeros_like(tensor)
        elif self._mean is not None:
            other = self._mean.expand_as(tensor)
        else:
            other = self._drawn[self.batch]
        axis = self._axis(tensor)
        found = _replaced(tensor, other, self.ablation, axis)
        return (found, *output[1:]) if isinstance(output, tuple) else found

    def _axis(self, tensor: Tensor) -> int:
        convolution = isinstance(self.module, nn.modules.conv._ConvNd)
        return 1 if convolution or tensor.dim() >= 4 else tensor.dim() - 1

    def _tensor(self, output: Any) -> Tensor:
        """The activation: what the module returns, or the first of several tensors."""
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor) or first.dim() < 2 or not first.is_floating_point():
            raise UsageError(
                f"--ablate {self.ablation.text}: the module returns a {type(first).__name__}; "
                "expected a tensor of numbers (examples, ..., units). Name another module"
            )
        return first


def _replaced(tensor: Tensor, other: Tensor, ablation: Ablation, axis: int) -> Tensor:
    """The tensor with some units of an axis, or all, taken from another tensor."""
    if not ablation.units:
        return other.clone()
    if ablation.units[-1] >= tensor.shape[axis]:
        raise UsageError(
            f"--ablate {ablation.text}: there is no unit {ablation.units[-1]}; expected 0 to "
            f"{tensor.shape[axis] - 1}, since the shape is {tuple(tensor.shape)}"
        )
    place = torch.tensor(ablation.units, device=tensor.device)
    return tensor.index_copy(axis, place, other.index_select(axis, place))


@contextlib.contextmanager
def _changed(model: nn.Module, ablation: Ablation, number: int, seed: int) -> Iterator[None]:
    """Let a parameter have other values, in other memory, for a while.

    ``mean`` is that over the chosen rows' own entries, row by row; ``resample`` permutes them.
    """
    parameters = dict(model.named_parameters())
    if ablation.name not in parameters:
        raise UsageError(
            f"--ablate {ablation.text}: the model has no parameter {ablation.name!r}; expected one "
            f"of {shown(list(parameters))}"
        )
    parameter = parameters[ablation.name]
    own = parameter.data
    if ablation.units and own.dim() == 0:
        raise UsageError(
            f"--ablate {ablation.text}: the parameter {ablation.name!r} is one number without "
            f"rows; expected {WEIGHTS}{ablation.name}={ablation.way}"
        )
    if ablation.way == "zero":
        other = torch.zeros_like(own)
    elif ablation.way == "mean":
        dims = tuple(range(1, own.dim())) or (0,)
        other = own.mean(dims, keepdim=True).expand_as(own)
    else:
        rows = own.flatten(1) if own.dim() > 1 else own.reshape(1, -1)
        generator = stream(seed, "ablation", number)
        mixed = [row[torch.randperm(len(row), generator=generator).to(row.device)] for row in rows]
        other = torch.stack(mixed).reshape(own.shape)
    changed = _replaced(own, other, ablation, 0)
    try:
        parameter.data = changed
        yield
    finally:
        parameter.data = own
