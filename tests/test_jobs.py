"""Work lists: what a unit is, and what its folder says about it."""

from __future__ import annotations

import pytest

from landscape.errors import UsageError
from landscape.jobs import work_list
from landscape.sweep_file import OptionSpec, read_sweep

VALUE = OptionSpec(flag=False, negation=None, repeatable=False)
SEVERAL = OptionSpec(flag=False, negation=None, repeatable=True)
FLAG = OptionSpec(flag=True, negation="--no-density", repeatable=False)
OPTIONS = {"top": VALUE, "operator": SEVERAL, "density": FLAG, "sigma": VALUE}
KNOWN = {"hessian": OPTIONS, "volume": OPTIONS, "flat": OPTIONS}


@pytest.fixture
def units(tmp_path):
    """The work list of a sweep file over two checkpoints."""
    (tmp_path / "task.py").write_text("")
    for step in (2, 10):
        (tmp_path / f"step_{step}.pt").write_bytes(bytes([step]))

    def listed(runs: str, task: str = "task.py"):
        file = tmp_path / "sweep.toml"
        file.write_text(f"checkpoints = ['*.pt']\ntask = '{task}'\nset = {{w = '3'}}\n{runs}")
        return work_list(read_sweep(file, KNOWN))

    return listed


def test_options_are_multiplied_over_their_lists(units):
    found = units(
        "[[runs]]\ncommand = 'hessian'\ntop = [1, 2]\ndensity = [true, false]\n"
        "operator = [['ggn', 'hessian']]"
    )
    assert len(found) == 8
    assert [unit.checkpoint.name for unit in found[::4]] == ["step_2.pt", "step_10.pt"]
    expected = ("--top=1", "--no-density", "--operator=ggn", "--operator=hessian")
    assert found[1].run.arguments == expected
    assert '--set=w="3"' in found[1].arguments
    assert len({unit.folder for unit in found}) == 8


@pytest.mark.parametrize("task", ["task.py", "task.py:other"])
def test_other_contents_are_another_unit(units, tmp_path, task):
    def folders():
        return [unit.folder for unit in units("[[runs]]\ncommand = 'hessian'", task)]

    before = folders()
    assert folders() == before
    (tmp_path / "step_2.pt").write_bytes(b"other")
    checkpoint = folders()
    assert checkpoint[0] != before[0]
    assert checkpoint[1] == before[1]
    (tmp_path / "task.py").write_text("other = 1")
    assert not set(folders()) & set(checkpoint)


def test_the_folder_is_the_truth(units):
    unit = units("[[runs]]\ncommand = 'hessian'")[0]
    assert unit.state == "not started"
    unit.folder.mkdir(parents=True)
    (unit.folder / "a.h5.partial").touch()
    assert unit.state == "partial"
    for code in (143, 130, -15):
        unit.exit_file.write_text(f"{code}\n")
        assert unit.state == "partial"
    for code in (3, -9, 0):
        unit.exit_file.write_text(f"{code}\n")
        assert unit.state == "failed"
    (unit.folder / "a.h5").touch()
    assert unit.state == "complete"


@pytest.mark.parametrize(
    ("runs", "seen"),
    [
        ("", "runs: no such key"),
        ("nonsense = 1\n[[runs]]\ncommand = 'hessian'", "nonsense: an unknown key"),
        ("[[runs]]\ncommand = 'train'", "runs 1: command: 'train'"),
        ("[[runs]]\ncommand = 'hessian'\nout = 'x'", "runs 1: out: no option"),
        ("[[runs]]\ncommand = 'hessian'\ntpo = 3", "runs 1: tpo: no option"),
        ("[[runs]]\ncommand = 'hessian'\ntop = []", "runs 1: top: an empty list"),
        ("[[runs]]\ncommand = 'hessian'\ntop = [[1, 2]]", "runs 1: top: [1, 2]"),
        ("[[runs]]\ncommand = 'hessian'\ndensity = 'no'", "runs 1: density: 'no'"),
        ("[[runs]]\ncommand = 'volume'", "runs 1: sigma: 'rms'"),
        ("[[runs", "not readable as TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(units, runs, seen):
    with pytest.raises(UsageError, match=r"sweep\.toml: ") as error:
        units(runs)
    assert seen in str(error.value)
    assert "expected" in str(error.value) or "TOML" in str(error.value)


def test_no_checkpoint_is_refused(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text("checkpoints = ['none*.pt']\ntask = 't'\n[[runs]]\ncommand = 'hessian'")
    with pytest.raises(UsageError, match=r"sweep\.toml: checkpoints: no checkpoint"):
        read_sweep(file, KNOWN)
