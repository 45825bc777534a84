"""How far a unit of a sweep is: what its folder says, with the queue as a hint.

Nothing has to keep running for that, and no accounting is needed: how Slurm ended a job is in the
job's own log, long after Slurm itself has forgotten it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from landscape.jobs import Unit
from landscape.slurm import ACTIVE, Record, record_of
from landscape.unit_process import signal_name

__all__ = ["State", "Status", "status_of"]

State = Literal[
    "complete",
    "running",
    "pending",
    "partial",
    "failed",
    "out of memory",
    "timed out",
    "cancelled",
    "not started",
]

# Interrupted and terminated, as the command line and as the system report it.
_STOPPED = {130, 143, -2, -10, -12, -15}
_STARTED = "Starting with JobEnvironment"  # A line of the log that begins an attempt.
# What Slurm writes into a job's log, the most telling first.
_ENDS: tuple[tuple[State, str], ...] = (
    ("out of memory", r"oom.kill|out.of.memory|exceeded.*memory limit"),
    ("timed out", r"DUE TO TIME LIMIT|timed-out too many times"),
    ("cancelled", r"CANCELLED AT(?!.*REQUEUE)"),
)
_LISTED: Mapping[str, State] = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "timed out",
    "CANCELLED": "cancelled",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a unit is.

    Attributes:
        state: in one word or three.
        reason: more about it, or empty.
        job: the Slurm job of the last submission, or None.
        requeues: how often that job was requeued at its time limit.
    """

    state: State
    reason: str = ""
    job: str | None = None
    requeues: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the unit is neither complete nor in work nor in the queue."""
        return self.state not in ("complete", "running", "pending")


def status_of(unit: Unit, queue: Mapping[str, str] | None) -> Status:
    """How far a unit is.

    Args:
        unit: the unit.
        queue: what :func:`landscape.slurm.queue` returned.
    """
    record = record_of(unit)
    state, reason = _state(unit, record, queue)
    if record is None:
        return Status(state=state, reason=reason)
    if record.requeues and state != "complete":
        times = "once" if record.requeues == 1 else f"{record.requeues} times"
        reason = f"{reason}{'; ' if reason else ''}requeued {times} at its time limit"
    return Status(state=state, reason=reason, job=record.job, requeues=record.requeues)


def _state(unit: Unit, record: Record | None, queue: Mapping[str, str] | None) -> tuple[State, str]:
    if unit.result is not None:
        return "complete", ""
    holder = unit.holder
    if holder is not None:
        return "running", str(holder)
    listed = (queue or {}).get(record.job, "") if record is not None else ""
    if listed in ACTIVE:
        job = f"Slurm job {record.job}" if record is not None else ""
        # Before the command has taken its lock, and after it has left it.
        started = listed in ("RUNNING", "COMPLETING")
        return ("running" if started else "pending"), f"{job}, {listed.lower()}"
    code = unit.exit_code
    if code is not None and code not in _STOPPED and code != -9:
        return "failed", f"exit code {code}" if code >= 0 else signal_name(code)
    if record is not None and (ended := _ended(record, listed)) is not None:
        return ended
    if code == -9:
        return "failed", "SIGKILL; was it the machine's memory?"
    if record is not None and code is None and queue is None:
        return "pending", f"Slurm job {record.job}, but squeue cannot be asked"
    if record is not None and code is None:
        return "failed", f"Slurm job {record.job} ended without a word; see {record.log}"
    return ("partial" if unit.is_partial else "not started"), ""


def _ended(record: Record, listed: str) -> tuple[State, str] | None:
    """How Slurm ended a job; None where it did not."""
    job = f"Slurm job {record.job}"
    if listed in _LISTED and not (listed == "CANCELLED" and not record.cancelled):
        return _LISTED[listed], job
    try:
        text = record.log.read_text("utf-8", errors="replace").rpartition(_STARTED)[2]
    except OSError:
        text = ""
    for state, pattern in _ENDS:
        if found := re.search(rf".*(?:{pattern}).*", text, re.IGNORECASE):
            return state, found[0].strip()
    if record.cancelled or listed == "CANCELLED":
        return "cancelled", job
    if "Killed" in text or listed == "NODE_FAIL":
        return "failed", "the node failed" if listed == "NODE_FAIL" else f"SIGKILL ({job})"
    return None
