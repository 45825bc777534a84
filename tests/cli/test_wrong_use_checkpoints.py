"""Wrong checkpoints end with their exit codes and one message that names the cause."""

from __future__ import annotations

import pytest
from wrong_uses import (
    MEASURE,
    Use,
    assert_refused,
    checkpoint,
    malicious,
    malicious_legacy,
    tensors,
    truncated,
)

USES = [
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
        f"{MEASURE} --weights-key ema",
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
]


def test_no_name_is_there_twice():
    assert len({use.name for use in USES}) == len(USES)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_wrong_use(use, tiny, cli, texts, draw):
    assert_refused(use, tiny, cli, texts, draw)
