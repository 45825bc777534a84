"""The pilot of an annealed path: where its levels lie, how chains step there, and their metrics.

Everything that adapts to what chains do happens here; the path that counts is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.volume.hmc import adapted
from landscape.volume.particles import (
    Energy,
    Level,
    Particles,
    at_level,
    distances,
    drawn,
    level_stream,
    reweighed,
)
from landscape.volume.path import Metric, Trail

__all__ = ["LENGTH", "MetricAt", "Scout"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
MetricAt = Callable[[Tensor, int], Metric]
"""Mean curvature at positions (m, n); the number tells calls apart, for their random streams."""

LENGTH = 1.0  # Of a trajectory: pi / 2 makes independent draws, more and shorter ones do better.
_STRIDE = 0.5  # Thermodynamic length between levels: chains that lag accept too easily.
_RATE = 0.3  # Of the adaptation of steps.
_FIRST_STEP = 0.3
_APART = 5.0, 0.08  # Length between metrics: at least so much, and so large a part of the whole.
_FENCE = 2.0  # Interquartile ranges above the upper quartile.
_MOST = 20_000  # Levels beyond which the pilot gives up.


class _Row(NamedTuple):
    """One level of a pilot: all that its decisions rest on."""

    beta: float
    tether: float
    length: float
    loss: float
    loss_spread: float
    distance: float  # Mean |z - z*|^2 / n.
    distance_spread: float  # Of |z - z*|^2 / 2.
    step: float
    metric: int


@dataclass(kw_only=True, eq=False)
class Scout:
    """A pilot of one path: :meth:`start`, then legs; ``trail`` is what it has learned.

    Decisions rest on the recorded rows alone, so that a pilot with the rows of an interrupted one
    repeats its decisions without a gradient and goes on where it stopped.

    Args:
        energy: excess loss and its gradient at whitened rows.
        anchor: z*, (n,).
        metric_at: the mean curvature at positions.
        chains: independent ones, never resampled: descendants of a few would show the metric and
            the steps one mode only.
        seed: seed of all streams.
        name: of the path, for its streams.
        state: of an interrupted pilot, from :meth:`as_unit`.
        metrics: mean curvatures that it has found.
        on_level: called after every new level; may raise to stop.
        on_metric: called with every new metric and its number.

    Attributes:
        n_gradients: gradients so far.
    """

    energy: Energy
    anchor: Tensor
    metric_at: MetricAt
    chains: int
    seed: int
    name: str
    state: Mapping[str, Any] | None = None
    metrics: list[Metric] = field(default_factory=list)
    on_level: Callable[[Scout], None] = lambda scout: None
    on_metric: Callable[[int, Metric], None] = lambda number, metric: None

    def __post_init__(self) -> None:
        stored = [] if self.state is None else np.asarray(self.state["rows"]).tolist()
        self._stored = [_Row._make([*row[:-1], int(row[-1])]) for row in stored]
        self._log: list[_Row] = []
        self._kept: list[_Row] = []
        self._settled = 1  # Rows up to an end that stands.
        self.n_gradients = 0
        self._last = -math.inf

    @property
    def n_levels(self) -> int:
        """Levels so far, those that settled its ends included."""
        return len(self._log)

    @property
    def is_new(self) -> bool:
        """Whether it went beyond the interrupted pilot that it continues."""
        return len(self._log) > len(self._stored)

    @property
    def trail(self) -> Trail:
        """What has been learned."""
        columns = {name: np.array([getattr(r, name) for r in self._kept]) for name in _COLUMNS}
        metrics = tuple(self.metrics)
        return Trail(**columns, metric=np.array([r.metric for r in self._kept]), metrics=metrics)

    def as_unit(self) -> dict[str, Any]:
        """The state between two levels, for a unit of work (without the metrics)."""
        return {"rows": np.array(self._log, dtype=np.float64), **self._particles.as_unit()}

    def start(self, tether: float) -> None:
        """Draw the particles from the Gaussian at the start."""
        if self._replayed():
            return
        self._particles = drawn(
            self.energy,
            self.anchor,
            tether=tether,
            islands=self.chains,
            size=1,
            generator=level_stream(self.seed, self.name, "pilot", 0),
        )
        self._look(0.0)
        self._note(0.0, tether, 0.0, _FIRST_STEP)

    def warm(self, goal: float) -> None:
        """Raise beta until the mean excess loss is the goal."""
        while (row := self._kept[-1]).loss > goal and len(self._log) < _MOST:
            spread = row.loss_spread
            stride = _STRIDE / spread if spread > 0 else max(row.beta, 1.0)
            if row.beta > 0:
                stride = min(stride, row.beta)
            self._go(row.beta + stride, row.tether, row.length + stride * spread)

    def relax(self, towards: float, *, radius: float | None = None) -> None:
        """Move the tether to a value, or until the rms distance has passed the radius."""
        wide = radius is not None and self._kept[-1].distance > radius**2
        while (row := self._kept[-1]).tether != towards and len(self._log) < _MOST:
            if radius is not None and (row.distance > radius**2) != wide:
                break
            left = towards - row.tether
            spread = row.distance_spread
            stride = min(_STRIDE / max(spread, 1e-300), (1 + row.tether) / 2, abs(left))
            after = towards if stride == abs(left) else row.tether + math.copysign(stride, left)
            self._go(row.beta, after, row.length + stride * spread)

    def settle(self, goal: float, *, radius: float | None = None, iterations: int = 12) -> None:
        """End where the mean excess loss is the goal, and the rms distance the radius if given.

        By stochastic approximation, ``log beta += log(loss / goal) / t`` and
        ``log(1 + k) += log(distance / radius^2) / t``, which needs no curvature. What the pilot
        passed beyond that end is forgotten, but not an earlier end.
        """
        first = self._kept[-1]
        if first.beta == 0:
            return
        at = np.array([math.log(first.beta), math.log1p(first.tether)])
        visited = []
        for iteration in range(1, iterations + 1):
            row = self._log[-1]
            change = np.array([math.log(max(row.loss, 1e-3 * goal) / goal), 0.0])
            if radius is not None:
                change[1] = math.log(max(row.distance, 1e-300) / radius**2)
            at = at + np.clip(change / iteration, -0.7, 0.7)
            at[1] = max(at[1], 0.0)
            visited.append(at)
            beta, tether = math.exp(at[0]), math.expm1(at[1])
            self._go(beta, tether, row.length + _apart(row, beta, tether))
        late = self._log[-iterations // 2 :]
        beta, tether = np.exp(np.mean(visited[-len(late) :], axis=0)) - [0.0, 1.0]
        if radius is None:
            tether = first.tether
        kept = self._kept[:-iterations]
        while len(kept) > self._settled and _beyond(kept[-2], kept[-1], beta, tether):
            kept.pop()
        ahead = _apart(late[-1], beta - kept[-1].beta, tether - kept[-1].tether, moved=True)
        end = late[-1]._replace(
            beta=float(beta),
            tether=float(tether),
            length=kept[-1].length + ahead,
            loss=float(np.mean([r.loss for r in late])),
            distance=float(np.mean([r.distance for r in late])),
        )
        self._kept = [*kept, end]
        self._settled = len(self._kept)

    def _replayed(self) -> bool:
        """Take the next row of the interrupted pilot, if it has one."""
        if len(self._log) >= len(self._stored):
            return False
        self._log.append(self._stored[len(self._log)])
        self._kept.append(self._log[-1])
        if len(self._log) == 1 or self._log[-1].metric > self._log[-2].metric:
            self._last = self._log[-1].length
        if len(self._log) == len(self._stored) and self.state is not None:
            self._particles = Particles.of_unit(self.state, self.anchor)
            self.n_gradients = self._particles.n_gradients
        return True

    def _go(self, beta: float, tether: float, length: float) -> None:
        """One level on: reweigh, move, adapt the step."""
        count, row = len(self._log), self._log[-1]
        if self._replayed():
            return
        generator = level_stream(self.seed, self.name, "pilot", count)
        self._particles = reweighed(
            self._particles,
            self.anchor,
            before=(row.beta, row.tether),
            after=(beta, tether),
            generator=generator,
        )
        if length - self._last >= max(_APART[0], _APART[1] * length):
            self._look(length)
        mass = self.metrics[-1].mass(beta, tether)
        level = Level(beta=beta, tether=tether, step=row.step, mass=mass)
        self._particles, moved = at_level(
            self._particles, self.energy, self.anchor, level, length=LENGTH, generator=generator
        )
        held = moved.acceptance[: _held_out(self.chains)]
        step = adapted(row.step, float(held.mean()), rate=_RATE)
        self._note(beta, tether, length, step)

    def _look(self, length: float) -> None:
        number = len(self.metrics)
        first = _held_out(self.chains)
        near = torch.from_numpy(_with_the_rest(self._particles.loss.ravel())[first:])
        seen = self._particles.chains.position[first:]
        self.metrics.append(self.metric_at(seen[near.to(seen.device)], number))
        self.on_metric(number, self.metrics[-1])
        self._last = length

    def _note(self, beta: float, tether: float, length: float, step: float) -> None:
        losses, halves = self._particles.loss.ravel(), distances(self._particles, self.anchor) / 2
        near = _with_the_rest(losses)
        loss, loss_spread = _moments(losses[near])
        half, distance_spread = _moments(halves.ravel()[near])
        row = _Row(
            beta=beta,
            tether=tether,
            length=length,
            loss=loss,
            loss_spread=loss_spread,
            distance=2 * half / len(self.anchor),
            distance_spread=distance_spread,
            step=step,
            metric=len(self.metrics) - 1,
        )
        self._log.append(row)
        self._kept.append(row)
        self.n_gradients = self._particles.n_gradients
        self.on_level(self)


def _apart(row: _Row, beta: float, tether: float, *, moved: bool = False) -> float:
    """Thermodynamic length from a row to a law, or of a change by so much."""
    change = (beta, tether) if moved else (beta - row.beta, tether - row.tether)
    return abs(change[0]) * row.loss_spread + abs(change[1]) * row.distance_spread


def _beyond(before: _Row, last: _Row, beta: float, tether: float) -> bool:
    """Whether a pilot's last step went past an end."""
    forth = (last.beta - before.beta) * (last.beta - beta)
    return forth > 0 or (last.tether - before.tether) * (last.tether - tether) > 0


