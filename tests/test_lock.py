"""Locks: one holder at a time, and when a lock is void."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from landscape import lock
from landscape.errors import LockedError
from landscape.lock import Holder, hold, holder_of

FOREIGN = {"host": "elsewhere", "machine": "another boot", "pid": 1, "began": "1", "token": "t"}


def written(path, *, age=0.0, **changes):
    """A lock as another process would have left it."""
    here = json.loads(json.dumps(lock.asdict(lock._here())))
    path.write_text(json.dumps({**here, **changes}))
    os.utime(path, (time.time() - age,) * 2)


def test_one_at_a_time(tmp_path):
    path = tmp_path / "a.lock"
    with hold(path, "a.h5"):
        assert holder_of(path).pid == os.getpid()
        with pytest.raises(LockedError) as error, hold(path, "a.h5"):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(error.value)
        assert str(path) in str(error.value)
        assert error.value.exit_code == 2
    assert holder_of(path) is None
    assert list(tmp_path.iterdir()) == []
    with hold(path, "a.h5"):
        pass


def test_the_lock_of_a_killed_process_is_void_at_once(tmp_path):
    path = tmp_path / "a.lock"
    code = (
        "import sys, time, pathlib\nfrom landscape.lock import hold\n"
        "with hold(pathlib.Path(sys.argv[1]), 'x'):\n    print('held', flush=True)\n"
        "    time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    assert holder_of(path).pid == child.pid
    with pytest.raises(LockedError), hold(path, "x"):
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert path.exists()
    assert holder_of(path) is None
    with hold(path, "x"):
        assert holder_of(path).pid == os.getpid()


def test_a_later_process_of_the_same_pid_is_another_one(tmp_path):
    written(tmp_path / "a.lock", began="1")
    assert holder_of(tmp_path / "a.lock") is None


@pytest.mark.parametrize(("age", "void"), [(30, False), (500, False), (700, True)])
def test_on_another_machine_life_signs_count(tmp_path, age, void):
    path = tmp_path / "a.lock"
    written(path, age=age, **FOREIGN)
    assert (holder_of(path) is None) == void
    if void:
        with hold(path, "x"):
            pass
    else:
        with pytest.raises(LockedError, match="process 1 on elsewhere"), hold(path, "x"):
            pass


def test_a_paused_process_of_this_machine_keeps_its_lock(tmp_path):
    written(tmp_path / "a.lock", age=7000)
    with pytest.raises(LockedError), hold(tmp_path / "a.lock", "x"):
        pass


@pytest.mark.parametrize(
    ("job", "restart", "void"), [("7_1", 0, True), ("7_1", 1, False), ("7_2", 0, False)]
)
def test_a_requeued_job_takes_over_from_its_former_self(tmp_path, monkeypatch, job, restart, void):
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    written(tmp_path / "a.lock", **FOREIGN, job=job, restart=restart)
    assert (holder_of(tmp_path / "a.lock") is None) == void


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 3}', b"\xff"])
def test_a_damaged_lock_is_void_with_time(tmp_path, content):
    path = tmp_path / "a.lock"
    path.write_bytes(content)
    with pytest.raises(LockedError, match="an unknown machine"), hold(path, "x"):
        pass
    os.utime(path, (time.time() - 700,) * 2)
    with hold(path, "x"):
        pass


def test_life_signs_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    path = tmp_path / "a.lock"
    before = threading.active_count()
    with hold(path, "x"):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 1e9 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > 1e9
    assert threading.active_count() == before


def test_a_lock_that_was_taken_over_is_left_to_its_new_holder(tmp_path):
    path = tmp_path / "a.lock"
    with hold(path, "x"):
        path.unlink()
        written(path, **FOREIGN)
    assert path.exists()


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_one_at_a_time(tmp_path)
    written(tmp_path / "a.lock", age=700, **FOREIGN)
    with hold(tmp_path / "a.lock", "x"):
        assert holder_of(tmp_path / "a.lock").pid == os.getpid()


def test_a_break_that_was_killed_does_not_last(tmp_path):
    written(tmp_path / "a.lock", age=700, **FOREIGN)
    guard = tmp_path / "a.lock.break"
    guard.touch()
    with pytest.raises(LockedError, match="changes hands"), hold(tmp_path / "a.lock", "x"):
        pass
    os.utime(guard, (time.time() - 100,) * 2)
    with hold(tmp_path / "a.lock", "x"):
        assert not guard.exists()


COUNT = """
import contextlib, os, pathlib, shutil, sys, time
from landscape.errors import LockedError
from landscape.lock import hold

path, counter, dead = map(pathlib.Path, sys.argv[1:])
for _ in range(20):
    while True:
        try:
            with hold(path, "x"):
                value = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(value + 1))
            break
        except LockedError:
            time.sleep(0.001)
    with contextlib.suppress(OSError):
        os.link(dead, path)  # Now and then somebody dies with the lock.
"""


def test_many_who_count_under_the_lock_lose_nothing(tmp_path):
    counter, dead = tmp_path / "count", tmp_path / "dead"
    counter.write_text("0")
    written(dead, age=700, **FOREIGN)
    command = [sys.executable, "-c", COUNT, tmp_path / "a.lock", counter, dead]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert counter.read_text() == "80"


def test_holders_are_named():
    holder = Holder(**FOREIGN, job="7_1", restart=0)
    assert str(holder) == "process 1 on elsewhere, Slurm job 7_1"
