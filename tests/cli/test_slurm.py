"""``landscape batch`` on a real Slurm of two nodes, started on loopback for these tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import slurm_cluster

import landscape

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
checkpoints = ["runs/*"]
task = "task.py"
out = "{out}"

[[runs]]
command = "hessian"
top = 3
steps = 4
probes = 12
method = "lanczos"
graph-memory = 0

[[runs]]
command = "volume"
sigma = 1.0
method = "quadratic"

[resources]
time = 1
memory = "700MB"
save_seconds = 10
array_parallelism = 4
setup = ["export OMP_NUM_THREADS=1", "export SETUP_WAS_RUN=yes"]
parameters = {{ comment = "from the sweep file" }}
"""

# A fault waits for the unit of its name; `python -m landscape_cli.unit FOLDER COMMAND CKPT ...`.
FAULTS = """
import os, pathlib, signal, sys, time

FOLDER, COMMAND, CHECKPOINT = sys.argv[1:4]
FAULT = pathlib.Path(FOLDER).parent / f"{COMMAND}.{pathlib.Path(CHECKPOINT).stem}.fault"
KIND = FAULT.read_text() if FAULT.exists() else ""
if KIND == "raise":
    raise RuntimeError("no data today")
if KIND == "memory":
    eaten = bytearray(os.urandom(1000)) * 2_000_000
    time.sleep(60)
if KIND == "sigkill":
    os.kill(os.getpid(), signal.SIGKILL)
if KIND == "hang":
    time.sleep(300)


class Slow(torch.nn.Tanh):
    calls = 0

    def forward(self, x):
        Slow.calls += 1
        if KIND == "time" and Slow.calls == 60:
            FAULT.unlink()  # The next attempt is quick.
            time.sleep(300)
        return super().forward(x)
"""
FAULTY = {
    "hessian.step_2": "raise",
    "volume.step_3": "memory",
    "hessian.step_5": "sigkill",
    "hessian.step_7": "time",
    "volume.step_11": "hang",
}
EXPECTED = {
    "hessian.step_2": "failed",
    "volume.step_3": "out of memory",
    "hessian.step_5": "failed",
    "volume.step_11": "cancelled",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The configuration of a Slurm that runs; without one, the reason is shown."""
    try:
        slurm_cluster.install()
    except slurm_cluster.NoSlurmError as reason:
        pytest.skip(f"no Slurm here: {reason}")
    # From here on a failure is a failure: root on Debian has a Slurm.
    with slurm_cluster.slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def sweep(tiny, draw):
    """A sweep of twelve checkpoints by two commands, and the same with another folder."""
    for step in range(1, 13):
        tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
    tiny.write_task("task.py", extra=FAULTS, model="network(Slow)")
    for out in ("out", "reference"):
        (tiny.folder / f"{out}.toml").write_text(HEAD.format(out=out))
    (tiny.folder / "out").mkdir()
    return tiny.folder / "out.toml"


def statuses(cli, sweep) -> dict[str, dict]:
    entries = cli("batch", "status", sweep, "--json").document["results"]
    return {f"{e['run'].split()[0]}.{Path(e['checkpoint']).stem}": e for e in entries}


def wait(cli, sweep, *, seconds=900, watch=lambda found: None) -> dict[str, dict]:
    """Poll until nothing is in work or in the queue."""
    deadline = time.monotonic() + seconds
    while True:
        found = statuses(cli, sweep)
        watch(found)
        if not {e["status"] for e in found.values()} & {"running", "pending"}:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(1)


def _name(row) -> str:
    return f"{row.command}.{Path(row.checkpoint).stem}"


def numbers(path: str) -> dict[str, np.ndarray]:
    """All arrays of a result."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, node: arrays.update({name: node[()]} if hasattr(node, "dtype") else {})
        )
    return arrays


@pytest.fixture
def alone(on_cluster, sweep):
    """``batch run`` of the same, meanwhile."""
    reference = sweep.with_name("reference.toml")
    command = [
        sys.executable,
        "-m",
        "landscape_cli",
        "batch",
        "run",
        str(reference),
        "-j2",
        "--quiet",
    ]
    with subprocess.Popen(command) as process:
        yield process
        process.terminate()


