"""Random SIGKILLs: every file opens, and the resumed run equals the uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
CASES = ("hessian lanczos", "hessian exact", "volume quadratic", "volume radial", "volume anneal")
FAST = ("flat", "compare", "slice", "information", "modules")


@pytest.fixture
def campaign(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import kill_campaign

    return kill_campaign


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *FAST, "batch run"])
def test_killed_runs_resume_to_the_same_numbers(tmp_path, case):
    command = [sys.executable, str(FOLDER / "kill_campaign.py"), "--kills", "8", "--cases", case]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "kill_campaign.json").read_text())["cases"]
    assert found["case"] == case
    assert found["kills"] == 8
    assert found["finished"] >= 1
    assert found["runs"] >= 9


def test_what_differs_between_results_is_seen(tmp_path, campaign):
    def written(name, values, **attributes):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("group/values", data=values)
            file.attrs["started"] = name  # When it was made does not matter.
            file["group"].attrs.update(attributes)
        return campaign.contents(tmp_path / name)

    first = written("a.h5", [1.0, float("nan")], steps=3)
    assert campaign.difference(first, written("b.h5", [1.0, float("nan")], steps=3)) is None
    for other, where in (
        (written("c.h5", [1.0 + 1e-16 * 3, float("nan")], steps=3), "group/values"),
        (written("d.h5", [1.0, float("nan")], steps=4), "group@steps"),
        (written("e.h5", [1.0, float("nan")]), "group@steps is in one of them only"),
    ):
        assert where in campaign.difference(other, first)
