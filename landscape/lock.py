"""Locks that work on network file systems: one holder at a time, with a rule for the dead.

A lock is a file that appears by ``link``, which NFS makes atomic, and says who holds it. The holder
refreshes its time of change, so that others see a life sign without reaching the holder's machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from landscape.errors import LockedError, ResultFileError

__all__ = ["HEARTBEAT_SECONDS", "STALE_SECONDS", "Holder", "hold", "holder_of"]

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 600.0  # Without a life sign; well above the minute that NFS may cache attributes.
_ATTEMPTS = 5
_GUARD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock, or held it.

    Attributes:
        token: unique to this taking of the lock.
        host: name of the machine.
        machine: its kernel's start and the process namespace: within one, process ids compare.
        pid: the process.
        began: when the process began, as its machine counts; tells it from a later one of its pid.
        job: the Slurm job, or empty.
        restart: how often Slurm had requeued that job.
    """

    token: str
    host: str
    machine: str
    pid: int
    began: str
    job: str
    restart: int

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    def is_dead(self, silence: float) -> bool:
        """Whether the lock is stale.

        Args:
            silence: seconds since the last life sign, by the clock of the file's server.
        """
        here = _here()
        if self.machine and self.machine == here.machine:
            return _began(self.pid) != self.began
        if self.job and self.job == here.job and self.restart < here.restart:
            return True  # Slurm ends a job's processes before it starts the job again.
        return silence > STALE_SECONDS


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock; a thread gives life signs meanwhile.

    Args:
        path: the lock file, in a folder that exists.
        what: what is locked, for the message.

    Raises:
        LockedError: another process holds it.
        ResultFileError: the folder cannot be written.
    """
    try:
        descriptor = _take(path, what)
    except OSError as error:
        raise ResultFileError.of(error, path) from error
    released = threading.Event()
    heart = threading.Thread(target=_beat, args=(descriptor, released), daemon=True)
    heart.start()
    try:
        yield
    finally:
        released.set()
        heart.join()
        with contextlib.suppress(OSError):
            # Not a lock that another one took since, believing this process dead.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                path.unlink()
        os.close(descriptor)


def holder_of(path: Path) -> Holder | None:
    """The living holder of a lock, or None; takes nothing."""
    found = _read(path)
    if found is None:
        return None
    holder, changed = found
    # Without a file of one's own to compare with, this machine's clock has to do.
    return None if holder.is_dead(time.time() - changed) else holder


def _take(path: Path, what: str) -> int:
    """Take the lock and return a descriptor of it."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    taken = False
    try:
        os.write(descriptor, json.dumps(asdict(_here())).encode())
        os.fsync(descriptor)
        os.utime(descriptor)
        now = os.fstat(descriptor).st_mtime  # The server's clock, where that is another machine.
        for _ in range(_ATTEMPTS):
            if _appear(own, path, descriptor):
                taken = True
                return descriptor
            found = _read(path)
            if found is None:
                continue  # Released meanwhile.
            holder, changed = found
            if not holder.is_dead(now - changed):
                raise LockedError(
                    f"{what} is being worked on by {holder} (lock {path}). Wait for it; if it is "
                    f"gone, the lock is void {STALE_SECONDS / 60:.0f} minutes after its last life "
                    "sign, or delete the lock"
                )
            _break(path, holder, now)
        raise LockedError(f"{what}: the lock {path} changes hands all the time. Try again")
    finally:
        with contextlib.suppress(OSError):
            own.unlink()
        if not taken:
            os.close(descriptor)


def _appear(own: Path, path: Path, descriptor: int) -> bool:
    """Whether the file appeared under the lock's name, which was nobody's."""
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:
        # No hard links here: the next best is a file that must not exist.
        try:
            _exclusive(path)
        except FileExistsError:
            return False
        os.replace(own, path)
    # NFS may say that the link exists where only the answer to its making was lost.
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _exclusive(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _break(path: Path, dead: Holder, now: float) -> None:
    """Remove the lock of a dead holder; of several who try, one does."""
    guard = path.with_name(f"{path.name}.break")
    try:
        _exclusive(guard)
    except FileExistsError:
        with contextlib.suppress(OSError):
            if now - guard.stat().st_mtime > _GUARD_SECONDS:
                guard.unlink()
        time.sleep(0.1)
        return
    try:
        found = _read(path)
        if found is not None and found[0].token == dead.token:
            path.unlink()
    finally:
        guard.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Holder, float] | None:
    """Who took the lock, and when it last gave a life sign; None where there is no lock."""
    try:
        with path.open("rb") as file:
            content, changed = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    try:
        return Holder(**json.loads(content)), changed
    except (ValueError, TypeError):
        # Cut off by a full disk or a crash: nobody's name is on it, so only time can tell.
        unknown = {"token": "", "host": "an unknown machine", "machine": "", "began": ""}
        return Holder(pid=0, job="", restart=0, **unknown), changed


def _beat(descriptor: int, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):  # The next one may get through.
            os.utime(descriptor)


def _here() -> Holder:
    job, restart = slurm_job(os.environ)
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        began=_began(os.getpid()) or "",
        job=job,
        restart=restart,
    )


def slurm_job(environment: Mapping[str, str]) -> tuple[str, int]:
    """The Slurm job of an environment, as ``squeue`` names it, and how often it was requeued."""
    job = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    return job, int(restart) if restart.isdigit() else 0


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.name}"  # Without /proc the name has to do.


def _began(pid: int) -> str | None:
    """When a process of this machine began; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]  # A zombie holds nothing.
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
