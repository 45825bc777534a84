"""Every wrong use ends with its exit code and one message that names the cause."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

IMPORTS = "import torch\nfrom landscape import Task\n"


@dataclass(frozen=True)
class Use:
    """One wrong use.

    Attributes:
        line: arguments; ``{tmp}``, ``{task}`` and ``{ckpt}`` are the folder, a good task file and a
            good checkpoint, ``{measure}`` the usual start of a measurement.
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
    return Use(name, "{measure} " + arguments, code, words, at=at)


def checkpoint(name: str, file: str, content: Any, code: int, *words: str) -> Use:
    """A measurement with a good task and a wrong checkpoint."""
    line = f"hessian {{tmp}}/{file} --task {{task}} -o {{tmp}}/out"
    return Use(name, line, code, words, files={file: content}, at=f"{{tmp}}/{file}")


NAN_CRITERION = "lambda outputs, batch: (outputs.sum() * 0 - 1).log()"
NOISY = "forward=lambda m, b: F.dropout(m(b[0]), 0.5, training=True)"
STREAM = """
class Stream(IterableDataset):
    def __iter__(self):
        yield INPUTS[0], LABELS[0]
"""
BROKEN_ROWS = """
class Rows(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise OSError("the disk is on fire")
"""

INFORMATION = "information {ckpt} --task {task} -o {tmp}/out"

