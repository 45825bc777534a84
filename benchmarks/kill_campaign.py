"""Random SIGKILLs over all measuring commands: does every file open, is every resumed run right?

Usage: python benchmarks/kill_campaign.py [--kills 100] [--seed 0] [--out benchmarks/results]

Every case runs once without a break. Then it is killed at random moments, mostly while it works,
and started again, until it has had its share of the kills and finished. After every kill all result
files and all saved state must open; a finished run must equal the uninterrupted one bit for bit, in
everything but dates and clocks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape import __version__
from landscape.partial import PartialFile
from landscape.store import load
from landscape.training import train

CLOCKS = {"argv", "started", "finished", "wall_seconds", "gradient_seconds", "bare_seconds"}
STRUCTURE = {"DIMENSION_LIST", "REFERENCE_LIST"}  # Object references, which differ between files.
BEFORE_WORK = 0.1  # Share of the kills that hit importing and loading.

# Rebuilt graphs and small batches slow the work down, so that kills hit the middle of it.
SHARED = ("--task", "digits-mlp", "--set", "width=4", "--flush-seconds", "0.1")
FEW = ("--batch-size", "100", "--examples", "300")
SLOW = ("--graph-memory", "0", *FEW)
SPECTRUM = ("--operator", "hessian", "--operator", "ggn", "--bottom", "1", "--dtype", "float64")
OTHER = "{first}"  # The network before any training.
PRIOR = ("--sigma", "1.0", "--cutoff", "0.01,0.1")
CASES: Mapping[str, tuple[str, ...]] = {
    "hessian lanczos": ("hessian", *SPECTRUM, *SLOW, "--method", "lanczos", "--probes", "4"),
    "hessian exact": ("hessian", *SPECTRUM, *SLOW, "--method", "exact"),
    "volume quadratic": (
        *("volume", *PRIOR, *SLOW, "--method", "quadratic", "--exact", "lanczos"),
        *("--top", "20", "--probes", "8"),
    ),
    "volume radial": (
        *("volume", *PRIOR, "--batch-size", "100", "--method", "radial", "--examples", "500"),
        *("--samples", "60", "--error", "99"),
    ),
    "volume anneal": (
        *("volume", "--method", "anneal", "--params", "2.*", "--cutoff", "0.1,0.3"),
        *("--examples", "60", "--error", "2"),
    ),
    "flat": ("flat", *PRIOR, "--examples", "60"),
    "compare": (
        *("compare", OTHER, *FEW, "--volume", "behaviour", *PRIOR, "--eigenspaces", "3"),
        *("--points", "101", "--align", "activations"),
    ),
    "compare ablated": (
        *("compare", *FEW, "--ablate", "1:0=mean", "--ablate", "weights:0.weight:1=resample"),
        *("--volume", "task", *PRIOR),
    ),
    "slice": (
        *("slice", *FEW, "--graph-memory", "0", "--along", "eigen:1", "--along", "random"),
        *("--points", "61"),
    ),
    "modules": (
        *("modules", *FEW, "--method", "matrix-free", "--probes", "4", "--cutoff", "0.01"),
    ),
    "information": (
        *("information", *FEW, "--graph-memory", "0", "--method", "probes", "--probes", "200"),
    ),
}
BATCH = """
checkpoints = ["runs/*"]
task = "digits-mlp"
out = "{out}"
set = {{ width = 4 }}

