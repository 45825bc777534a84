"""Commands in several processes: one voice, one error, and work that is kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import launching
import numpy as np
import pytest

from landscape.store import load

BROKEN = """
def forward(model, batch):
    if len(batch[0]) and float(batch[0][-1, 0]) == float(INPUTS[-1, 0]):
        raise ValueError("a broken example")
    return model(batch[0])
"""


def torchrun(size, *arguments, cwd):
    """A command line in several processes, its output captured."""
    return subprocess.Popen(
        launching.torchrun(size, "-m", "landscape_cli", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=launching.one_thread(),
    )


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.fixture
def checkpoint(tiny, draw):
    return tiny.write_checkpoint("a.safetensors", draw(seed=1))


def test_one_document_and_the_numbers_of_one_process(cli, tiny, checkpoint):
    shared = ("--task", tiny.task, "--method", "lanczos", "--top", 3, "--dtype", "float64")
    job = torchrun(
        *(2, "hessian", checkpoint, *shared, "-o", tiny.folder / "two", "--json"), cwd=tiny.folder
    )
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    (entry,) = json.loads(out)["results"]
    alone = cli("hessian", checkpoint, *shared, "-o", tiny.folder / "one", "--json")
    (other,) = alone.document["results"]
    one, two = (load(e["file"]) for e in (other, entry))
    assert one.info.key == two.info.key
    found, expected = (r.spectra["hessian"].eigenvalues for r in (two, one))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * expected[0])
    assert sorted(p.name for p in (tiny.folder / "two").iterdir()) == [two_name(entry)]


def test_a_comparison_has_the_numbers_of_one_process(cli, tiny, checkpoint, draw):
    other = tiny.write_checkpoint("b.safetensors", draw(seed=2))
    shared = (checkpoint, other, "--task", tiny.task, "--volume", "behaviour", "--sigma", 1)
    job = torchrun(
        *(2, "compare", *shared, "-o", tiny.folder / "two", "--json", "--eigenspaces", 2),
        *("--plot", tiny.folder / "f.png"),
        cwd=tiny.folder,
    )
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    (entry,) = json.loads(out)["results"]
    alone = cli("compare", *shared, "-o", tiny.folder / "one", "--json", "--eigenspaces", 2)
    one, two = (load(e["file"]) for e in (*alone.document["results"], entry))
    assert one.info.key == two.info.key
    assert two.info.n_forward == one.info.n_forward
    assert two.behaviour.kl_ab.value == pytest.approx(one.behaviour.kl_ab.value, rel=1e-12)
    assert two.behaviour.kl_ab.upper == pytest.approx(one.behaviour.kl_ab.upper, rel=1e-12)
    for name in ("path", "aligned"):
        found, expected = (getattr(result, name).loss for result in (two, one))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert two.eigenspaces.overlap == pytest.approx(one.eigenspaces.overlap, rel=1e-9)
    np.testing.assert_allclose(two.volume.difference, one.volume.difference, rtol=1e-10)


def test_an_ablation_that_fits_nothing_is_one_message(tiny, checkpoint):
    job = torchrun(
        *(2, "compare", checkpoint, "--task", tiny.task, "--ablate", "1:4=resample"),
        cwd=tiny.folder,
    )
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    (message,) = errors(err)
    assert "no unit 4; expected 0 to 3" in message


def two_name(entry):
    return os.path.basename(entry["file"])


def test_an_error_of_one_process_is_one_message(tiny, draw):
    tiny.write_task("task.py", extra=BROKEN, more="forward=forward")
    checkpoint = tiny.write_checkpoint("a.safetensors", draw(seed=1))
    job = torchrun(2, "hessian", checkpoint, "--task", tiny.task, cwd=tiny.folder)
    out, err = job.communicate(timeout=120)
    assert job.returncode != 0
    (message,) = errors(err)
    assert "process 2: " in message
    assert "a broken example" in message
    assert "exitcode  : 3" in err  # Torchrun's own report.
    assert out == ""


def test_processes_that_read_other_data_are_told(tiny, draw):
    drawn = "torch.Generator().manual_seed(__import__('os').getpid())"
    tiny.write_task("task.py", extra=f"INPUTS = torch.rand(12, 3, generator={drawn})")
    checkpoint = tiny.write_checkpoint("a.safetensors", draw(seed=1))
    job = torchrun(2, "hessian", checkpoint, "--task", tiny.task, cwd=tiny.folder)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    (message,) = errors(err)
    assert "process 2: this process has read another task file, other data" in message


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
@pytest.mark.parametrize("delay", [0.0, 0.37, 0.71])
def test_signals_end_chains_with_one_message(tiny, checkpoint, tmp_path, signals, delay):
    """Wherever in an exchange they come; without a launcher that would end the others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "landscape_cli", "volume", str(checkpoint)]
    command += ["--task", str(tiny.task), "--method", "anneal", "--sigma", "1", "--error", "0.01"]
    command += ["--budget", "100000000grad", "-o", str(tmp_path / "out"), "--flush-seconds", "1"]
    running = []
    for rank in range(2):
        place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = launching.one_thread(**place)
        running.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(delay)
    for rank in signals:
        running[rank].send_signal(signal.SIGTERM)
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
    assert ended[0][1] == (143 if 0 in signals else 6)
    (message,) = errors(ended[0][0])
    terminated = "terminated; finished units are saved"
    assert (terminated if 0 in signals else "another process of this analysis ended") in message
    assert ended[1][1] == (143 if 1 in signals else 6)
    assert errors(ended[1][0]) == []