_COLUMNS = ("beta", "tether", "length", "loss", "distance", "step")


def _held_out(chains: int) -> int:
    """Chains that tune the steps, but not the metric: it fits the chains that it was made from."""
    return max(chains // 3, 1)


def _with_the_rest(losses: FloatArray) -> BoolArray:
    """Which chains have not been left behind.

    Cube roots of excess losses, which are nearly normal for any number of steep directions (Wilson
    and Hilferty 1931), must be below Tukey's fence. Without resampling a chain may stay at a saddle
    for good. Particles of the run that counts have weights, which leave it; a mean or a spread that
    has it in would make the path end too late and its levels too near to each other by any factor.
    """
    finite = np.isfinite(losses)
    if not finite.any():
        return ~finite  # Of nothing the pilot says so itself.
    roots = np.cbrt(losses)
    low, high = np.quantile(roots[finite], [0.25, 0.75])
    near: BoolArray = finite & (roots <= high + _FENCE * (high - low))
    return near


def _moments(values: FloatArray) -> tuple[float, float]:
    """Mean and standard deviation of the finite values; inf where none is."""
    good = values[np.isfinite(values)]
    if not len(good):
        return math.inf, math.inf
    return float(good.mean()), float(good.std(ddof=1)) if len(good) > 1 else 0.0
