"""Directions of a slice as displacements of the model's weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from landscape.compare.path import State
from landscape.errors import UsageError
from landscape.params import ParameterSpace
from landscape.results import FloatArray
from landscape.rng import normal, stream
from landscape.slices.options import Span

__all__ = [
    "Components",
    "Ray",
    "default_span",
    "filter_normalised",
    "orthogonal",
    "principal_components",
    "towards",
]

_PARALLEL = 1e-6  # What is left of a direction, relative to it, that is taken for nothing.
_LEAST_EXCESS = 0.1
_MARGIN = 0.1
_DIGITS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Ray:
    """A direction d of the slice.

    Attributes:
        vector: d over the selected parameters, (n,).
        others: what moves along, by name: frozen parameters and floating-point buffers.
        end: the state at coordinate 1 of a direction to another checkpoint, else None.
        cosine: with the first direction, before d was made orthogonal to it.
        eigenvalue: of an eigenvector.
        residual: ``|Hv - theta v|`` of an eigenvector.
        converged: whether an eigenvector is.
        share: of the trajectory's variance, of a principal component.
    """

    vector: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)
    end: State | None = None
    cosine: float = 0.0
    eigenvalue: float = math.nan
    residual: float = math.nan
    converged: bool = True
    share: float = math.nan

    @property
    def length(self) -> float:
        """``|d|`` over the selected parameters."""
        return float(torch.linalg.vector_norm(self.vector.double()))


def orthogonal(second: Ray, first: Ray, names: Sequence[str], *, unit: bool) -> Ray:
    """``e - (e'd / d'd) d``: the second direction e without its part along the first one d.

    Both span the same plane as before. A checkpoint at coordinates (0, 1) moves to (e'd / d'd, 1).

    Args:
        second: e.
        first: d.
        names: of both, for the message.
        unit: give the result the length that e had.

    Raises:
        UsageError: nothing is left of e.
    """
    e, d = second.vector.double(), first.vector.double()
    factor = float(e @ d / (d @ d))
    left = e - factor * d
    length, rest = second.length, float(torch.linalg.vector_norm(left))
    if not rest > _PARALLEL * length:
        raise UsageError(
            f"--along {names[1]} is parallel to --along {names[0]}; a plane needs two directions "
            "that differ"
        )
    scale = length / rest if unit else 1.0
    every = {**second.others, **{n: torch.zeros_like(t) for n, t in first.others.items()}}
    every.update(second.others)
    others = {
        name: scale * (tensor - factor * first.others[name] if name in first.others else tensor)
        for name, tensor in every.items()
    }
    return dataclasses.replace(
        second,
        vector=(scale * left).to(second.vector),
        others=others,
        end=None,
        cosine=factor * first.length / length,
    )


def filter_normalised(space: ParameterSpace, *, seed: int, index: int) -> Tensor:
    """A random direction in which every filter moves in proportion to its own norm, (n,).

    ``d_i = z_i / |z_i| |w_i|`` for every filter i, a row of a parameter along its first axis (an
    output unit, a channel, an embedded token), with z standard normal. Parameters of fewer than two
    axes, such as biases and the scales and shifts of norms, stay where they are, and so do filters
    that are zero. Source: Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018, section 4.

    Args:
        space: the parameters at the anchor.
        seed: of the run.
        index: number of the direction; every parameter has a stream of its own.

    Raises:
        UsageError: no parameter has filters, or all are zero.
    """
    parts = []
    for name, parameter in zip(space.names, space.parameters, strict=True):
        own = parameter.detach()
        if own.dim() < 2 or not own.numel():
            parts.append(torch.zeros_like(own))
            continue
        # On the CPU, so that it is the same direction on every device.
        filters = own.cpu().double().reshape(len(own), -1)
        draw = normal(own.numel(), stream(seed, "slice", index, name), like=filters)
        rows = draw.reshape(filters.shape)
        scale = torch.linalg.vector_norm(filters, dim=1) / torch.linalg.vector_norm(rows, dim=1)
        parts.append((rows * scale[:, None]).reshape(own.shape).to(own))
    vector = space.flatten(parts)
    if not bool(vector.any()):
        raise UsageError(
            "--along random: none of the parameters has filters that could be moved (weights of "
            "two axes that are not zero); biases and parameters of norms stay. Check --params"
        )
    return vector


def towards(space: ParameterSpace, start: State, end: State, name: str, *, whole: bool) -> Ray:
    """The direction from the anchor to another checkpoint, which is at coordinate 1.

    Args:
        space: the parameters at the anchor.
        start: the anchor's parameters and floating-point buffers.
        end: the other checkpoint's.
        name: of the direction, for the message.
        whole: whether frozen parameters and buffers move along, so that coordinate 1 is that
            network; else the selected parameters alone move.

    Raises:
        UsageError: the selected parameters of both are the same.
    """
    # A difference of the state's own dtype: float64 unless asked otherwise.
    vector = space.flatten([end[n] - start[n] for n in space.names])
    if not bool(vector.any()):
        raise UsageError(
            f"--along {name}: that checkpoint has the same parameters as the anchor; expected "
            "another one"
        )
    others = {
        name: end[name] - start[name]
        for name in start
        if whole and name not in space.names and not torch.equal(start[name], end[name])
    }
    return Ray(vector=vector, others=others, end=end)


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Principal components of a trajectory.

    Attributes:
        vectors: orthonormal rows, (k, n).
        shares: of the variance, (k,).
    """

    vectors: Tensor
    shares: FloatArray


