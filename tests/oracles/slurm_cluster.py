"""A Slurm of two nodes on loopback, from Debian's packages, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmdPidFile={d}/run/slurmd.%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
MaxArraySize=17
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=8000
PartitionName=main Nodes=n[1-2] Default=YES DefMemPerCPU=500 State=UP
"""


class NoSlurmError(Exception):
    """Why there is none on this machine."""


def install() -> None:
    """Install Debian's packages where they are missing, without starting their services.

    Raises:
        NoSlurmError: this is not root on Debian.
        RuntimeError: it is, but the packages cannot be had.
    """
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
    if os.geteuid() != 0:
        raise NoSlurmError("only root can start Slurm's daemons")
    if all(map(shutil.which, programs)):
        return
    if shutil.which("apt-get") is None:
        raise NoSlurmError("Slurm is not installed, and this is not Debian")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        for command in (packages, ["apt-get", "update"], packages):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if command is packages and done.returncode == 0:
                return
        raise RuntimeError(f"apt-get cannot install {PACKAGES}: {done.stderr.strip()[-300:]}")
    finally:
        if ours:
            policy.unlink()


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Start munge, the controller and two nodes; end them all, whatever happens.

    Yields:
        the configuration file, for ``SLURM_CONF``.

    Raises:
        RuntimeError: it did not come up.
    """
    for name in ("state", "spool/n1", "spool/n2", "log", "run"):
        (folder / name).mkdir(parents=True)
    # munge wants folders that nobody else can write.
    for name in (".", "log", "run"):
        (folder / name).chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    port, first, second = _free_ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(d=folder, host=host, port=port, first=first, second=second))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = [
        [
            *("munged", "--force", "--foreground", f"--key-file={key}"),
            *(f"--{name}-file={folder}/run/munge.{name}" for name in ("pid", "seed")),
            *(f"--socket={folder}/run/munge.socket", f"--log-file={folder}/log/munge.log"),
        ],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            with (folder / "log" / f"{len(running)}.{command[0]}.out").open("wb") as out:
                running.append(
                    subprocess.Popen(
                        command, env=environment, stdout=out, stderr=out, start_new_session=True
                    )
                )
            if command[0] == "munged":
                _wait(lambda: (folder / "run" / "munge.socket").exists(), folder, running)
        _wait(lambda: _idle(environment) == 2, folder, running)
        yield conf
    finally:
        for command in (["scancel", "--user=root", "--quiet"], ["scontrol", "shutdown"]):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(command, env=environment, capture_output=True, timeout=20)
                time.sleep(1)
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                process.send_signal(signal.SIGTERM)
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


def _idle(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout.split().count("idle")


def _wait(ready: object, folder: Path, running: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 40
    while not ready():  # type: ignore[operator]
        ended = [p.args for p in running if p.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(p.read_text(errors="replace")[-800:] for p in folder.glob("log/*"))
            raise RuntimeError(f"the daemons did not come up (ended: {ended})\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
