"""Hessian products, top eigenvalues and densities: this library against its peers, paired.

Usage: python benchmarks/hessian_speed.py [--quick] [--out benchmarks/results]

Standard library only: it creates one environment for this library, curvlinops and
hessian-eigenthings and one for PyHessian, keeps a worker in each, and asks them in turn, so that
the tools are timed interleaved on the same saved problems. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environments import HERE, Environment, Worker, create

PROBLEMS = ("mlp", "convnet", "transformer")
GOALS = {"float32": 1e-6, "float64": 1e-6}
TIGHT = 1e-8  # What float64 is asked for as well, by products in float64 alone.
STEPS = 100
GROWTH_WIDTHS = (80, 280, 965, 1690, 3100, 5440)  # n = 1e4, 1e5, 1e6, 3e6, 1e7, 3e7
GROWTH_EXAMPLES = (100, 1_000, 10_000, 100_000)


class Campaign:
    """All measurements; ``results`` is what is saved."""

    def __init__(self, options: argparse.Namespace, folder: Path, workers: dict[str, Worker]):
        self.options = options
        self.folder = folder
        self.workers = workers
        self.results: dict[str, Any] = {"products": {}, "top": {}, "slq": {}, "reference": {}}
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Progress on stderr."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def path(self, problem: str) -> str:
        """File of a prepared problem."""
        return str(self.folder / f"{problem}.pt")

    def ask(self, task: str, *, where: str = "main", **arguments: Any) -> dict[str, Any]:
        """One task in a worker, or its absence as an error."""
        if where not in self.workers:
            return {"error": "not installed"}
        device = {} if task == "build" else {"device": self.options.device}
        return self.workers[where].ask(task, **device, **arguments)

    def references(self) -> None:
        """Prepare the problems and their float64 eigenvalues."""
        for problem in self.options.problems:
            self.note(f"{problem}: preparing")
            made = self.ask("build", name=problem, path=self.path(problem), quick=self.quick)
            if "error" in made:
                raise SystemExit(f"{problem} could not be prepared: {made['error']}")
            found = self.ask("reference", path=self.path(problem))
            self.results["reference"][problem] = found

    @property
    def quick(self) -> bool:
        """Tiny problems and one round."""
        return bool(self.options.quick)

    def products(self, problem: str, dtype: str) -> None:
        """Part (a): one gradient and one product."""
        ours = ["landscape", "landscape, block of 8", "landscape, rebuilt graph"]
        # Compilation takes up to a minute: once, in the precision that it is for.
        compiled = ["landscape, compiled"] if dtype == "float32" else []
        peers = ["curvlinops", "hessian-eigenthings"]
        peers += ["curvlinops, written out", "curvlinops, written out, block of 8"]
        merged: dict[str, Any] = {}
        for round_ in range(1 if self.quick else 2):
            here = ours + peers + ([] if round_ else compiled)
            for where, ways in (("main", here), ("pyhessian", ["PyHessian"])):
                found = self.ask(
                    "products",
                    where=where,
                    limit=300,  # Compilation included.
                    path=self.path(problem),
                    dtype=dtype,
                    ways=ways,
                    rounds=3 if self.quick else 7,
                )
                if "error" in found:
                    found = dict.fromkeys(ways, found)
                if where == "pyhessian" and "gradient" in found:
                    found["gradient beside PyHessian"] = found.pop("gradient")
                for way, times in found.items():
                    into = merged.setdefault(way, {"wall": [], "cpu": []})
                    if "error" in times:
                        into["error"] = times["error"]
                        continue
                    into["error_of_product"] = times.get("error_of_product")
                    if "compile" in times:
                        into["compile"] = times["compile"]
                    into["wall"] += times["wall"]
                    into["cpu"] += times["cpu"]
        self.results["products"][f"{problem} {dtype}"] = merged

    def contest(
        self, task: str, problem: str, dtype: str, entries: dict[str, tuple[str, dict[str, Any]]]
    ) -> None:
        """Runs of several entries in interleaved rounds; long ones in fewer rounds."""
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in entries}
        for round_ in range(1 if self.quick else self.options.rounds):
            for name, (method, options) in entries.items():
                # Runs of seconds are steady enough alone; ours are the yardstick of every ratio.
                spent = sum(run.get("wall", 1e9) + run.get("compile", 0) for run in runs[name])
                if spent > self.options.patience * (2 if name == "landscape" else 1):
                    continue
                self.note(f"{problem} {dtype} {task}: {name}, round {round_ + 1}")
                vectors = str(self.folder / "vectors.npy") if task == "top" else None
                run = self.ask(
                    "solve",
                    limit=300 if options.get("compiled") else 120,
                    kind=task,
                    where="pyhessian" if method == "PyHessian" else "main",
                    method=method,
                    path=self.path(problem),
                    dtype=dtype,
                    options=options,
                    vectors=None if round_ else vectors,
                )
                if "vectors" in run:
                    checked = self.ask(
                        "verify",
                        path=self.path(problem),
                        vectors=run.pop("vectors"),
                        values=run["values"],
                    )
                    run |= checked
                runs[name].append(run)
        self.results[task][f"{problem} {dtype}"] = runs

    def top(self, problem: str, dtype: str) -> None:
        """Part (b): the ten largest eigenvalues."""
        tol = GOALS[dtype]
        scout = self.ask(
            "solve",
            kind="top",
            method="landscape",
            path=self.path(problem),
            dtype=dtype,
            options={"tol": tol},
        )
        # Our own steps, without the products that verify, are what it would need to be told.
        steps = -(-(scout.get("products", 70) - 10) // 10) * 10
        entries: dict[str, tuple[str, dict[str, Any]]] = {"landscape": ("landscape", {"tol": tol})}
        compiles = problem != "convnet"  # A minute, for a target that is met without.
        if dtype == "float64":
            entries["landscape, to 1e-8"] = ("landscape", {"tol": TIGHT})
            entries["landscape, float32 products"] = ("landscape", {"tol": tol, "mixed": True})
        if compiles:
            options = {"tol": tol, "compiled": True, "mixed": dtype == "float64"}
            name = "compiled" if dtype == "float32" else "float32 products, compiled"
            entries[f"landscape, {name}"] = ("landscape", options)
        if dtype == "float32" or problem != "transformer":
            entries["curvlinops + eigsh"] = ("curvlinops", {"tol": tol})
        # curvlinops fails on GroupNorm and is wrong on LayerNorm unless they are written out.
        written = {} if problem == "mlp" else {"written_out": True}
        name = "curvlinops + eigsh" + (", written out" if written else "")
        entries[name] = ("curvlinops", {"tol": tol, **written})
        if dtype == "float32":
            entries[f"{name}, ncv=60"] = ("curvlinops", {"tol": tol, "ncv": 60, **written})
        else:
            entries[f"{name}, to 1e-8"] = ("curvlinops", {"tol": TIGHT, **written})
        entries["hessian-eigenthings, default"] = ("hessian-eigenthings", {})
        doubling = {"tol": tol, "doubling": True}
        entries["hessian-eigenthings, steps doubled"] = ("hessian-eigenthings", doubling)
        name = f"hessian-eigenthings, {steps} steps known beforehand"
        entries[name] = ("hessian-eigenthings", {"tol": tol, "max_iter": steps})
        entries["PyHessian, default"] = ("PyHessian", {})
        if problem == "mlp" and dtype == "float32":
            tight = {"tol": 1e-8, "maxIter": 200}
            entries["PyHessian, tol=1e-8, maxIter=200"] = ("PyHessian", {"pyhessian": tight})
        self.contest("top", problem, dtype, entries)

    def slq(self, problem: str, dtype: str) -> None:
        """Part (c): 100 Lanczos steps from one probe."""
        peers = ("landscape", "curvlinops", "hessian-eigenthings", "PyHessian")
        entries: dict[str, tuple[str, dict[str, Any]]] = {}
        for peer in peers:
            written = peer == "curvlinops" and problem != "mlp"
            name = f"{peer}, written out" if written else peer
            entries[name] = (peer, {"steps": STEPS, "written_out": written})
        if dtype == "float32" and problem != "convnet":
            entries["landscape, compiled"] = ("landscape", {"steps": STEPS, "compiled": True})
        # PyHessian may fail only after all its products: a few steps tell.
        trial = self.ask(
            "solve",
            where="pyhessian",
            kind="slq",
            method="PyHessian",
            path=self.path(problem),
            dtype=dtype,
            options={"steps": 3},
        )
        if "error" in trial:
            del entries["PyHessian"]
        self.contest("slq", problem, dtype, entries)
        if "error" in trial:
            self.results["slq"][f"{problem} {dtype}"]["PyHessian"] = [trial]

    def growth(self) -> None:
        """Part (d): cost against the numbers of parameters and of examples."""
        last = 2 if self.quick else 6 if self.options.large else 4
        cases = [("parameters", width, 256) for width in GROWTH_WIDTHS[:last]]
        cases += [("examples", 128, count) for count in GROWTH_EXAMPLES[: 2 if self.quick else 4]]
        found: dict[str, list[Any]] = {"parameters": [], "examples": []}
        for kind, width, examples in cases:
            self.note(f"growth: width {width}, {examples} examples")
            row = self.ask(
                "growth", limit=600, width=width, examples=examples, path=self.path("growth")
            )
            found[kind].append({"width": width, "examples": examples, **row})
        self.results["growth"] = found

    def run(self) -> None:
        """Everything."""
        self.references()
        for problem in self.options.problems:
            for dtype in self.options.dtypes:
                self.products(problem, dtype)
                self.top(problem, dtype)
                self.slq(problem, dtype)
        self.growth()
        self.results["seconds"] = time.monotonic() - self._began


def hardware() -> dict[str, Any]:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {"cpu": model, "cores": os.cpu_count(), "memory": memory, "load": os.getloadavg()[0]}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny problems, one round")
    parser.add_argument("--large", action="store_true", help="growth up to 3e7 parameters")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=2.0, help="seconds after which a peer is not repeated"
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(GOALS), default=tuple(GOALS))
    parser.add_argument(
        "--no-environments", action="store_true", help="use this interpreter for every library"
    )
    return parser.parse_args()


def main() -> None:
    """Create the environments, measure, save, report."""
    options = parse()
    if options.no_environments:
        made = [Environment(name=name, python=sys.executable) for name in ("main", "pyhessian")]
    else:
        made = [create(name) for name in ("main", "pyhessian")]
    machine = hardware()
    workers = {e.name: Worker(e, threads=options.threads) for e in made}
    try:
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(options, Path(folder), workers)
            campaign.run()
    finally:
        for worker in workers.values():
            worker.close()
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    settings.pop("out")
    results = {
        "settings": settings,
        "hardware": machine,
        "versions": {name: worker.versions for name, worker in workers.items()},
        "failures": [failure for e in made for failure in e.failures],
        **campaign.results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "hessian_speed.json"
    target.write_text(json.dumps(results, indent=1) + "\n")
    subprocess.run([made[0].python, str(HERE / "report.py"), str(target)], check=True)


if __name__ == "__main__":
    main()
