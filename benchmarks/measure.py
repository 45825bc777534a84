"""What a worker measures: products, one run of a solver, references, growth.

Every function runs in a process of its own, forked from a worker that has computed nothing.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import IMPORTED, PRODUCTS, SOLVERS, ours_product
from problems import Problem, load, prepare


class Clock:
    """Wall and CPU seconds and peak memory of a block of code."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> Clock:
        _synchronise(self.device)
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *details: object) -> None:
        _synchronise(self.device)
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


class PeakMemory:
    """Peak memory of a block above what was in use before it, in bytes; None where unknown."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.above: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._before = 0
        try:
            # Give freed memory back to the system, then reset the high-water mark (Linux).
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")
        except OSError:
            pass
        return self

    def __exit__(self, *details: object) -> None:
        if self.device == "cuda":
            self.above = torch.cuda.max_memory_allocated() - self._before
        elif self._before:
            self.above = _status_bytes("VmHWM") - self._before


def _vectors(problem: Problem, count: int) -> torch.Tensor:
    first = problem.parameters[0]
    draw = torch.randn(count, problem.n, generator=torch.Generator().manual_seed(1))
    draw /= torch.linalg.vector_norm(draw, dim=1, keepdim=True)
    return draw.to(first)


def _distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - truth) / torch.linalg.vector_norm(truth))


def products(
    path: str, dtype: str, device: str, ways: list[str], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds per product of several ways, interleaved, and of one plain gradient."""
    problem = load(Path(path), dtype=dtype, device=device)
    rows = _vectors(problem, 8)
    truth = load(Path(path), dtype="float64", device=device).product(rows[0].double())
    calls: dict[str, tuple[Callable[[], Any], int]] = {"gradient": (problem.gradient, 1)}
    found: dict[str, Any] = {}
    for way in ways:
        build, width = PRODUCTS[way]
        try:
            product = build(problem)
            argument = rows[0] if width == 1 else rows
            first = product(argument)
        except Exception as error:
            found[way] = {"error": _short(error)}
            continue
        found[way] = {"error_of_product": _distance(first if width == 1 else first[0], truth)}
        if way.endswith("compiled"):
            found[way]["compile"] = product.__self__.product.seconds
        calls[way] = (lambda product=product, argument=argument: product(argument), width)
    for call, _ in calls.values():
        call()
    for name in calls:
        found.setdefault(name, {}).update({"wall": [], "cpu": []})
    for _ in range(rounds):
        for name, (call, width) in calls.items():
            with Clock(device) as clock:
                call()
            found[name]["wall"].append(clock.wall / width)
            found[name]["cpu"].append(clock.cpu / width)
    return found


def solve(
    kind: str,
    method: str,
    path: str,
    dtype: str,
    device: str,
    options: dict[str, Any],
    vectors: str | None = None,
) -> dict[str, Any]:
    """One run of one solver, after one untimed product of its own.

    For our own solvers the kept-graph product is timed too, right after the run: the unit in
    which their cost is stated.
    """
    problem = load(Path(path), dtype=dtype, device=device)
    row = _vectors(problem, 1)[0]
    problem.gradient()
    warm = f"{method}, written out" if options.get("written_out") else method
    PRODUCTS[warm][0](problem)(row)
    for module in IMPORTED[method]:
        importlib.import_module(module)
    with PeakMemory(device) as memory, Clock(device) as clock:
        outcome = SOLVERS[kind][method](problem, options)
    # Compilation happens once for many runs: it is stated by itself.
    found = {
        "wall": clock.wall - outcome.details.get("compile", 0.0),
        "cpu": clock.cpu - outcome.details.get("compile_cpu", 0.0),
        "peak": memory.above,
        "products": outcome.products,
        "claimed": outcome.claimed,
        **outcome.details,
    }
    if outcome.values is not None:
        found["values"] = [float(v) for v in outcome.values]
    if vectors is not None and outcome.vectors is not None:
        np.save(vectors, outcome.vectors.detach().cpu().numpy())
        found["vectors"] = vectors
    if method == "landscape" and not (options.get("compiled") or options.get("mixed")):
        found["unit"] = _unit(problem, row, device, clock.wall)
    return found


def _unit(problem: Problem, row: torch.Tensor, device: str, budget: float) -> dict[str, float]:
    """Median seconds of one kept-graph product, over about half the solver's own time."""
    product = ours_product(problem)
    product(row)
    clocks: list[Clock] = []
    while len(clocks) < 10 or (sum(c.wall for c in clocks) < budget / 2 and len(clocks) < 100):
        with Clock(device) as clock:
            product(row)
        clocks.append(clock)
    return {key: statistics.median(getattr(c, key) for c in clocks) for key in ("wall", "cpu")}


def verify(path: str, vectors: str, values: list[float], device: str) -> dict[str, Any]:
    """True residuals ``|H x - theta x| / |x|`` in float64 by the neutral product."""
    problem = load(Path(path), dtype="float64", device=device)
    rows = torch.from_numpy(np.load(vectors)).to(device, torch.float64)
    residuals = []
    for row, value in zip(rows, values, strict=True):
        unit = row / torch.linalg.vector_norm(row)
        residuals.append(float(torch.linalg.vector_norm(problem.product(unit) - value * unit)))
    return {"residuals": residuals}


def reference(path: str, device: str) -> dict[str, Any]:
    """Float64 eigenvalues by our solver at 1e-10, and the rounding of float32 products.

    The latter is ``|H32 x - H64 x|`` over the largest eigenvalue for the worst of the top pairs:
    no solver on float32 products can reach a residual much below it.
    """
    problem = load(Path(path), dtype="float64", device=device)
    single = load(Path(path), dtype="float32", device=device)
    ours = SOLVERS["top"]["landscape"](problem, {"tol": 1e-10})
    assert ours.values is not None
    assert ours.vectors is not None
    gaps = []
    for row in ours.vectors:
        rounded = row.float()
        gap = single.product(rounded).double() - problem.product(rounded.double())
        gaps.append(float(torch.linalg.vector_norm(gap) / ours.values[0]))
    return {
        "n": problem.n,
        "loss": float(problem.loss()),
        "values": [float(v) for v in ours.values],
        "rounding": max(gaps),
    }


def growth(width: int, examples: int, path: str, device: str) -> dict[str, Any]:
    """Cost of a gradient, a product and the largest eigenvalue at one size (MLP, float32)."""
    sizes = {"width": width, "examples": examples, "steps": 10}
    prepare("growth", Path(path), sizes=sizes, quick=False)
    problem = load(Path(path), dtype="float32", device=device)
    Path(path).unlink()
    found: dict[str, Any] = {"n": problem.n, "examples": examples}
    problem.gradient()
    with Clock(device) as clock:
        problem.gradient()
    found["gradient"] = clock.wall
    with PeakMemory(device) as memory, Clock(device) as clock:
        outcome = SOLVERS["top"]["landscape"](problem, {"tol": 1e-6, "top": 1})
    found |= {"top1": clock.wall, "products": outcome.products, "peak": memory.above}
    found["product"] = _unit(problem, _vectors(problem, 1)[0], device, 0.0)["wall"]
    return found


def build(name: str, path: str, quick: bool) -> dict[str, Any]:
    """Prepare a problem."""
    prepare(name, Path(path), quick=quick)
    return {}


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": build,
    "growth": growth,
    "products": products,
    "reference": reference,
    "solve": solve,
    "verify": verify,
}
