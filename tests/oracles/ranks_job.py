"""Measurements to be made by one process or by several: their numbers must be the same.

As a script, started by torchrun: every measurement but those named after the path, to which rank 0
pickles them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from landscape.budget import Budget
from landscape.checkpoint import read_checkpoint
from landscape.compare.options import CompareOptions
from landscape.compare_runs import CompareRun
from landscape.distributed import Alone, join, leave
from landscape.errors import LandscapeError
from landscape.hessian import HessianOptions
from landscape.launch import launched
from landscape.measurement import prepared
from landscape.runs import HessianRun
from landscape.settings import Settings
from landscape.task import Task
from landscape.units import MemoryUnits
from landscape.volume.options import VolumeOptions
from landscape.volume_runs import VolumeRun

EXAMPLES = 101  # Neither two nor three processes get equal parts.


VOLUME = {
    "cutoffs": (0.05,),
    "sigma": 0.7,
    "samples": 20,
    "steps": 20,
    "probes": 3,
    "error": 3.0,
}


def network(examples=EXAMPLES, criterion="cross_entropy", hidden=6, batches=1, seed=3):
    """A small classifier whose weights are not at a minimum; some targets count for nothing."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (examples,), generator=generator)
    targets[::7] = -100
    model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    data = list(zip(inputs.chunk(batches), targets.chunk(batches), strict=True))
    return Task(model=model, data=data, criterion=criterion)


def hessian(ranks, task=None, *, units=None, progress=None, settings=None, **options):
    settings = settings or Settings(dtype="float64")
    run = HessianRun(
        **prepared(task or network(), None, settings, None),
        options=HessianOptions(**{"top": 4, "steps": 12, "probes": 2, **options}),
        ranks=ranks,
    )
    result = run.measure(units=units, **({} if progress is None else {"progress": progress}))
    found = {}
    for name, spectrum in result.spectra.items():
        found[f"{name} eigenvalues"] = spectrum.eigenvalues
        if spectrum.eigenvectors is not None and ranks.rank == 0:
            found[f"{name} vectors"] = np.abs(spectrum.eigenvectors[:3])
    for name, density in result.densities.items():
        # A node's own weight moves where two are close: functions of the density do not.
        found[f"{name} nodes"] = density.nodes
        found[f"{name} moments"] = np.stack(
            [(density.weights * density.nodes**k).sum(1) for k in (1, 2, 3)]
        )
    found["loss"] = np.array([result.info.loss, result.info.gradient_norm])
    return found


def volume(ranks, task=None, *, settings=None, **options):
    settings = settings or Settings(dtype="float64", loss="behaviour")
    run = VolumeRun(
        **prepared(task or network(), None, settings, None),
        options=VolumeOptions(**{**VOLUME, **options}),
        ranks=ranks,
    )
    result = run.measure()
    found = {name: e.log_volume for name, e in result.estimates.items()}
    found |= {f"{name} stderr": e.stderr for name, e in result.estimates.items()}
    if result.rays is not None:
        found["radii"] = result.rays.radius
    return found


def compare(ranks, **options):
    """Two networks, or one and its ablated copy; everything that compare measures."""
    settings = Settings(dtype="float64", batch_size=16)
    with tempfile.TemporaryDirectory() as folder:
        other = None
        if "ablate" not in options:
            other = Path(folder) / "b.safetensors"
            save_file(network(examples=1, seed=4).model.state_dict(), other)
            options |= {"eigenspaces": 2, "align": "activations"}
        run = CompareRun(
            **prepared(network(), None, settings, None),
            other=None if other is None else read_checkpoint(other),
            options=CompareOptions(points=5, bootstrap=20, **options),
            ranks=ranks,
        )
        result = run.measure()
    found = {}
    for name in ("kl_ab", "kl_ba", "js", "agreement", "excess_loss"):
        estimate = getattr(result.behaviour, name)
        found[name] = np.array([estimate.value, estimate.lower, estimate.upper])
    for name in ("example_js", "example_terms", "cross_entropy", "entropy"):
        found[name] = np.asarray(getattr(result.behaviour, name))
    for name in ("path", "aligned"):
        path = getattr(result, name)
        if path is not None:
            found[name] = np.array([*path.loss, path.barrier, path.distance])
    if result.eigenspaces is not None:
        spaces = result.eigenspaces
        found["eigenvalues"] = np.concatenate([spaces.eigenvalues_a, spaces.eigenvalues_b])
        found["overlaps of vectors"] = np.array([spaces.overlap, spaces.aligned])
    if result.volume is not None:
        found["volume"] = result.volume.difference
    found["counts"] = np.array([result.info.n_forward, result.info.n_gradient])
    return found


class StoppedError(Exception):
    pass


