"""Time of a product and memory of a Krylov basis over one, two, ... processes on this machine.

    python benchmarks/ranks_speed.py [--quick] [--ranks 1,2] [--out benchmarks/results]

Needs the library itself. Every process has one thread. The processes take turns: each round
measures all their numbers once, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGET = 0.6  # Time of a product on two processes over that on one.


def work(options: argparse.Namespace) -> dict[str, Any]:
    """What one of the processes measures."""
    import torch
    from torch import nn

    from landscape.data import materialise
    from landscape.distributed import join
    from landscape.krylov import Lanczos
    from landscape.launch import launched
    from landscape.operators import curvature
    from landscape.risk import Risk
    from landscape.sharded import sharded
    from landscape.task import Task

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    width, examples, steps = (16, 203, 6) if options.quick else (512, 6001, 40)
    model = nn.Sequential(
        nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
    inputs = torch.randn(examples, 784, generator=generator)
    targets = torch.randint(0, 10, (examples,), generator=generator)
    task = Task(model=model, data=(inputs, targets), criterion="cross_entropy")
    ranks = join(launched())
    risk = Risk(task, materialise(task.data), dtype=torch.float32, ranks=ranks)
    operator = sharded(curvature("hessian", risk), ranks)
    x = operator.coordinates
    vector = x.normal(torch.Generator().manual_seed(1), like=operator.like)
    rounds = 1 if options.quick else 5

    def timed(function: Callable[[], object]) -> dict[str, float]:
        function()
        wall, cpu = [], []
        for _ in range(rounds):
            ranks.each(0.0)  # All start together.
            began, used = time.perf_counter(), time.process_time()
            function()
            wall.append(time.perf_counter() - began)
            cpu.append(max(ranks.each(time.process_time() - used)))
        return {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}

    found: dict[str, Any] = {
        "ranks": ranks.size,
        "n": risk.n,
        "examples": examples,
        "gradient": timed(risk.gradient),
        "product": timed(lambda: operator.matvec(vector)),
        "exchange": timed(lambda: ranks.sum(torch.zeros(risk.n))),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lanczos = Lanczos(operator, vector, capacity=steps)  # Reorthogonalised at every step.
    for _ in range(steps - 1):
        lanczos.step()
    step = timed(lambda: lanczos._project_out(vector.clone(), steps - 1))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found |= {
        "reorthogonalisation": step,
        "steps": steps,
        "basis_bytes": steps * x.length * 4,
        "grown_bytes": max(ranks.each(grown * 1024.0)),
        "largest": float(lanczos.ritz()[0][-1]),
    }
    if ranks.rank == 0:
        Path(options.worker).write_text(json.dumps(found))
    return found


def measure(ranks: int, *, quick: bool) -> dict[str, Any]:
    """One launch."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            if ranks > 1
            else []
        )
        command = [sys.executable, *launcher, str(HERE / "ranks_speed.py"), "--worker", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *["--quick"] * quick], check=True, env=environment)
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def report(rounds: list[list[dict[str, Any]]]) -> str:
    """The results as Markdown."""
    sizes = [found["ranks"] for found in rounds[0]]
    first = rounds[0][0]

    def median(place: int, key: str, clock: str) -> float:
        return statistics.median(r[place][key][clock] for r in rounds)

    def ratio(place: int, key: str, clock: str) -> float:
        return statistics.median(r[place][key][clock] / r[0][key][clock] for r in rounds)

    lines = [
        "# Several processes",
        "",
        f"A multilayer perceptron of {first['n']} parameters on {first['examples']} examples, "
        "float32, one thread a process, exchanges over gloo on one machine with "
        f"{os.cpu_count()} cores. CPU seconds are those of the process that used most; waiting "
        "takes none. Medians of rounds in which all take turns; ratios are to one process of the "
        "same round.",
        "",
        "| processes | gradient, s | product, s | ratio | CPU s of a product | ratio "
        "| sum of a vector, s | reorthogonalisation, CPU s | ratio | basis, MB a process "
        "| memory grown, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for place, size in enumerate(sizes):
        found = rounds[0][place]
        lines.append(
            f"| {size} | {median(place, 'gradient', 'wall'):.3f} "
            f"| {median(place, 'product', 'wall'):.3f} | {ratio(place, 'product', 'wall'):.2f} "
            f"| {median(place, 'product', 'cpu'):.3f} | {ratio(place, 'product', 'cpu'):.2f} "
            f"| {median(place, 'exchange', 'wall'):.4f} "
            f"| {median(place, 'reorthogonalisation', 'cpu'):.4f} "
            f"| {ratio(place, 'reorthogonalisation', 'cpu'):.2f} "
            f"| {found['basis_bytes'] / 1e6:.1f} | {found['grown_bytes'] / 1e6:.1f} |"
        )
    spread = max(f["largest"] for f in rounds[0]) - min(f["largest"] for f in rounds[0])
    lines += ["", f"Largest Ritz values agree to {spread / abs(first['largest']):.1e}."]
    if 2 in sizes:
        place = sizes.index(2)
        wall, cpu = (ratio(place, "product", clock) for clock in ("wall", "cpu"))
        memory = rounds[0][place]["basis_bytes"] / first["basis_bytes"]
        verdict = "met" if wall <= TARGET else "not met"
        lines += [
            "",
            "| target | found | |",
            "|---|---|---|",
            f"| a product on two processes takes at most {TARGET} of one | {wall:.2f} "
            f"(CPU time {cpu:.2f}) | {verdict} |",
            f"| basis memory of a process is half | {memory:.3f} "
            f"| {'met' if memory <= 0.501 else 'not met'} |",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    sizes = [int(part) for part in options.ranks.split(",")]
    rounds = [
        [measure(size, quick=options.quick) for size in sizes]
        for _ in range(1 if options.quick else options.rounds)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ranks_speed.json").write_text(json.dumps(rounds, indent=1) + "\n")
    (options.out / "ranks_speed.md").write_text(report(rounds))
    print(options.out / "ranks_speed.md")


if __name__ == "__main__":
    main()
