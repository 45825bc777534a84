"""Unfinished state: finished units of work beside the result file, flushed every now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import h5py
import numpy as np

from landscape.errors import ResultFileError
from landscape.store import SCHEMA, atomic_h5, open_untrusted, remove_stale
from landscape.units import MemoryUnits

__all__ = ["PartialFile"]

Unit = Mapping[str, Any]

_SOONEST = 1.0  # Seconds between flushes.
_SHARE = 20.0  # Time between flushes over the time that one takes.


class PartialFile(MemoryUnits):
    """Units of work in ``<name>.h5.partial``, rewritten atomically on a time interval.

    Args:
        result: path of the result file.
        key: the run key; state of another key is ignored.
        interval: most seconds between flushes. There are more while they are quick: one second
            apart, or twenty times what the last one took.

    Attributes:
        damaged: whether there was a file that could not be read.
    """

    def __init__(self, result: Path, key: str, *, interval: float = 30.0) -> None:
        super().__init__()
        self.path = result.with_name(result.name + ".partial")
        self.key = key
        self.interval = interval
        self.damaged = False
        self._changed = False
        self._last = time.monotonic()
        self._cost = 0.0
        if result.parent.is_dir():
            remove_stale(result)
            remove_stale(self.path)
        self._read()

    def _read(self) -> None:
        if not self.path.exists():
            return
        try:
            with open_untrusted(self.path) as file:
                if file.attrs.get("key") != self.key:
                    return
                self.seconds = float(file.attrs["seconds"])
                for name, group in file["units"].items():
                    unit = {key: np.asarray(data[()]) for key, data in group.items()}
                    self._units[unquote(name)] = unit | dict(group.attrs)
        except ResultFileError:
            # A damaged partial file only costs the time to compute it again.
            self._units, self.seconds, self.damaged = {}, 0.0, True
        self.n_resumed = len(self._units)

    def put(self, name: str, unit: Unit) -> None:
        """Store or replace a unit, and flush where the interval has passed."""
        super().put(name, unit)
        self._changed = True
        if self.due():
            self.flush()

    def drop(self, name: str) -> None:
        """Forget a unit."""
        super().drop(name)
        self._changed = True

    def clear(self) -> None:
        """Forget all units and start anew."""
        self._units.clear()
        self.seconds, self.n_resumed, self._changed = 0.0, 0, True

    def due(self) -> bool:
        """Whether the interval since the last flush has passed."""
        wait = min(self.interval, max(_SOONEST, _SHARE * self._cost))
        return time.monotonic() - self._last >= wait

    def flush(self) -> None:
        """Write all units now, if anything changed."""
        if not self._changed:
            return
        began = time.monotonic()
        with atomic_h5(self.path) as file:
            file.attrs["schema"] = SCHEMA
            file.attrs["key"] = self.key
            file.attrs["seconds"] = self.seconds
            units = file.create_group("units", track_order=True)
            for name, unit in self._units.items():
                # A slash would make groups within groups.
                _write_unit(units.create_group(quote(name, safe=" ")), unit)
        self._changed = False
        self._last = time.monotonic()
        self._cost = self._last - began

    def remove(self) -> None:
        """Delete the partial file: its result is complete."""
        self.path.unlink(missing_ok=True)


def _write_unit(group: h5py.Group, unit: Unit) -> None:
    for key, value in unit.items():
        if isinstance(value, np.ndarray):
            group.create_dataset(key, data=value)
        else:
            group.attrs[key] = value
