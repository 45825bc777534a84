"""The benchmark of log-volumes runs, and what it has in place of the library's parts is equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from landscape.volume.tilted import symmetric_law, tilted_law

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def problems(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import volume_problems

    return volume_problems


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_quick(tmp_path):
    command = [sys.executable, str(FOLDER / "volume_accuracy.py"), "--quick", "--out"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "volume_accuracy.md")
    text = (tmp_path / "volume_accuracy.json").read_text()
    results = json.loads(text, parse_constant=refuse)
    for problem in results["problems"]:
        (dense,) = problem["methods"]["quadratic, dense"]
        assert abs(dense["value"] - problem["truth"]) < 1e-6
        assert all(abs(gap) < 1e-6 for gap in problem["checks"].values())
    report = (tmp_path / "volume_accuracy.md").read_text()
    assert "| dense path, n = 100: error below 1e-6 nats |" in report
    assert "## Networks" in report
    assert "(volume_accuracy.png)" in report
    assert (tmp_path / "volume_accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["power law", "90% zero"])
def test_truths_by_other_roads(problems, name):
    problem = problems.Quadratic(name=name, n=300)
    checks = problem.checks()
    assert set(checks) == ({"log_cdf"} if name == "power law" else {"log_cdf", "mixture", "scipy"})
    assert all(abs(gap) < 1e-9 for gap in checks.values())


def test_the_diagonal_law_is_the_library_s(problems):
    problem = problems.Quadratic(name="power law", n=50)
    rows = torch.eye(50, dtype=torch.float64)
    tilted = tilted_law(problem.anchor, rows, problem.values, scale=problem.tilt, seed=3)
    symmetric = symmetric_law(
        problem.anchor, rows, problem.values, damping=problems.DAMPING, seed=3
    )
    diagonal = problems.DiagonalLaw(1 + problem.tilt * problem.values, problem.anchor, 3)
    damped = (problem.values.sqrt() + problems.DAMPING).square()
    for law, other in (
        (tilted, diagonal),
        (symmetric, problems.DiagonalLaw(damped, torch.zeros_like(damped), 3)),
    ):
        directions = torch.stack([law.sample(i) for i in range(5)])
        torch.testing.assert_close(torch.stack([other.sample(i) for i in range(5)]), directions)
        for method in ("log_density", "typical_radius"):
            found, expected = (getattr(each, method)(directions) for each in (other, law))
            assert found == pytest.approx(expected, rel=1e-10, abs=1e-9)
