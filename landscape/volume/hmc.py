"""Hamiltonian Monte Carlo on many chains at once; knows nothing of networks.

Source: Neal, MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo (2011),
sections 5.2 and 5.4; Shahbaba, Lan, Johnson and Neal, Split Hamiltonian Monte Carlo, Stat. Comput.
24 (2014), section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from landscape.volume.mass import Mass

__all__ = ["Chains", "Evaluated", "Move", "adapted", "evaluate", "move"]

LONGEST = math.pi / 2  # Step size.
DIVERGENT = 1000.0  # Nats of energy error beyond which a trajectory has left its level set.
ACCEPTANCE = 0.9  # What step sizes are adapted to: annealed particles that stay behind cost more.


class Evaluated(NamedTuple):
    """A target at the positions of C chains.

    Attributes:
        log_density: up to a constant, float64, (C,).
        gradient: of the log-density, (C, n).
        carried: whatever else belongs to a position, each (C, ...): it follows its chain.
    """

    log_density: Tensor
    gradient: Tensor
    carried: tuple[Tensor, ...] = ()


Target = Callable[[Tensor], Evaluated]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chains:
    """Where C chains are: all that a continued run needs.

    Attributes:
        position: (C, n).
        at: the target there.
    """

    position: Tensor
    at: Evaluated

    def take(self, rows: Tensor) -> Chains:
        """The chains of these numbers, (k,), which may repeat."""
        at = self.at
        carried = tuple(part[rows] for part in at.carried)
        return Chains(
            position=self.position[rows],
            at=Evaluated(at.log_density[rows], at.gradient[rows], carried),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """What one trajectory of every chain did.

    Attributes:
        chains: where they are now.
        acceptance: probability with which each was to be accepted, (C,).
        divergent: energy error above 1000 nats or not finite, (C,).
        n_gradients: gradients that were evaluated, of all chains together.
    """

    chains: Chains
    acceptance: Tensor
    divergent: Tensor
    n_gradients: int


def evaluate(target: Target, position: Tensor) -> Chains:
    """Chains at the given positions (C, n); one gradient for each."""
    return Chains(position=position, at=target(position))


def move(
    chains: Chains,
    target: Target,
    mass: Mass,
    *,
    centre: Tensor,
    step: float,
    length: float,
    generator: Generator,
) -> Move:
    """One trajectory of every chain, accepted by Metropolis' rule; leaves the target invariant.

    Velocities ``v = M^-1 p`` are drawn from N(0, M^-1). Each step turns about the centre c as under
    the Gaussian N(c, M^-1), exactly, between two kicks by what the target's force has beyond it:

        v += h/2 (M^-1 grad + z - c)
        z - c, v = (z - c) cos h + v sin h, v cos h - (z - c) sin h
        v += h/2 (M^-1 grad + z - c)

    Without a centre this would be the leapfrog; where the target is that Gaussian there are no
    kicks and no errors, however large n is. ``ceil(T / h)`` steps are reversible and keep volumes
    for any M and c, so that accepting with the probability ``min(1, exp(H - H'))`` is exact at any
    step size h. All chains share h and T, which are drawn for each call (h within 10% of ``step``,
    T uniform between half and one and a half times ``length``): with a fixed length some
    frequencies never mix. Energies are compared in float64.

    Args:
        chains: where the chains are, evaluated at this target.
        target: the log-density; its values may be NaN or infinite, which rejects.
        mass: M, (n, n).
        centre: c, (n,): where a Gaussian with the precision M would be like the target.
        step: h, at most :data:`LONGEST`: a quarter of a turn makes independent draws.
        length: mean of T; pi / 2 makes independent draws of a Gaussian with that covariance.
        generator: stream of this call.

    Cost: ``ceil(T / h)`` gradients and as many applications of ``M^-1`` for each chain.
    """
    position, at = chains.position, chains.at
    draws = torch.rand(2, generator=generator, dtype=torch.float64)
    size = step * (0.9 + 0.2 * float(draws[0]))
    steps = max(1, math.ceil(length * (0.5 + float(draws[1])) / size))
    noise = torch.randn(position.shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(len(position), generator=generator, dtype=torch.float64)
    velocity = mass.inverse_root(noise.to(position))
    before = at.log_density - _kinetic(velocity, mass)
    away, here = position - centre, at
    push = mass.inverse(here.gradient) + away
    for _ in range(steps):
        velocity = velocity + size / 2 * push
        away, velocity = (
            away * math.cos(size) + velocity * math.sin(size),
            velocity * math.cos(size) - away * math.sin(size),
        )
        here = target(away + centre)
        push = mass.inverse(here.gradient) + away
        velocity = velocity + size / 2 * push
    new = away + centre
    gain = here.log_density - _kinetic(velocity, mass) - before
    # NaN is one too, and a density of inf, which nothing would leave again.
    divergent = ~(gain > -DIVERGENT) | (here.log_density == math.inf)
    acceptance = torch.where(divergent, 0.0, gain.clamp(max=0.0).exp())
    accepted = uniform < acceptance
    return Move(
        chains=Chains(position=_chosen(accepted, new, position), at=_select(accepted, here, at)),
        acceptance=acceptance,
        divergent=divergent,
        n_gradients=steps * len(position),
    )


def adapted(step: float, acceptance: float, *, rate: float) -> float:
    """A step size nearer to an acceptance of 0.9 (Robbins and Monro); for pilots only.

    A step that depends on the chain's past breaks the invariance of the target.
    """
    return min(step * math.exp(rate * (acceptance - ACCEPTANCE)), LONGEST)


def _kinetic(velocity: Tensor, mass: Mass) -> Tensor:
    """``v^T M v / 2`` in float64, (C,)."""
    return mass.square(velocity).cpu() / 2


def _select(accepted: Tensor, new: Evaluated, old: Evaluated) -> Evaluated:
    return Evaluated(
        log_density=_chosen(accepted, new.log_density, old.log_density),
        gradient=_chosen(accepted, new.gradient, old.gradient),
        carried=tuple(
            _chosen(accepted, a, b) for a, b in zip(new.carried, old.carried, strict=True)
        ),
    )


def _chosen(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    mask = accepted.to(new.device).reshape(-1, *[1] * (new.dim() - 1))
    return torch.where(mask, new, old)
