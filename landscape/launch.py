"""How many processes a command was started in, from the environment of torchrun or srun."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from landscape.errors import UsageError

__all__ = ["Launch", "launched"]

_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One of several processes that make one analysis.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its node.
        local_size: number of processes on this node.
        address: host of rank 0.
        port: where rank 0 listens.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """The place of this process in a launch by torchrun or srun; None where it is alone.

    A job of several tasks whose batch script starts one process is not a launch: srun alone sets
    the number of tasks of a step.

    Raises:
        UsageError: a variable is not a number, or the host of rank 0 cannot be told.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        size = _number(env, "WORLD_SIZE")
        if size < 2:
            return None
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise UsageError(
                f"WORLD_SIZE is {size}, but MASTER_ADDR and MASTER_PORT are not set; start with "
                "torchrun, or unset RANK and WORLD_SIZE for one process"
            )
        return Launch(
            rank=_number(env, "RANK"),
            size=size,
            local_rank=_number(env, "LOCAL_RANK", 0),
            local_size=_number(env, "LOCAL_WORLD_SIZE", size),
            address=env["MASTER_ADDR"],
            port=_number(env, "MASTER_PORT"),
        )
    if "SLURM_STEP_NUM_TASKS" not in env or "SLURM_PROCID" not in env:
        return None
    size = _number(env, "SLURM_STEP_NUM_TASKS")
    if size < 2:
        return None
    number = 17 * _number(env, "SLURM_JOB_ID", 0) + _number(env, "SLURM_STEP_ID", 0)
    return Launch(
        rank=_number(env, "SLURM_PROCID"),
        size=size,
        local_rank=_number(env, "SLURM_LOCALID", 0),
        local_size=_on_this_node(env, size),
        address=env.get("MASTER_ADDR") or _first_host(env),
        port=_number(env, "MASTER_PORT", _FIRST_PORT + number % _PORTS),
    )


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise UsageError(
            f"the environment's {name} is {text!r}; expected a whole number, as torchrun and srun "
            "set it"
        ) from None


def _on_this_node(env: Mapping[str, str], size: int) -> int:
    """Tasks of this step on this node: ``2(x3),1`` says two on each of three nodes, then one."""
    text, counts = env.get("SLURM_STEP_TASKS_PER_NODE", ""), []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        if count.isdigit():
            counts += [int(count)] * int(times.rstrip(")") or 1)
    node = _number(env, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else size


def _first_host(env: Mapping[str, str]) -> str:
    """Address of the step's first node, as the cluster itself knows it."""
    nodes = env.get("SLURM_STEP_NODELIST", "")
    if _number(env, "SLURM_NNODES", 1) == 1:
        return "127.0.0.1"
    try:
        names = _asked("scontrol", "show", "hostnames", nodes).split()
        details = _asked("scontrol", "show", "node", names[0]).split()
        found = dict(item.split("=", 1) for item in details if "=" in item)
        return found.get("NodeAddr") or names[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        raise UsageError(
            f"cannot tell the address of the first of the nodes {nodes!r} from scontrol; set "
            "MASTER_ADDR to the host of rank 0"
        ) from None


def _asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
