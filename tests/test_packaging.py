"""The wheel, away from the checkout, and a user's own modules beside his task."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]

TASK = """
import torch
from torch import nn

import cli
from landscape import Task

DATA = (torch.linspace(-1, 1, 12).reshape(6, 2), torch.arange(6) % 2)


def build():
    return Task(model=nn.Linear(2, cli.CLASSES), data=DATA, criterion="cross_entropy")
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("landscape", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def unpacked(wheel, tmp_path_factory) -> Path:
    """The wheel's content, as it would lie in site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def user(tmp_path) -> Path:
    """A user's folder, with modules named like ours and like what we depend on."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "cli.py").write_text("CLASSES = 2\n")
    for name in ("landscape", "numpy", "torch", "typer", "rich", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user\\'s {name}.py ran')\n")
    state = {"weight": torch.tensor([[1.0, -0.5], [0.25, 2.0]]), "bias": torch.zeros(2)}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def run(*arguments: object, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def sources() -> list[str]:
    """Every file of the packages, by the path that it has once installed."""
    found = []
    for folder, package in (("landscape", "landscape"), ("cli", "landscape_cli")):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.append(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


class TestWheel:
    def test_holds_every_source_and_data_file(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        wanted = [n for n in sources() if n.endswith((".py", "py.typed")) or "/data/" in n]
        assert any("tasks/data/" in name for name in wanted)
        assert "landscape/py.typed" in wanted
        assert "landscape_cli/py.typed" in wanted
        assert set(wanted) <= set(names)

    def test_holds_nothing_else(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.partition("/")[0] for name in names}
        assert {top for top in tops if ".dist-info" not in top} == {"landscape", "landscape_cli"}
        assert not [name for name in names if "test" in name or name.endswith(".pyc")]

    def test_metadata(self, unpacked):
        (info,) = unpacked.glob("*.dist-info")
        metadata = (info / "METADATA").read_text()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert f"Name: {project['name']}" in metadata
        assert f"Version: {project['version']}" in metadata
        assert "Requires-Dist: torch" in metadata
        assert "landscape = landscape_cli.__main__:main" in (info / "entry_points.txt").read_text()
        assert list(info.rglob("LICENSE"))

    def test_version_is_said_once(self):
        import landscape

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert project["version"] == landscape.__version__

    def test_every_module_imports_away_from_the_checkout(self, unpacked, tmp_path):
        modules = [
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in sources()
            if name.endswith(".py") and not name.endswith("__main__.py")
        ]
        code = (
            "import importlib, sys\n"
            "for name in sys.argv[2:]:\n"
            "    module = importlib.import_module(name)\n"
            "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
            "import importlib.resources as r\n"
            "assert r.files('landscape.tasks').joinpath('data/macbeth.txt').is_file()\n"
        )
        done = run("-P", "-c", code, unpacked, *modules, cwd=tmp_path, path=unpacked)
        assert done.returncode == 0, done.stderr

    def test_command_line(self, unpacked, user):
        done = run(
            *("-m", "landscape_cli", "hessian", "model.safetensors", "--task", "task.py"),
            cwd=user,
            path=unpacked,
        )
        assert done.returncode == 0, done.stderr
        assert "6 parameters" in done.stdout


class TestBesideTheUsersModules:
    """`python -m` puts the working directory first on the path; ours must win all the same."""

    COMMAND = ("hessian", "model.safetensors", "--task", "task.py", "--quiet")

    def test_python_m(self, user):
        done = run("-m", "landscape_cli", *self.COMMAND, cwd=user)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "6 parameters, 6 examples" in done.stdout
        assert len(list((user / "results").iterdir())) == 1

    def test_console_script(self, user):
        # What the installed script does: its own folder is first on the path, not this one.
        code = (
            "import sys; from landscape_cli.__main__ import main; sys.argv[0] = 'landscape'; main()"
        )
        done = run("-P", "-c", code, *self.COMMAND, cwd=user)
        assert done.returncode == 0, done.stderr
        assert "6 parameters, 6 examples" in done.stdout

    def test_the_task_as_a_module(self, user):
        (user / "mine").mkdir()
        (user / "mine" / "task.py").write_text(TASK)
        done = run(
            *("-m", "landscape_cli", "hessian", "model.safetensors", "--task", "mine.task"),
            cwd=user,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)], ids=str)
def test_from_the_root_of_the_repository(arguments):
    done = run("-m", "landscape_cli", *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "landscape" in done.stdout


def test_a_measurement_from_the_root_of_the_repository(user):
    done = run(
        *("-m", "landscape_cli", "hessian", user / "model.safetensors", "--task"),
        *(user / "task.py", "-o", user / "results"),
        cwd=ROOT,
    )
    # The task's own cli.py, not the folder cli/ of the repository.
    assert done.returncode == 0, done.stderr
