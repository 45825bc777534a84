"""Annealing on quadratic problems whose log-volume is known exactly, beside cheaper methods."""

from __future__ import annotations

import argparse
import functools

import torch
from anneal_methods import Record, measured
from anneal_units import Units
from torch import Tensor
from volume_methods import RANK, dense, rays
from volume_problems import CUTOFF, SPECTRA, Quadratic

from landscape.volume.path import Metric
from landscape.volume.pilot import MetricAt

SEEDS = {10: 20, 100: 20, 1000: 20, 2000: 20}
"""Seeds for each n."""

ERROR = {10: 1.0, 100: 2.0, 1000: 2.0, 2000: 3.0}
"""Standard error that is asked for, in nats."""

PARTICLES = {10: 64, 100: 64, 1000: 64, 2000: 32}
GRADIENTS = {10: 1_000_000, 100: 1_000_000, 1000: 1_000_000, 2000: 500_000}
"""Particles of a run, and gradients in all: half of both where a gradient costs most."""

RAYS = 200
WIDEST = 256  # Eigenvectors of the mass matrix; it need not be exact.


class QuadraticEnergy:
    """Excess loss and gradient of one problem, and its curvature, the same everywhere."""

    def __init__(self, problem: Quadratic) -> None:
        self.problem = problem

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (k,) and gradients (k, n) at rows."""
        slope = self.problem.values * (z - self.problem.anchor)
        return (slope * (z - self.problem.anchor)).sum(1) / 2, slope

    def metric_at(self) -> MetricAt:
        """Its mean curvature, which is the same everywhere."""
        a, n = self.problem.values, self.problem.n
        rank = int((a > 0).sum())
        width = 0 if bool((a == a[0]).all()) else min(rank, WIDEST)
        rows = torch.zeros(width, n, dtype=torch.float64)
        rows.fill_diagonal_(1.0)
        bulk = float(a[width:].mean()) if width < n else 0.0
        metric = Metric(vectors=rows, values=a[:width], bulk=bulk)
        return lambda positions, number: metric


def units(options: argparse.Namespace, kept: dict[str, Record]) -> Units:
    """One for each problem and seed, the largest problems last."""
    del kept
    for n, count in ({10: 1} if options.quick else SEEDS).items():
        for seed in range(count if options.seeds is None else min(count, options.seeds)):
            for name in SPECTRA:
                yield f"n = {n}, {name}, seed {seed}", functools.partial(_run, n, name, seed)


def _run(n: int, name: str, seed: int) -> Record:
    problem = Quadratic(name=name, n=n)
    energy = QuadraticEnergy(problem)
    found = measured(
        energy,
        problem.anchor,
        energy.metric_at(),
        cutoff=CUTOFF,
        error=ERROR[n],
        chains=PARTICLES[n],
        limit=GRADIENTS[n],
        seed=seed,
    )
    tilted, symmetric = (
        rays(problem.excess, problem.law(kind, seed, RANK), problem.anchor, counts=(RAYS,))[0]
        for kind in ("tilted", "symmetric")
    )
    beside = {"radial": tilted, "symmetric": symmetric}
    if not seed:
        beside["quadratic"] = dense(problem)
    return {"n": n, "spectrum": name, "truth": problem.truth, **found, **beside}