def principal_components(rows: Tensor) -> Components:
    """Principal components of points (m, n), by singular values of the centred points.

    With U S V' of the points less their mean the components are the rows of V' and their shares
    of the variance ``s_k^2 / sum s^2``; components of singular values that are rounding are left
    out. Signs are such that the last point has no smaller a coordinate than the first one.

    Cost: ``m^2 n`` operations and twice the memory of the points.
    """
    centred = rows - rows.mean(0)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    eps = torch.finfo(rows.dtype).eps
    # Rounding of the points themselves, not only of their differences.
    least = eps * max(rows.shape) * float(values[0])
    kept = int((values > least).sum())
    values, vectors = values[:kept], vectors[:kept]
    signs = torch.where(vectors @ (rows[-1] - rows[0]) < 0, -1.0, 1.0).to(vectors)
    squares = values.double().square()
    return Components(
        vectors=vectors * signs[:, None], shares=(squares / squares.sum()).cpu().numpy()
    )


def default_span(
    kind: str,
    *,
    curvature: float,
    loss: float,
    norm: float,
    plane: bool,
    visited: Sequence[float] = (),
) -> Span:
    """The ends of an axis that show something, in units of the direction.

    ``eigen``: where the curvature alone predicts an excess loss as large as the loss itself, and at
    least 0.1: ``+- sqrt(2 max(L, 0.1) / |lambda|)``, but at most the norm of the parameters.
    ``pca``: all coordinates of the trajectory and the anchor, and a tenth more. ``to``: 0 to 1, or
    -0.5 to 1.5 in a plane. ``random``: -1 to 1. Ends that are computed have three digits, so that
    they are the same numbers on every device.

    Args:
        kind: of the direction.
        curvature: d'Hd, with d of unit length for ``eigen``.
        loss: L at the anchor.
        norm: of the selected parameters at the anchor.
        plane: whether the slice is a plane.
        visited: coordinates of the trajectory.
    """
    if kind == "to":
        return (-0.5, 1.5) if plane else (0.0, 1.0)
    if kind == "eigen":
        wanted = 2 * max(abs(loss), _LEAST_EXCESS)
        farthest = norm if norm > 0 else 1.0
        half = min(math.sqrt(wanted / abs(curvature)), farthest) if curvature else farthest
        half = _rounded(half)
        return -half, half
    low, high = min([0.0, *visited]), max([0.0, *visited])
    if kind == "random" or not low < high:
        return -1.0, 1.0
    margin = _MARGIN * (high - low)
    return _rounded(low - margin), _rounded(high + margin)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
