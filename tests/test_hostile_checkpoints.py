"""Hostile and broken files are refused in bounded time and memory, and run nothing."""

import contextlib
import os
import resource
import signal

import pytest
import torch
from hostile_distributed import DISTRIBUTED
from hostile_files import (
    BOMBS,
    FOLDERS,
    HARMLESS_FOLDERS,
    HARMLESS_ZIPS,
    SAFE,
    STATE,
    ZIPS,
    archive,
    legacy,
    payloads,
)
from safetensors.torch import save_file

from landscape_cli.app import run

SECONDS = 20
MEMORY = 1 << 30


def file_of(content):
    """A writer of one file."""

    def write(folder):
        path = folder / "file.pt"
        path.write_bytes(content(folder) if callable(content) else content)
        return path

    return write


NAMES = list(payloads("never"))
# What code a pickle names is refused by itself, and left out by `convert`.
REFUSED = {
    **{f"zip-{n}": file_of(lambda f, n=n: archive(payloads(f / "marker")[n])) for n in NAMES},
    **{f"old-{n}": file_of(lambda f, n=n: legacy(payloads(f / "marker")[n])) for n in NAMES},
    **{f"plain-{n}": file_of(lambda f, n=n: payloads(f / "marker")[n]) for n in NAMES[::4]},
    "old-in-keys": file_of(
        lambda f: legacy(b"\x80\x02}.", payloads(f / "marker")["global-reduce"])
    ),
    **{f"zip-bomb-{name}": file_of(archive(data)) for name, data in BOMBS.items()},
    **{f"old-bomb-{name}": file_of(legacy(data)) for name, data in list(BOMBS.items())[::3]},
    **{f"archive-{name}": file_of(lambda _, w=w: w()) for name, w in ZIPS.items()},
    **{f"safetensors-{name}": file_of(lambda _, w=w: w()) for name, w in SAFE.items()},
    **{f"folder-{name}": writer for name, writer in FOLDERS.items()},
    **{f"distributed-{name}": writer for name, writer in DISTRIBUTED.items()},
}
HARMLESS = {
    **{f"archive-{name}": file_of(lambda _, w=w: w()) for name, w in HARMLESS_ZIPS.items()},
    **{f"folder-{name}": writer for name, writer in HARMLESS_FOLDERS.items()},
}


@contextlib.contextmanager
def bounded():
    """Fail after too many seconds; more memory than allowed is not to be had."""

    def late(_number, _frame):
        raise BaseException(f"took more than {SECONDS} seconds")

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, previous)


def everything(folder):
    """All files below a folder, with their sizes."""
    found = {}
    for place, _folders, files in os.walk(folder):
        for name in files:
            path = os.path.join(place, name)
            found[path] = os.lstat(path).st_size
    return found


def attempt(capsys, folder, path, command, *arguments):
    """Run a command on a checkpoint under limits; its exit code and what it said."""
    before = everything(folder)
    capsys.readouterr()
    with bounded():
        code = run([command, str(path), *map(str, arguments)])
    said, after = capsys.readouterr(), everything(folder)
    for argument in map(str, arguments):  # What it may write, and what it was given.
        after = {path: size for path, size in after.items() if not path.startswith(argument)}
        before = {path: size for path, size in before.items() if not path.startswith(argument)}
    assert after == before
    assert not (folder / "marker").exists()
    assert "Traceback" not in said.err + said.out
    assert not {"\x1b", "\x07", "\0"} & set(said.err + said.out)
    return code, said


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_and_broken_files_are_refused(tmp_path, capsys, name):
    path = REFUSED[name](tmp_path)
    code, said = attempt(capsys, tmp_path, path, "inspect")
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert code == 3, said.err + said.out
    assert len(errors) == 1
    assert "expected" in errors[0]
    assert len(errors[0]) < 2000
    out = tmp_path / "out.safetensors"
    code, said = attempt(capsys, tmp_path, path, "convert", out)
    assert code in (0, 3), said.err
    assert out.exists() == (code == 0)


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_files_are_read_and_run_nothing(tmp_path, capsys, name):
    path = HARMLESS[name](tmp_path)
    for command, *arguments in (("inspect",), ("convert", tmp_path / "out.safetensors")):
        code, said = attempt(capsys, tmp_path, path, command, *arguments)
        assert code == 0, said.err


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_measured(tmp_path, capsys, bad):
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state["0.bias"][0] = bad
    path = tmp_path / "bad.safetensors"
    save_file(state, path)
    task = tmp_path / "task.py"
    assert attempt(capsys, tmp_path, path, "init-task", "-o", task)[0] == 0
    code, said = attempt(
        capsys, tmp_path, path, "hessian", "--task", task, "-o", tmp_path / "results"
    )
    assert code == 4
    assert "NaN or infinite weights" in said.err


def test_mixed_types_are_measured_with_a_warning(tmp_path, capsys):
    state = {"0.weight": STATE["0.weight"].half(), "0.bias": STATE["0.bias"].double()}
    path = tmp_path / "mixed.safetensors"
    save_file(state, path)
    code, said = attempt(capsys, tmp_path, path, "inspect")
    assert code == 0
    assert "several dtypes: float16, float64" in said.err


DEEP = ".".join(["a"] * 10_000)
NAMED = {
    "deep-names": {f"{DEEP}.weight": torch.ones(2, 2)},
    "deep-names-alike": {f"{DEEP}.{i}": torch.ones(1) for i in range(20)},
    "long-names": {f"{'x' * 5000}{i}": torch.ones(1) for i in range(500)},
    "many-names": {f"net.{i}.weight": torch.ones(1) for i in range(2000)},
    "a-name-of-the-format": {"__metadata__": torch.ones(2)},
    "lone-surrogates": {"\ud800": torch.ones(2)},
    "empty-name": {"": torch.ones(2)},
    "dots": {".": torch.ones(2), "..weight": torch.ones(2)},
}


@pytest.mark.parametrize("name", NAMED)
def test_odd_names_take_no_time(tmp_path, capsys, name):
    path = tmp_path / "named.pt"
    torch.save(NAMED[name], path)
    task = tmp_path / "task.py"
    assert attempt(capsys, tmp_path, path, "inspect", "--json")[0] == 0
    assert attempt(capsys, tmp_path, path, "convert", tmp_path / "out.safetensors")[0] in (0, 3)
    assert attempt(capsys, tmp_path, path, "init-task", "-o", task)[0] == 0
    compile(task.read_text(), task, "exec")
    task.write_text(
        "import torch, landscape\nbuild = landscape.Task(model=torch.nn.Linear(2, 1), "
        "data=(torch.ones(2, 2), torch.ones(2, 1)), criterion='mse')\n"
    )
    out = tmp_path / "results"
    code, said = attempt(capsys, tmp_path, path, "hessian", "--task", task, "-o", out)
    assert code == 3
    assert "does not fit the model" in said.err
    assert len(said.err) < 3000


def test_many_views_of_one_storage(tmp_path, capsys):
    base = torch.ones(1 << 20)
    path = tmp_path / "views.pt"
    torch.save({f"w{i}": base[i:] for i in range(2000)}, path)
    assert path.stat().st_size < 5 << 20
    code, said = attempt(capsys, tmp_path, path, "convert", tmp_path / "out.safetensors")
    assert code == 3
    assert "tensors that share" in said.err
    torch.save({f"w{i}": base[i:] for i in range(10)}, path)
    assert attempt(capsys, tmp_path, path, "inspect")[0] == 0


def test_the_corpus_is_large():
    assert len(REFUSED) >= 60
