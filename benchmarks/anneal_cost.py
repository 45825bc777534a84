"""What gradients of many chains in one batched call cost against single ones of the model."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import torch
from anneal_methods import Record
from anneal_units import Units
from torch import nn

from landscape.data import materialise
from landscape.risk import Risk
from landscape.rng import normal, stream
from landscape.settings import DTYPES
from landscape.task import Task, resolve_task
from landscape.volume.excess import ExcessLoss
from landscape.volume.excess_gradient import ExcessGradient

CHAINS = (1, 2, 4, 8, 16, 32, 64, 128)
ROUNDS = 5
NETWORKS: dict[str, tuple[dict[str, object], int]] = {
    "digits-mlp": ({"width": 12, "depth": 2}, 400),
    "digits-cnn": ({"channels": 4}, 100),
    "modular-addition": ({}, 100),
}
TINY = "26 parameters"


def units(options: argparse.Namespace, kept: dict[str, Record]) -> Units:
    """One for each network and precision."""
    del kept
    for name in (TINY,) if options.quick else (TINY, *NETWORKS):
        for dtype in ("float32", "float64"):
            chains = CHAINS[:3] if options.quick else CHAINS
            yield f"{name}, {dtype}", functools.partial(_cost, name, dtype, chains)


def _problem(name: str) -> tuple[Task, int]:
    if name in NETWORKS:
        setting, examples = NETWORKS[name]
        return resolve_task(name, setting).task, examples
    generator = stream(0, "tiny")
    x = torch.randn(64, 3, generator=generator)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return Task(model=model, data=(x, (x[:, 0] > 0).long()), criterion="cross_entropy"), 64


def _seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of one call."""
    wall, own = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - own


def _cost(name: str, dtype: str, chains: tuple[int, ...]) -> Record:
    task, examples = _problem(name)
    data = materialise(task.data, examples=examples, seed=0)
    risk = Risk(task, data, loss="behaviour", dtype=DTYPES[dtype])
    gradient = ExcessGradient(ExcessLoss(risk))
    anchor = risk.space.vector()
    noise = normal(max(chains) * risk.n, stream(0, "chains"), like=anchor)
    points = anchor + 0.1 * noise.reshape(max(chains), risk.n)
    gradient(points)  # Checks its first chunk, once.
    single: list[tuple[float, float]] = []
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in chains}
    for _ in range(ROUNDS):
        for count in chains:
            # As many gradients each way, but not many times what a clock needs.
            repeats = min(count, 8)
            spent = [_seconds(risk.gradient) for _ in range(repeats)]
            single.append(tuple(sum(part) / repeats for part in zip(*spent, strict=True)))
            times[count].append(_seconds(functools.partial(gradient, points[:count])))
    return {
        "name": name,
        "dtype": dtype,
        "n": risk.n,
        "examples": examples,
        "chunk": gradient.excess.chunk,
        "fallback": gradient.fallback,
        "wall": min(wall for wall, _ in single),
        "cpu": min(own for _, own in single),
        "rows": [
            {
                "chains": count,
                "wall": min(wall for wall, _ in found) / count,
                "cpu": min(own for _, own in found) / count,
            }
            for count, found in times.items()
        ],
    }
