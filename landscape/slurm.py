"""Units of a sweep as a Slurm array, through submitit.

Slurm without accounting is common, and what submitit says of a job is then unknown. So submitit
only writes the batch script, submits it, and requeues a unit at its time limit; how far a unit is,
:mod:`landscape.unit_state` tells from its folder and from ``squeue``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError, ResultFileError, UsageError
from landscape.jobs import Unit
from landscape.resources import Resources
from landscape.unit_process import HELD, keep_exit_code, start

__all__ = ["ACTIVE", "Record", "UnitJob", "cancel", "queue", "record_of", "require_slurm", "submit"]

# States of jobs that have not ended.
ACTIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SPECIAL_EXIT", "STAGE_OUT"),
}
_AGAIN = 15.0  # Seconds after which a command is told once more to save and leave.
_USUAL_LIMIT = 1000  # Jobs in an array.
_PATIENCE = 60.0  # Seconds for an answer of Slurm.


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a unit's folder says of its last submission.

    Attributes:
        job: the job, as ``squeue`` names it.
        logs: folder of submitit's scripts and logs.
        requeues: how often it was requeued at its time limit.
        cancelled: whether ``landscape batch cancel`` ended it.
    """

    job: str
    logs: str
    requeues: int = 0
    cancelled: bool = False

    @property
    def log(self) -> Path:
        """What Slurm and submitit said."""
        return Path(self.logs) / f"{self.job}_0_log.err"


def record_of(unit: Unit) -> Record | None:
    """The last submission of a unit; None where Slurm has nothing to do with it."""
    try:
        return Record(**json.loads(_place(unit).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _place(unit: Unit) -> Path:
    return unit.folder / "slurm.json"


def _write(unit: Unit, record: Record) -> None:
    temporary = unit.folder / f".slurm.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(asdict(record)), "utf-8")
    temporary.replace(_place(unit))


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """What submitit calls on the node.

    Attributes:
        unit: what to run.
        working: working directory of the command.
        threads: threads of the computation, where the environment does not say.
    """

    unit: Unit
    working: Path
    threads: int

    def __call__(self) -> int:
        """Run the unit and return its exit code."""
        if self.unit.result is not None:
            return 0  # Completed elsewhere while this job waited.
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        process = start(self.unit, working=self.working)
        _RUNNING.append(process)
        _, said = process.communicate()
        keep_exit_code(self.unit, process.returncode)
        print(said.decode(errors="replace"), f"exit code {process.returncode}", flush=True)
        if process.returncode == HELD:
            print("another process works on this unit", flush=True)
        return process.returncode

    def checkpoint(self) -> Any:
        """At the time limit: let the command save its state, then run the same again."""
        from submitit.helpers import DelayedSubmission

        # This runs inside a signal handler: Popen's own methods may be waiting for their lock.
        for process in _RUNNING:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                clock = -math.inf
                while (
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                ):
                    if time.monotonic() - clock > _AGAIN:
                        os.kill(process.pid, signal.SIGTERM)
                        clock = time.monotonic()
                    time.sleep(0.1)
        record = record_of(self.unit)
        if record is not None:
            _write(self.unit, replace(record, requeues=record.requeues + 1))
        return DelayedSubmission(self)


_RUNNING: list[subprocess.Popen[bytes]] = []  # The one child of a job's process.


def require_slurm() -> Any:
    """The module submitit.

    Raises:
        UsageError: it or Slurm is missing.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "landscape batch submit needs submitit, which is not installed. Install it with: pip "
            "install 'landscape-geometry[slurm]'"
        ) from error
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise UsageError(
                f"{program} is not on the PATH; expected a machine from which Slurm takes jobs. "
                "Submit from there, or measure on this machine with landscape batch run"
            )
    return submitit


def submit(units: Sequence[Unit], *, working: Path, logs: Path, resources: Resources) -> list[str]:
    """Submit units as one array, or as several where Slurm limits their size; return the job ids.

    Raises:
        UsageError: submitit or Slurm is missing, or Slurm refuses the job.
        ResultFileError: the folders cannot be written.
    """
    submitit = require_slurm()
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=resources.requeues)
    executor.update_parameters(**_parameters(resources))
    names = []
    try:
        for unit in units:
            unit.folder.mkdir(parents=True, exist_ok=True)
        limit = _array_limit()
        for part in (units[i : i + limit] for i in range(0, len(units), limit)):
            jobs = [UnitJob(unit=u, working=working, threads=resources.cpus) for u in part]
            with _outside_of_jobs():
                found = executor.submit_array(jobs)
            for unit, job in zip(part, found, strict=True):
                _write(unit, Record(job=job.job_id, logs=str(logs)))
            names.append(str(found[0].job_id).partition("_")[0])
    except FailedJobError as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"Slurm refuses the job: {said}. Correct [resources] in the sweep file"
        ) from error
    except OSError as error:
        raise ResultFileError.of(error, logs) from error
    return names


def _array_limit() -> int:
    """How many jobs an array may have on this cluster."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _asked(["scontrol", "show", "config"]) or "")
    return max(int(found[1]) - 1, 1) if found else _USUAL_LIMIT


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that this may be, which sbatch takes as options."""
    names = [k for k in os.environ if k.startswith(("SLURM_", "SBATCH_")) and k != "SLURM_CONF"]
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


def _parameters(resources: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {
        "job_name": "landscape",
        "time": resources.time,
        "cpus_per_task": resources.cpus,
        "array_parallelism": resources.array_parallelism,
        "signal_delay_s": resources.save_seconds,
        "setup": list(resources.setup),
        "additional_parameters": {"requeue": True, **resources.parameters},
        "wckey": None,
    }
    for name, value in (
        ("mem", resources.memory),
        ("gpus_per_node", resources.gpus or None),
        ("partition", resources.partition),
        ("account", resources.account),
    ):
        if value is not None:
            found[name] = value
    return found


def queue() -> dict[str, str] | None:
    """State of this user's jobs that Slurm knows, by their names; None where it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T", "--states=all"]
    said = _asked(command)
    if said is None:
        return None
    return dict(line.split(maxsplit=1) for line in said.splitlines() if len(line.split()) == 2)


def cancel(units: Iterable[Unit]) -> int:
    """Cancel what waits or runs in the queue, and return how many units that were.

    Raises:
        UsageError: the queue cannot be asked.
    """
    waiting = queue()
    if waiting is None:
        raise UsageError(
            "squeue cannot be asked; expected a machine from which Slurm takes jobs. Cancel there"
        )
    count = 0
    for unit in units:
        record = record_of(unit)
        if record is None or waiting.get(record.job) not in ACTIVE:
            continue
        with contextlib.suppress(OSError):  # A full disk must not keep it in the queue.
            _write(unit, replace(record, cancelled=True))
        if _asked(["scancel", record.job]) is None:
            raise LandscapeError(f"scancel {record.job} failed; see landscape batch status")
        count += 1
    return count


def _asked(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
