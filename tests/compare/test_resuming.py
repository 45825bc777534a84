"""A comparison that was interrupted goes on and gives the same numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
from networks_compared import LABELS, X, network
from safetensors.torch import save_file

from landscape import Task
from landscape.checkpoint import read_checkpoint
from landscape.compare.options import CompareOptions
from landscape.compare_runs import CompareRun
from landscape.measurement import prepared
from landscape.settings import Settings
from landscape.store import load, save
from landscape.units import MemoryUnits
from landscape.volume.options import VolumeOptions


def test_a_killed_comparison_goes_on(tmp_path):
    """Terms, points, eigenpairs and log V that are there are not computed again."""
    save_file(network(2, hidden=3).state_dict(), tmp_path / "b.safetensors")
    task = Task(model=network(hidden=3), data=(X, LABELS), criterion="cross_entropy")
    volume = VolumeOptions(methods=("quadratic",), sigma=1.0, exact="lanczos", top=3, probes=2)
    run = CompareRun(
        **prepared(task, None, Settings(), None),
        other=read_checkpoint(tmp_path / "b.safetensors"),
        options=CompareOptions(points=3, bootstrap=5, eigenspaces=2, volume=volume),
    )

    class Stops(MemoryUnits):
        left = 0

        def put(self, name, unit):
            super().put(name, unit)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        def due(self):
            return True

    whole = run.measure()
    units, stops = Stops(), 0
    while True:
        units.left = 20
        try:
            found = run.measure(units=units)
        except KeyboardInterrupt:
            stops += 1
            assert stops < 60
            continue
        break
    assert stops > 2
    assert {"behaviour", "path 1", "aligned path 2", "pairs B matched"} <= set(units._units)
    for result in (whole, found):
        save(tmp_path / f"{result is found}.h5", result)
    one, two = (load(tmp_path / f"{which}.h5") for which in (False, True))
    np.testing.assert_equal(without_clocks(two), without_clocks(one))


def without_clocks(result):
    values = dataclasses.asdict(result)
    for name in ("started", "finished", "wall_seconds"):
        del values["info"][name]
    return values
