"""The loss at points of a line or a plane through the anchor; finished points are reused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from landscape.compare.path import State, loss_here, placed_state, state_of
from landscape.errors import UsageError
from landscape.params import ParameterSpace
from landscape.results import FloatArray
from landscape.risk import Risk
from landscape.slices.directions import Ray
from landscape.slices.records import Known
from landscape.units import Progress, Units

__all__ = ["POINTS", "Surface", "evaluate", "keep_points", "quadratic_model"]

POINTS = "points"
"""Name of the unit of work that holds every finished point."""


class Surface:
    """States of the model at coordinates of a slice.

    A direction to another checkpoint interpolates, so that its coordinate 1 is that checkpoint to
    the last bit, as 0 is the anchor.

    Args:
        risk: at the anchor.
        rays: orthogonal directions; see :mod:`landscape.slices.directions`.
    """

    def __init__(self, risk: Risk, rays: Sequence[Ray]) -> None:
        if not rays:
            raise UsageError("a slice without directions; expected one or two")
        self.space: ParameterSpace = risk.space
        self.rays = tuple(rays)
        moved = {*risk.space.names, *(name for ray in rays for name in ray.others)}
        self._anchor = {n: t for n, t in state_of(risk.model).items() if n in moved}

    def state(self, at: Sequence[float]) -> State:
        """What moves, at coordinates (axes,)."""
        state = dict(self._anchor)
        for ray, step in zip(self.rays, at, strict=True):
            if not step:
                continue
            parts = zip(self.space.names, self.space.split(ray.vector), strict=True)
            for name, move in [*parts, *ray.others.items()]:
                if ray.end is not None:
                    state[name] = torch.lerp(state[name], ray.end[name], step)
                else:
                    state[name] = state[name] + step * move
        return state


def evaluate(
    risk: Risk, surface: Surface, wanted: FloatArray, *, units: Units, progress: Progress
) -> tuple[FloatArray, Known]:
    """Losses at wanted coordinates, and all that is known by now.

    A loss that overflows is infinite or NaN, which ends nothing.

    Args:
        risk: at the anchor; its model keeps its own weights, also after an error.
        surface: the slice.
        wanted: coordinates (points, axes).
        units: finished points are taken from it and kept in it.
        progress: told of every point.

    Raises:
        TaskError: the forward pass or the criterion failed.

    Cost: a forward pass over the data for each point that is not known.
    """
    known = _stored(units)
    keys = [tuple(row) for row in wanted.tolist()]
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    at = np.array([*known, *missing]).reshape(-1, wanted.shape[1])
    loss = np.array([*known.values(), *[np.nan] * len(missing)])
    n_known = len(known)
    done = np.arange(len(at)) < n_known
    for index, key in enumerate(missing, n_known):
        with placed_state(risk.model, surface.state(key)):
            known[key] = loss[index] = loss_here(risk)
        done[index] = True
        units.put(POINTS, {"at": at, "loss": loss, "done": done})
        progress("points", index + 1 - n_known, len(missing))
    return np.array([known[key] for key in keys]), Known(at=at, loss=loss)


def _stored(units: Units) -> dict[tuple[float, ...], float]:
    unit = units.get(POINTS)
    if unit is None:
        return {}
    done = np.asarray(unit["done"]).astype(bool)
    rows = np.asarray(unit["at"])[done].tolist()
    return dict(zip(map(tuple, rows), np.asarray(unit["loss"])[done].tolist(), strict=True))


def keep_points(known: Known, units: Units) -> None:
    """Take the points of a stored result as finished."""
    done = np.ones(len(known.loss), dtype=np.bool_)
    units.put(POINTS, {"at": known.at, "loss": known.loss, "done": done})


def quadratic_model(at: FloatArray, slopes: FloatArray, curvatures: FloatArray) -> FloatArray:
    """``c'(Dg) + c'(D H D')c / 2`` at coordinates c, with directions as rows of D.

    Args:
        at: coordinates (points, axes).
        slopes: D g, (axes,).
        curvatures: D H D', (axes, axes).
    """
    found: FloatArray = at @ slopes + 0.5 * np.einsum("pi,ij,pj->p", at, curvatures, at)
    return found