@pytest.mark.parametrize("command", ["show", "flat", "modules", "train", "batch"])
def test_other_commands_say_that_they_work_alone(cli, monkeypatch, command):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    done = cli(command, "whatever")
    assert done.code == 2
    assert f"landscape {command} works in one process" in done.err
    assert "only hessian, volume and compare share theirs out" in done.err
    monkeypatch.setenv("RANK", "1")
    silent = cli(command, "whatever")
    assert silent.code == 2
    assert silent.err == ""


def test_an_environment_that_makes_no_sense(cli, monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "a")
    monkeypatch.setenv("MASTER_PORT", "1")
    done = cli("hessian", "a.safetensors", "--task", "digits-mlp")
    assert done.code == 2
    assert "RANK is 'first'" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_its_work_goes_on(tmp_path, cli, victim):
    out = tmp_path / "out"
    trained = ("--set", "width=16", "--steps", 20, "--checkpoints", 1, "--quiet")
    assert cli("train", "digits-mlp", "-o", tmp_path / "runs", *trained).code == 0
    (checkpoint,) = (tmp_path / "runs").glob("*20.safetensors")
    shared = (checkpoint, "--task", "digits-mlp", "--set", "width=16", "--method", "lanczos")
    shared = ("hessian", *shared, "--dtype", "float64", "--flush-seconds", 0.2)
    job = torchrun(2, *shared, "-o", out, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(out.glob("*.partial")):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    os.kill(processes(job.pid)[victim], signal.SIGKILL)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert len(errors(err)) <= 1
    if victim == 1:
        assert "another process of this analysis ended" in err or "terminated" in err
    done = cli(*shared, "-o", out, "--json")
    assert done.code == 0
    assert "resuming" in done.err
    whole = cli(*shared, "-o", tmp_path / "whole", "--json")
    one, other = (load(d.document["results"][0]["file"]) for d in (done, whole))
    for name in ("eigenvalues", "residuals"):
        found, expected = (getattr(r.spectra["hessian"], name) for r in (one, other))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def processes(launcher):
    """Process numbers of a launcher's children, by rank."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            status = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            environment = Path(f"/proc/{name}/environ").read_text().split("\0")
        except OSError:
            continue
        ranks = [e.partition("=")[2] for e in environment if e.startswith("RANK=")]
        if int(status[1]) == launcher and ranks:
            found[int(ranks[0])] = int(name)
    return found
