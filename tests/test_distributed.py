"""Several processes give the numbers of one, and fail and resume as one."""

from __future__ import annotations

import datetime
import pickle
import subprocess

import launching
import numpy as np
import pytest
import ranks_job
import torch

from landscape import distributed
from landscape.coordinates import Coordinates
from landscape.data import materialise, shard
from landscape.distributed import ALONE
from landscape.errors import RankError, UsageError
from landscape.launch import Launch, launched
from landscape.led import led


@pytest.fixture(scope="module")
def alone():
    """The measurements of one process."""
    return ranks_job.measured(ALONE)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request, tmp_path_factory):
    """The measurements of several processes, and what each of them found."""
    out = tmp_path_factory.mktemp("ranks") / "found.pickle"
    # Chains exchange some thousand times, which takes long where processes share a core.
    without = ["anneal"] if request.param == 2 else []
    done = subprocess.run(
        launching.torchrun(request.param, ranks_job.__file__, out, *without),
        capture_output=True,
        text=True,
        timeout=300,
        env=launching.one_thread(),
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads(out.read_bytes())


@pytest.mark.parametrize("name", [n for n in ranks_job.MEASUREMENTS if n != "poisoned"])
def test_the_numbers_are_those_of_one_process(alone, together, name):
    tolerance = 1e-6 if "float32" in name else 1e-12
    if name in ("radial", "anneal"):
        tolerance = 1e-9  # Radii are found, and chains accept, by comparing rounded numbers.
    found, _ = together
    if name not in found:
        assert name == "anneal"
        return
    for key, expected in alone[name].items():
        scale = max(float(np.abs(expected).max()), 1e-300)
        if "vectors" in key:
            scale *= 1e5  # An eigenvector moves by rounding over the gap.
        error = float(np.abs(found[name][key] - expected).max())
        assert error <= tolerance * scale, (name, key, error / scale)


def test_all_processes_have_the_same_bits(together):
    _, (first, *others) = together
    for other in others:
        for name, found in first.items():
            for key, value in found.items():
                if key == "message":
                    continue  # It says whose it is.
                np.testing.assert_array_equal(np.asarray(value), np.asarray(other[name][key]))


def test_an_error_of_one_process_is_an_error_of_all(alone, together):
    found, everyone = together
    assert "this example is broken" in alone["poisoned"]["message"]
    for number, each in enumerate([found, *everyone]):
        assert "this example is broken" in each["poisoned"]["message"], number
        assert each["poisoned"]["code"] == 3
    # The processes that have no broken example say whose message it is.
    assert everyone[0]["poisoned"]["message"].startswith(f"process {len(everyone)}: ")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_shards_are_disjoint_and_whole(size):
    whole = torch.arange(20).reshape(10, 2)
    data = materialise([(whole[:4],), (whole[4:],)])
    parts = [shard(data, rank, size) for rank in range(size)]
    rows = [row for part in parts for batch in part.batches for row in batch[0].tolist()]
    assert rows == whole.tolist()
    counts = [part.n_examples for part in parts]
    assert sum(counts) == 10
    assert max(counts) - min(counts) <= 1


def test_one_process_exchanges_nothing():
    rows = torch.randn(3, 4)
    x = Coordinates(4)
    assert x.own(rows) is rows
    assert x.whole(rows) is rows
    assert x.length == x.burden == 4
    assert led(ALONE, lambda z: (2 * z,), lambda e: e(rows)[0], like=rows).equal(2 * rows)
    with pytest.raises(ValueError, match="mine"), ALONE.unanimous():
        raise ValueError("mine")


# The environment ---------------------------------------------------------------------------------

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NNODES": "3",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "1",
    "MASTER_ADDR": "node1",
}


def test_torchrun_is_recognised():
    assert launched(TORCHRUN) == Launch(
        rank=3, size=4, local_rank=1, local_size=2, address="node1", port=29500
    )


def test_srun_is_recognised():
    assert launched(SRUN) == Launch(
        rank=4, size=5, local_rank=0, local_size=1, address="node1", port=20120
    )
    first = launched({**SRUN, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert first.local_size == 2
    assert first.port == 20120


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        # A batch script of a job of many tasks, and one started by hand inside an allocation.
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},
    ],
)
def test_one_process_is_alone(environment):
    assert launched(environment) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_a_wrong_environment_is_said(change, message):
    with pytest.raises(UsageError, match=message):
        launched({**TORCHRUN, **change})


def test_a_launch_without_an_address_is_said():
    with pytest.raises(UsageError, match="MASTER_ADDR and MASTER_PORT are not set"):
        launched({"RANK": "0", "WORLD_SIZE": "2"})


def test_a_host_that_cannot_be_told_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    srun = {k: v for k, v in SRUN.items() if k != "MASTER_ADDR"}
    with pytest.raises(UsageError, match="set MASTER_ADDR"):
        launched(srun)
    assert launched({**srun, "SLURM_NNODES": "1"}).address == "127.0.0.1"


def test_processes_that_do_not_meet_say_where_they_waited(monkeypatch):
    monkeypatch.setattr(distributed, "_MEETING", datetime.timedelta(seconds=1))
    second = Launch(rank=1, size=2, local_rank=1, local_size=2, address="127.0.0.1", port=9)
    with pytest.raises(RankError, match=r"process 2 of 2 .* 127\.0\.0\.1:9: .*MASTER_ADDR"):
        distributed.join(second)


def test_a_lost_process_has_an_exit_code_of_its_own():
    assert RankError("x").exit_code == 6
