"""``landscape batch``: the single commands' numbers, retries, termination and series."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray

from landscape.store import load

RUNS = "[[runs]]\ncommand = 'hessian'\ntop = 3\ndensity = false\n"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Children on a busy machine wait long for threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def sweep(tiny, draw):
    """A sweep over two checkpoints."""
    for step in (1, 20):
        tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
    file = tiny.folder / "sweep.toml"
    head = "checkpoints = ['runs/*']\ntask = 'task.py'\nset = {activation = 'Tanh'}\nout = 'out'\n"
    file.write_text(head + RUNS)
    return file


def states(cli, sweep):
    return [
        entry["status"] for entry in cli("batch", "status", sweep, "--json").document["results"]
    ]


def test_numbers_of_the_single_commands_and_a_series(cli, tiny, sweep):
    assert states(cli, sweep) == ["not started"] * 2
    done = cli("batch", "run", sweep, "--workers", 2, "--json")
    assert done.code == 0, done.err
    entries = done.document["results"]
    assert [entry["status"] for entry in entries] == ["complete"] * 2
    single = cli(
        *("hessian", tiny.folder / "runs" / "*", "--task", tiny.task, "--set", "activation=Tanh"),
        *("--top", 3, "--no-density", "-o", tiny.folder / "single", "--json"),
    )
    for entry, other in zip(entries, single.document["results"], strict=True):
        one = load(entry["file"]).spectra["hessian"].eigenvalues
        np.testing.assert_array_equal(one, load(other["file"]).spectra["hessian"].eigenvalues)
    out = tiny.folder / "series.h5"
    assert cli("batch", "collect", sweep, "-o", out).code == 0
    with xarray.open_datatree(out, engine="h5netcdf") as tree:
        assert tree["operator/hessian"]["step"].values.tolist() == [1, 20]


def test_only_what_failed_is_run_again(cli, tiny, sweep):
    broken = tiny.folder / "runs" / "step_20.safetensors"
    good = broken.read_bytes()
    broken.write_bytes(b"nothing")
    done = cli("batch", "run", sweep, "--workers", 2)
    assert done.code == 5
    assert len(done.errors) == 2
    assert "exit code 3" in done.errors[0]
    assert "step_20.safetensors" in done.errors[0]
    assert states(cli, sweep) == ["complete", "failed"]
    shown = cli("batch", "status", sweep)
    assert shown.code == 0
    assert "failed" in shown.out
    (log,) = (tiny.folder / "out").glob("step_1.*/log.txt")
    before = log.stat().st_mtime_ns
    broken.write_bytes(good)
    done = cli("batch", "run", sweep)
    assert done.code == 0
    assert "2 units: 1 complete" in done.err
    assert log.stat().st_mtime_ns == before


def test_all_failed_is_exit_3_and_has_nothing_to_collect(cli, tiny, sweep):
    sweep.write_text(sweep.read_text().replace("/*", "/*_1.*"))
    tiny.task.write_text("raise RuntimeError('no data here')")
    done = cli("batch", "run", sweep)
    assert done.code == 3
    assert "no data here" in done.err
    done = cli("batch", "collect", sweep)
    assert done.code == 2
    assert "no unit is complete" in done.err


def test_termination_reaches_the_children_and_the_next_run_goes_on(cli, tiny, sweep):
    sweep.write_text(sweep.read_text().replace("/*", "/*_1.*"))
    started, hold = tiny.folder / "started", tiny.folder / "hold"
    hold.touch()
    wait = f"""
import pathlib, time
pathlib.Path({str(started)!r}).touch()
while pathlib.Path({str(hold)!r}).exists():
    time.sleep(0.05)
"""
    tiny.write_task("task.py", signature="activation='Tanh'", extra=wait)
    process = subprocess.Popen(
        [sys.executable, "-m", "landscape_cli", "batch", "run", str(sweep)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    (code,) = (tiny.folder / "out").glob("*/exit_code")
    assert code.read_text() == "143\n"
    assert states(cli, sweep) == ["not started"]
    hold.unlink()
    assert cli("batch", "run", sweep).code == 0
    assert states(cli, sweep) == ["complete"]


def test_a_series_per_run(cli, tiny, sweep):
    sweep.write_text(sweep.read_text().replace("top = 3", "top = [2, 3]").replace("/*", "/*_1.*"))
    for entry in cli("batch", "status", sweep, "--json").document["results"]:
        folder, options = Path(entry["log"]).parent, entry["run"].split()[1:]
        shared = ("--task", tiny.task, "--set", "activation=Tanh", "-o", folder)
        assert cli("hessian", entry["checkpoint"], *shared, *options).code == 0
    assert states(cli, sweep) == ["complete"] * 2
    assert cli("batch", "collect", sweep, "-o", tiny.folder / "s.h5").code == 0
    names = sorted(path.name for path in tiny.folder.glob("s.*"))
    assert names == ["s.1.hessian.h5", "s.2.hessian.h5"]


def test_a_wrong_sweep_file_is_one_message(cli, sweep):
    sweep.write_text(sweep.read_text().replace("top", "tpo"))
    for action in ("run", "status", "collect"):
        done = cli("batch", action, sweep)
        assert done.code == 2
        assert len(done.errors) == 1
        assert "runs 1: tpo" in done.err
