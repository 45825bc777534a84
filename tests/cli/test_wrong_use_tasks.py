"""Wrong tasks end with their exit codes and one message that names the cause."""

from __future__ import annotations

import pytest
from wrong_uses import IMPORTS, Use, assert_refused, option, task_use, text_use

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

USES = [
    Use("task-absent", "hessian {ckpt}", 2, ("Missing option", "--task")),
    option("task-unknown", "--task digit-mlp", 2, "unknown built-in task", "digits-mlp"),
    option(
        "task-file-missing", "--task {tmp}/none.py", 2, "none.py", "does not exist", "init-task"
    ),
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
    option("set-unknown", "--set width=3", 2, "unknown", "width", "--set accepts: unused=1"),
    option("set-near", "--set unusd=3", 2, "'unusd'", "Did you mean 'unused'?"),
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
]


def test_no_name_is_there_twice():
    assert len({use.name for use in USES}) == len(USES)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_wrong_use(use, tiny, cli, texts, draw):
    assert_refused(use, tiny, cli, texts, draw)
