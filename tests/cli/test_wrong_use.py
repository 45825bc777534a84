"""Wrong options, files and trainings end with their exit codes and one clear message."""

from __future__ import annotations

import pytest
from wrong_uses import MEASURE, Use, assert_refused, hdf5, option

INFORMATION = "information {ckpt} --task {task} -o {tmp}/out"

USES = [
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
    Use("figure-ending", f"{MEASURE} --plot {{tmp}}/figure.bmp", 2, (".bmp", ".png, .pdf, .svg")),
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
        f"{MEASURE} --config {{tmp}}/c.toml",
        2,
        ("c.toml", "not TOML", "line 1"),
        files={"c.toml": "top: 3"},
    ),
    Use(
        "config-unknown-key",
        f"{MEASURE} --config {{tmp}}/c.toml",
        2,
        ("unknown option 'topp'", "top"),
        files={"c.toml": "topp = 3"},
    ),
    Use(
        "config-wrong-type",
        f"{MEASURE} --config {{tmp}}/c.toml",
        2,
        ("--top", "'many'"),
        files={"c.toml": "top = 'many'"},
    ),
    Use(
        "config-unsafe-pickle",
        f"{MEASURE} --config {{tmp}}/c.toml",
        2,
        ("unsafe-pickle", "command line"),
        files={"c.toml": "unsafe-pickle = true"},
    ),
    Use(
        "config-section-not-a-table",
        f"{MEASURE} --config {{tmp}}/c.toml",
        2,
        ("c.toml", "hessian", "table"),
        files={"c.toml": "hessian = 3"},
    ),
    Use(
        "config-section-unknown",
        f"{MEASURE} --config {{tmp}}/c.toml",
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


def test_no_name_is_there_twice():
    assert len({use.name for use in USES}) == len(USES)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_wrong_use(use, tiny, cli, texts, draw):
    assert_refused(use, tiny, cli, texts, draw)