[[runs]]
command = "hessian"
operator = ["hessian", "ggn"]
method = "lanczos"
graph-memory = 0
batch-size = 100
examples = 300
"""


@dataclass(kw_only=True)
class Outcome:
    """What the kills of one case did."""

    case: str
    kills: int = 0
    runs: int = 0
    finished: int = 0
    files_opened: int = 0
    states_opened: int = 0
    seconds: float = 0.0


def contents(path: Path) -> dict[str, Any]:
    """Every attribute and array of a result, but for where and when it was made."""
    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        for key, value in node.attrs.items():
            if key not in STRUCTURE | CLOCKS:
                found[f"{name}@{key}"] = value
        if isinstance(node, h5py.Dataset):
            found[name] = node[()]

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first entry in which two results differ."""
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            return f"{name} is in one of them only"
        values = np.asarray(found[name])
        if not np.array_equal(values, expected[name], equal_nan=values.dtype.kind == "f"):
            return f"{name}: {found[name]!r} instead of {expected[name]!r}"
    return None


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Contents of all result files below a folder, by what they measured."""
    return {path.name: contents(path) for path in folder.rglob("*.h5")}


def check_files(folder: Path, outcome: Outcome) -> None:
    """Open everything that is there."""
    for path in folder.rglob("*.h5"):
        load(path)
        outcome.files_opened += 1
    for path in folder.rglob("*.h5.partial"):
        with h5py.File(path) as file:
            key, count = file.attrs["key"], len(file["units"])
        # State that is there must be taken up, too.
        if PartialFile(path.with_suffix(""), key).n_resumed != count:
            sys.exit(f"{path}: {count} units of work cannot be read")
        outcome.states_opened += 1


class Case:
    """One command with a folder for the uninterrupted run and one for the killed ones."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.expected: dict[str, dict[str, Any]] = {}
        self.before = self.work = 0.0

    def command(self, out: str) -> list[str]:
        """The command line that writes into a folder."""
        arguments = [sys.executable, "-m", "landscape_cli"]
        if self.name != "batch run":
            (checkpoint,) = (self.folder / "runs").glob("step_000040*")
            (first,) = (self.folder / "runs").glob("step_000000*")
            command, *options = CASES[self.name]
            options = [str(first) if option == OTHER else option for option in options]
            where = ["-o", str(self.folder / out), "--quiet"]
            return [*arguments, command, str(checkpoint), *options, *SHARED, *where]
        sweep = self.folder / f"{out}.toml"
        sweep.write_text(BATCH.format(out=out))
        return [*arguments, "batch", "run", str(sweep), "--quiet", "-j2"]

    def start(self, out: str) -> subprocess.Popen[bytes]:
        """Start it."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command(out),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def wait_for_work(self, out: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until a result's lock shows that the command works, or has ended."""
        began = time.time()
        while process.poll() is None:
            locks = (self.folder / out).rglob("*.h5.lock")
            if any(_changed(lock) >= began - 0.5 for lock in locks):
                return
            time.sleep(0.01)

    def measure(self) -> None:
        """Run without a break: what is right, and how long it takes."""
        clock = time.monotonic()
        process = self.start("whole")
        self.wait_for_work("whole", process)
        self.before = time.monotonic() - clock
        finish(process, self.name)
        self.work = time.monotonic() - clock - self.before
        self.expected = results(self.folder / "whole")

    def compare(self) -> None:
        """Check a finished run.

        Raises:
            SystemExit: it differs.
        """
        found = results(self.folder / "killed")
        names = {*found} ^ {*self.expected}
        gap = f"the files {names}" if names else None
        for name, entry in found.items():
            gap = gap or difference(entry, self.expected[name])
        if gap:
            sys.exit(f"{self.name}: the resumed run differs: {gap}")
        left = [p for kind in ("partial", "tmp", "lock") for p in self._left(kind)]
        if left:
            sys.exit(f"{self.name}: files are left: {left}")
        for path in sorted((self.folder / "killed").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def _left(self, kind: str) -> Iterable[Path]:
        return (self.folder / "killed").rglob(f"*.{kind}")

    def kill(self, count: int, moments: random.Random) -> Outcome:
        """Kill it so many times, and finish it."""
        outcome, clock = Outcome(case=self.name), time.monotonic()
        while outcome.kills < count:
            outcome.runs += 1
            process = self.start("killed")
            if moments.random() < BEFORE_WORK:
                wait = moments.uniform(0, self.before)
            else:
                self.wait_for_work("killed", process)
                wait = moments.uniform(0, 0.5 * self.work)
            try:
                process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                children = _children(process.pid) if moments.random() < 0.5 else []
                for pid in (process.pid, *children):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                process.communicate()
                outcome.kills += 1
            check_files(self.folder / "killed", outcome)
            if process.returncode == 0:
                self.compare()
                outcome.finished += 1
        while True:
            process = self.start("killed")
            _, said = process.communicate()
            outcome.runs += 1
            if process.returncode == 0:
                break
            # A child of a killed batch run is still at work, which the next one leaves alone.
            if self.name != "batch run" or process.returncode != 5:
                sys.exit(f"{self.name}: exit code {process.returncode}: {said.decode()}")
            time.sleep(0.5)
        check_files(self.folder / "killed", outcome)
        self.compare()
        outcome.finished += 1
        outcome.seconds = time.monotonic() - clock
        return outcome


def finish(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for the end, which must be a good one."""
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"{name}: exit code {process.returncode}: {said.decode()}")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def report(outcomes: list[Outcome], seed: int) -> str:
    """A Markdown table."""
    total = sum(outcome.kills for outcome in outcomes)
    lines = [
        "# Killed and resumed",
        "",
        f"{total} SIGKILLs at random moments (seed {seed}), landscape {__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, one thread. After every kill all "
        "result files and saved state opened; every run that finished equals the uninterrupted one "
        "bit for bit.",
        "",
        "| case | kills | runs | finished | results opened | states opened | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        cells = (o.case, o.kills, o.runs, o.finished, o.files_opened, o.states_opened)
        lines.append("| " + " | ".join(map(str, cells)) + f" | {o.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the campaign and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*CASES, "batch run"]
    parser.add_argument("--kills", type=int, default=100, help="of all cases together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(chosen.cases):
            folder = Path(temporary) / name.replace(" ", "_")
            train("digits-mlp", {"width": 4}, steps=40, checkpoints=2, out=folder / "runs")
            case = Case(name, folder)
            case.measure()
            share = chosen.kills // len(chosen.cases) + (number < chosen.kills % len(chosen.cases))
            outcomes.append(case.kill(share, random.Random(f"{chosen.seed} {name}")))
            found = outcomes[-1]
            print(f"{name}: {found.kills} kills in {found.seconds:.0f} s", file=sys.stderr)
            write(chosen.out, outcomes, chosen.seed)
    print(chosen.out / "kill_campaign.md")


def write(out: Path, outcomes: list[Outcome], seed: int) -> None:
    """Write what there is so far, as a table and as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "kill_campaign.md").write_text(report(outcomes, seed))
    entries = {"seed": seed, "cases": [asdict(outcome) for outcome in outcomes]}
    (out / "kill_campaign.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
