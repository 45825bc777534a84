"""What is said about a checkpoint's tensors."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_files import in_memory, save

from landscape.checkpoint import read_checkpoint
from landscape.summary import summarise


def test_summary(tmp_path):
    state = {
        "b.10": torch.tensor([3.0, 4.0]),
        "b.9": torch.tensor([[12.0]], dtype=torch.float64),
        "n": torch.tensor(7),
        "bad": torch.tensor([math.nan, math.inf, 1.0], dtype=torch.bfloat16),
        "none": torch.zeros(0, 2),
    }
    checkpoint = read_checkpoint(save(tmp_path / "step_5.pt", {"model": state, "epoch": 1}))
    summary = summarise(checkpoint)
    assert [row.name for row in summary.tensors] == ["b.9", "b.10", "bad", "n", "none"]
    rows = {row.name: row for row in summary.tensors}
    assert rows["b.10"].norm == 5
    assert rows["b.9"].shape == (1, 1)
    assert rows["n"].dtype == "int64"
    assert rows["n"].shape == ()
    assert (rows["bad"].nan, rows["bad"].inf, rows["bad"].size) == (1, 1, 3)
    assert (summary.nan, summary.inf) == (1, 1)
    assert summary.n_parameters == 6
    assert summary.n_bytes == 8 + 8 + 8 + 6
    assert summary.step == 5
    assert summary.sha256 == checkpoint.sha256
    assert summary.metadata == {"epoch": "1"}
    assert summary.weights_key == "model"
    assert len(summary.warnings) == 3
    del state["bad"]
    assert summarise(in_memory(state)).norm == 13


def test_norms_in_float64_over_many_elements():
    value = torch.full((5_000_000,), 1e-3)
    exact = float(np.float32(1e-3)) * math.sqrt(5e6)
    assert summarise(in_memory({"w": value})).norm == pytest.approx(exact, rel=1e-13)


def test_no_terminal_or_plotting_library_is_imported():
    code = (
        "import sys, landscape.checkpoint; "
        "print([m for m in ('typer', 'rich', 'h5py', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
