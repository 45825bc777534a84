"""Local learning coefficients beta E[dL], by the ladder and by devinterp, where they are known.

Both sample ``exp(-beta K(w) - |w - w*|^2 / 2)``: devinterp's localisation of 1 is the prior
N(w*, I) of the ladder.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from anneal_methods import Record, measured
from anneal_residuals import Residuals, Squares, xy
from anneal_units import Units
from environments import create
from scipy import integrate
from torch import Tensor

from landscape.rng import stream
from landscape.volume.anneal_records import Annealing
from landscape.volume.islands import local_learning

ERROR = 0.5  # Of log V at the ladder's end, in nats.
BETAS = {"x^2 y^2 / 2": (100.0,)}
DEEP_BETAS = (100.0, 1000.0, 10_000.0)
SHOWN = 1000.0
"""Inverse temperature of devinterp on the deep linear cases."""

DRAWS, BURN, CHAINS = 2000, 2000, 4
RATES = {"x^2 y^2 / 2": (1e-2, 1e-3), "deep linear": (3e-5, 1e-5)}
M, H, N = 5, 4, 5
LAMBDAS = {4: 12.0, 2: 10.5, 0: 8.0}


def half_squares(beta: float) -> float:
    """``beta E[x^2 y^2 / 2]`` under ``exp(-beta x^2 y^2 / 2)`` and two standard normals."""

    def integral(power: float) -> float:
        return integrate.quad(
            lambda x: math.exp(-x * x / 2) * (1 + beta * x * x) ** power, 0, 40, limit=500
        )[0]

    # Given x, beta x^2 y^2 has the mean beta x^2 / (1 + beta x^2).
    return (integral(-0.5) - integral(-1.5)) / integral(-0.5) / 2


def deep_linear(rank: int) -> tuple[Tensor, Tensor]:
    """Weights (5, 4) and (4, 5) whose product has the rank."""
    generator = stream(0, "deep linear", rank)
    B = torch.randn(M, H, generator=generator, dtype=torch.float64)
    C = torch.randn(H, N, generator=generator, dtype=torch.float64)
    B[:, rank:], C[rank:] = 0.0, 0.0
    return B, C


def _deep_residuals(B: Tensor, C: Tensor) -> Residuals:
    """Of the product less its value at the anchor, from whitened coordinates about it."""
    product = B @ C

    def residuals(z: Tensor) -> Tensor:
        first = B + z[..., : M * H].unflatten(-1, (M, H))
        second = C + z[..., M * H :].unflatten(-1, (H, N))
        return (first @ second - product).flatten(-2)

    return residuals


def units(options: argparse.Namespace, kept: dict[str, Record]) -> Units:
    """The ladder, then devinterp, on every case."""
    del kept
    names = ["x^2 y^2 / 2"]
    if not options.quick:
        names += [f"deep linear, rank {rank}" for rank in LAMBDAS]
    for name in names:
        yield f"{name}, ladder", functools.partial(_ladder, name)
    if options.quick:
        return
    for name in names:
        for rate in RATES[name.partition(",")[0]]:
            yield f"{name}, devinterp, lr {rate:g}", functools.partial(_devinterp, name, rate)


def _rank(name: str) -> int | None:
    return int(name.rpartition(" ")[2]) if name.startswith("deep") else None


def _ladder(name: str) -> Record:
    rank = _rank(name)
    if rank is None:
        betas: tuple[float, ...] = BETAS[name]
        energy, n, guess = Squares(xy, 0.5), 2, half_squares(betas[-1])
    else:
        betas, guess = DEEP_BETAS, LAMBDAS[rank]
        energy, n = Squares(_deep_residuals(*deep_linear(rank)), 0.5), (M + N) * H

    def beyond(annealing: Annealing) -> Record:
        found, stderr = local_learning(annealing.ladder)
        logs = np.log(np.maximum(annealing.ladder.beta, 1e-300))
        return {
            "rows": [
                {
                    "beta": beta,
                    "value": float(np.interp(math.log(beta), logs, found)),
                    "stderr": float(np.interp(math.log(beta), logs, stderr)),
                    "exact": half_squares(beta) if rank is None else None,
                }
                for beta in betas
            ]
        }

    found = measured(
        energy,
        torch.zeros(n, dtype=torch.float64),
        energy.metric_at,
        cutoff=0.8 * guess / betas[-1],  # So that the ladder ends a little above the last beta.
        error=ERROR,
        seed=0,
        beyond=beyond,
    )
    return {"case": name, "method": "ladder", "lambda": 0.5 if rank is None else guess, **found}


def _devinterp(name: str, rate: float) -> Record:
    environment = create("devinterp")
    rank = _rank(name)
    beta = BETAS[name][-1] if rank is None else SHOWN
    request = {
        "beta": beta,
        "rate": rate,
        "draws": DRAWS,
        "burn": BURN,
        "chains": CHAINS,
        "weights": None if rank is None else [part.tolist() for part in deep_linear(rank)],
    }
    record = {"case": name, "method": "devinterp", "beta": beta, "rate": rate}
    if environment.failures:
        return {**record, "failures": environment.failures}
    script = Path(__file__).resolve().parent / "anneal_devinterp.py"
    done = subprocess.run(
        [environment.python, str(script), json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {**record, "failures": [(f"python {script.name}", (lines or ["no message"])[-1])]}
    return {**record, **json.loads(done.stdout.splitlines()[-1])}
