"""Annealing about a trained digits network, where no method knows the truth."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

from anneal_methods import LIMIT, Record, curve, told
from anneal_units import Units

from landscape.budget import Budget
from landscape.data import materialise
from landscape.measurement import prepared
from landscape.settings import Settings
from landscape.task import Task, resolve_task
from landscape.training import TrainingPoint, train
from landscape.volume.options import VolumeOptions
from landscape.volume.records import VolumeEstimate
from landscape.volume_runs import VolumeRun

FOLDER = Path(__file__).resolve().parent / ".work" / "anneal"
CUTOFF, SIGMA, ERROR = 0.0081, 0.34, 2.0
SEEDS = (0, 1)
CHAINS = 32  # Half the default: a million gradients make fewer but finer paths, which say more.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Of the network and its data.

    Attributes:
        width: units of both hidden layers.
        examples: of the training split, the same for every seed.
        steps: of training.
        limit: gradients of a run.
    """

    width: int
    examples: int
    steps: int
    limit: int


FULL = Size(width=12, examples=400, steps=1000, limit=LIMIT)
QUICK = Size(width=4, examples=60, steps=60, limit=20_000)


@functools.cache
def trained(size: Size) -> tuple[Task, TrainingPoint]:
    """The task with its part of the data, and the checkpoint."""
    setting = {"width": size.width, "depth": 2}
    out = FOLDER / f"{size.width}-{size.steps}"
    (point,) = train(
        "digits-mlp", setting, steps=size.steps, checkpoints=1, out=out, overwrite=True
    )
    task = resolve_task("digits-mlp", setting).task
    chosen = materialise(task.data, examples=size.examples, seed=0).indices
    data: Any = task.data
    return dataclasses.replace(task, data=tuple(part[chosen] for part in data)), point


def run_of(
    size: Size, *, seed: int, methods: tuple[str, ...], **options: Any
) -> tuple[VolumeRun, TrainingPoint]:
    """A run of the library at the cutoff under the prior N(0, sigma^2 I)."""
    task, point = trained(size)
    settings = Settings(loss="behaviour", seed=seed, budget=Budget(gradients=size.limit))
    run = VolumeRun(
        **prepared(task, point.path, settings, None),
        options=VolumeOptions(
            cutoffs=(CUTOFF,), sigma=SIGMA, methods=methods, error=ERROR, **options
        ),
    )
    return run, point


def units(options: argparse.Namespace, kept: dict[str, Record]) -> Units:
    """Cheap methods; both seeds without a limit; both at a radius where both starts agreed."""
    size = QUICK if options.quick else FULL
    yield "quadratic and rays", functools.partial(_cheap, size)
    for seed in SEEDS:
        yield f"seed {seed}, R = inf", functools.partial(_annealed, size, seed, None)
    radius = agreed([kept[f"seed {seed}, R = inf"] for seed in SEEDS])
    if radius is not None:
        for seed in SEEDS:
            key = f"seed {seed}, R = {radius:g}"
            yield key, functools.partial(_annealed, size, seed, radius)


def agreed(runs: list[Record]) -> float | None:
    """The smallest radius up to which both starts agree, rounded down.

    Of the runs in which they agree somewhere; None where they do in no run, or without a limit in
    all of them.
    """
    known = [run["agreed_radius"] for run in runs if run.get("agreed_radius") is not None]
    least = min(map(float, known), default=math.inf)
    if least == math.inf:
        return None
    return math.floor(10 * least) / 10 if least >= 0.1 else least


def _estimate(found: VolumeEstimate) -> Record:
    names = ("log_volume", "stderr", "lower", "upper", "ess", "lower_bound")
    return {name: getattr(found, name)[0].item() for name in names}


def _cheap(size: Size) -> Record:
    run, point = run_of(size, seed=0, methods=("quadratic", "radial"))
    found = run.measure()
    symmetric, _ = run_of(size, seed=0, methods=("radial",), directions="symmetric")
    return {
        "n": run.risk().n,
        "examples": run.data.n_examples,
        "steps": size.steps,
        "train_loss": point.train_loss,
        "test_accuracy": point.test_accuracy,
        "cutoff": CUTOFF,
        "sigma": SIGMA,
        "methods": {
            **{name: _estimate(part) for name, part in found.estimates.items()},
            "symmetric rays": _estimate(symmetric.measure().estimates["radial"]),
        },
    }


def _annealed(size: Size, seed: int, tether: float | None) -> Record:
    run, _ = run_of(size, seed=seed, methods=("anneal",), tether=tether, chains=CHAINS)
    result = run.measure()
    annealing = result.annealing
    if annealing is None:
        return {"seed": seed, "tether": tether, "missing": result.info.warnings[0]}
    return {
        "seed": seed,
        "tether": tether,
        "error": ERROR,
        **told(result.estimates["anneal"], annealing, CUTOFF, result.info.n_parameters),
        "curve": curve(annealing),
        "warnings": list(result.info.warnings),
        "gradient_seconds": annealing.gradient_seconds,
        "bare_seconds": annealing.bare_seconds,
        "symmetries": dict(zip(annealing.symmetries, annealing.log_orders.tolist(), strict=True)),
    }
