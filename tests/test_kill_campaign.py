"""Twenty random SIGKILLs: every file opens, and the resumed run equals the uninterrupted one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from landscape.store import load
from landscape.training import train

PROVENANCE = {"argv", "started", "finished", "wall_seconds"}
CLOCKS = {"gradient_seconds", "bare_seconds"}


def command(checkpoint: Path, out: Path, method: str) -> list[str]:
    if method == "volume":
        return [
            *(sys.executable, "-m", "landscape_cli", "volume", str(checkpoint)),
            *("--task", "digits-mlp", "--set", "width=8", "--exact", "lanczos", "--top", "20"),
            *(
                "--graph-memory",
                "0",
                "--batch-size",
                "500",
                "--samples",
                "150",
                "--probes",
                "8",
                "--error",
                "99",
            ),
            *("--cutoff", "0.001,0.1", "--flush-seconds", "0.1", "-o", str(out)),
        ]
    if method == "anneal":
        return [
            *(sys.executable, "-m", "landscape_cli", "volume", str(checkpoint)),
            *("--task", "digits-mlp", "--set", "width=8", "--examples", "60"),
            *("--method", "anneal", "--params", "2.*", "--cutoff", "0.1,0.3", "--error", "2"),
            *("--flush-seconds", "0.1", "-o", str(out)),
        ]
    budget = ["--bottom", "1", "--steps", "40", "--probes", "6"]
    return [
        *(sys.executable, "-m", "landscape_cli", "hessian", str(checkpoint)),
        *("--task", "digits-mlp", "--set", "width=8", "--method", method, "--dtype", "float64"),
        # Rebuilt graphs and small batches slow the products down, so that kills hit the middle.
        *("--graph-memory", "0", "--batch-size", "500", "--operator", "hessian"),
        *("--operator", "ggn", "--flush-seconds", "0.1", "-o", str(out), *budget),
    ]


def contents(path: Path) -> dict[str, object]:
    """Every attribute and array of a result, but for where and when it was made."""
    found: dict[str, object] = {}
    with h5py.File(path) as file:

        def visit(name: str, node: h5py.HLObject) -> None:
            for key, value in node.attrs.items():
                if key not in {"DIMENSION_LIST", "REFERENCE_LIST"} | CLOCKS:
                    found[f"{name}@{key}"] = value
            if isinstance(node, h5py.Dataset):
                found[name] = node[()]

        file.visititems(visit)
        found |= {f"@{k}": v for k, v in file.attrs.items() if k not in PROVENANCE}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kills"), [("lanczos", 20), ("exact", 6), ("volume", 8), ("anneal", 20)]
)
def test_killed_runs_resume_to_the_same_numbers(tmp_path, method, kills):
    checkpoint = train("digits-mlp", {"width": 8}, steps=100, checkpoints=1, out=tmp_path / "runs")[
        -1
    ].path
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    clock = time.monotonic()
    subprocess.run(command(checkpoint, whole, method), check=True, capture_output=True)
    seconds = time.monotonic() - clock
    reference = contents(next(whole.glob("*.h5")))

    moments = random.Random(0)
    done = 0
    for _ in range(200):
        if done == kills:
            break
        process = subprocess.Popen(
            command(checkpoint, killed, method),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            # Import takes some seconds; then anywhere in the first part of what is left.
            process.wait(timeout=moments.uniform(0.1, 0.35) * seconds + 2.0)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
        for file in killed.glob("*.h5"):
            load(file)
        for file in killed.glob("*.partial"):
            h5py.File(file).close()
        if process.returncode == 0:
            # It finished before the kill: the numbers must be right, and the next one starts anew.
            compare(next(killed.glob("*.h5")), reference)
            for file in killed.iterdir():
                file.unlink()
    assert done == kills
    subprocess.run(command(checkpoint, killed, method), check=True, capture_output=True)
    compare(next(killed.glob("*.h5")), reference)
    assert not list(killed.glob("*.partial*"))
    assert not list(killed.glob("*.tmp"))


def compare(path: Path, reference: dict[str, object]) -> None:
    found = contents(path)
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        assert np.array_equal(found[name], value, equal_nan=_is_float(value)), name


def _is_float(value: object) -> bool:
    return np.asarray(value).dtype.kind == "f"
