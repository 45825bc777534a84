"""Priors over the flat parameter vector: Gaussian with a diagonal covariance, uniform on a set.

The prior is what makes a basin's volume finite. Its mean m and scales sigma define the whitened
coordinates ``z = (w - m) / sigma``, in which a Gaussian is N(0, I).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor

from landscape.errors import UsageError
from landscape.params import ParameterSpace
from landscape.volume.records import PriorTable

__all__ = ["GaussianPrior", "Prior", "PriorTable", "UniformPrior", "prior_table"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior(ABC):
    """A density p(w) on R^n with whitened coordinates; all tensors are float64 on the CPU.

    Vectors of any float type and device are taken.

    Attributes:
        mean: m, (n,).
        scale: sigma > 0, (n,).
        notes: what had to be decided when the prior was made, for the user to read.
    """

    mean: Tensor
    scale: Tensor
    notes: tuple[str, ...] = ()

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for name, option in (("mean", "--mean"), ("scale", "--sigma")):
            tensor = getattr(self, name).detach().to("cpu", torch.float64)
            object.__setattr__(self, name, tensor)
            if tensor.shape != self.mean.shape or tensor.dim() != 1:
                raise UsageError(
                    f"the prior's {name} has shape {tuple(tensor.shape)}; expected one number for "
                    f"each coordinate, ({len(self.mean.reshape(-1))},). Check {option}"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise UsageError(
                    f"the prior's {name} is NaN or infinite in places; expected finite numbers. "
                    f"Choose another {option}"
                )
        if not bool((self.scale > 0).all()):
            raise UsageError(
                f"the prior's smallest scale is {float(self.scale.min()):.3g}; expected positive "
                "numbers. Choose another --sigma"
            )

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return len(self.mean)

    def whiten(self, w: Tensor) -> Tensor:
        """``z = (w - m) / sigma`` of a vector (n,) or of rows (k, n)."""
        return (w.to(self.mean) - self.mean) / self.scale

    def unwhiten(self, z: Tensor) -> Tensor:
        """``w = m + sigma z`` of a vector (n,) or of rows (k, n)."""
        return self.mean + self.scale * z.to(self.mean)

    @abstractmethod
    def log_density(self, w: Tensor) -> Tensor:
        """``log p(w)`` in nats, with its normalisation: () for a vector (n,), (k,) for rows."""

    @abstractmethod
    def sample(self, generator: Generator) -> Tensor:
        """One draw w, (n,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianPrior(Prior):
    """``N(m, diag(sigma^2))``.

    Raises:
        UsageError: the shapes do not fit, a number is not finite, a scale is not positive.
    """

    kind: ClassVar[str] = "gaussian"

    def log_density(self, w: Tensor) -> Tensor:
        """``-|z|^2 / 2 - sum log sigma - n/2 log(2 pi)`` in nats: (), or (k,) for rows."""
        constant = float(self.scale.log().sum()) + self.n / 2 * math.log(2 * math.pi)
        return -self.whiten(w).square().sum(-1) / 2 - constant

    def sample(self, generator: Generator) -> Tensor:
        """One draw w, (n,)."""
        return self.unwhiten(torch.randn(self.n, generator=generator, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True, eq=False)
class UniformPrior(Prior):
    """Constant density on a box ``|w_i - m_i| <= H`` or a ball ``|w - m| <= H``.

    H is the half-width along every axis through the mean in both cases. The ball of that radius is
    much smaller than the box: the root mean square of a point's coordinates is at most
    ``H / sqrt(n)`` in the ball, and H in the box.

    The scale is H, so that in whitened coordinates the set is the box [-1, 1]^n or the unit ball.

    Attributes:
        half_width: H > 0.
        shape: ``box`` or ``ball``.

    Raises:
        UsageError: H is not positive and finite, the mean is not finite, an unknown shape.
    """

    half_width: float
    shape: str = "box"
    scale: Tensor = field(init=False)

    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        if self.shape not in ("box", "ball"):
            raise UsageError(f"--uniform {self.shape!r}: expected box or ball")
        if not 0 < self.half_width < math.inf:
            raise UsageError(
                f"--half-width {self.half_width}: expected a positive, finite number, in the "
                "parameters' units"
            )
        full = torch.full_like(self.mean, self.half_width, dtype=torch.float64)
        object.__setattr__(self, "scale", full)
        super().__post_init__()

    def size(self, w: Tensor) -> Tensor:
        """How far out w lies, 1 on the boundary: ``max |z_i|`` (box) or ``|z|`` (ball)."""
        z = self.whiten(w)
        return z.abs().amax(-1) if self.shape == "box" else torch.linalg.vector_norm(z, dim=-1)

    def contains(self, w: Tensor) -> Tensor:
        """Whether w lies in the set, its boundary included: (), or (k,) for rows."""
        return self.size(w) <= 1

    def log_density(self, w: Tensor) -> Tensor:
        """``-log volume`` inside, -inf outside, in nats: (), or (k,) for rows.

        The volume is ``(2 H)^n`` (box) or ``pi^(n/2) H^n / Gamma(n/2 + 1)`` (ball).
        """
        n = self.n
        if self.shape == "box":
            unit = n * math.log(2)
        else:
            unit = n / 2 * math.log(math.pi) - math.lgamma(n / 2 + 1)
        inside = torch.tensor(-unit - n * math.log(self.half_width), dtype=torch.float64)
        return torch.where(self.contains(w), inside, -math.inf)

    def sample(self, generator: Generator) -> Tensor:
        """One draw w, (n,)."""
        if self.shape == "box":
            z = 2 * torch.rand(self.n, generator=generator, dtype=torch.float64) - 1
        else:
            z = torch.randn(self.n, generator=generator, dtype=torch.float64)
            radius = torch.rand((), generator=generator, dtype=torch.float64) ** (1 / self.n)
            z *= radius / torch.linalg.vector_norm(z)
        return self.unwhiten(z)

    def require_inside(self, w: Tensor) -> None:
        """Raise UsageError unless w, (n,), lies in the set."""
        if not bool(self.contains(w)):
            raise UsageError(
                f"the anchor lies outside the uniform prior's {self.shape} of --half-width "
                f"{self.half_width:g}; expected a half-width above "
                f"{float(self.size(w)) * self.half_width:.4g} about this mean. Choose a larger "
                "--half-width, or --mean anchor"
            )

    def exit_radius(self, w: Tensor, directions: Tensor) -> Tensor:
        """Distance from w at which rays along unit rows leave the set, in w's units.

        Args:
            w: a point of the set, (n,).
            directions: unit rows u, (k, n).

        Returns:
            the largest r with ``w + r u`` in the set, (k,), finite.

        Raises:
            UsageError: w lies outside.
        """
        self.require_inside(w)
        z, u = self.whiten(w), directions.to(self.mean)
        if self.shape == "box":
            # Coordinates that do not move divide by zero: they never leave.
            return self.half_width * ((1 - u.sign() * z) / u.abs()).amin(-1)
        along, gap = u @ z, 1 - z.square().sum()
        root = (along.square() + gap).sqrt()
        # The positive root of r^2 + 2 r along - gap, without cancellation.
        return self.half_width * torch.where(along > 0, gap / (root + along), root - along)


def prior_table(prior: Prior, space: ParameterSpace, anchor: Tensor) -> PriorTable:
    """What a prior says of every tensor, for the user to check before a long run.

    Args:
        prior: of the same n.
        space: the selected parameters.
        anchor: w*, (n,).
    """

    def rms(vector: Tensor) -> tuple[float, ...]:
        return tuple(
            float(part.square().sum()) ** 0.5 / max(part.numel(), 1) ** 0.5
            for part in space.split(vector)
        )

    return PriorTable(
        names=space.names,
        sizes=tuple(space.sizes),
        mean=rms(prior.mean),
        scale=rms(prior.scale),
        anchor=rms(anchor.to(prior.mean)),
        location=tuple(float(part.square().sum()) for part in space.split(prior.whiten(anchor))),
    )