@pytest.mark.usefixtures("on_cluster")
def test_a_sweep_of_24_units_with_five_faults(cli, tiny, sweep, alone):
    for name, kind in FAULTY.items():
        (tiny.folder / "out" / f"{name}.fault").write_text(kind)
    done = cli("batch", "submit", sweep)
    assert done.code == 0, done.err
    # Slurm's limit, which the fixture has set low, makes it two arrays.
    assert re.search(r"24 of 24 units submitted as job \d+, \d+$", done.err.strip()), done.err
    again = cli("batch", "submit", sweep)
    assert "24 units are in work or in the queue and left alone" in again.err

    requeued = []

    def watch(found):
        hanging = found["volume.step_11"]
        if hanging["status"] == "running" and hanging["reason"].startswith("process"):
            subprocess.run(["scancel", hanging["job"]], check=True)
        slow = found["hessian.step_7"]
        if slow["requeues"] and slow["status"] in ("pending", "running"):
            requeued.append(slow["reason"])

    found = wait(cli, sweep, watch=watch)
    expected = dict.fromkeys(found, "complete") | EXPECTED
    assert {name: e["status"] for name, e in found.items()} == expected, found
    assert found["hessian.step_2"]["reason"] == "exit code 3"
    assert "no data today" in found["hessian.step_2"]["last_line"]
    assert "SIGKILL" in found["hessian.step_5"]["reason"]
    assert "memory" in found["volume.step_3"]["reason"]
    assert "CANCELLED" in found["volume.step_11"]["reason"]
    assert requeued
    assert "at its time limit" in requeued[0]
    slow = Path(found["hessian.step_7"]["log"]).read_text()
    assert slow.count("--- ") >= 2  # More often on a busy machine.
    assert "resuming from" in slow
    shown = cli("batch", "status", sweep)
    assert "24 units: 20 complete, 2 failed, 1 out of memory, 1 cancelled" in shown.err

    for fault in (tiny.folder / "out").glob("*.fault"):
        fault.unlink()
    done = cli("batch", "submit", sweep)
    assert "4 of 24 units submitted" in done.err
    found = wait(cli, sweep)
    assert {e["status"] for e in found.values()} == {"complete"}
    assert "nothing to submit" in cli("batch", "submit", sweep).err

    assert cli("batch", "collect", sweep, "-o", tiny.folder / "sweep.h5").code == 0
    table = landscape.load_sweep(tiny.folder / "sweep.h5").table
    assert len({(row.checkpoint, row.command) for row in table}) == len(table) == 24
    assert all(row.complete and row.source == found[_name(row)]["file"] for row in table)

    assert alone.wait(900) == 0
    reference = tiny.folder / "reference.toml"
    assert cli("batch", "collect", reference, "-o", tiny.folder / "reference.h5").code == 0
    expected = {_name(row): row for row in landscape.load_sweep(tiny.folder / "reference.h5").table}
    for row in table:
        assert (row.value, row.loss) == (expected[_name(row)].value, expected[_name(row)].loss)
    for name, entry in statuses(cli, reference).items():
        ours, theirs = numbers(found[name]["file"]), numbers(entry["file"])
        assert ours.keys() == theirs.keys()
        for array, values in ours.items():
            np.testing.assert_array_equal(values, theirs[array], err_msg=f"{name} {array}")


@pytest.mark.usefixtures("on_cluster")
def test_cancel_takes_back_what_waits_and_what_runs(cli, tiny, sweep):
    for step in range(1, 11):
        (tiny.folder / "runs" / f"step_{step}.safetensors").unlink()
    for name in ("hessian.step_11", "volume.step_11"):
        (tiny.folder / "out" / f"{name}.fault").write_text("hang")
    sweep.write_text(sweep.read_text().replace("parallelism = 4", "parallelism = 1"))
    assert cli("batch", "submit", sweep).code == 0

    def running(found):
        return [e for e in found.values() if e["reason"].startswith("process")]

    deadline = time.monotonic() + 300
    while not running(found := statuses(cli, sweep)):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    waiting = [e for e in found.values() if e["status"] == "pending"]
    assert len(waiting) == 3
    assert "pending" in waiting[0]["reason"]
    done = cli("batch", "run", sweep)
    assert done.code == 5
    assert "4 of 4 units are in work elsewhere" in done.err
    assert "4 units cancelled" in cli("batch", "cancel", sweep).err
    found = wait(cli, sweep, seconds=300)
    assert {e["status"] for e in found.values()} == {"cancelled"}
    assert "nothing to do" in cli("batch", "cancel", sweep).err


@pytest.mark.usefixtures("on_cluster")
def test_the_commands_of_the_handbook(cli, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "concepts" / "clusters.md").read_text("utf-8")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^\$ landscape (.*)$", page, re.MULTILINE)
    assert any("cancel" in command for command in commands)
    for command in commands:
        done = cli(*command.split())
        assert done.code == 0, f"{command}\n{done.err}"


@pytest.mark.usefixtures("on_cluster")
def test_what_slurm_refuses_is_one_message(cli, sweep):
    sweep.write_text(sweep.read_text() + 'partition = "nowhere"\n')
    done = cli("batch", "submit", sweep)
    assert done.code == 2
    assert len(done.errors) == 1
    assert "invalid partition" in done.err
    assert os.path.exists(sweep)
    assert {e["status"] for e in statuses(cli, sweep).values()} == {"not started"}


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("where", [("--nodes=1", "--ntasks=2"), ("--nodes=2", "--ntasks=3")])
def test_srun_starts_one_analysis_of_several_processes(cli, tiny, where):
    shared = ("hessian", tiny.checkpoint, "--task", tiny.task, "--method", "lanczos", "--top", 3)
    shared = tuple(map(str, (*shared, "--dtype", "float64")))
    command = [*("srun", *where, "--mem-per-cpu=700M"), sys.executable, "-m", "landscape_cli"]
    done = subprocess.run(
        [*command, *shared, "-o", str(tiny.folder / "srun"), "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["results"]  # One process speaks.
    (other,) = cli(*shared, "-o", tiny.folder / "alone", "--json").document["results"]
    found, expected = (numbers(e["file"])["spectrum/hessian/eigenvalues"] for e in (entry, other))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * expected[0])
