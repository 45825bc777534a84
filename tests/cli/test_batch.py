"""``landscape batch``: the single commands' numbers, retries, termination and series."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

import landscape
from landscape.errors import ResultFileError
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
        series = tree["series/1-hessian/operator/hessian"]
        assert series["step"].values.tolist() == [1, 20]


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


@pytest.fixture
def measured(cli, tiny, sweep):
    """A sweep of four runs over two checkpoints, of which one result is missing."""
    more = (
        "top = [2, 3]\ndensity = false\n[[runs]]\ncommand = 'volume'\nsigma = 1.0\n"
        "method = 'quadratic'\n[[runs]]\ncommand = 'flat'\nsigma = 1.0\n"
    )
    sweep.write_text(sweep.read_text().replace("top = 3\ndensity = false\n", more))
    entries = cli("batch", "status", sweep, "--json").document["results"]
    for entry in entries[:-1]:
        folder, (command, *options) = Path(entry["log"]).parent, entry["run"].split()
        shared = ("--task", tiny.task, "--set", "activation=Tanh", "-o", folder)
        assert cli(command, entry["checkpoint"], *shared, *options).code == 0
    return sweep


def test_all_runs_are_collected_in_one_file(cli, tiny, measured):
    out = tiny.folder / "s.h5"
    done = cli("batch", "collect", measured, "-o", out, "--json")
    assert done.code == 0, done.err
    assert "1 units are not complete" in done.err
    assert [entry["run"] for entry in done.document["results"]] == [1, 2, 3, 4]
    sweep = landscape.load_sweep(out)
    results = cli("batch", "status", measured, "--json").document["results"]
    assert len(sweep.table) == len(results) == 8
    assert [row.complete for row in sweep.table].count(False) == 1
    rows = {row.source: row for row in sweep.table}
    for entry in results[:-1]:
        result, row = load(entry["file"]), rows[entry["file"]]
        assert f"{row.command} {row.options}".strip() == entry["run"]
        assert row.loss == result.info.loss
        if row.command == "hessian":
            assert row.value == result.spectra["hessian"].eigenvalues[0]
        elif row.command == "volume":
            assert row.value == result.estimates["quadratic"].log_volume[0]
        else:
            assert row.value == result.ranks["jacobian"].null
        step = list(sweep.series[row.run].step).index(row.step)
        assert sweep.series[row.run].key[step] == result.info.key
    # A copy, which xarray reads as one tree without the results.
    shutil.rmtree(tiny.folder / "out")
    with xarray.open_datatree(out, engine="h5netcdf") as tree:
        runs = ["1-hessian", "2-hessian", "3-volume", "4-flat"]
        assert list(tree["series"].children) == runs
        assert tree["series/2-hessian/operator/hessian"]["eigenvalues"].shape == (2, 3)
        assert tree["series/3-volume/volume/quadratic"]["log_volume"].shape[0] == 2
        frame = tree["table"].to_dataset().to_dataframe()
    assert frame.groupby("command").size().to_dict() == {"flat": 2, "hessian": 4, "volume": 2}


def test_collecting_again_does_nothing_and_replaces_nothing(cli, tiny, measured):
    out = tiny.folder / "s.h5"
    assert cli("batch", "collect", measured, "-o", out).code == 0
    before = out.stat().st_mtime_ns
    done = cli("batch", "collect", measured, "-o", out)
    assert done.code == 0
    assert "up to date" in done.err
    for folder in (tiny.folder / "out").glob("step_1.flat*"):
        shutil.rmtree(folder)
    done = cli("batch", "collect", measured, "-o", out)
    assert done.code == 2
    assert "holds another series" in done.err
    assert out.stat().st_mtime_ns == before
    assert cli("batch", "collect", measured, "-o", out, "--overwrite").code == 0
    assert list(landscape.load_sweep(out).series) == [1, 2, 3]
    (result,) = (tiny.folder / "out").glob("step_1.volume*/*.h5")
    done = cli("batch", "collect", measured, "-o", result, "--overwrite")
    assert done.code == 2
    assert "never replaced" in done.err


def test_a_sweep_is_shown_and_drawn_run_by_run(cli, tiny, measured):
    out = tiny.folder / "s.h5"
    assert cli("batch", "collect", measured, "-o", out).code == 0
    shown = cli("show", out)
    assert shown.code == 0
    for title in ("run 1: hessian --top=2", "run 3: volume --sigma=1.0", "run 4: flat"):
        assert title in shown.out
    one = cli("show", out, "--run", 3, "--json").document["results"]
    assert [entry["run"] for entry in one] == [3]
    assert cli("plot", out).code == 0
    names = sorted(path.name for path in tiny.folder.glob("s*.png"))
    assert names == ["s.1.hessian.png", "s.2.hessian.png", "s.3.volume.png", "s.4.flat.png"]
    assert cli("plot", out, "--run", 4, "-o", tiny.folder / "flat.svg").code == 0
    assert (tiny.folder / "flat.svg").exists()


def test_wrong_use_of_a_sweep_file_is_one_message(cli, tiny, measured):
    out, series = tiny.folder / "s.h5", tiny.folder / "one.h5"
    assert cli("batch", "collect", measured, "-o", out).code == 0
    results = [str(path) for path in (tiny.folder / "out").glob("*.volume*/*.h5")]
    assert cli("collect", *results, "-o", series).code == 0
    for arguments, said in (
        (("show", out, "--run", 9), "no series of such a run; expected one of 1 (hessian"),
        (("show", series, "--run", 1), "is a series, which has no runs"),
        (("plot", results[0], "--run", 1), "is a result, which has no runs"),
        (("plot", out, results[0]), "expected it alone"),
        (("show", out, "--log-det", 1), "has no probes"),
        (("collect", out, "-o", tiny.folder / "x.h5"), "no result to collect"),
    ):
        done = cli(*arguments)
        assert done.code == 2, arguments
        assert len(done.errors) == 1
        assert said in done.err
    with pytest.raises(ResultFileError, match="load_sweep"):
        landscape.load_series(out)
    with pytest.raises(ResultFileError, match="load_sweep"):
        landscape.load(out)
    with pytest.raises(ResultFileError, match="no sweep file"):
        landscape.load_sweep(series)
    with h5py.File(out, "a") as file:
        del file["table/run"]
    with pytest.raises(ResultFileError, match="damaged"):
        landscape.load_sweep(out)


def test_a_wrong_sweep_file_is_one_message(cli, sweep):
    sweep.write_text(sweep.read_text().replace("top", "tpo"))
    for action in ("run", "submit", "cancel", "status", "collect"):
        done = cli("batch", action, sweep)
        assert done.code == 2
        assert len(done.errors) == 1
        assert "runs 1: tpo" in done.err


APART = """
[[runs]]
command = 'modules'
sigma = 1.0
[[runs]]
command = 'information'
[[runs]]
command = 'slice'
along = ['random', 'eigen:1']
points = 5
"""


def test_results_that_no_series_holds_are_in_the_table(cli, tiny, sweep):
    sweep.write_text(sweep.read_text() + APART)
    done = cli("batch", "run", sweep, "--workers", 2, "--json")
    assert done.code == 0, done.err
    entries = done.document["results"]
    assert len(entries) == 10
    assert {entry["status"] for entry in entries} == {"complete"}
    alone = next(entry for entry in entries if entry["run"].startswith("modules"))
    command, *options = alone["run"].split()
    shared = ("--task", tiny.task, "--set", "activation=Tanh", "-o", tiny.folder / "alone")
    (other,) = cli(command, alone["checkpoint"], *shared, *options, "--json").document["results"]
    one, two = load(alone["file"]), load(other["file"])
    np.testing.assert_array_equal(one.modules.coupling, two.modules.coupling)
    out = tiny.folder / "s.h5"
    done = cli("batch", "collect", sweep, "-o", out)
    assert done.code == 0, done.err
    assert "run 2: is in the table only. Draw these together with landscape plot" in done.err
    found = landscape.load_sweep(out)
    assert list(found.series) == [1]
    rows = [row for row in found.table if row.command != "hessian"]
    assert len(rows) == 8
    for row in rows:
        info = load(row.source).info
        assert (row.step, row.loss, row.complete) == (info.step, info.loss, True)
        assert (row.quantity, np.isnan(row.value)) == ("", True)
    assert cli("plot", out).code == 0
    shown = cli("show", out, "--run", 2)
    assert shown.code == 2
    assert "no series of such a run; expected one of 1 (hessian" in shown.err


def test_a_sweep_without_any_series_says_what_to_draw(cli, tiny, sweep):
    sweep.write_text(sweep.read_text().replace(RUNS, "[[runs]]\ncommand = 'information'\n"))
    assert cli("batch", "run", sweep).code == 0
    done = cli("batch", "collect", sweep, "-o", tiny.folder / "s.h5")
    assert done.code == 2
    (message,) = done.errors
    assert "no complete result of a command that gives series" in message
    assert not (tiny.folder / "s.h5").exists()


def test_a_sweep_holds_no_comparisons(cli, sweep):
    sweep.write_text(sweep.read_text().replace("'hessian'", "'compare'"))
    done = cli("batch", "run", sweep)
    assert done.code == 2
    (message,) = done.errors
    assert "runs 1: command: 'compare', whose second network" in message
    assert "takes a glob of checkpoints itself" in message
