"""Finished units of the annealing benchmark in its JSON file, so that a stopped run continues."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from volume_methods import plain

import landscape

Record = dict[str, Any]
Unit = tuple[str, Callable[[], Record]]
Units = Iterator[Unit]


def code() -> str:
    """Short hash of the annealing code: what was measured with other code is told apart."""
    root = Path(landscape.__file__).parent
    files = [*sorted((root / "volume").glob("*.py")), root / "volume_anneal.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


class Kept:
    """The results file: every unit is written as it finishes.

    Args:
        path: of the JSON file; read where it is there and was made with the same ``settings``.
        settings: what all units have in common.
        fresh: forget the stored units of these sections.
    """

    def __init__(self, path: Path, settings: Record, *, fresh: tuple[str, ...] = ()) -> None:
        self.path = path
        self.results: Record = {"settings": settings, "sections": {}}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["settings"] == settings:
                self.results = stored
        for section in fresh:
            self.results["sections"].pop(section, None)
        self._code = code()

    def section(self, name: str) -> dict[str, Record]:
        """Finished units of a section by their keys."""
        found: dict[str, Record] = self.results["sections"].setdefault(name, {})
        return found

    def work(self, name: str, units: Units, note: Callable[[str], None]) -> None:
        """Do what is missing of a section's units, which may look at the finished ones."""
        for key, measure in units:
            if key in self.section(name):
                continue
            note(f"{name}: {key}")
            wall, own, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
            found = measure()
            spent = {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - own,
                "load": load,
                "code": self._code,
            }
            self.section(name)[key] = plain({**found, **spent})
            self.save()

    def save(self) -> None:
        """Write the file, which is never half written."""
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(self.results, allow_nan=False) + "\n")
        beside.replace(self.path)
