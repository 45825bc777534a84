"""A network of 26 parameters with its files, and the command line in process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from landscape_cli.app import run

SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}

TASK = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape import Criterion, Task

INPUTS = torch.linspace(-1.3, 1.7, 36).sin().reshape(12, 3)
LABELS = torch.arange(12) % 2
TARGETS = INPUTS[:, :2].cos()
EXTRA


def network(activation=nn.Tanh):
    return nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2))


def build(SIGNATURE):
    return Task(model=MODEL, data=DATA, criterion=CRITERION, MORE)
"""


def task_text(
    *,
    model: str = "network()",
    data: str = "(INPUTS, LABELS)",
    criterion: str = "'cross_entropy'",
    signature: str = "",
    extra: str = "",
    more: str = "",
) -> str:
    """The text of a task file."""
    return (
        TASK.replace("EXTRA", extra)
        .replace("SIGNATURE", signature)
        .replace("MODEL", model)
        .replace("DATA", data)
        .replace("CRITERION", criterion)
        .replace("MORE", more)
    )


def weights(seed: int = 0, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Random weights of the network of :data:`TASK`."""
    generator = torch.Generator().manual_seed(seed)
    items = (SHAPES if shapes is None else shapes).items()
    return {name: torch.randn(shape, generator=generator) for name, shape in items}


@dataclass(frozen=True)
class Outcome:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document, which must be all of stdout."""
        found = json.loads(self.out)
        assert set(found) == {"schema", "command", "results", "errors"}
        return found

    @property
    def values(self) -> dict[str, Any]:
        """The values of the only result."""
        (result,) = self.document["results"]
        return result["values"]

    @property
    def errors(self) -> list[str]:
        """The error messages on stderr."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


Command = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``landscape`` with these arguments in this process."""
    # A task file's folder is appended to the path; the next test must not import from it.
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return command


@dataclass(frozen=True)
class Tiny:
    """The files of the network of 26 parameters."""

    folder: Path
    task: Path
    checkpoint: Path

    def write_task(self, name: str, **parts: str) -> Path:
        """Another task file."""
        path = self.folder / name
        path.write_text(task_text(**parts))
        return path

    def write_checkpoint(self, name: str, tensors: dict[str, Any], **metadata: str) -> Path:
        """Another checkpoint."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path, metadata=metadata or None)
        return path


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A task file and a checkpoint of step 7 that fits it."""
    found = Tiny(tmp_path, tmp_path / "task.py", tmp_path / "step_7.safetensors")
    found.write_task(
        "task.py", signature="unused=1, activation='Tanh'", model="network(getattr(nn, activation))"
    )
    found.write_checkpoint("step_7.safetensors", weights())
    return found


@pytest.fixture(scope="session")
def texts() -> Callable[..., str]:
    """The text of a task file, with parts replaced."""
    return task_text


@pytest.fixture(scope="session")
def draw() -> Callable[..., dict[str, Any]]:
    """Random weights of the network."""
    return weights
