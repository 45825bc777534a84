"""The axes of a slice: from directions as they were asked for to displacements and their record."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.checkpoint import Checkpoint
from landscape.compare.path import state_of
from landscape.errors import UsageError
from landscape.loading import load_weights
from landscape.operators import LinearOperator
from landscape.params import ParameterSpace
from landscape.results import FloatArray
from landscape.risk import Risk
from landscape.slices.directions import (
    Ray,
    default_span,
    filter_normalised,
    orthogonal,
    principal_components,
    towards,
)
from landscape.slices.eigenvectors import Eigenvectors
from landscape.slices.options import SliceOptions
from landscape.slices.records import Direction, Position
from landscape.units import Units

__all__ = [
    "axes_of",
    "curvatures_of",
    "keep_curvatures",
    "positions",
    "rays_of",
    "trajectory_rows",
]

_CURVATURES = "curvatures"


def trajectory_rows(risk: Risk, params: Sequence[str], checkpoints: Sequence[Checkpoint]) -> Tensor:
    """Checkpoints less the anchor over the selected parameters, (m, n), on the CPU.

    Raises:
        CheckpointError: the weights of one do not fit.
    """
    model = copy.deepcopy(risk.model)
    space = ParameterSpace(model, params)
    # A precision that singular values can be had in.
    kind = torch.promote_types(risk.dtype, torch.float32)
    anchor = risk.space.vector().cpu().to(kind)
    rows = anchor.new_zeros(len(checkpoints), len(anchor))
    for row, checkpoint in zip(rows, checkpoints, strict=True):
        load_weights(risk.task, model, checkpoint)
        torch.sub(space.vector().cpu().to(kind), anchor, out=row)
    return rows


def rays_of(
    risk: Risk,
    options: SliceOptions,
    *,
    params: Sequence[str],
    seed: int,
    eigen: Eigenvectors | None,
    others: Sequence[Checkpoint],
    rows: Tensor,
) -> list[Ray]:
    """The directions, the second one orthogonal to the first.

    Args:
        risk: at the anchor.
        options: the directions as they were asked for.
        params: globs that select parameters; without any a direction ``to:`` is the whole network.
        seed: of random directions.
        eigen: eigenvectors, in the order of the directions ``eigen:K``.
        others: checkpoints, in the order of the directions ``to:``.
        rows: of :func:`trajectory_rows`.

    Raises:
        CheckpointError: the weights of another checkpoint do not fit.
        UsageError: a direction is zero, parallel to the first or a component that is not there.
    """
    rays: list[Ray] = []
    pairs, targets = iter(range(len(options.along))), iter(others)
    like = risk.space.vector()
    kinds = [one.kind for one in options.directions]
    components = principal_components(rows) if "pca" in kinds else None
    for index, one in enumerate(options.directions):
        if one.kind == "eigen" and eigen is not None:
            pair = next(pairs)
            ray = Ray(
                vector=torch.as_tensor(eigen.vectors[pair]).to(like),
                eigenvalue=float(eigen.values[pair]),
                residual=float(eigen.residuals[pair]),
                converged=bool(eigen.converged[pair]),
            )
        elif one.kind == "pca" and components is not None:
            if one.number > len(components.vectors):
                raise UsageError(
                    f"--along pca:{one.number}: the {len(rows)} checkpoints of the trajectory have "
                    f"{len(components.vectors)} principal components"
                )
            ray = Ray(
                vector=components.vectors[one.number - 1].to(like),
                share=float(components.shares[one.number - 1]),
            )
        elif one.kind == "to":
            model = copy.deepcopy(risk.model)
            load_weights(risk.task, model, next(targets))
            start, end, name = state_of(risk.model), state_of(model), options.along[index]
            ray = towards(risk.space, start, end, name, whole=not params)
        else:
            ray = Ray(vector=filter_normalised(risk.space, seed=seed, index=index))
        if rays:
            unit = one.kind in ("eigen", "pca")
            ray = orthogonal(ray, rays[0], options.along, unit=unit)
        rays.append(ray)
    return rays


def curvatures_of(
    operator: LinearOperator, rays: Sequence[Ray], units: Units
) -> tuple[FloatArray, int]:
    """``d'He`` of all pairs of directions, (axes, axes), and the products that it took.

    Cost: a product for each direction, unless ``units`` hold the numbers.
    """
    stored = units.get(_CURVATURES)
    if stored is None:
        images = [operator.matvec(ray.vector.to(operator.like)).double() for ray in rays]
        found = np.array([[float(r.vector.double() @ h) for h in images] for r in rays])
        stored = {"matrix": (found + found.T) / 2, "n_matvecs": len(images)}
        units.put(_CURVATURES, stored)
    return np.asarray(stored["matrix"]), int(stored["n_matvecs"])


def keep_curvatures(
    directions: Sequence[Direction], mixed: float, n_matvecs: int, units: Units
) -> None:
    """Take the curvatures of a stored result, and its products, as finished work."""
    matrix = np.diag([direction.curvature for direction in directions])
    if len(directions) > 1:
        matrix[0, 1] = matrix[1, 0] = mixed
    units.put(_CURVATURES, {"matrix": matrix, "n_matvecs": n_matvecs})


def positions(
    checkpoints: Sequence[Checkpoint], rows: Tensor, rays: Sequence[Ray]
) -> tuple[Position, ...]:
    """A trajectory in the coordinates of the slice: orthogonal projections.

    Args:
        checkpoints: the trajectory.
        rows: of :func:`trajectory_rows`.
        rays: orthogonal directions.
    """
    found = []
    vectors = [ray.vector.cpu().double() for ray in rays]
    for checkpoint, away in zip(checkpoints, rows, strict=True):
        row = away.double()
        at = [float(row @ d / (d @ d)) for d in vectors]
        left = row - sum(c * d for c, d in zip(at, vectors, strict=True))
        found.append(
            Position(
                checkpoint=checkpoint.path,
                step=-1 if checkpoint.step is None else checkpoint.step,
                x=at[0],
                y=at[1] if len(at) > 1 else 0.0,
                off=float(torch.linalg.vector_norm(left)),
            )
        )
    return tuple(found)


def axes_of(
    options: SliceOptions,
    rays: Sequence[Ray],
    slopes: FloatArray,
    curvatures: FloatArray,
    *,
    loss: float,
    norm: float,
    trajectory: Sequence[Position],
) -> tuple[Direction, ...]:
    """The record of every direction, with the ends of its axis.

    Args:
        options: the directions and spans that were asked for.
        rays: the directions.
        slopes: ``g'd`` of each.
        curvatures: ``d'He`` of all pairs.
        loss: L at the anchor.
        norm: of the selected parameters there.
        trajectory: its positions.
    """
    found = []
    for axis, (one, ray) in enumerate(zip(options.directions, rays, strict=True)):
        low, high = options.span(axis) or default_span(
            one.kind,
            curvature=ray.eigenvalue,
            loss=loss,
            norm=norm,
            plane=len(rays) > 1,
            visited=[p.y if axis else p.x for p in trajectory] if one.kind == "pca" else (),
        )
        found.append(
            Direction(
                name=options.along[axis],
                kind=one.kind,
                low=low,
                high=high,
                length=ray.length,
                cosine=ray.cosine,
                slope=float(slopes[axis]),
                curvature=float(curvatures[axis, axis]),
                eigenvalue=ray.eigenvalue,
                residual=ray.residual,
                converged=ray.converged,
                share=ray.share,
            )
        )
    return tuple(found)
