"""One analysis over several processes, by torch.distributed.

Every process runs the same program. The data are sharded by examples: products, losses and
gradients are sums over the processes. Krylov bases are sharded by coordinates
(:mod:`landscape.coordinates`). Rays and chains are led by rank 0, which shares out the points that
it wants evaluated (:mod:`landscape.led`). Rank 0 alone writes and prints.

What processes decide by must be the same bits everywhere: small sums are taken in the order of the
ranks, choices that depend on the clock or on files are those of rank 0, and an error of one is an
error of all.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from landscape import errors
from landscape.coordinates import Coordinates, Slice
from landscape.errors import LandscapeError, RankError, TaskError
from landscape.launch import Launch
from landscape.units import Units

__all__ = ["ALONE", "Alone", "Ranks", "join", "leave"]

Value = TypeVar("Value")

_MEETING = datetime.timedelta(minutes=5)  # The longest that processes wait for each other to start.
_PATIENCE = datetime.timedelta(hours=12)  # The longest that one may compute by itself.


class Alone:
    """The only process of an analysis: nothing is exchanged.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_size: number of processes on this node.
    """

    rank = 0
    size = 1
    local_size = 1

    def sum(self, part: Tensor) -> Tensor:
        """Sum over the processes of a large tensor; the part may be overwritten."""
        return part

    def total(self, part: Tensor) -> Tensor:
        """Sum over the processes, in their order, of a small tensor."""
        return part

    def each(self, value: float) -> list[float]:
        """Every process's number."""
        return [value]

    def joined(self, part: Tensor, lengths: list[int]) -> Tensor:
        """The processes' rows, so many of each, one after the other; of a vector, its entries."""
        return part

    def sent(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, in place of others of its shape, dtype and kind of device."""
        return tensor

    def shared(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, in every process; an error of its is an error of all."""
        return make()

    def once_per_node(self, make: Callable[[], Value]) -> Value:
        """What the lowest process of a node makes, in all of the node; an error is one of all."""
        return make()

    def decide(self, choose: Callable[[], bool]) -> Callable[[], bool]:
        """A question that rank 0 answers for all."""
        return choose

    def unanimous(self) -> contextlib.AbstractContextManager[None]:
        """An error of one process inside the block is raised by all at its end."""
        return contextlib.nullcontext()

    def coordinates(self, n: int, device: torch.device) -> Coordinates:
        """Which coordinates of vectors in R^n this process holds."""
        return Coordinates(n)

    def units(self, units: Units) -> Units:
        """Units of work that rank 0 keeps for all."""
        return units

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, where a kind of device was asked for."""
        return device


ALONE = Alone()


def _checked(function: Callable[..., Value]) -> Callable[..., Value]:
    """Turn the failure of an exchange into one message."""

    @functools.wraps(function)
    def exchange(*args: Any) -> Value:
        try:
            return function(*args)
        except RuntimeError as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RankError(
                "another process of this analysis ended or is out of reach: "
                f"{text[:160]}. Finished units are saved and the same command resumes; the message "
                "of the process that failed says why"
            ) from error

    return exchange


class Ranks(Alone):
    """One of several processes of an analysis.

    Args:
        launch: its place among them. The process group is initialised: call :func:`join`.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.rank, self.size = launch.rank, launch.size
        self.local_size = launch.local_size

    @_checked
    def sum(self, part: Tensor) -> Tensor:
        """Sum over the processes of a large tensor; the part may be overwritten."""
        part = part.contiguous()
        torch.distributed.all_reduce(part)
        return part

    @_checked
    def total(self, part: Tensor) -> Tensor:
        """Sum over the processes, in their order, of a small tensor."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part)
        return functools.reduce(torch.add, parts)

    @_checked
    def each(self, value: float) -> list[float]:
        """Every process's number."""
        mine = torch.tensor([value], dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(parts, mine)
        return [float(part) for part in parts]

    @_checked
    def joined(self, part: Tensor, lengths: list[int]) -> Tensor:
        """The processes' rows, so many of each, one after the other; of a vector, its entries."""
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([p[:length] for p, length in zip(parts, lengths, strict=True)])

    @_checked
    def sent(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, in place of others of its shape, dtype and kind of device."""
        tensor = tensor.contiguous()
        torch.distributed.broadcast(tensor, src=0)
        return tensor

    @_checked
    def _broadcast(self, value: Any) -> Any:
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    @_checked
    def _gathered(self, value: Value) -> list[Value]:
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def shared(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, in every process; an error of its is an error of all."""
        value, error = _tried(make) if self.rank == 0 else (None, None)
        value, note = self._broadcast((value, None if error is None else _as_note(error)))
        if error is not None:
            raise error
        if note is not None:
            raise _from_note(note)
        found: Value = value
        return found

    def once_per_node(self, make: Callable[[], Value]) -> Value:
        """What the lowest process of a node makes, in all of the node; an error is one of all."""
        first = self._first_of_node
        value, error = _tried(make) if self.rank == first else (None, None)
        found = self._gathered((value, None if error is None else _as_note(error)))
        if error is not None:
            raise error
        _raise_first([note for _, note in found])
        made: Value = found[first][0]
        return made

    @functools.cached_property
    def _first_of_node(self) -> int:
        # By name: srun may deal the processes out to the nodes one by one.
        hosts = self._gathered(socket.gethostname())
        return hosts.index(hosts[self.rank])

    def decide(self, choose: Callable[[], bool]) -> Callable[[], bool]:
        """A question that rank 0 answers for all."""
        return lambda: bool(self.each(float(choose()) if self.rank == 0 else 0.0)[0])

    @contextlib.contextmanager
    def unanimous(self) -> Iterator[None]:
        """An error of one process inside the block is raised by all at its end."""
        error: Exception | None = None
        try:
            yield
        except (errors.TerminatedError, RankError):
            raise  # The others lose this process, or are lost.
        except Exception as caught:  # Any: the others wait at the end of the block.
            error = caught
        if not any(self.each(float(error is not None))):
            return
        notes = self._gathered(None if error is None else _as_note(error))
        if error is not None:
            raise error
        _raise_first(notes)

    def coordinates(self, n: int, device: torch.device) -> Coordinates:
        """Which coordinates of vectors in R^n this process holds."""
        return Slice(n, self, host=device.type == "cpu")

    def units(self, units: Units) -> Units:
        """Units of work that rank 0 keeps for all."""
        return _SharedUnits(units, self)

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, where a kind of device was asked for."""
        if device.type != "cuda":
            return device
        if device.index is None:
            number = self.launch.local_rank % torch.cuda.device_count()
            device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        return device


class _SharedUnits:
    """Units of work in rank 0's keeping, which all processes see."""

    def __init__(self, units: Units, ranks: Ranks) -> None:
        self._units, self._ranks = units, ranks
        self.due = ranks.decide(units.due)
        self._seconds = float(ranks.each(units.seconds)[0])

    @property
    def seconds(self) -> float:
        """Seconds of the analysis so far."""
        return self._seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._seconds = self._units.seconds = value

    def get(self, name: str) -> dict[str, Any] | None:
        """The unit of that name, if stored."""
        return self._ranks.shared(lambda: self._units.get(name))

    def put(self, name: str, unit: Mapping[str, Any]) -> None:
        """Store a unit; what the others hold of it is not looked at."""
        self._ranks.shared(lambda: self._units.put(name, unit))

    def drop(self, name: str) -> None:
        """Forget a unit."""
        if self._ranks.rank == 0:
            self._units.drop(name)


_Note = tuple[str, str, int]


def _tried(make: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    """What is made, or the error, of which others must be told."""
    try:
        return make(), None
    except (errors.TerminatedError, RankError):
        raise  # The others lose this process, or are lost.
    except Exception as caught:  # Any: the others wait for an answer.
        return None, caught


def _raise_first(notes: Sequence[_Note | None]) -> None:
    """Raise the error of the lowest process that has one."""
    for rank, note in enumerate(notes):
        if note is not None:
            raise _from_note(note, rank)


def _as_note(error: Exception) -> _Note:
    """An error as others can be told of it: its class, its message, its exit code."""
    if isinstance(error, LandscapeError):
        return type(error).__name__, str(error), error.exit_code
    # Of any kind, such as out of memory: callers tell these from others.
    kind = "RuntimeError" if isinstance(error, RuntimeError) else type(error).__name__
    return kind, f"{type(error).__name__}: {error}", 1


def _from_note(note: _Note, rank: int | None = None) -> Exception:
    name, text, code = note
    if name == "RuntimeError":
        return RuntimeError(text)
    kind = getattr(errors, name, TaskError)
    where = "" if rank is None else f"process {rank + 1}: "
    error: LandscapeError = kind(where + text)
    error.exit_code = code
    return error


def join(launch: Launch | None) -> Alone:
    """Take part in the analysis that torchrun or srun started; alone where there is no launch.

    The exchanges go over NCCL between GPUs and over gloo between hosts.

    Raises:
        RankError: the processes do not find each other.
    """
    if launch is None:
        return ALONE
    if not torch.distributed.is_available():
        raise RankError("this torch was built without torch.distributed; run in one process")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group(
                backend,
                store=_meeting_place(launch),
                rank=launch.rank,
                world_size=launch.size,
                timeout=_PATIENCE,
            )
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"process {launch.rank + 1} of {launch.size} did not reach the others at "
                f"{launch.address}:{launch.port}: {str(error).splitlines()[0][:160]}. Start all of "
                "them, and set MASTER_ADDR and MASTER_PORT where the host or its port is another"
            ) from error
        # Threads of a group that still runs when the interpreter ends would abort the process.
        atexit.register(leave)
    return Ranks(launch)


def leave() -> bool:
    """End the exchanges of this process; whether there were any."""
    joined: bool = torch.distributed.is_available() and torch.distributed.is_initialized()
    with contextlib.suppress(RuntimeError, ValueError):
        if joined:
            torch.distributed.destroy_process_group()
    return joined


def _meeting_place(launch: Launch) -> Any:
    """Where the processes find each other: torchrun's own store, or one that rank 0 opens."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        launch.address,
        launch.port,
        launch.size,
        is_master=launch.rank == 0 and not agent,
        timeout=_MEETING,
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"landscape/{attempt}", store)
