"""Leapfrog steps that an independent draw of the excess loss takes, along the ladder in beta."""

from __future__ import annotations

import argparse
import functools
import math
from typing import Any

import numpy as np
from anneal_methods import Record
from anneal_network import CUTOFF as NETWORK_CUTOFF
from anneal_network import FULL, run_of
from anneal_quadratics import QuadraticEnergy
from anneal_units import Units
from numpy.typing import NDArray
from torch import Tensor
from volume_problems import CUTOFF, Quadratic

from landscape.risk import Risk
from landscape.volume.excess import ExcessLoss
from landscape.volume.excess_gradient import ExcessGradient
from landscape.volume.metric import BATCH, SampledMetric
from landscape.volume.particles import Energy, Level, Particles, at_level, distances, level_stream
from landscape.volume.path import Metric
from landscape.volume.pilot import LENGTH, MetricAt, Scout

CHAINS, BURN, DRAWS, LEVELS = 24, 10, 100, 8


def units(options: argparse.Namespace, kept: dict[str, Record]) -> Units:
    """One for each problem."""
    del kept
    sizes = (20,) if options.quick else (1000,)
    for n in sizes:
        for name in ("isotropic", "power law", "90% zero"):
            key = f"quadratic, n = {n}, {name}"
            yield key, functools.partial(_quadratic, n, name, 20 if options.quick else DRAWS)
    if not options.quick:
        yield "digits-mlp", _network


def _quadratic(n: int, name: str, draws: int) -> Record:
    problem = Quadratic(name=name, n=n)
    energy = QuadraticEnergy(problem)
    rows = _rows(energy, problem.anchor, energy.metric_at(), CUTOFF, draws)
    return {"n": n, "name": f"quadratic, {name}", "cutoff": CUTOFF, "rows": rows}


def _network() -> Record:
    run, _ = run_of(FULL, seed=0, methods=("anneal",))
    risk = run.risk()
    weights = risk.space.vector()
    prior = run.prior(risk.space, weights)
    gradient = ExcessGradient(ExcessLoss(risk))

    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        loss, slope = gradient(prior.unwhiten(z))
        return loss, slope * prior.scale

    few = Risk(run.resolved.task, run.data, loss="behaviour", batch_size=BATCH)
    anchor = prior.whiten(weights)
    none = Metric(vectors=anchor.new_zeros(0, len(anchor)), values=anchor.new_zeros(0), bulk=0.0)
    metric = SampledMetric(few, prior.scale, prior.unwhiten, seed=0, label="mixing", fallback=none)
    rows = _rows(energy, anchor, metric, NETWORK_CUTOFF, DRAWS)
    return {"n": risk.n, "name": "digits-mlp", "cutoff": NETWORK_CUTOFF, "rows": rows}


def _rows(
    energy: Energy, anchor: Tensor, metric_at: MetricAt, cutoff: float, draws: int
) -> list[Record]:
    """Long runs at some levels of a pilot, from where its chains were."""
    seen: list[tuple[float, float, int, dict[str, Any]]] = []

    def on_level(scout: Scout) -> None:
        trail = scout.trail
        where = float(trail.beta[-1]), float(trail.step[-1]), int(trail.metric[-1])
        seen.append((*where, scout.as_unit()))

    scout = Scout(
        energy=energy,
        anchor=anchor,
        metric_at=metric_at,
        chains=CHAINS,
        seed=0,
        name="mixing",
        on_level=on_level,
    )
    scout.start(0.0)
    scout.warm(cutoff)
    warm = [row for row in seen if row[0] > 0]
    logs = np.log([row[0] for row in warm])
    wanted = np.linspace(logs[0], logs[-1], LEVELS)
    places = sorted({int(np.abs(logs - log).argmin()) for log in wanted})
    return [_row(energy, anchor, *warm[place], scout.metrics, draws) for place in places]


def _row(
    energy: Energy,
    anchor: Tensor,
    beta: float,
    step: float,
    metric: int,
    unit: dict[str, Any],
    metrics: list[Metric],
    draws: int,
) -> Record:
    particles = Particles.of_unit(unit, anchor)
    level = Level(beta=beta, tether=0.0, step=step, mass=metrics[metric].mass(beta, 0.0))
    losses, away, acceptance, before = [], [], [], 0
    for draw in range(BURN + draws):
        if draw == BURN:
            before = particles.n_gradients
        particles, moved = at_level(
            particles,
            energy,
            anchor,
            level,
            length=LENGTH,
            generator=level_stream(0, "mixing", repr(beta), draw),
        )
        if draw >= BURN:
            losses.append(particles.loss.ravel())
            away.append(distances(particles, anchor).ravel())
            acceptance.append(float(moved.acceptance.mean()))
    count = draws * CHAINS
    steps = (particles.n_gradients - before) / count
    found = {
        name: effective(np.stack(rows, 1)) for name, rows in (("loss", losses), ("away", away))
    }
    return {
        "beta": beta,
        "loss": float(np.mean(losses)),
        "steps": steps,
        "acceptance": float(np.mean(acceptance)),
        "per_draw": steps * count / found["loss"],
        "per_draw_distance": steps * count / found["away"],
    }


def effective(chains: NDArray[np.float64]) -> float:
    """Independent draws that are worth as much as those of chains (c, d)."""
    from arviz_stats.base.array import array_stats

    ess: Any = array_stats.ess
    found = float(ess(chains, chain_axis=0, draw_axis=1, method="mean"))
    return found if math.isfinite(found) and found > 0 else math.nan
