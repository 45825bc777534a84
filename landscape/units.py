"""Units of work: what an interrupted run keeps, and how a run says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

__all__ = ["MemoryUnits", "NamedUnits", "Progress", "Units", "kept_state", "silent"]

Progress = Callable[[str, int, int | None], None]
"""Called with a phase, the work done in it and all of it where that is known."""


def silent(phase: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


class Units(Protocol):
    """Where finished units of work are kept; see :mod:`landscape.partial`."""

    seconds: float

    def get(self, name: str) -> dict[str, Any] | None:
        """The unit of that name, if stored."""

    def put(self, name: str, unit: Mapping[str, Any]) -> None:
        """Store a unit."""

    def drop(self, name: str) -> None:
        """Forget a unit."""

    def due(self) -> bool:
        """Whether unfinished state should be stored now."""


class MemoryUnits:
    """Units of work held in memory only: what library users get by default.

    Attributes:
        seconds: of the analysis, those of earlier runs included.
        n_resumed: units that an earlier run finished.
    """

    def __init__(self) -> None:
        self._units: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self.n_resumed = 0

    def get(self, name: str) -> dict[str, Any] | None:
        """The arrays and numbers of a unit, or None where it has not been stored."""
        return self._units.get(name)

    def put(self, name: str, unit: Mapping[str, Any]) -> None:
        """Store or replace a unit."""
        self._units[name] = dict(unit)

    def drop(self, name: str) -> None:
        """Forget a unit."""
        self._units.pop(name, None)

    def due(self) -> bool:
        """Whether unfinished state should be stored now; called often, answers seldom."""
        return False


class NamedUnits:
    """Units of work in another's keeping, under names that begin with one's own.

    Args:
        units: who keeps them, and the seconds.
        name: put before every name.
    """

    def __init__(self, units: Units, name: str) -> None:
        self._units, self._name = units, name

    @property
    def seconds(self) -> float:
        """Seconds of the whole analysis so far."""
        return self._units.seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._units.seconds = value

    def get(self, name: str) -> dict[str, Any] | None:
        """The unit of that name, if stored."""
        return self._units.get(f"{self._name} {name}")

    def put(self, name: str, unit: Mapping[str, Any]) -> None:
        """Store a unit."""
        self._units.put(f"{self._name} {name}", unit)

    def drop(self, name: str) -> None:
        """Forget a unit."""
        self._units.drop(f"{self._name} {name}")

    def due(self) -> bool:
        """Whether unfinished state should be stored now."""
        return self._units.due()


def kept_state(
    units: Units,
    name: str,
    told: Callable[[int], None],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any] | None, Callable[[int, Callable[[], dict[str, Any]]], None]]:
    """The state that an interrupted iteration left in a unit, and what keeps it from now on.

    Args:
        units: who keeps it; whoever finishes the iteration drops the unit.
        name: of the unit.
        told: called before every step with the work done so far.
        stop: where it says so, the iteration is about to end unfinished.

    Returns:
        the state, or None, and a function to be called before every step with the work done and
        a function that takes a snapshot.
    """

    def on_step(done: int, snapshot: Callable[[], dict[str, Any]]) -> None:
        told(done)
        if units.due() or stop():
            units.put(name, snapshot())

    return units.get(name), on_step
