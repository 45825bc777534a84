"""Symmetries that a user declares; they are checked like those that are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from landscape.errors import TaskError, UsageError
from landscape.flat.family import Family
from landscape.flat.subject import Subject

__all__ = ["DeclaredSymmetry", "declared_family", "straight_slope"]

_STEP = 1e-4  # Relative length of the step of a finite difference.


@dataclass(frozen=True, kw_only=True, eq=False)
class DeclaredSymmetry:
    """A symmetry that the module graph does not show.

    One of ``action`` and ``basis`` is given.

    Attributes:
        name: for the report.
        size: number of coefficients of ``action``.
        action: parameters that move, by name, as a differentiable function of all parameters and
            of coefficients (size,); the identity at 0.
        basis: null directions at the given parameters, by name, each with a leading dimension;
            parameters that are left out do not move.

    Raises:
        UsageError: both or neither are given, or an action without a size.
    """

    name: str
    size: int = 0
    action: Callable[[Mapping[str, Tensor], Tensor], dict[str, Tensor]] | None = None
    basis: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        if (self.action is None) == (self.basis is None):
            raise UsageError(
                f"the declared symmetry {self.name!r} has {'no' if self.action is None else 'an'} "
                "action and a basis likewise; expected exactly one of them. Give a group action, "
                "or null directions"
            )
        if self.action is not None and self.size < 1:
            raise UsageError(
                f"the declared symmetry {self.name!r} has an action of {self.size} coefficients; "
                "expected one or more. Give size="
            )


def declared_family(declared: DeclaredSymmetry, subject: Subject) -> Family:
    """The family of a declared symmetry.

    Raises:
        UsageError: an action is not the identity at 0, a name is no parameter, a shape is wrong.
        TaskError: the user's function fails, or returns something else.
    """
    if declared.action is not None:
        family = Family(
            name=declared.name, layer="declared", size=declared.size, act=declared.action
        )
        nothing = torch.zeros(declared.size).double()
        still = _called(declared.name, declared.action, subject.parameters, nothing)
        _check(declared.name, {name: tensor[None] for name, tensor in still.items()}, subject)
        if any(not torch.allclose(t, subject.parameters[n]) for n, t in still.items()):
            raise UsageError(
                f"the declared symmetry {declared.name!r} moves the parameters with coefficients "
                "of 0; expected the identity there. Check its action"
            )
        return family
    assert declared.basis is not None
    given = _called(declared.name, declared.basis, subject.parameters)
    rows = {name: t.detach().double() for name, t in given.items()}
    _check(declared.name, rows, subject)
    size = len(next(iter(rows.values())))

    def act(parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        return {name: parameters[name] + torch.tensordot(c, t, 1) for name, t in rows.items()}

    return Family(name=declared.name, layer="declared", size=size, act=act)


def _called(name: str, function: Callable[..., Any], *arguments: Any) -> Mapping[str, Tensor]:
    """What the user's function returns.

    Raises:
        TaskError: it fails, or returns anything but tensors by name.
    """
    try:
        found = function(*arguments)
    except Exception as error:
        raise TaskError(
            f"the declared symmetry {name!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise TaskError(
            f"the declared symmetry {name!r} returned a {type(found).__name__}; expected tensors "
            "by the names of the parameters"
        )
    return found


def _check(name: str, rows: Mapping[str, Tensor], subject: Subject) -> None:
    sizes = {len(tensor) for tensor in rows.values()}
    unknown = [key for key in rows if key not in subject.parameters]
    if unknown or len(sizes) != 1:
        seen = f"the name {unknown[0]!r}" if unknown else f"{sorted(sizes)} directions"
        raise UsageError(
            f"the declared symmetry {name!r} gives {seen}; expected as many directions for each of "
            f"its parameters, by name, such as {next(iter(subject.parameters))!r}"
        )
    for key, tensor in rows.items():
        if tensor.shape[1:] != subject.parameters[key].shape:
            raise UsageError(
                f"the declared symmetry {name!r} gives {key!r} the shape {tuple(tensor.shape[1:])};"
                f" expected {tuple(subject.parameters[key].shape)}"
            )


def straight_slope(family: Family, subject: Subject, generator: Generator) -> float:
    """Slope of the behaviour along a declared direction, relative to a random one.

    Straight lines leave curved sheets in second order: only the slope of a central difference tells
    whether a direction is null.

    Cost: four forward passes.
    """
    draw = torch.randn(family.size, generator=generator, dtype=torch.float64)
    base = subject.parameters
    moved = family.act(base, draw)
    step = {name: t - base[name] for name, t in moved.items()}
    other = {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for name, t in base.items()
    }
    mine, usual = subject.slope(step, _STEP), subject.slope(other, _STEP)
    return mine / usual if usual else (0.0 if mine == 0 else torch.inf)
