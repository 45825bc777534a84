"""Work lists: what a unit is, and what its folder says about it."""

from __future__ import annotations

import pytest

from landscape.errors import UsageError
from landscape.jobs import work_list
from landscape.resources import Resources, read_resources
from landscape.sweep_file import OptionSpec, read_sweep

VALUE = OptionSpec(flag=False, negation=None, repeatable=False)
SEVERAL = OptionSpec(flag=False, negation=None, repeatable=True)
FLAG = OptionSpec(flag=True, negation="--no-density", repeatable=False)
OPTIONS = {"top": VALUE, "operator": SEVERAL, "density": FLAG}
PRIOR = {"sigma": VALUE, "cutoff": VALUE}
KNOWN = {"hessian": OPTIONS, "volume": PRIOR, "flat": PRIOR, "modules": PRIOR, "slice": OPTIONS}


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
        ("[[runs]]\ncommand = 'modules'", "runs 1: sigma: 'rms'"),
        ("[[runs", "not readable as TOML"),
        ("resources = 3", "resources: 3"),
        ("[resources]\ntiem = 3", "resources: tiem: an unknown key"),
        ("[resources]\ntime = '1 hour'", "resources: time: '1 hour'"),
        ("[resources]\ntime = 0", "resources: time: 0"),
        ("[resources]\ntime = '0:0'", "resources: time: '0:0'"),
        ("[resources]\nmemory = 16", "resources: memory: 16"),
        ("[resources]\nmemory = 'much'", "resources: memory: 'much'"),
        ("[resources]\ncpus = 0", "resources: cpus: 0"),
        ("[resources]\ncpus = true", "resources: cpus: True"),
        ("[resources]\ngpus = -1", "resources: gpus: -1"),
        ("[resources]\npartition = 'a b'", "resources: partition: 'a b'"),
        ("[resources]\naccount = 3", "resources: account: 3"),
        ("[resources]\narray_parallelism = 0", "resources: array_parallelism: 0"),
        ("[resources]\nsetup = 'module load cuda'", "resources: setup: 'module load cuda'"),
        ("[resources]\nparameters = 3", "resources: parameters: 3"),
        ("[resources.parameters]\ntime = 3", "resources: parameters: time: an option that"),
        ("[resources.parameters]\n'--qos' = 'high'", "resources: parameters: --qos: '--qos'"),
        ("[resources.parameters]\nexclusive = false", "resources: parameters: exclusive: False"),
        ("[resources.parameters]\nmail = ['a']", "resources: parameters: mail: ['a']"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(units, runs, seen):
    with pytest.raises(UsageError, match=r"sweep\.toml: ") as error:
        units(runs)
    assert seen in str(error.value)
    assert "expected" in str(error.value) or "TOML" in str(error.value)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("02:30:00", 150), ("1-12", 2160), ("1-0:30", 1470), ("0:0:1", 1)],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert read_resources({"time": text}, UsageError).time == minutes
    assert read_resources({"time": minutes}, UsageError).time == minutes


def test_resources_have_defaults_and_are_read():
    assert read_resources({}, UsageError) == Resources()
    found = read_resources(
        {
            "memory": "16 gb",
            "cpus": 4,
            "gpus": 1,
            "partition": "long",
            "setup": ["module load cuda"],
            "parameters": {"qos": "high", "exclusive": True, "nice": 10},
        },
        UsageError,
    )
    assert (found.memory, found.cpus, found.gpus, found.partition) == ("16G", 4, 1, "long")
    assert found.setup == ("module load cuda",)
    assert found.parameters == {"qos": "high", "exclusive": True, "nice": 10}


def test_no_checkpoint_is_refused(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text("checkpoints = ['none*.pt']\ntask = 't'\n[[runs]]\ncommand = 'hessian'")
    with pytest.raises(UsageError, match=r"sweep\.toml: checkpoints: no checkpoint"):
        read_sweep(file, KNOWN)
