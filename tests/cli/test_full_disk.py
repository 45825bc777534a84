"""A full disk, a read-only folder, a quota: one message, the old file intact, saved state kept."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from landscape.disk_file import DiskFile
from landscape.errors import ResultFileError
from landscape.partial import PartialFile
from landscape.store import atomic_h5

KB = 1024


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A file system in memory; needs root, as in a container."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a disk but for so many bytes."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(bytes(max(free - leave, 0)))
    return ballast


def write(path: Path, count: int, arrays: int) -> None:
    with atomic_h5(path) as file:
        for i in range(arrays):
            group = file.create_group(f"unit{i}", track_order=True)
            group.create_dataset("values", data=np.arange(count, dtype=np.float64))


def stored(path: Path) -> int:
    with h5py.File(path) as file:
        return len(file["unit0/values"])


@pytest.mark.parametrize(("count", "arrays"), [(200_000, 1), (3000, 60), (10, 800)])
def test_a_full_disk_leaves_the_old_file(tmp_path, capfd, count, arrays):
    with mounted(tmp_path, "size=1m"):
        path = tmp_path / "a.h5"
        write(path, 100, 1)
        fill(tmp_path, 100 * KB)
        with pytest.raises(ResultFileError) as error:
            write(path, count, arrays)
        assert str(error.value) == (
            f"cannot write {path}: the disk is full. Free some space; the same command resumes"
        )
        assert stored(path) == 100
        assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "ballast"}
    assert capfd.readouterr() == ("", "")  # Nor does HDF5 say anything.


def test_saved_state_survives_a_full_disk(tmp_path):
    with mounted(tmp_path, "size=1m"):
        units = PartialFile(tmp_path / "a.h5", "key")
        units.put("one", {"values": np.arange(1000)})
        units.flush()
        ballast = fill(tmp_path, 20 * KB)
        units.put("two", {"values": np.arange(50_000)})
        with pytest.raises(ResultFileError, match="the disk is full"):
            units.flush()
        assert PartialFile(tmp_path / "a.h5", "key").n_resumed == 1
        ballast.unlink()
        units.flush()  # What was not stored has not been forgotten.
        assert PartialFile(tmp_path / "a.h5", "key").n_resumed == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EDQUOT, "your quota is used up"), (errno.EIO, "Input/output error")],
)
@pytest.mark.parametrize("nth", [1, 3, 6])
def test_other_failures_of_the_disk(tmp_path, monkeypatch, code, said, nth):
    path = tmp_path / "a.h5"
    write(path, 100, 1)
    attempt, seen = DiskFile._attempt, []

    def fail():
        raise OSError(code, os.strerror(code))

    def failing(self, call):
        seen.append(call)
        return attempt(self, call if len(seen) < nth else fail)

    monkeypatch.setattr(DiskFile, "_attempt", failing)
    with pytest.raises(ResultFileError, match=said):
        write(path, 5000, 3)
    assert len(seen) >= nth
    assert stored(path) == 100
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_short_writes_are_completed(tmp_path, monkeypatch):
    attempt = DiskFile._attempt

    def short(self, call):
        if getattr(call, "func", None) and call.func.__name__ == "write":
            call = partial(call.func, call.args[0][:1000])
        return attempt(self, call)

    monkeypatch.setattr(DiskFile, "_attempt", short)
    write(tmp_path / "a.h5", 5000, 3)
    assert stored(tmp_path / "a.h5") == 5000


@pytest.fixture
def measured(cli, tiny, texts, draw):
    """A command that stores long vectors, at every opportunity."""
    shapes = {"0.weight": (300, 3), "0.bias": (300,), "2.weight": (2, 300), "2.bias": (2,)}
    task = tiny.write_task("wide.py", model="network()")
    task.write_text(task.read_text().replace("3, 4", "3, 300").replace("4, 2", "300, 2"))
    weights = tiny.write_checkpoint("wide_1.safetensors", draw(shapes=shapes))

    def run(out):
        shared = ("--task", task, "--save-vectors", "--no-density", "--flush-seconds", 0)
        return cli("hessian", weights, *shared, "-o", out, "--quiet")

    return run


def test_a_command_on_a_full_disk_ends_with_one_message_and_resumes(tmp_path, measured):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "size=64m") as disk:
        ballast = fill(disk, 60 * KB)
        done = measured(disk / "out")
        assert done.code == 2, done.err
        assert len(done.err.splitlines()) == 1, done.err
        assert "the disk is full. Free some space" in done.err
        assert not list(disk.glob("out/*.h5"))
        assert not list(disk.glob("out/*.tmp"))
        ballast.unlink()
        done = measured(disk / "out")
        assert done.code == 0, done.err
        assert [path.suffix for path in (disk / "out").iterdir()] == [".h5"]


def test_a_read_only_folder_is_one_message(tmp_path, measured):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "out").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = measured(disk / "out")
        assert done.code == 2
        assert len(done.err.splitlines()) == 1, done.err
        assert "the file system is read-only. Choose another folder with --out" in done.err


def test_batch_run_on_a_full_disk_says_so_for_every_unit(tmp_path, cli, tiny):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "size=1m") as disk:
        sweep = tiny.folder / "sweep.toml"
        sweep.write_text(
            f"checkpoints = ['step_7.safetensors']\ntask = 'task.py'\nout = '{disk}/out'\n"
            "[[runs]]\ncommand = 'hessian'\ntop = 3\ndensity = false\n"
        )
        ballast = fill(disk, 0)
        done = cli("batch", "run", sweep)
        assert done.code == 3
        assert "No space left" in done.err or "the disk is full" in done.err
        assert "bug" not in done.err
        ballast.unlink()
        assert cli("batch", "run", sweep).code == 0
