"""Mass of a prior along rays from an anchor: standard normal, or uniform on a box or a ball.

All coordinates are whitened: the normal prior has mean 0 and covariance I.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import UsageError
from landscape.volume.radial_integrals import log_radial_integral, reach
from landscape.volume.tilted import to_array

__all__ = ["BallPrior", "BoxPrior", "NormalPrior", "RayPrior"]

FloatArray = NDArray[np.float64]


class RayPrior(Protocol):
    """A density p(z) on R^n as rays from an anchor see it.

    Attributes:
        anchor: z*, where the rays start, (n,).
    """

    anchor: Tensor

    def log_mass(self, directions: Tensor, radius: FloatArray) -> FloatArray:
        """``log of the integral from 0 to R of p(z* + r u) r^(n-1) dr`` for unit rows u (k, n)."""

    def reach(self, directions: Tensor) -> FloatArray:
        """The radius beyond which a ray's mass is negligible (below 1e-17 of it), (k,)."""


class NormalPrior:
    """N(0, I). Along a ray, ``log p = -n/2 log(2 pi) - |z*|^2 / 2 - z*^T u r - r^2 / 2``."""

    def __init__(self, anchor: Tensor) -> None:
        self.anchor = _checked(anchor)
        n = len(anchor)
        self._constant = -(n * math.log(2 * math.pi) + float(self.anchor @ self.anchor)) / 2

    def _linear(self, directions: Tensor) -> FloatArray:
        return to_array([u @ self.anchor for u in directions])

    def log_mass(self, directions: Tensor, radius: FloatArray) -> FloatArray:
        """Log of the mass per solid angle up to the radius, in nats: (k,)."""
        linear = self._linear(directions)
        return self._constant + log_radial_integral(len(self.anchor), 1.0, linear, radius)

    def reach(self, directions: Tensor) -> FloatArray:
        """The radius beyond which a ray's mass is negligible, (k,)."""
        return reach(len(self.anchor), 1.0, self._linear(directions))


class _UniformPrior(ABC):
    """Constant density up to where a ray leaves the support, which is convex."""

    anchor: Tensor
    _log_density: float

    @abstractmethod
    def reach(self, directions: Tensor) -> FloatArray:
        """The radius where a ray leaves the support, (k,)."""

    def log_mass(self, directions: Tensor, radius: FloatArray) -> FloatArray:
        """Log of the mass per solid angle up to the radius, in nats: (k,)."""
        n = len(self.anchor)
        with np.errstate(divide="ignore"):
            logs = np.log(np.minimum(radius, self.reach(directions)))
        return self._log_density + n * logs - math.log(n)


class BoxPrior(_UniformPrior):
    """Uniform on ``|z_i| <= h_i``.

    Args:
        anchor: z*, inside the box, (n,).
        half_width: h > 0, a number or (n,).

    Raises:
        UsageError: the anchor lies outside.
    """

    def __init__(self, anchor: Tensor, half_width: float | Tensor) -> None:
        self.anchor = _checked(anchor)
        self._half = torch.as_tensor(half_width).to(self.anchor).expand_as(self.anchor)
        _inside(bool((self.anchor.abs() < self._half).all()), "box")
        self._log_density = -float((2 * self._half).log().sum())

    def reach(self, directions: Tensor) -> FloatArray:
        """The radius where a ray leaves the box, (k,)."""
        return to_array(
            [((self._half - u.sign() * self.anchor) / u.abs()).min() for u in directions]
        )


class BallPrior(_UniformPrior):
    """Uniform on ``|z| <= rho``.

    Args:
        anchor: z*, inside the ball, (n,).
        radius: rho > 0.

    Raises:
        UsageError: the anchor lies outside.
    """

    def __init__(self, anchor: Tensor, radius: float) -> None:
        self.anchor = _checked(anchor)
        n = len(anchor)
        self._gap = radius**2 - float(self.anchor @ self.anchor)
        _inside(radius > 0 and self._gap > 0, "ball")
        log_volume = n / 2 * math.log(math.pi) - math.lgamma(n / 2 + 1) + n * math.log(radius)
        self._log_density = -log_volume

    def reach(self, directions: Tensor) -> FloatArray:
        """The radius where a ray leaves the ball, (k,)."""
        along = to_array([u @ self.anchor for u in directions])
        root = np.sqrt(along**2 + self._gap)
        # The positive root of r^2 + 2 r along - gap, without cancellation.
        return np.where(along > 0, self._gap / (root + along), root - along)


def _checked(anchor: Tensor) -> Tensor:
    anchor = anchor.double()
    if anchor.dim() != 1 or not bool(torch.isfinite(anchor).all()):
        raise UsageError(
            f"an anchor of shape {tuple(anchor.shape)} that is not a finite vector; expected (n,), "
            "finite. Check the checkpoint's weights and the prior's standard deviations"
        )
    return anchor


def _inside(found: bool, support: str) -> None:
    if not found:
        raise UsageError(
            f"the anchor lies outside the uniform prior's {support}; expected it inside. Choose a "
            "larger --half-width or another --mean"
        )
