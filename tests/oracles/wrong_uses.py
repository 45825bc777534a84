"""Wrong uses of the command line: what they are, and what must come of them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import torch

IMPORTS = "import torch\nfrom landscape import Task\n"
MEASURE = "hessian {ckpt} --task {task} -o {tmp}/out"


@dataclass(frozen=True)
class Use:
    """One wrong use.

    Attributes:
        line: arguments; ``{tmp}``, ``{task}`` and ``{ckpt}`` are the folder, a good task file and a
            good checkpoint.
        code: exit code.
        words: what the message must contain.
        files: texts of files, or functions that write them.
        task: parts of the task file ``wrong.py``.
        at: the checkpoint that the error belongs to.
    """

    name: str
    line: str
    code: int
    words: tuple[str, ...]
    files: dict[str, Any] = field(default_factory=dict)
    task: dict[str, str] | None = None
    at: str | None = None


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def malicious(path: Path, draw: Callable[..., Any]) -> None:
    torch.save({**draw(), "extra": Payload(path.parent / "marker")}, path)


def malicious_legacy(path: Path, draw: Callable[..., Any]) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent / "marker"), protocol=2))


def tensors(**options: Any) -> Callable[[Path, Callable[..., Any]], None]:
    """A checkpoint: ``without`` or ``extra`` names, or other ``shapes``, or one ``value``."""

    def write(path: Path, draw: Callable[..., Any]) -> None:
        from safetensors.torch import save_file

        state = draw(shapes=options.get("shapes"))
        state.pop(options.get("without"), None)
        if "extra" in options:
            state[options["extra"]] = torch.ones(2)
        if "value" in options:
            state["2.weight"][0, 1] = options["value"]
        save_file(state, path)

    return write


def truncated(path: Path, draw: Callable[..., Any]) -> None:
    tensors()(path, draw)
    path.write_bytes(path.read_bytes()[:-20])


def hdf5(**attributes: Any) -> Callable[[Path, Callable[..., Any]], None]:
    def write(path: Path, draw: Callable[..., Any]) -> None:
        with h5py.File(path, "w") as file:
            file.attrs.update(attributes)
            file["numbers"] = [1.0, 2.0]

    return write


def task_use(
    name: str, code: int, words: tuple[str, ...], *, at: str | None = "{ckpt}", **parts: str
) -> Use:
    """A measurement of a good checkpoint with a wrong task."""
    line = "hessian {ckpt} --task {tmp}/wrong.py -o {tmp}/out"
    return Use(name, line, code, words, task=parts, at=at)


def text_use(name: str, code: int, words: tuple[str, ...], text: str) -> Use:
    """A measurement with a task file of this text."""
    line = "hessian {ckpt} --task {tmp}/wrong.py -o {tmp}/out"
    return Use(name, line, code, words, files={"wrong.py": text})


def option(name: str, arguments: str, code: int, *words: str, at: str | None = None) -> Use:
    """A measurement of a good checkpoint and task with a wrong option."""
    return Use(name, f"{MEASURE} {arguments}", code, words, at=at)


def checkpoint(name: str, file: str, content: Any, code: int, *words: str) -> Use:
    """A measurement with a good task and a wrong checkpoint."""
    line = f"hessian {{tmp}}/{file} --task {{task}} -o {{tmp}}/out"
    return Use(name, line, code, words, files={file: content}, at=f"{{tmp}}/{file}")


def assert_refused(use: Use, tiny: Any, cli: Any, texts: Any, draw: Callable[..., Any]) -> None:
    """The command ends with the exit code and one message, also as JSON, and writes nothing.

    The arguments after the use are the fixtures of these names.
    """

    def fill(text: str) -> str:
        return text.format(tmp=tiny.folder, task=tiny.task, ckpt=tiny.checkpoint)

    for name, content in use.files.items():
        path = tiny.folder / name
        path.parent.mkdir(exist_ok=True)
        if callable(content):
            content(path, draw)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if use.task is not None:
        (tiny.folder / "wrong.py").write_text(texts(**use.task))
    arguments = [fill(argument).strip("'") for argument in use.line.split()]

    plain = cli(*arguments)
    assert plain.code == use.code, plain.err
    assert plain.out == ""
    assert len(plain.errors) == 1, plain.err
    (message,) = plain.errors
    for word in use.words:
        assert word in message
    assert "Traceback" not in plain.err

    told = cli(*arguments, "--json")
    assert told.code == use.code
    assert len(told.errors) == 1
    assert "Traceback" not in told.err
    document = told.document
    assert document["schema"] == "landscape/1"
    assert document["command"] == arguments[0]
    assert document["results"] == []
    (error,) = document["errors"]
    assert error["exit_code"] == use.code
    assert error["message"] in told.errors[0]
    assert all(word in error["message"] for word in use.words if word != use.at)
    assert error["checkpoint"] == (None if use.at is None else fill(use.at))

    assert not (tiny.folder / "marker").exists()
    assert not list(tiny.folder.glob("out/*"))