USES = [
    # Checkpoints.
    Use(
        "checkpoint-missing",
        "hessian {tmp}/none.pt --task {task} -o {tmp}/out",
        2,
        ("no checkpoint", "none.pt", "no such file"),
    ),
    Use(
        "glob-without-match",
        "hessian {tmp}/none*.pt --task {task} -o {tmp}/out",
        2,
        ("no checkpoint", "none*.pt", "no match"),
    ),
    Use(
        "checkpoint-directory",
        "hessian {tmp}/sub --task {task} -o {tmp}/out",
        3,
        ("is a directory", "Name a file in it: last.safetensors"),
        files={"sub/last.safetensors": tensors()},
        at="{tmp}/sub",
    ),
    Use(
        "checkpoint-and-series",
        "hessian {tmp}/sub --task {task} -o {tmp}/out",
        2,
        ("model.safetensors and a series (step_1.safetensors)", "sub/step_*.safetensors"),
        files={"sub/model.safetensors": tensors(), "sub/step_1.safetensors": tensors()},
    ),
    Use(
        "inspect-series",
        "inspect {tmp}/sub",
        2,
        ("matches 2 checkpoints", "inspect takes one", "Name one:", "sub/step_1.safetensors"),
        files={"sub/step_2.safetensors": tensors(), "sub/step_1.safetensors": tensors()},
    ),
    checkpoint("checkpoint-empty", "empty.safetensors", "", 3, "is empty (0 bytes)"),
    checkpoint("safetensors-truncated", "cut.safetensors", truncated, 3, "cut.safetensors"),
    checkpoint("text-as-pt", "text.pt", "<html>404 Not found</html>", 3, "plain text"),
    checkpoint("pickle-malicious", "bad.pt", malicious, 3, "mkdir", "--unsafe-pickle"),
    checkpoint("pickle-malicious-legacy", "old.pt", malicious_legacy, 3, "mkdir"),
    checkpoint(
        "architecture-wrong",
        "other.safetensors",
        tensors(shapes={"0.weight": (5, 3), "0.bias": (5,), "2.weight": (2, 5), "2.bias": (2,)}),
        3,
        "does not fit the model",
        "0.weight",
    ),
    checkpoint("keys-missing", "less.safetensors", tensors(without="2.bias"), 3, "2.bias"),
    checkpoint("keys-unexpected", "more.safetensors", tensors(extra="head"), 3, "head"),
    checkpoint(
        "weights-nan", "nan.safetensors", tensors(value=float("nan")), 4, "1 NaN", "2.weight"
    ),
    checkpoint("weights-inf", "inf.safetensors", tensors(value=float("inf")), 4, "1 infinite"),
    Use(
        "weights-key-absent",
        "{measure} --weights-key ema",
        3,
        ("--weights-key ema", "absent"),
        at="{ckpt}",
    ),
    Use(
        "convert-ending",
        "convert {ckpt} {tmp}/out.pt",
        2,
        ("out.pt", "ends in .safetensors"),
        at="{ckpt}",
    ),
    Use("convert-onto-itself", "convert {ckpt} {ckpt}", 2, ("the checkpoint itself",), at="{ckpt}"),
    Use(
        "convert-no-folder",
        "convert {ckpt} {tmp}/none/out.safetensors",
        2,
        ("none/out.safetensors", "cannot be written"),
        at="{ckpt}",
    ),
    Use("convert-missing", "convert {tmp}/none.pt {tmp}/out.safetensors", 2, ("no checkpoint",)),
    Use(
        "convert-key",
        "convert {ckpt} {tmp}/out.safetensors --weights-key ema",
        3,
        ("--weights-key ema", "absent"),
        at="{ckpt}",
    ),
    Use("init-task-ending", "init-task {ckpt} -o {tmp}/task.txt", 2, ("ends in .py",), at="{ckpt}"),
    Use(
        "init-task-exists", "init-task {ckpt} -o {task}", 2, ("exists", "--overwrite"), at="{ckpt}"
    ),
    Use(
        "init-task-malicious",
        "init-task {tmp}/bad.pt -o {tmp}/new.py",
        3,
        ("mkdir",),
        files={"bad.pt": malicious},
        at="{tmp}/bad.pt",
    ),
    Use("inspect-missing", "inspect {tmp}/none.pt", 2, ("no checkpoint", "none.pt")),
    Use(
        "inspect-malicious",
        "inspect {tmp}/bad.pt",
        3,
        ("mkdir",),
        files={"bad.pt": malicious},
        at="{tmp}/bad.pt",
    ),
    Use(
        "inspect-several",
        "inspect {tmp}/*.safetensors",
        2,
        ("matches 2 checkpoints", "takes one"),
        files={"b.safetensors": tensors()},
    ),
    # Tasks.
    Use("task-absent", "hessian {ckpt}", 2, ("Missing option", "--task")),
    option("task-unknown", "--task digit-mlp", 2, "unknown built-in task", "digits-mlp"),
    option("task-file-missing", "--task {tmp}/none.py", 2, "none.py", "does not exist"),
    option("task-folder", "--task {tmp}/", 2, "not a file"),
    option("task-module-missing", "--task no.such_module", 2, "no module named 'no'"),
    option("task-not-python", "--task {ckpt}", 2, "not a Python file"),
    option("task-attribute-missing", "--task {task}:bulid", 2, "'bulid'", "build", "network"),
    text_use(
        "task-import-error", 3, ("failed to import", "ZeroDivisionError", "line 2"), "\n1 / 0"
    ),
    text_use("task-syntax-error", 3, ("SyntaxError", "line 3"), "\n\ndef build(:\n"),
    text_use(
        "task-package-missing",
        3,
        ("ModuleNotFoundError", "no_such_package"),
        "import no_such_package",
    ),
    text_use("task-sys-exit", 3, ("failed to import", "SystemExit"), "import sys\nsys.exit(0)"),
    text_use("task-not-utf8", 3, ("failed to import", "SyntaxError"), b"x = '\xff'\n"),
    text_use(
        "builder-raises",
        3,
        ("builder raised", "no data here", "line 4"),
        IMPORTS + "def build():\n    raise RuntimeError('no data here')",
    ),
    text_use(
        "builder-exits",
        3,
        ("builder raised", "SystemExit"),
        "def build():\n    raise SystemExit(0)",
    ),
    text_use("builder-wrong-type", 3, ("returned a dict", "Task"), "def build():\n    return {}"),
    text_use("builder-forgets-return", 3, ("returned a NoneType",), "def build():\n    pass"),
    text_use("builder-not-callable", 3, ("is a int", "function"), "build = 3"),
    text_use(
        "builder-needs-argument",
        2,
        ("missing a required argument", "width", "--set accepts: width"),
        "def build(width):\n    pass",
    ),
    text_use(
        "builder-wrong-argument-of-task",
        3,
        ("builder raised", "datasets"),
        IMPORTS + "def build():\n    return Task(model=None, datasets=(), criterion='mse')",
    ),
    text_use(
        "model-not-module",
        3,
        ("model is a Tensor", "torch.nn.Module"),
        IMPORTS + "def build():\n    return Task(model=torch.ones(1), data=(), criterion='mse')",
    ),
    option("set-without-equals", "--set width", 2, "--set 'width'", "key=value"),
    option("set-unknown", "--set width=3", 2, "unexpected", "width", "--set accepts: unused=1"),
    option("set-twice", "--set unused=3 --set unused=4", 2, "--set unused", "twice"),
    task_use(
        "criterion-unknown", 3, ("'entropy'", "cross_entropy"), at=None, criterion="'entropy'"
    ),
    task_use("criterion-module", 3, ("MSELoss", "targets"), at=None, criterion="nn.MSELoss()"),
    task_use(
        "criterion-vector",
        3,
        ("returned (12,)", "scalar"),
        criterion="lambda o, b: F.cross_entropy(o, b[1], reduction='none')",
    ),
    task_use("criterion-raises", 3, ("criterion", "KeyError"), criterion="lambda o, b: {}['x']"),
    task_use("loss-nan", 4, ("loss is nan", "micro-batch 1 of 1"), criterion=NAN_CRITERION),
    task_use("forward-tuple", 3, ("returned a tuple", "tensor"), more="forward=lambda m, b: (1,)"),
    task_use("forward-raises", 3, ("forward pass", "IndexError"), more="forward=lambda m, b: b[7]"),
    task_use(
        "forward-detached",
        3,
        ("does not depend on the parameters",),
        more="forward=lambda m, b: m(b[0]).detach()",
    ),
    task_use("inputs-wrong-width", 3, ("forward pass", "shapes"), data="(INPUTS[:, :2], LABELS)"),
    task_use("targets-shape", 3, ("cross_entropy", "(12, 2)", "(12, 3)"), data="(INPUTS, INPUTS)"),
    task_use("targets-float", 3, ("floating point", "class"), data="(INPUTS, INPUTS[:, 0])"),
    task_use(
        "targets-out-of-range", 3, ("criterion", "out of bounds"), data="(INPUTS, LABELS + 5)"
    ),
    task_use("targets-absent", 3, ("without a second tensor",), data="(INPUTS,)"),
    task_use("targets-ignored", 3, ("every target is ignored",), data="(INPUTS, LABELS * 0 - 100)"),
    task_use("examples-none", 3, ("zero examples",), at=None, data="(INPUTS[:0], LABELS[:0])"),
    task_use("batches-none", 3, ("zero examples",), at=None, data="[]"),
    task_use("tensors-unequal", 3, ("(12,), (5,)",), at=None, data="(INPUTS, LABELS[:5])"),
    task_use("data-number", 3, ("data are a int",), at=None, data="3"),
    task_use("data-stream", 3, ("IterableDataset",), at=None, extra=STREAM, data="Stream()"),
    task_use(
        "data-generator",
        3,
        ("data are a generator",),
        at=None,
        data="(x for x in [(INPUTS, LABELS)])",
    ),
    task_use("data-raise", 3, ("disk is on fire",), at=None, extra=BROKEN_ROWS, data="Rows()"),
    task_use(
        "data-shuffled",
        3,
        ("shuffles", "shuffle=False"),
        at=None,
        data="DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5, shuffle=True)",
    ),
    task_use("loss-random", 3, ("not deterministic", "dropout"), more=NOISY),
    Use(
        "check-random",
        "check {ckpt} --task {tmp}/wrong.py",
        3,
        ("not deterministic",),
        task={"more": NOISY},
        at="{ckpt}",
    ),
    task_use(
        "parameters-frozen",
        3,
        ("no trainable parameters (26 of any kind)", "requires_grad=True", "Unfreeze some"),
        model="network().requires_grad_(False)",
    ),
    task_use(
        "parameters-none",
        3,
        ("no trainable parameters (0 of any kind)", "Give it its layers"),
        model="nn.Identity()",
    ),
    Use(
        "divergence-undefined",
        "hessian {ckpt} --task {tmp}/wrong.py -o {tmp}/out --loss behaviour",
        2,
        ("no divergence", "--loss task"),
        task={"criterion": "lambda outputs, batch: F.cross_entropy(outputs, batch[1])"},
    ),
    # Options.
    option("top-negative", "--top -1", 2, "--top -1"),
    option("top-too-large", "--top 27", 2, "--top 27", "n = 26"),
    option("top-and-bottom", "--top 20 --bottom 20", 2, "asks for 40", "n = 26"),
    option("top-not-a-number", "--top ten", 2, "--top", "'ten'", "integer"),
    option("bottom-negative", "--bottom -2", 2, "--bottom -2"),
    option("steps-zero", "--steps 0", 2, "--steps 0", "at least 1"),
    option("probes-zero", "--probes 0", 2, "--probes 0", "at least 1"),
    option("tol-zero", "--tol 0", 2, "--tol 0", "between 0 and 1"),
    option("tol-nan", "--tol nan", 2, "--tol nan"),
    option("dtype-unknown", "--dtype float16x", 2, "--dtype 'float16x'", "float64"),
    option("loss-unknown", "--loss test", 2, "--loss 'test'", "behaviour"),
    option("method-unknown", "--method power", 2, "--method 'power'", "lanczos"),
    option("operator-unknown", "--operator jacobian", 2, "'jacobian'", "ggn"),
    option("device-absent", "--device cuda:7", 2, "--device cuda:7", "CUDA"),
    option("device-unknown", "--device gpu", 2, "'gpu'", "cpu"),
    option("device-unsupported", "--device meta", 2, "'meta'", "cpu"),
    option("params-unmatched", "--params 'O.*'", 2, "--params", "O.*", "0.weight"),
    option("examples-zero", "--examples 0", 2, "--examples 0", "positive"),
    option("batch-size-zero", "--batch-size 0", 2, "--batch-size 0", "positive"),
    option("graph-memory-negative", "--graph-memory -1", 2, "--graph-memory -1"),
    option("graph-memory-nan", "--graph-memory nan", 2, "--graph-memory nan"),
    option("graph-memory-inf", "--graph-memory inf", 2, "--graph-memory inf"),
    option("seed-huge", f"--seed {10**400}", 2, "--seed"),
    option("data-seed-huge", f"--data-seed {10**20}", 2, "--data-seed", "64 bits"),
    option("option-unknown", "--topp 3", 2, "No such option", "--top"),
    Use("command-unknown", "hesian {ckpt}", 2, ("No such command", "'hessian'? See:")),
    Use("arguments-absent", "hessian --task {task}", 2, ("Missing argument", "CKPT")),
    # Output and result files.
    Use(
        "output-unwritable",
        "hessian {ckpt} --task {task} -o {ckpt}/out",
        2,
        ("cannot write", "--out"),
    ),
    Use("output-is-a-file", "hessian {ckpt} --task {task} -o {ckpt}", 2, ("cannot write", "--out")),
    Use("figure-ending", "{measure} --plot {tmp}/figure.bmp", 2, (".bmp", ".png, .pdf, .svg")),
    Use("show-missing", "show {tmp}/none.h5", 2, ("none.h5", "does not exist")),
    Use("show-folder", "show {tmp}", 2, ("is a folder", "Name its result files", "*.h5")),
    Use("show-checkpoint", "show {ckpt}", 2, ("is not HDF5", "Name a .h5 file of landscape")),
    Use("show-damaged", "show {tmp}/a.h5", 2, ("is not HDF5", "Delete it"), files={"a.h5": "cut"}),
    Use("show-foreign", "show {tmp}/f.h5", 2, ("not a result of",), files={"f.h5": hdf5()}),
    Use(
        "show-other-schema",
        "show {tmp}/f.h5",
        2,
        ("landscape/99", "landscape/1"),
        files={"f.h5": hdf5(schema="landscape/99")},
    ),
    Use(
        "show-partial",
        "show {tmp}/f.h5",
        2,
        ("f.h5", "missing"),
        files={"f.h5": hdf5(schema="landscape/1")},
    ),
    Use("plot-foreign", "plot {tmp}/f.h5", 2, ("not a result of",), files={"f.h5": hdf5()}),
    Use("plot-ending", "plot {tmp}/f.h5 -o {tmp}/f.gif", 2, (".gif", ".png, .pdf, .svg")),
    # Configuration files.
    option("config-missing", "--config {tmp}/none.toml", 2, "--config", "none.toml"),
    option("config-folder", "--config {tmp}", 2, "--config", "cannot be read"),
    Use(
        "config-not-toml",
        "{measure} --config {tmp}/c.toml",
        2,
        ("c.toml", "not TOML", "line 1"),
        files={"c.toml": "top: 3"},
    ),
    Use(
        "config-unknown-key",
        "{measure} --config {tmp}/c.toml",
        2,
        ("unknown option 'topp'", "top"),
        files={"c.toml": "topp = 3"},
    ),
    Use(
        "config-wrong-type",
        "{measure} --config {tmp}/c.toml",
        2,
        ("--top", "'many'"),
        files={"c.toml": "top = 'many'"},
    ),
    Use(
        "config-unsafe-pickle",
        "{measure} --config {tmp}/c.toml",
        2,
        ("unsafe-pickle", "command line"),
        files={"c.toml": "unsafe-pickle = true"},
    ),
    Use(
        "config-section-not-a-table",
        "{measure} --config {tmp}/c.toml",
        2,
        ("c.toml", "hessian", "table"),
        files={"c.toml": "hessian = 3"},
    ),
    Use(
        "config-section-unknown",
        "{measure} --config {tmp}/c.toml",
        2,
        ("[hesian]", "hessian"),
        files={"c.toml": "[hesian]\ntop = 3"},
    ),
    # Training.
    Use("train-unknown", "train digit-mlp -o {tmp}/runs", 2, ("'digit-mlp'", "digits-mlp")),
    Use("train-steps", "train digits-mlp -o {tmp}/runs --steps -1", 2, ("steps", "-1")),
    Use("train-checkpoints", "train digits-mlp -o {tmp}/runs --checkpoints 0", 2, ("checkpoints",)),
    Use("train-device", "train digits-mlp -o {tmp}/runs --device gpu", 2, ("'gpu'", "cpu")),
    Use("train-set", "train digits-mlp -o {tmp}/runs --set depht=2", 2, ("depht", "depth")),
    Use("train-output", "train digits-mlp -o {ckpt}/runs --steps 1", 2, ("runs",)),
    Use("train-without-output", "train digits-mlp", 2, ("--out",)),
    # Information.
    Use("information-tol", f"{INFORMATION} --tol 2", 2, ("--tol 2.0", "between 0 and 1")),
    Use("information-method", f"{INFORMATION} --method dense", 2, ("'dense'", "exact")),
    Use("information-probes", f"{INFORMATION} --probes 1", 2, ("--probes 1", "at least 2")),
    Use("information-steps", f"{INFORMATION} --steps -1", 2, ("--steps -1", "from 0")),
    Use("information-dtype", f"{INFORMATION} --dtype bfloat16", 2, ("bfloat16", "float64")),
    Use("information-plot", f"{INFORMATION} --plot {{tmp}}/a.gif", 2, (".gif", ".png")),
    Use(
        "information-single-checkpoint-against",
        f"{INFORMATION} --against {{tmp}}/none.h5",
        2,
        ("1 checkpoint:", "at least 4", "glob"),
    ),
    Use(
        "information-outputs-of-others",
        "information {ckpt} --task {tmp}/wrong.py -o {tmp}/out",
        2,
        ("one by one", "forward function"),
        task={
            "more": "forward=lambda model, batch: model(batch[0])[1:]",
            "criterion": "lambda outputs, batch: outputs.square().mean()",
        },
    ),
    Use(
        "information-parameters",
        f"{INFORMATION} --params nothing",
        2,
        ("'nothing'", "nearest names"),
    ),
]


def test_the_table_is_long_and_without_repeats():
    assert len(USES) >= 55
    assert len({use.name for use in USES}) == len(USES)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_wrong_use(use: Use, tiny, cli, texts, draw):
    def fill(text: str) -> str:
        return text.format(
            tmp=tiny.folder,
            task=tiny.task,
            ckpt=tiny.checkpoint,
            measure=f"hessian {tiny.checkpoint} --task {tiny.task} -o {tiny.folder / 'out'}",
        )

    for name, content in use.files.items():
        path = tiny.folder / name
        path.parent.mkdir(exist_ok=True)
        if callable(content):
            content(path, draw)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if use.task is not None:
        (tiny.folder / "wrong.py").write_text(texts(**use.task))
    # `{measure}` before formatting, so that its own places are filled too.
    line = use.line.replace("{measure}", "hessian {ckpt} --task {task} -o {tmp}/out")
    arguments = [fill(argument).strip("'") for argument in line.split()]

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
