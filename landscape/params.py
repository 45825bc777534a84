"""Named parameters and the flat vector w in R^n: order, selection, tied and frozen weights."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from landscape.errors import TaskError, UsageError

__all__ = ["ParameterSpace"]


class ParameterSpace:
    """The coordinates of w: the model's trainable parameters in order, tied ones once.

    Args:
        model: parameters with ``requires_grad=False`` are frozen and left out.
        patterns: keep only parameters whose name matches one of these globs (``*.weight``).

    Attributes:
        names: parameter names, in the model's order.
        parameters: the parameters themselves.
        sizes: number of coordinates of each.
        starts: first coordinate of each.
        n: total number of coordinates.

    Raises:
        UsageError: a pattern matches no trainable parameter.
        TaskError: the model has no trainable parameters, or complex ones.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str] = ()) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            total = sum(p.numel() for p in model.parameters())
            todo = "Unfreeze some" if total else "Give it its layers"
            raise TaskError(
                f"the task's model has no trainable parameters ({total} of any kind); "
                f"expected some with requires_grad=True. {todo}"
            )
        for name, parameter in trainable.items():
            if not parameter.is_floating_point():
                raise TaskError(
                    f"parameter {name!r} has dtype {parameter.dtype}; expected real floating point"
                )
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in trainable):
                near = difflib.get_close_matches(pattern, trainable, n=3, cutoff=0.3)
                raise UsageError(
                    f"--params {pattern!r} matches no trainable parameter; nearest names: "
                    f"{', '.join(near or list(trainable)[:3])}. Patterns are globs, such as "
                    "'*.weight'"
                )
        self.names: tuple[str, ...] = tuple(
            name
            for name in trainable
            if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
        )
        self.parameters: tuple[nn.Parameter, ...] = tuple(trainable[name] for name in self.names)
        self.shapes: tuple[torch.Size, ...] = tuple(p.shape for p in self.parameters)
        self.sizes: list[int] = [p.numel() for p in self.parameters]
        self.n: int = sum(self.sizes)
        self.starts: list[int] = [0, *itertools.accumulate(self.sizes)][:-1]

    def vector(self) -> Tensor:
        """A copy of the current parameters as a flat vector of shape (n,)."""
        return self.flatten([p.detach() for p in self.parameters])

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join one tensor per parameter into a vector of shape (n,)."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def split(self, vector: Tensor, positions: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Views of a vector (n,), or of rows (k, n), in the parameters' shapes.

        With ``positions`` the vector holds only the parameters of these indices.
        """
        lead = vector.shape[:-1]
        chosen = range(len(self.names)) if positions is None else positions
        parts = torch.split(vector, [self.sizes[i] for i in chosen], dim=-1)
        return tuple(
            part.reshape((*lead, *self.shapes[i])) for part, i in zip(parts, chosen, strict=True)
        )

    def coordinates(self, positions: Sequence[int]) -> Tensor:
        """Places in the flat vector of the parameters of these indices, one after the other."""
        ranges = ((self.starts[i], self.starts[i] + self.sizes[i]) for i in positions)
        return torch.cat([torch.arange(*ends) for ends in ranges])

    def modules(self) -> dict[str, list[int]]:
        """Indices of the parameters of every module that has any, by the module's name."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            found.setdefault(name.rpartition(".")[0] or name, []).append(index)
        return found

    def assign(self, vector: Tensor) -> None:
        """Write a flat vector into the model's parameters (in place)."""
        with torch.no_grad():
            for parameter, part in zip(self.parameters, self.split(vector), strict=True):
                parameter.copy_(part)

    @contextlib.contextmanager
    def placed(self, vector: Tensor) -> Iterator[None]:
        """Let the model have a flat vector's values for a while, in other memory than its own.

        Graphs that hold the model's own values stay valid.
        """
        own = [parameter.data for parameter in self.parameters]
        try:
            for parameter, part in zip(self.parameters, self.split(vector), strict=True):
                parameter.data = part
            yield
        finally:
            for parameter, data in zip(self.parameters, own, strict=True):
                parameter.data = data
