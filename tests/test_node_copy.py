"""A checkpoint is read once per node, and its processes share the tensors."""

from __future__ import annotations

import pickle
import subprocess

import launching
import node_job
import pytest

from landscape.distributed import ALONE
from landscape.node_copy import read_once


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What two processes tell."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "tmp").mkdir()
    done = subprocess.run(
        launching.torchrun(2, node_job.__file__, folder),
        capture_output=True,
        text=True,
        timeout=200,
        env=launching.one_thread(),
    )
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def test_one_process_of_a_node_reads(told):
    # Once where the copy is seen, and for itself where it could not be written.
    assert [each["reads"] for each in told] == [2, 1]


def test_both_have_all_of_it(told):
    expected = node_job.checkpoint()
    for each in told:
        for found in (each["found"], each["alone"]):
            assert (found.sha256, found.step, found.metadata) == ("abc", 5, {"epoch": "3"})
            assert found.tensors.keys() == expected.tensors.keys()
            for name, tensor in expected.tensors.items():
                assert found.tensors[name].dtype == tensor.dtype
                if name not in ("a", "tied", "transposed"):
                    assert found.tensors[name].equal(tensor)
        assert each["alone"].tensors["a"].equal(expected.tensors["a"])
        assert each["found"].tensors["tied"].equal(each["found"].tensors["a"])


def test_the_tensors_are_mapped_and_private_and_the_file_is_gone(told):
    assert [each["mapped"] for each in told] == [True, True]
    assert [each["first"] for each in told] == [0.0, 1.0]
    assert [each["left"] for each in told] == [[], []]


def test_an_error_of_the_one_that_reads_is_one_of_all(told):
    assert [each["message"] for each in told] == [
        "this file is broken",
        "process 1: this file is broken",
    ]


def test_one_process_reads_for_itself():
    own = node_job.checkpoint()
    assert read_once(ALONE, lambda: own) is own
