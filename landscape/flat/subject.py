"""A network in float64 whose parameters can be changed to see whether its outputs do."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.criteria import Batch, batch_length
from landscape.data import map_tensors
from landscape.flat.graph import Graph
from landscape.flat.tracing import read_graph
from landscape.risk import Risk, differentiable_twice

__all__ = ["Subject"]


class Subject:
    """A copy of a model in float64, what runs it, and which of its parameters may move.

    Args:
        model: it is copied, cast to float64 on the CPU and put into eval mode.
        passes: run the copy on the data, one part each, and return its outputs.
        names: parameters that may move, in the order of the flat vector; all where None.
        views: what of each part's outputs must not change; all of them where None.

    Attributes:
        names: their names.
        shapes: their shapes.
        n: number of their coordinates.
        total: number of coordinates of all parameters.
        partial: whether some parameters may not move.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Sequence[Callable[[nn.Module], Tensor]],
        names: Sequence[str] | None = None,
        views: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).to("cpu", torch.float64).eval()
        self._passes = tuple(passes)
        self._views = [_itself] * len(self._passes) if views is None else list(views)
        own = dict(self.model.named_parameters())
        self.names = tuple(own) if names is None else tuple(names)
        self.parameters: dict[str, Tensor] = {name: p.detach().clone() for name, p in own.items()}
        self.shapes = {name: self.parameters[name].shape for name in self.names}
        self.n = sum(self.parameters[name].numel() for name in self.names)
        self.total = sum(tensor.numel() for tensor in self.parameters.values())
        self.partial = len(self.names) < len(self.parameters)
        self._graphs: list[Graph] | None = None
        self._base: list[Tensor] | None = None

    @classmethod
    def of(cls, risk: Risk, *, examples: int | None = None, behaviour: bool = False) -> Subject:
        """The model and the data of a risk, with its selected parameters.

        Args:
            risk: the loss at the anchor.
            examples: use the first so many examples only; all where None.
            behaviour: compare only what the criterion's divergence sees: for softmax the outputs
                up to a constant for each term.
        """
        views: list[Callable[[Tensor], Tensor]] = []
        passes: list[Callable[[nn.Module], Tensor]] = []
        left = float("inf") if examples is None else examples
        for index in range(risk.n_batches):
            # Small exact problems: what is built beside them lies on the CPU, too.
            batch = map_tensors(risk.batch(index), _wide)
            count = batch_length(batch)
            if left <= 0:
                break
            if left < count:
                batch = _first(batch, int(left), count)
            left -= count
            passes.append(_runner(risk, batch))
            views.append(_seen(risk, batch) if behaviour else _itself)
        return cls(risk.model, passes, risk.space.names, views)

    def graphs(self) -> list[Graph]:
        """The graph as read on every part of the data; they differ in what was counted alone.

        Cost: one forward pass.
        """
        if self._graphs is None:
            found = [read_graph(self.model, run) for run in self._passes]
            same = all((g.maps, g.sizes) == (found[0].maps, found[0].sizes) for g in found)
            note = "the forward pass takes other ways for other examples; no symmetry is claimed"
            self._graphs = found if same else [Graph(notes=(note,))]
        return self._graphs

    @property
    def passes(
        self,
    ) -> list[tuple[Callable[[nn.Module], Tensor], Callable[[Tensor], Tensor]]]:
        """For each part of the data what runs the model, and what of its outputs counts."""
        return list(zip(self._passes, self._views, strict=True))

    def differentiable(self) -> contextlib.AbstractContextManager[None]:
        """Kernels with derivatives, and one path through attention."""
        return differentiable_twice(self.model)

    @property
    def graph(self) -> Graph:
        """The graph as read on the first part of the data."""
        return self.graphs()[0]

    def outputs(self) -> list[Tensor]:
        """The unchanged outputs of every part of the data."""
        if self._base is None:
            self._base = self._run()
        return self._base

    def slope(self, step: Mapping[str, Tensor], length: float) -> float:
        """Norm of the outputs' central difference along a step that is scaled to a length.

        Args:
            step: changes of parameters by name.
            length: relative to the norm of all parameters.

        Cost: two forward passes.
        """
        size = math.sqrt(math.fsum(float(t.square().sum()) for t in step.values()))
        whole = math.sqrt(math.fsum(float(t.square().sum()) for t in self.parameters.values()))
        if not size:
            return 0.0
        factor = length * max(whole, 1e-3) / size
        ends = [
            self.at({n: self.parameters[n] + sign * factor * t for n, t in step.items()})
            for sign in (1.0, -1.0)
        ]
        square = math.fsum(float((a - b).square().sum()) for a, b in zip(*ends, strict=True))
        return math.sqrt(square) / (2 * factor * size)

    def change(self, changed: Mapping[str, Tensor]) -> float:
        """Largest change of the outputs with other parameters, relative to the largest output.

        Args:
            changed: new values by name; the others keep theirs.

        Returns:
            inf where an output is not finite.

        Cost: one forward pass.
        """
        base = self.outputs()
        after = self.at(changed)
        largest = moved = 0.0
        for before, now in zip(base, after, strict=True):
            if not bool(torch.isfinite(now).all()):
                return math.inf
            if before.numel():
                largest = max(largest, float(before.abs().max()))
                moved = max(moved, float((now - before).abs().max()))
        if not moved:
            return 0.0
        return moved / largest if largest else math.inf

    def at(self, changed: Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs of every part of the data with other parameters, which the model does not keep.

        Cost: one forward pass.
        """
        own = dict(self.model.named_parameters())
        before = {name: own[name].data for name in changed}
        try:
            for name, tensor in changed.items():
                own[name].data = tensor.detach().to(before[name])
            return self._run()
        finally:
            for name, data in before.items():
                own[name].data = data

    def _run(self) -> list[Tensor]:
        with torch.no_grad(), differentiable_twice(self.model):
            return [
                view(run(self.model)) for run, view in zip(self._passes, self._views, strict=True)
            ]

    def flatten(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """Rows (count, N) of tensors with one leading dimension; zeros where a name is missing.

        The selected parameters come first, in the order of the flat vector, then all others.
        """
        parts = []
        for name in (*self.names, *(n for n in self.parameters if n not in self.names)):
            size = self.parameters[name].numel()
            found = tensors.get(name)
            empty = torch.zeros(count, size, dtype=torch.float64)
            parts.append(empty if found is None else found.reshape(count, size).double().cpu())
        return torch.cat(parts, dim=1)


def _itself(outputs: Tensor) -> Tensor:
    return outputs


def _seen(risk: Risk, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Outputs of the terms that count, without the mean where only differences count."""

    def view(outputs: Tensor) -> Tensor:
        places = risk.criterion.term_places(outputs, batch)
        terms = outputs.reshape(-1)[places]
        return terms - terms.mean(1, keepdim=True) if risk.criterion.shift_invariant else terms

    return view


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float64 if tensor.is_floating_point() else None)


def _first(batch: Batch, count: int, length: int) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        return tensor[:count] if tensor.dim() and len(tensor) == length else tensor

    return map_tensors(batch, cut)


def _runner(risk: Risk, batch: Batch) -> Callable[[nn.Module], Tensor]:
    return lambda model: risk.task.forward(model, batch)
