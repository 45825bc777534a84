"""Pilots and runs of an annealed measurement as units of work, which resume where they stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.units import Progress, Units
from landscape.volume.anneal import annealed, backwards
from landscape.volume.anneal_plan import ISLAND, Plan
from landscape.volume.islands import Islands
from landscape.volume.particles import Energy, Particles, log_reference
from landscape.volume.path import Metric, Path, Trail
from landscape.volume.pilot import MetricAt, Scout
from landscape.volume.weights import log_mean_exp

__all__ = ["DRAWS", "SpentError", "Work", "run_label"]

DRAWS = 16  # Trajectories at each mark.
_PILOTS = 24  # Chains of a pilot.


class SpentError(Exception):
    """The gradients or the time are spent, or nothing more can be had for them."""


@dataclass(kw_only=True, eq=False)
class Work:
    """Does and stores what an annealed measurement is made of.

    Args:
        energy: excess loss and gradient at whitened rows.
        anchor: z*, (n,).
        metrics: of a path's name, the mean curvature at positions of its chains.
        chains: particles of a run.
        seed: seed of all streams.
        units: where finished and unfinished work is kept.
        stop: whether the budget is spent after so many gradients of this process.
        limit: gradients in all.
        progress: called with the levels done.
    """

    energy: Energy
    anchor: Tensor
    metrics: Callable[[str], MetricAt]
    chains: int
    seed: int
    units: Units
    stop: Callable[[int], bool]
    limit: int
    progress: Progress

    def __post_init__(self) -> None:
        self._here = 0  # Gradients of this process,
        self._seconds = 0.0  # and the time they took.
        self._used: dict[str, int] = {}  # Gradients of every unit, of earlier processes too.

    @property
    def gradient_seconds(self) -> float:
        """Wall time of one gradient of many chains together, NaN before the first."""
        return self._seconds / self._here if self._here else math.nan

    def _counted(self, z: Tensor) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        found = self.energy(z)
        self._seconds += time.perf_counter() - began
        self._here += len(z)
        return found

    @property
    def n_gradients(self) -> int:
        """Gradients of all work so far, that of earlier processes included."""
        return sum(self._used.values())

    def _spent(self) -> bool:
        return self.stop(self._here) or self.n_gradients >= self.limit

    def scout(self, name: str) -> Scout:
        """A pilot, which repeats what is stored of it."""
        metrics: list[Metric] = []
        while (unit := self.units.get(f"anneal/{name}/metric/{len(metrics)}")) is not None:
            metrics.append(Metric.of_unit(unit, self.anchor))
        label = f"anneal/{name}/pilot"
        state = self.units.get(label)
        if state is not None:
            # Metrics that were found after the state was kept are found again.
            metrics = metrics[: int(np.asarray(state["rows"])[:, -1].max()) + 1]

        def on_level(scout: Scout) -> None:
            self._used[label] = scout.n_gradients
            self.progress(f"{name}: pilot", scout.n_levels, None)
            spent = self._spent()
            if spent or self.units.due():
                self.units.put(label, scout.as_unit())
            if spent:
                raise SpentError

        def on_metric(number: int, metric: Metric) -> None:
            self.units.put(f"anneal/{name}/metric/{number}", metric.as_unit())

        return Scout(
            energy=self._counted,
            anchor=self.anchor,
            metric_at=self.metrics(name),
            chains=_PILOTS,
            seed=self.seed,
            name=name,
            state=state,
            metrics=metrics if state is not None else [],
            on_level=on_level,
            on_metric=on_metric,
        )

    def kept(self, scout: Scout) -> Trail:
        """Store a finished pilot and return its trail."""
        label = f"anneal/{scout.name}/pilot"
        if scout.is_new:
            self.units.put(label, scout.as_unit())
        self._used[label] = scout.n_gradients
        return scout.trail

    def run(self, name: str, plan: Plan, index: int) -> Islands:
        """Run ``index`` along a path, or what is stored of it."""
        label, path = run_label(name, plan.levels, index), plan.path
        stored = self.units.get(label)
        if stored is not None:
            found = Islands.of_unit(stored)
            # Where a pilot was repeated by another machine its path may be another.
            if found.beta.shape == path.beta.shape and np.allclose(found.beta, path.beta):
                self._used[label] = found.n_gradients
                return found
        found, particles = self._along(
            path,
            label,
            phase=f"{name}: run {index + 1}",
            islands=self.chains // ISLAND,
            draws=DRAWS,
            stream=(name, plan.levels, index),
        )
        if name == "ladder" and index == 0:
            self.units.put("anneal/end", particles.as_unit())
        self.units.put(label, found.as_unit())
        self.units.drop(_state(label))
        return found

    def _along(
        self,
        path: Path,
        label: str,
        *,
        phase: str,
        islands: int,
        draws: int,
        stream: tuple[str | int, ...],
        start: Particles | None = None,
    ) -> tuple[Islands, Particles]:
        """Take particles along a path from its start, or from where they stopped."""

        def on_level(level: int, snapshot: Callable[[], dict[str, Any]], count: int) -> None:
            self._used[label] = count
            self.progress(phase, level + 1, len(path))
            spent = self._spent() and level + 1 < len(path)
            if spent or self.units.due():
                self.units.put(_state(label), snapshot())
            if spent:
                raise SpentError

        found, particles = annealed(
            path,
            self._counted,
            self.anchor,
            islands=islands,
            size=ISLAND,
            draws=draws,
            seed=self.seed,
            label=stream,
            state=self.units.get(_state(label)),
            on_level=on_level,
            start=start,
        )
        self._used[label] = found.n_gradients
        return found, particles

    def back(self, plan: Plan) -> float:
        """Upper bound of log Z at the ladder's end, from half its particles; see the record."""
        stored = self.units.get("anneal/reverse")
        if stored is not None:
            self._used[run_label("reverse", plan.levels, 0)] = int(stored["n_gradients"])
            return float(stored["bound"])
        end = self.units.get("anneal/end")
        if end is None:
            return math.inf
        islands = max(self.chains // ISLAND // 2, 1)
        whole = Particles.of_unit(end, self.anchor)
        particles = replace(
            whole,
            chains=whole.chains.take(torch.arange(islands * ISLAND)),
            log_weight=np.zeros((islands, ISLAND)),
            log_scale=np.zeros(islands),
            n_gradients=0,
        )
        path, label = backwards(plan.path), run_label("reverse", plan.levels, 0)
        found, _ = self._along(
            path,
            label,
            phase="back to the prior",
            islands=islands,
            draws=0,
            stream=("reverse", 0),
            start=particles,
        )
        mean = float(log_mean_exp(found.log_partition[-1]))
        bound = log_reference(self.anchor, float(path.tether[-1])) - mean + math.log(20)
        self.units.put("anneal/reverse", {"bound": bound, "n_gradients": found.n_gradients})
        self.units.drop(_state(label))
        return bound


def run_label(name: str, levels: int, index: int) -> str:
    """Name of the unit of one run along a path of so many planned levels."""
    return f"anneal/{name}/{levels}/{index}"


def _state(label: str) -> str:
    """Name of the unfinished state of a run: another path's would not fit."""
    return f"{label}/state"
