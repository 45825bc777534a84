"""Losses that are sums of squared residuals, with gradients and mean curvature for annealing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from landscape.volume.metric import metric_of_factor
from landscape.volume.path import Metric

Residuals = Callable[[Tensor], Tensor]
"""Of points (..., n), (..., m)."""


class Squares:
    """``dL(z) = scale sum_i r_i(z)^2``.

    Args:
        residuals: r.
        scale: factor of the sum.
    """

    def __init__(self, residuals: Residuals, scale: float = 1.0) -> None:
        self._residuals, self._scale = residuals, scale
        self._rows = vmap(jacrev(residuals))

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (k,) and gradients (k, n) at rows."""
        points = z.detach().requires_grad_()
        loss = self._scale * self._residuals(points).square().sum(-1)
        (slope,) = torch.autograd.grad(loss.sum(), points)
        return loss.detach(), slope

    def metric_at(self, positions: Tensor, number: int) -> Metric:
        """The mean Gauss-Newton matrix ``2 scale J^T J`` at positions."""
        del number
        rows = self._rows(positions).reshape(-1, positions.shape[1])
        return metric_of_factor(rows * math.sqrt(2 * self._scale / len(positions)))


def copies(residuals: Residuals, count: int) -> Residuals:
    """So many independent copies: log Z adds up."""
    return lambda z: residuals(z.unflatten(-1, (count, -1))).flatten(-2)


def x2(z: Tensor) -> Tensor:
    """Of x^4."""
    return z.square()


def xy(z: Tensor) -> Tensor:
    """Of x^2 y^2."""
    return z[..., :1] * z[..., 1:]


def inner(z: Tensor) -> Tensor:
    """Of (a1 b1 + a2 b2)^2."""
    return (z[..., :2] * z[..., 2:]).sum(-1, keepdim=True)


def outer(z: Tensor) -> Tensor:
    """Of |a|^2 |b|^2."""
    return (z[..., :2, None] * z[..., None, 2:]).flatten(-2)


def hyperbola(z: Tensor) -> Tensor:
    """Of (x y - 1)^2."""
    return xy(z) - 1
