"""Annealed log-volumes: how far off they are, what they cost, and when they are not believed.

Usage: python benchmarks/anneal_accuracy.py [--quick] [--out benchmarks/results] [--seeds S]
                                            [--only SECTION]

Every unit of work is kept in the JSON file as it finishes: the same command again does what is
missing. Needs this library installed; ``learning`` makes an environment with devinterp.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import anneal_closed
import anneal_cost
import anneal_learning
import anneal_mixing
import anneal_network
import anneal_quadratics
import torch
from anneal_figure import draw
from anneal_methods import LIMIT
from anneal_report import render
from anneal_units import Kept
from hessian_speed import hardware
from threadpoolctl import threadpool_limits

from landscape.settings import versions

HERE = Path(__file__).resolve().parent
NAME = "anneal_accuracy"
SECTIONS = {
    "quadratics": anneal_quadratics.units,
    "closed forms": anneal_closed.units,
    "network": anneal_network.units,
    "cost": anneal_cost.units,
    "mixing": anneal_mixing.units,
    "learning": anneal_learning.units,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny problems, one seed")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, help="at most so many of every problem")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), help="some of the sections")
    parser.add_argument("--fresh", action="store_true", help="measure kept units of them again")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, save, report."""
    options = parse()
    torch.set_num_threads(1)
    began = time.monotonic()

    def note(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    chosen = tuple(options.only or SECTIONS)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{NAME}.json"
    settings = {"quick": options.quick, "limit": LIMIT, "threads": 1}
    kept = Kept(target, settings, fresh=chosen if options.fresh else ())
    kept.results |= {"hardware": hardware(), "versions": versions()}
    with threadpool_limits(1):
        for name in chosen:
            kept.work(name, SECTIONS[name](options, kept.section(name)), note)
    kept.save()
    draw(kept.results, target.with_suffix(".png"))
    target.with_suffix(".md").write_text(render(kept.results, f"{NAME}.png"))
    print(target.with_suffix(".md"))


if __name__ == "__main__":
    main()
