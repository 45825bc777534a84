"""Log-volumes of basins: how far off this library's methods and the peers' rules are.

Usage: python benchmarks/volume_accuracy.py [--quick] [--out benchmarks/results] [--seeds S]

Needs this library installed, and nothing else. Quadratic problems whose log-volume is known
exactly, and two trained networks, for which no method knows it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hessian_speed import hardware
from threadpoolctl import threadpool_limits
from volume_figure import draw
from volume_methods import PAIRS, PRODUCTS, RANK, STEPS, lanczos, plain, quadratic_methods
from volume_networks import CUTOFFS, FACTORS, network_methods, network_tilts, trained
from volume_problems import CUTOFF, SPECTRA, Quadratic
from volume_report import render

from landscape.settings import versions

HERE = Path(__file__).resolve().parent
NAME = "volume_accuracy"
SPLITS = (
    (50, 60),
    (50, 40),
    (50, 30),
    (100, 40),
    (PAIRS, STEPS),
)  # Eigenpairs and steps of a probe.


def quadratics(options: argparse.Namespace, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """All methods on the quadratic problems, seed by seed."""
    found = []
    for n in (10, 100) if options.quick else (10, 100, 1000, 10_000):
        for name in SPECTRA:
            note(f"quadratic, n = {n}, {name}")
            problem = Quadratic(name=name, n=n)
            methods: dict[str, list[Any]] = {}
            for seed in range(options.seeds):
                for method, record in quadratic_methods(problem, seed, options.rays).items():
                    methods.setdefault(method, []).append(record)
            found.append(
                {
                    "n": n,
                    "spectrum": name,
                    "truth": problem.truth,
                    "tilt": problem.tilt,
                    "checks": problem.checks(),
                    "methods": methods,
                }
            )
    return found


def splits(options: argparse.Namespace, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The matrix-free path on the power law with its products spent otherwise."""
    found = []
    for n in (100,) if options.quick else (1000, 10_000):
        note(f"matrix-free, n = {n}: splits")
        problem = Quadratic(name="power law", n=n)
        for pairs, steps in SPLITS:
            runs = [
                lanczos(problem, seed, pairs=pairs, steps=steps)
                for seed in range(min(options.seeds, 10))
            ]
            found.append(
                {"n": n, "truth": problem.truth, "pairs": pairs, "steps": steps, "runs": runs}
            )
    return found


def networks(options: argparse.Namespace, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """All methods on trained networks, and their rays at several tilts."""
    cases = [(16, None, 300), (64, 256, 300)]
    cutoffs, factors, count = CUTOFFS, FACTORS, 200
    if options.quick:
        cases, cutoffs, factors, count = [(2, 60, 60)], (CUTOFF,), (1.0, 10.0), 20
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for width, examples, steps in cases:
            note(f"network of width {width}: curvature")
            network = trained(Path(folder), width=width, examples=examples, steps=steps)
            note(f"network of width {width}: rays")
            tilts = network_tilts(network, cutoffs, factors, count)
            methods = network_methods(network, tilts, count)
            found.append({**network.record, "methods": methods, "tilts": tilts})
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small problems, few seeds and rays")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, help="of every estimator (20; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.seeds is None:
        options.seeds = 2 if options.quick else 20
    options.rays = (50, 100) if options.quick else (200, 400)
    return options


def main() -> None:
    """Measure, save, report."""
    options = parse()
    torch.set_num_threads(options.threads)
    machine = hardware()
    began = time.monotonic()

    def note(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    with threadpool_limits(options.threads):
        measured = {
            "problems": quadratics(options, note),
            "splits": splits(options, note),
            "networks": networks(options, note),
        }
    results = plain(
        {
            "settings": {
                "quick": options.quick,
                "seeds": options.seeds,
                "threads": options.threads,
                "rays": options.rays,
                "cutoff": CUTOFF,
                "products": PRODUCTS,
                "pairs": PAIRS,
                "rank": RANK,
                "steps": STEPS,
            },
            "hardware": machine,
            "versions": versions(),
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time(),
            **measured,
        }
    )
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{NAME}.json"
    target.write_text(json.dumps(results, allow_nan=False) + "\n")
    draw(results, target.with_suffix(".png"))
    target.with_suffix(".md").write_text(render(results, f"{NAME}.png"))
    print(target.with_suffix(".md"))


if __name__ == "__main__":
    main()
