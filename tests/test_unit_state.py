"""How far a unit is, from its folder, the queue, and what Slurm wrote into the job's log."""

from __future__ import annotations

import pytest

from landscape.jobs import Unit
from landscape.lock import hold
from landscape.slurm import Record, _write
from landscape.sweep_file import Run
from landscape.unit_state import status_of

BEGIN = "submitit INFO - Starting with JobEnvironment(job_id=7_3)\n"
MEMORY = "slurmstepd: error: StepId=7.0 exceeded memory limit (2 > 1), being killed\n"
KERNEL = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0\n"
LIMIT = (
    "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
)
CANCELLED = "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01 ***\n"
KILLED = "srun: error: n1: task 0: Killed\n"


@pytest.fixture
def unit(tmp_path):
    run = Run(command="hessian", label="hessian", arguments=())
    folder = tmp_path / "unit"
    folder.mkdir()
    return Unit(checkpoint=tmp_path / "a.pt", run=run, arguments=(), folder=folder)


def submitted(unit, log="", **changes):
    logs = unit.folder.parent / "slurm"
    logs.mkdir(exist_ok=True)
    (logs / "7_3_0_log.err").write_text(log)
    _write(unit, Record(job="7_3", logs=str(logs), **changes))


def test_without_slurm_the_folder_is_the_truth(unit):
    def state():
        return status_of(unit, None).state

    assert state() == "not started"
    (unit.folder / "a.h5.partial").touch()
    assert state() == "partial"
    for code in (143, 130, -15, -10, -12):
        unit.exit_file.write_text(f"{code}\n")
        assert state() == "partial"
    for code in (3, -9, 0, -11):
        unit.exit_file.write_text(f"{code}\n")
        assert state() == "failed"
    with hold(unit.lock, "unit"):
        assert state() == "running"
        assert "process" in status_of(unit, None).reason
    (unit.folder / "a.h5").touch()
    assert state() == "complete"


@pytest.mark.parametrize(
    ("code", "reason"), [(3, "exit code 3"), (-11, "SIGSEGV"), (-9, "SIGKILL"), (-64, "SIGRTMAX")]
)
def test_a_failure_says_why(unit, code, reason):
    unit.exit_file.write_text(f"{code}\n")
    assert reason in status_of(unit, None).reason


@pytest.mark.parametrize(
    ("listed", "state"),
    [
        ("PENDING", "pending"),
        ("CONFIGURING", "pending"),
        ("REQUEUED", "pending"),
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("TIMEOUT", "timed out"),
        ("OUT_OF_MEMORY", "out of memory"),
        ("CANCELLED", "cancelled"),
        ("NODE_FAIL", "failed"),
        ("FAILED", "failed"),
        ("COMPLETED", "failed"),
        ("", "failed"),
    ],
)
def test_the_queue_tells_what_the_folder_cannot(unit, listed, state):
    submitted(unit)
    found = status_of(unit, {"7_3": listed, "7_4": "RUNNING"})
    assert found.state == state
    assert "7_3" in found.reason or listed == "NODE_FAIL"
    assert found.job == "7_3"


@pytest.mark.parametrize(
    ("log", "state"),
    [
        (MEMORY + CANCELLED + KILLED, "out of memory"),
        (KERNEL + KILLED, "out of memory"),
        (LIMIT, "timed out"),
        (CANCELLED, "cancelled"),
        (KILLED, "failed"),
        (LIMIT + BEGIN + KILLED, "failed"),
    ],
)
@pytest.mark.parametrize("queue", [{}, {"7_3": "FAILED"}])
def test_the_jobs_log_tells_how_it_ended_when_slurm_has_forgotten(unit, log, state, queue):
    submitted(unit, BEGIN + log)
    found = status_of(unit, queue)
    assert found.state == state
    assert found.reason


def test_a_kill_by_the_kernel_is_told_from_another(unit):
    unit.exit_file.write_text("-9\n")
    submitted(unit, BEGIN + KERNEL)
    assert status_of(unit, {}).state == "out of memory"
    submitted(unit, BEGIN)
    assert status_of(unit, {}).state == "failed"
    assert "SIGKILL" in status_of(unit, {}).reason


def test_requeues_and_cancelling_are_remembered(unit):
    submitted(unit, requeues=2)
    found = status_of(unit, {"7_3": "PENDING"})
    assert (found.state, found.requeues) == ("pending", 2)
    assert "requeued 2 times at its time limit" in found.reason
    submitted(unit, cancelled=True)
    assert status_of(unit, {}).state == "cancelled"
    unit.exit_file.write_text("143\n")
    assert status_of(unit, {}).state == "cancelled"


def test_where_squeue_cannot_be_asked_nothing_is_claimed(unit):
    submitted(unit)
    found = status_of(unit, None)
    assert found.state == "pending"
    assert "squeue cannot be asked" in found.reason


@pytest.mark.parametrize("content", ["", "{", "[]", '{"job": 3}', "\x00"])
def test_a_damaged_record_is_no_record(unit, content):
    (unit.folder / "slurm.json").write_text(content)
    assert status_of(unit, {}).state == "not started"


def test_only_the_last_attempts_lines_are_shown(unit):
    unit.log.write_text("--- one\nold\n--- two\n")
    assert unit.last_lines(3) == []
    unit.log.write_text("old\n--- two\nnew\n\nlast\n")
    assert unit.last_lines(3) == ["new", "last"]