class _Eager(MemoryUnits):
    """Keeps unfinished state at every step."""

    def due(self):
        return True


def resumed(ranks):
    """The spectrum of a run that was interrupted in the middle of a solve and of the probes."""
    units = _Eager()
    for limit in (11, 30):
        seen = 0

        def tick(phase, done, total, limit=limit):
            nonlocal seen
            seen += 1
            if seen > limit:
                raise StoppedError

        try:
            hessian(ranks, method="lanczos", units=units, progress=tick)
        except StoppedError:
            continue
        raise AssertionError("the run was not interrupted")
    return hessian(ranks, method="lanczos", units=units)


def poisoned(ranks):
    """The message where the last example, in one process's part, cannot be evaluated."""
    task = network()

    def forward(model, batch):
        if batch[0].shape[0] and float(batch[0][-1, 0]) == float(task.data[-1][0][-1, 0]):
            raise ValueError("this example is broken")
        return model(batch[0])

    try:
        hessian(ranks, dataclasses.replace(task, forward=forward))
    except LandscapeError as error:
        return {"code": np.array([error.exit_code]), "message": str(error)}
    raise AssertionError("no error")


SINGLE = {"settings": Settings(dtype="float32"), "method": "lanczos"}
MEASUREMENTS = {
    "lanczos": lambda ranks: hessian(
        ranks, method="lanczos", operators=("hessian", "ggn"), save_vectors=True
    ),
    "both ends": lambda ranks: hessian(ranks, method="lanczos", bottom=2),
    "lanczos in micro-batches": lambda ranks: hessian(
        ranks,
        network(batches=3),
        method="lanczos",
        settings=Settings(dtype="float64", batch_size=10),
    ),
    "lanczos float32": lambda ranks: hessian(ranks, **SINGLE),
    "restarts": lambda ranks: hessian(
        ranks, network(hidden=40), method="lanczos", top=12, multiplicity="always", density=False
    ),
    "mixed": lambda ranks: hessian(
        ranks, method="lanczos", settings=Settings(products="float32"), tol=1e-6, density=False
    ),
    "blocks": lambda ranks: hessian(ranks, method="lanczos", per_module=True, top=2),
    "dense": lambda ranks: hessian(ranks, method="exact"),
    "gram": lambda ranks: hessian(
        ranks, network(11, hidden=12), method="exact", operators=("ggn",), save_vectors=True
    ),
    "two examples": lambda ranks: hessian(ranks, network(2), method="lanczos", top=2),
    "empirical Fisher": lambda ranks: hessian(
        ranks, method="lanczos", operators=("empirical-fisher", "residual")
    ),
    "quadratic": lambda ranks: volume(ranks, methods=("quadratic",), exact="lanczos", top=6),
    "quadratic with a slope": lambda ranks: volume(
        ranks,
        methods=("quadratic",),
        exact="lanczos",
        top=6,
        settings=Settings(dtype="float64"),
        curvature="ggn",
    ),
    "quadratic of a factor": lambda ranks: volume(
        ranks, network(9, hidden=12), methods=("quadratic",)
    ),
    "radial": lambda ranks: volume(ranks, methods=("radial",)),
    "anneal": lambda ranks: volume(
        ranks,
        network(hidden=1),
        methods=("anneal",),
        chains=32,
        cutoffs=(0.3,),
        error=2.0,
        settings=Settings(dtype="float64", loss="behaviour", budget=Budget(gradients=60_000)),
    ),
    "compare": compare,
    "compare with log V": lambda ranks: compare(
        ranks,
        volume=VolumeOptions(
            methods=("quadratic",), sigma=0.7, cutoffs=(0.05,), exact="lanczos", top=6, probes=3
        ),
        ablate=("1:0-1=mean", "weights:2.weight:1=zero"),
    ),
    "compare with resampled activations": lambda ranks: compare(ranks, ablate=("1:2-4=resample",)),
    "resumed": resumed,
    "poisoned": poisoned,
}


def measured(ranks: Alone, without: Sequence[str] = ()) -> dict:
    """Every measurement but some."""
    return {name: make(ranks) for name, make in MEASUREMENTS.items() if name not in without}


def main() -> None:
    torch.set_num_threads(1)
    ranks = join(launched())
    found = measured(ranks, sys.argv[2:])
    everyone = ranks._gathered(
        {name: {k: v for k, v in f.items() if "vectors" not in k} for name, f in found.items()}
    )
    if ranks.rank == 0:
        Path(sys.argv[1]).write_bytes(pickle.dumps((found, everyone)))
    assert math.isfinite(ranks.each(1.0)[0])
    if leave():
        # As the command line ends: torch's threads may abort an interpreter that ends by itself.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
