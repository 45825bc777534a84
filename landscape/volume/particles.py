"""Particles that follow a path of laws: annealed importance sampling with resampling (SMC).

The laws are ``pi_{k, beta}(z) ~ exp(-|z|^2 / 2 - k |z - z*|^2 / 2 - beta dL(z))``, which at
``beta = 0`` are the Gaussian ``N(k z* / (1 + k), I / (1 + k))``. Knows nothing of networks.

Source: Neal, Annealed importance sampling, Stat. Comput. 11 (2001); Del Moral, Doucet and Jasra,
Sequential Monte Carlo samplers, J. R. Stat. Soc. B 68 (2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Generator, Tensor

from landscape.memory import stored_tensor
from landscape.rng import stream
from landscape.volume.hmc import Chains, Evaluated, Move, evaluate, move
from landscape.volume.mass import Mass
from landscape.volume.weights import log_mean_exp

__all__ = [
    "Energy",
    "Level",
    "Particles",
    "at_level",
    "distances",
    "drawn",
    "level_stream",
    "log_change",
    "log_reference",
    "reweighed",
]

FloatArray = NDArray[np.float64]
Energy = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Excess loss (C,) in float64 and its gradient (C, n) at whitened rows (C, n)."""

_RESAMPLE = 0.5  # Effective part of an island's particles below which it is resampled.


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One law of a path and how chains move under it.

    Attributes:
        beta: inverse temperature, per unit of the loss.
        tether: k, of the pull to the anchor.
        step: leapfrog step size.
        mass: mass matrix.
    """

    beta: float
    tether: float
    step: float
    mass: Mass


@dataclass(frozen=True, kw_only=True, eq=False)
class Particles:
    """I independent islands of P particles each, with what they have gathered.

    Attributes:
        chains: positions and the target at them, island by island, (I * P, n); ``carried`` is the
            excess loss and its gradient.
        log_weight: log-weights since an island was last resampled, (I, P).
        log_scale: log of the mean weight that each island had gathered by then, (I,).
        n_gradients: gradients so far.
        n_resampled: resamplings so far, of all islands.
    """

    chains: Chains
    log_weight: FloatArray
    log_scale: FloatArray
    n_gradients: int = 0
    n_resampled: int = 0

    def as_unit(self) -> dict[str, Any]:
        """Arrays for a unit of work."""
        loss, slope = self.chains.at.carried
        return {
            "position": self.chains.position.cpu().numpy(),
            "loss": loss.numpy(),
            "slope": slope.cpu().numpy(),
            "log_weight": self.log_weight,
            "log_scale": self.log_scale,
            "n_gradients": self.n_gradients,
            "n_resampled": self.n_resampled,
        }

    @staticmethod
    def of_unit(unit: Mapping[str, Any], like: Tensor) -> Particles:
        """The inverse of :meth:`as_unit`."""
        loss = stored_tensor(unit["loss"])
        position, slope = (stored_tensor(unit[k]).to(like) for k in ("position", "slope"))
        # The density belongs to a level, which combines it anew from the loss.
        at = Evaluated(torch.zeros_like(loss), torch.zeros_like(slope), (loss, slope))
        return Particles(
            chains=Chains(position=position, at=at),
            log_weight=np.array(unit["log_weight"]),
            log_scale=np.array(unit["log_scale"]),
            n_gradients=int(unit["n_gradients"]),
            n_resampled=int(unit["n_resampled"]),
        )

    @property
    def loss(self) -> FloatArray:
        """Excess losses, (I, P)."""
        loss: FloatArray = self.chains.at.carried[0].numpy()
        return loss.reshape(self.log_weight.shape)

    def share(self) -> FloatArray:
        """Normalised weights within each island, (I, P)."""
        alive = np.isfinite(self.log_weight.max(1, keepdims=True))
        share: FloatArray = special.softmax(np.where(alive, self.log_weight, 0.0), axis=1)
        return share

    def log_partition(self) -> FloatArray:
        """Unbiased estimates of Z (in logs), one an island, (I,)."""
        return self.log_scale + log_mean_exp(self.log_weight)


def log_reference(anchor: Tensor, tether: float) -> float:
    """The path's start: ``log Z = -n/2 log(1 + k) - k |z*|^2 / (2 (1 + k))``.

    Normalised so that k = 0, the prior itself, has log Z = 0.
    """
    n, size = len(anchor), float(anchor @ anchor)
    return -n / 2 * math.log1p(tether) - tether * size / (2 * (1 + tether))


@dataclass(frozen=True, eq=False)
class _Target:
    """The law at one level, for :mod:`landscape.volume.hmc`."""

    energy: Energy
    anchor: Tensor
    beta: float
    tether: float

    def __call__(self, z: Tensor) -> Evaluated:
        loss, slope = self.energy(z)
        return self.combined(z, loss, slope)

    def combined(self, z: Tensor, loss: Tensor, slope: Tensor) -> Evaluated:
        """The law from an excess loss and its gradient that are known already."""
        away = z - self.anchor
        log_density = -(z.double().square().sum(1) + self.tether * away.double().square().sum(1))
        log_density = log_density.cpu() / 2
        gradient = -z - self.tether * away
        if self.beta > 0:  # The prior alone where a loss may be infinite.
            log_density = log_density - self.beta * loss
            gradient = gradient - self.beta * slope
        return Evaluated(log_density, gradient, (loss, slope))


def drawn(
    energy: Energy,
    anchor: Tensor,
    *,
    tether: float,
    islands: int,
    size: int,
    generator: Generator,
) -> Particles:
    """Particles from the Gaussian at the start of a path, whose log Z is known exactly."""
    noise = torch.randn(islands * size, len(anchor), generator=generator, dtype=torch.float64)
    z = (noise.to(anchor) / math.sqrt(1 + tether)) + anchor * (tether / (1 + tether))
    return Particles(
        chains=evaluate(_Target(energy, anchor, 0.0, tether), z),
        log_weight=np.zeros((islands, size)),
        log_scale=np.full(islands, log_reference(anchor, tether)),
        n_gradients=len(z),
    )


def distances(particles: Particles, anchor: Tensor) -> FloatArray:
    """``|z - z*|^2``, (I, P)."""
    away = (particles.chains.position - anchor).double().square().sum(1)
    return away.cpu().numpy().reshape(particles.log_weight.shape)


def log_change(
    particles: Particles,
    anchor: Tensor,
    *,
    before: tuple[float, float],
    after: tuple[float, float],
) -> FloatArray:
    """``(beta' - beta) dL + (k' - k) |z - z*|^2 / 2`` between two laws (beta, k), (I, P)."""
    change = np.zeros(particles.log_weight.shape)
    if after[0] != before[0]:  # A loss may be infinite.
        change += (after[0] - before[0]) * particles.loss
    if after[1] != before[1]:
        change += (after[1] - before[1]) / 2 * distances(particles, anchor)
    return change


def reweighed(
    particles: Particles,
    anchor: Tensor,
    *,
    before: tuple[float, float],
    after: tuple[float, float],
    generator: Generator,
    always: bool = False,
) -> Particles:
    """Weights for the next law (beta, k), with islands resampled where few particles carry them.

    ``log w -= (beta' - beta) dL + (k' - k) |z - z*|^2 / 2``. An island is resampled
    (systematically) below half its particles' effective number, or ``always``: estimates stay
    unbiased.
    """
    change = log_change(particles, anchor, before=before, after=after)
    logs = particles.log_weight - np.where(np.isfinite(change), change, np.inf)
    particles = replace(particles, log_weight=logs)
    islands, size = logs.shape
    uniform = torch.rand(islands, generator=generator, dtype=torch.float64).numpy()
    share = particles.share()
    poor = 1 / (share**2).sum(1) < _RESAMPLE * size
    if always:
        poor[:] = size > 1
    # An island without any weight stays as it is: its estimate is 0.
    poor &= np.isfinite(logs.max(1))
    if not poor.any():
        return particles
    points = (uniform[:, None] + np.arange(size)) / size
    chosen = np.tile(np.arange(size), (islands, 1))
    for island in np.flatnonzero(poor):
        edges = np.cumsum(share[island])
        chosen[island] = np.searchsorted(edges / edges[-1], points[island], side="right")
    rows = torch.from_numpy(
        (chosen.clip(max=size - 1) + np.arange(islands)[:, None] * size).ravel()
    )
    return replace(
        particles,
        chains=particles.chains.take(rows),
        log_weight=np.where(poor[:, None], 0.0, logs),
        log_scale=np.where(poor, particles.log_partition(), particles.log_scale),
        n_resampled=particles.n_resampled + int(poor.sum()),
    )


def at_level(
    particles: Particles,
    energy: Energy,
    anchor: Tensor,
    level: Level,
    *,
    length: float,
    generator: Generator,
) -> tuple[Particles, Move]:
    """One trajectory of every particle under a level's law; weights stay as they are.

    Trajectories turn about ``z* - M^-1 z*``, where a loss with the metric's curvature and its
    minimum at the anchor would have the law's maximum.
    """
    target = _Target(energy, anchor, level.beta, level.tether)
    loss, slope = particles.chains.at.carried
    position = particles.chains.position
    moved = move(
        Chains(position=position, at=target.combined(position, loss, slope)),
        target,
        level.mass,
        centre=anchor - level.mass.inverse(anchor[None])[0],
        step=level.step,
        length=length,
        generator=generator,
    )
    count = particles.n_gradients + moved.n_gradients
    return replace(particles, chains=moved.chains, n_gradients=count), moved


def level_stream(seed: int, *label: str | int) -> Generator:
    """The stream of one level of one replica."""
    return stream(seed, "anneal", *label)
