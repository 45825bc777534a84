"""Annealed importance sampling along a path of laws, by independent islands of particles.

    log W   = log Z_ref(k) - sum_j (beta_{j+1} - beta_j) dL(z_j) - (k_{j+1} - k_j) |z_j - z*|^2 / 2
    V(e, R) = E[W 1{dL <= e} 1{|z - z*| <= R sqrt(n)} exp(beta dL + k |z - z*|^2 / 2)]

at every level: unbiased for each island, resampled or not. Knows nothing of networks.

Source: Neal, Annealed importance sampling, Stat. Comput. 11 (2001); Del Moral, Doucet and Jasra,
Sequential Monte Carlo samplers, J. R. Stat. Soc. B 68 (2006), section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from landscape.volume.islands import BY_LEVEL, Islands
from landscape.volume.particles import (
    Energy,
    Particles,
    at_level,
    distances,
    drawn,
    level_stream,
    log_change,
    reweighed,
)
from landscape.volume.path import Path
from landscape.volume.pilot import LENGTH

__all__ = ["annealed", "backwards"]

OnLevel = Callable[[int, Callable[[], dict[str, Any]], int], None]


def annealed(
    path: Path,
    energy: Energy,
    anchor: Tensor,
    *,
    islands: int,
    size: int,
    draws: int,
    seed: int,
    label: tuple[str | int, ...],
    state: Mapping[str, Any] | None = None,
    on_level: OnLevel = lambda level, snapshot, count: None,
    start: Particles | None = None,
) -> tuple[Islands, Particles]:
    """Take particles along a path, one trajectory a level and ``draws`` more at marks.

    Args:
        path: the frozen path; nothing about it depends on these particles.
        energy: excess loss and gradient at whitened rows.
        anchor: z*, (n,).
        islands: I, independent of each other.
        size: P particles in each, which resampling ties together.
        draws: S trajectories at each mark, after resampling to equal weights.
        seed: seed of all streams.
        label: of this run: one stream for each of its levels.
        state: a snapshot to continue from.
        on_level: called after every level with its number, a function that takes a snapshot and
            the gradients so far; may raise to stop.
        start: particles at the first level, instead of draws from the Gaussian there.

    Returns:
        what was gathered, and the particles at the end.

    Cost: for each level as many gradients a particle as its trajectory has steps.
    """
    records: dict[str, Any] = {name: np.zeros((len(path), islands)) for name in BY_LEVEL}
    records["divergent"] = np.zeros((len(path), islands), dtype=np.int64)
    records["log_scale"] = np.zeros((len(path.marks), islands))
    for name in ("draw_loss", "draw_distance"):
        records[name] = np.zeros((len(path.marks), draws, islands, size))
    if state is None:
        first = 0
        if start is not None:
            particles = start
        else:
            particles = drawn(
                energy,
                anchor,
                tether=float(path.tether[0]),
                islands=islands,
                size=size,
                generator=level_stream(seed, *label, 0),
            )
    else:
        first, particles = int(state["level"]) + 1, Particles.of_unit(state, anchor)
        for name in records:
            records[name] = np.array(state[f"islands_{name}"])
    reached = first - 1

    def snapshot() -> dict[str, Any]:
        own = {f"islands_{name}": array.copy() for name, array in records.items()}
        return {**particles.as_unit(), **own, "level": reached}

    for index in range(first, len(path)):
        generator = level_stream(seed, *label, index, "level")
        marked = bool((path.marks == index).any())
        before, after = (
            (float(path.beta[j]), float(path.tether[j])) for j in (max(index - 1, 0), index)
        )
        records["stride"][index] = _stride(particles, anchor, before, after)
        particles = reweighed(
            particles, anchor, before=before, after=after, generator=generator, always=marked
        )
        level = path.level(index)
        records["acceptance"][index] = 1.0
        if index > 0:
            particles, moved = at_level(
                particles, energy, anchor, level, length=LENGTH, generator=generator
            )
            shape = (islands, size)
            records["acceptance"][index] = moved.acceptance.numpy().reshape(shape).mean(1)
            records["divergent"][index] = moved.divergent.numpy().reshape(shape).sum(1)
        share = particles.share()
        with np.errstate(invalid="ignore"):
            records["loss"][index] = np.nan_to_num(share * particles.loss, posinf=np.inf).sum(1)
        records["distance"][index] = (share * distances(particles, anchor)).sum(1)
        records["log_partition"][index] = particles.log_partition()
        if marked:
            mark = int(np.searchsorted(path.marks, index))
            records["log_scale"][mark] = particles.log_partition()
            for draw in range(draws):
                particles, _ = at_level(
                    particles, energy, anchor, level, length=LENGTH, generator=generator
                )
                records["draw_loss"][mark, draw] = particles.loss
                records["draw_distance"][mark, draw] = distances(particles, anchor)
        reached = index
        on_level(index, snapshot, particles.n_gradients)
    return (
        Islands(
            beta=path.beta,
            tether=path.tether,
            marks=path.marks,
            n_gradients=particles.n_gradients,
            n_resampled=particles.n_resampled,
            **records,
        ),
        particles,
    )


def _stride(
    particles: Particles, anchor: Tensor, before: tuple[float, float], after: tuple[float, float]
) -> Any:
    """Weighted standard deviation, in each island, of the next change of its log-weights."""
    change = log_change(particles, anchor, before=before, after=after)
    share = np.where(np.isfinite(change), particles.share(), 0.0)
    share = share / np.maximum(share.sum(1, keepdims=True), 1e-300)
    change = np.where(np.isfinite(change), change, 0.0)
    mean = (share * change).sum(1, keepdims=True)
    size = change.shape[1]
    return np.sqrt((share * (change - mean) ** 2).sum(1) * size / max(size - 1, 1))


def backwards(path: Path) -> Path:
    """The same levels from the end to the start, without marks."""
    return dataclasses.replace(
        path,
        beta=path.beta[::-1].copy(),
        tether=path.tether[::-1].copy(),
        step=path.step[::-1].copy(),
        metric=path.metric[::-1].copy(),
        marks=np.zeros(0, dtype=np.int64),
    )
