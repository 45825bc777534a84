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

from landscape.lock import hold
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


HOLD = """
import pathlib, time
FOLDER = pathlib.Path({folder!r})
(FOLDER / "started").touch()
while (FOLDER / "hold").exists():
    time.sleep(0.05)
"""


def test_a_killed_batch_run_leaves_children_that_nobody_doubles(cli, tiny, sweep):
    sweep.write_text(sweep.read_text().replace("/*", "/*_1.*"))
    (tiny.folder / "hold").touch()
    extra = HOLD.format(folder=str(tiny.folder))
    tiny.write_task("task.py", signature="activation='Tanh'", extra=extra)
    command = [sys.executable, "-m", "landscape_cli", "batch", "run", str(sweep), "--quiet"]
    with subprocess.Popen(command) as process:
        wait_for((tiny.folder / "started").exists)
        process.kill()
    try:
        assert states(cli, sweep) == ["running"]
        done = cli("batch", "run", sweep)
        assert done.code == 5
        assert "is left alone: process" in done.err
        assert "1 of 1 units are in work elsewhere" in done.err
    finally:
        (tiny.folder / "hold").unlink()
    wait_for(lambda: states(cli, sweep) == ["complete"])
    (log,) = (tiny.folder / "out").glob("*/log.txt")
    assert log.read_text().count("--- ") == 1
    wait_for(lambda: not list((tiny.folder / "out").glob("*/lock")))
    (code,) = (tiny.folder / "out").glob("*/exit_code")
    assert code.read_text() == "0\n"


def test_two_batch_runs_share_the_units(tiny, sweep):
    command = [sys.executable, "-m", "landscape_cli", "batch", "run", str(sweep), "--quiet"]
    both = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert {process.wait(120) for process in both} <= {0, 5}
    logs = [path.read_text() for path in (tiny.folder / "out").glob("*/log.txt")]
    assert len(logs) == 2
    for log in logs:
        assert log.count("cost  ") == 1
    assert len(list((tiny.folder / "out").glob("*/*.h5"))) == 2


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_result_that_another_process_works_on_is_left_alone(cli, tiny):
    arguments = ("hessian", tiny.checkpoint, "--task", tiny.task, "--no-density", "--top", 3)
    arguments = (*arguments, "-o", tiny.folder / "out")
    assert cli(*arguments).code == 0
    (file,) = (tiny.folder / "out").glob("*.h5")
    before = file.read_bytes()
    with hold(Path(f"{file}.lock"), file.name):
        done = cli(*arguments, "--overwrite")
        assert done.code == 2
        assert len(done.errors) == 1
        assert f"{file.name} is being worked on by process" in done.err
        assert "delete the lock" in done.err
    assert file.read_bytes() == before
    assert cli(*arguments, "--overwrite").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_schedulers_end_a_command_with_its_state_saved(cli, tiny, number, monkeypatch):
    extra = """
import os, signal
class Stop(torch.nn.Tanh):
    calls = 0
    def forward(self, x):
        Stop.calls += 1
        if Stop.calls == 30 and "NUMBER" in os.environ:
            for _ in range(3):  # They come in flocks.
                os.kill(os.getpid(), int(os.environ["NUMBER"]))
        return super().forward(x)
"""
    task = tiny.write_task("stop.py", extra=extra, model="network(Stop)")
    command = [
        *("hessian", str(tiny.checkpoint)),
        *("--task", str(task), "--method", "lanczos", "--graph-memory", "0", "--top", "3"),
        *("-o", str(tiny.folder / "out")),
    ]
    monkeypatch.setenv("NUMBER", str(int(number)))
    done = cli(*command)
    assert done.code == 143, done.err
    assert "terminated; finished units are saved" in done.err
    assert [path.suffix for path in (tiny.folder / "out").iterdir()] == [".partial"]
    monkeypatch.delenv("NUMBER")
    done = cli(*command)
    assert done.code == 0, done.err
    assert "resuming from" in done.err


@pytest.mark.parametrize("missing", ["submitit", "sbatch"])
def test_submission_without_what_it_needs_is_one_message(cli, sweep, monkeypatch, missing):
    monkeypatch.setenv("PATH", "")
    if missing == "submitit":
        monkeypatch.setitem(sys.modules, "submitit", None)
    done = cli("batch", "submit", sweep)
    assert done.code == 2
    assert len(done.errors) == 1
    assert missing in done.err
    assert ("landscape-geometry[slurm]" if missing == "submitit" else "batch run") in done.err
    assert cli("batch", "submit", sweep, "--dry-run").code == 0
    assert states(cli, sweep) == ["not started"] * 2


def test_cancelling_without_slurm_is_one_message(cli, sweep, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = cli("batch", "cancel", sweep)
    assert done.code == 2
    assert len(done.errors) == 1
    assert "squeue cannot be asked" in done.err


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
    for action in ("run", "submit", "cancel", "status", "collect"):
        done = cli("batch", action, sweep)
        assert done.code == 2
        assert len(done.errors) == 1
        assert "runs 1: tpo" in done.err
