"""``anneal`` as units of work: pilots, runs of both starts, refinement, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from landscape.units import Progress, Units
from landscape.volume.anneal_plan import ISLAND, Plan, Shortfall, planned
from landscape.volume.anneal_records import Annealing
from landscape.volume.anneal_verdict import unknown, verdict
from landscape.volume.anneal_work import DRAWS, SpentError, Work, run_label
from landscape.volume.belief import Start, agree, start
from landscape.volume.islands import Islands, joined, parted
from landscape.volume.options import VolumeOptions
from landscape.volume.particles import Energy
from landscape.volume.path import Trail
from landscape.volume.pilot import MetricAt
from landscape.volume.records import VolumeEstimate

__all__ = ["AnnealFound", "Annealer", "keep_annealing", "reaches_further"]

_NEAR, _NEARER = 100.0, 10.0  # 1 + k where the outward start begins, at least; over that of R.
_POINTS = 5  # Radii of the curve between the start and R.
_LADDER = 0.45  # Part of what pilots leave of the budget that the ladder's first run may take.
_EVEN = 1.0  # Variance of islands up to which more of them are as good as a finer path,
_FARTHEST = 4.0  # and by how much they may lower the error: a path has errors of its own.
_SETTLES = (12, 6)  # Iterations at the end of a path and at the points before it.


@dataclass(frozen=True, kw_only=True)
class AnnealFound:
    """What ``anneal`` found.

    Attributes:
        estimate: log V at every cutoff; a bound of -inf where not even one run was possible.
        annealing: what it rests on; None where there was no run.
        n_gradients: gradients of the whole data set, pilots included.
        whole: whether nothing is missing of what was asked for.
        warnings: for the user to read.
    """

    estimate: VolumeEstimate
    annealing: Annealing | None
    n_gradients: int
    whole: bool
    warnings: list[str]


@dataclass(kw_only=True, eq=False)
class Annealer:
    """One annealed measurement.

    Args:
        energy: excess loss and gradient at whitened rows.
        anchor: z*, (n,).
        metrics: of a path's name, the mean curvature at positions of its chains.
        options: cutoffs, chains, error, tether.
        seed: seed of all streams.
        units: where finished and unfinished work is kept.
        stop: whether the budget is spent after so many gradients of this process.
        limit: gradients in all.
        progress: called with the levels done.
        symmetries: names and log-orders of the discrete symmetries.
        bare: seconds of one gradient of the model alone.
        starts: ``ladder`` and ``outward``; without one of them nothing is believed.
    """

    energy: Energy
    anchor: Tensor
    metrics: Callable[[str], MetricAt]
    options: VolumeOptions
    seed: int
    units: Units
    stop: Callable[[int], bool]
    limit: int
    progress: Progress
    symmetries: Sequence[tuple[str, float]] = ()
    bare: float = math.nan
    starts: tuple[str, ...] = ("ladder", "outward")

    def __post_init__(self) -> None:
        self._work = Work(
            energy=self.energy,
            anchor=self.anchor,
            metrics=self.metrics,
            chains=self.options.chains,
            seed=self.seed,
            units=self.units,
            stop=self.stop,
            limit=self.limit,
            progress=self.progress,
        )
        self._radius = math.inf if self.options.tether is None else self.options.tether
        self._goal = min(self.options.cutoffs)
        self._marks: dict[str, list[float]] = {}
        self._radii: list[float] = []

    def _ladder(self, name: str, radius: float, tether: float) -> Trail:
        """Pilot from the Gaussian: beta upwards, then the tether to the radius."""
        scout = self._work.scout(name)
        scout.start(tether)
        if not math.isfinite(scout.trail.loss[-1]):
            self._notes.append(
                f"anneal: {name}: the loss is not finite at any of {scout.chains} points from the "
                "prior: use a smaller --sigma, or a --tether"
            )
            raise SpentError
        scout.warm(self._goal)
        scout.settle(self._goal, iterations=_SETTLES[0])
        if math.isfinite(radius):
            far = scout.trail.distance[-1] > radius**2
            scout.relax(1e6 * (1 + tether) if far else 0.0, radius=radius)
            scout.settle(self._goal, radius=radius, iterations=_SETTLES[0])
        trail = self._work.kept(scout)
        ends = [trail.where_loss(cutoff) for cutoff in self.options.cutoffs]
        ends[int(np.argmin(self.options.cutoffs))] = float(trail.length[-1])
        self._marks[name] = ends
        return trail

    def _outward(self, tether: float) -> Trail:
        """Pilot from the anchor: the ladder at a strong tether, which is then let go."""
        first = max(_NEAR, _NEARER * (1 + tether))
        scout = self._work.scout("outward")
        scout.start(first - 1)
        scout.warm(self._goal)
        scout.settle(self._goal, iterations=_SETTLES[1])
        points = [(scout.trail.length[-1], scout.trail.distance[-1])]
        for pull in np.geomspace(first, 1 + tether, _POINTS + 1)[1:]:
            scout.relax(float(pull) - 1 if pull > 1 + 1e-9 else 0.0)
            scout.warm(self._goal)
            last = bool(np.isclose(pull, 1 + tether))
            radius = self._radius if last and math.isfinite(self._radius) else None
            scout.settle(self._goal, radius=radius, iterations=_SETTLES[0 if last else 1])
            points.append((scout.trail.length[-1], scout.trail.distance[-1]))
        trail = self._work.kept(scout)
        self._marks["outward"] = [float(length) for length, _ in points]
        self._radii = [math.sqrt(d) for _, d in points[:-1]] + [self._radius]
        return trail

    def measure(self) -> AnnealFound:
        """Pilots, runs of both starts until the error is reached, and the verdict."""
        self._done: dict[str, list[Islands]] = {"ladder": [], "outward": []}
        self._plans: dict[str, Plan] = {}
        self._nearer: dict[int, Start] = {}
        # What the end of an earlier run said holds wherever this one is cut short.
        reverse = self.units.get("anneal/reverse")
        self._upper = math.inf if reverse is None else float(reverse["bound"])
        self._notes: list[str] = []
        cut = False
        try:
            self._refine()
        except SpentError:
            cut = True
        return self._found(cut)

    def _refine(self) -> None:
        trail = self._ladder("ladder", self._radius, self._first_tether(self._radius))
        tether = float(trail.tether[-1])
        outward = self._outward(tether) if "outward" in self.starts else None
        plans, self._pilots = self._plans, self._work.n_gradients
        if "ladder" in self.starts:
            self._first("ladder", trail, share=_LADDER if outward is not None else 0.9)
            if "ladder" not in plans:
                return
        if outward is not None:
            self._first("outward", outward, share=0.6)
        while (name := self._worst(plans)) is not None:
            self._done[name].append(self._work.run(name, plans[name], len(self._done[name])))
        if "ladder" in plans and self._affords(plans["ladder"].n_gradients // 2, "anneal/reverse"):
            self._upper = self._work.back(plans["ladder"])
        self._look_nearer()

    def _first(self, name: str, trail: Trail, *, share: float) -> None:
        """The first run of a start, if the budget reaches for it."""
        plan = self._plan(name, trail, share=share)
        if plan is not None:
            self._plans[name] = plan
            self._done[name].append(self._work.run(name, plan, 0))

    def _plan(self, name: str, trail: Trail, *, share: float) -> Plan | None:
        """The path of a start's runs: what they found along a coarser one is left behind.

        None, and a warning, where the budget does not reach for any.
        """
        label = f"anneal/{name}/plan"
        stored = self.units.get(label) or {"levels": 0}
        stderr = float(stored.get("stderr", math.inf))
        plan = planned(
            trail,
            self._marks[name],
            chains=self.options.chains,
            draws=DRAWS,
            error=self.options.error,
            n_gradients=(self.limit - self._work.n_gradients) * share,
            levels=int(stored["levels"]),
            stays=stderr <= _FARTHEST * self.options.error,
        )
        if isinstance(plan, Shortfall):
            # A larger budget gives the ladder more, too.
            before = self._pilots if name == "outward" else self._work.n_gradients
            part = share * (1 - _LADDER) if name == "outward" else share
            needed = before + plan.n_gradients / part
            self._notes.append(
                f"anneal: {name}: a run of its {self.options.chains} chains takes "
                f"{plan.n_gradients} gradients at least, more than its share ({share:.0%}) of the "
                f"{max(self.limit - self._work.n_gradients, 0)} that are left, and was left out: "
                f"use a --budget of {1.1 * needed:.2g}grad or more, or fewer --chains"
            )
            return None
        self.units.put(label, {"levels": plan.levels, "stderr": stderr})
        return plan

    def _affords(self, count: int, label: str) -> bool:
        return self.units.get(label) is not None or self._work.n_gradients + count <= self.limit

    def _worst(self, plans: dict[str, Plan]) -> str | None:
        """The start whose error another run should lower; None where none should or can."""
        errors = {}
        for name, plan in plans.items():
            found = self._starts(name)
            label = run_label(name, plan.levels, len(self._done[name]))
            missing = max(
                s.volume.stderr if s.volume.label == "estimate" else math.inf for s in found
            )
            if missing > self.options.error and self._affords(plan.n_gradients, label):
                errors[name] = missing
        # The ladder first: it is the estimate.
        return next(iter(errors), None)

    def _starts(self, name: str) -> list[Start]:
        """What a start says: the ladder at every cutoff, the outward one at R."""
        islands, n = joined(self._done[name]), len(self.anchor)
        if name == "outward":
            last = len(islands.marks) - 1
            return [start(islands, last, self._goal, n=n, radius=self._radius)]
        places = mark_places(islands, self._marks["ladder"])
        return [
            start(islands, int(mark), cutoff, n=n, radius=self._radius)
            for mark, cutoff in zip(places, self.options.cutoffs, strict=True)
        ]

    def _look_nearer(self) -> None:
        """Where the starts disagree, ladders at smaller radii until they agree."""
        if not (self._done["ladder"] and self._done["outward"]):
            return
        goal = int(np.argmin(self.options.cutoffs))
        ends = self._starts("ladder")[goal], self._starts("outward")[0]
        if all(check.passed for check in agree(*ends, error=self.options.error)):
            return
        islands, n = joined(self._done["outward"]), len(self.anchor)
        order = np.argsort(self._radii[:-1])[::-1].tolist()
        for place in order:
            radius, name = self._radii[place], f"nearer-{place}"
            trail = self._ladder(name, radius, self._first_tether(radius))
            plan = self._plan(name, trail, share=0.5)
            if plan is None:
                return
            run = self._work.run(name, plan, 0)
            found = start(run, len(run.marks) - 1, self._goal, n=n, radius=radius)
            self._nearer[place] = found
            other = start(islands, place, self._goal, n=n, radius=radius)
            if all(check.passed for check in agree(found, other, error=self.options.error)):
                return

    def _first_tether(self, radius: float) -> float:
        """K at which the Gaussian at the start has the rms distance R; 0 where it is nearer."""
        if not math.isfinite(radius):
            return 0.0
        size = float(self.anchor @ self.anchor) / len(self.anchor)
        # 1/x + size/x^2 = R^2 for x = 1 + k.
        x = (1 + math.sqrt(1 + 4 * size * radius**2)) / (2 * radius**2)
        return max(x - 1, 0.0)

    def _found(self, cut: bool) -> AnnealFound:
        ladder = joined(self._done["ladder"]) if self._done["ladder"] else None
        outward = joined(self._done["outward"]) if self._done["outward"] else None
        if ladder is not None:
            marks = mark_places(ladder, self._marks["ladder"])
        elif outward is not None:
            marks = [len(outward.marks) - 1] * len(self.options.cutoffs)
        else:
            note = (
                f"anneal: {self._work.n_gradients} gradients were too few for its pilots and one "
                "run of the ladder; use a larger --budget"
            )
            estimate = unknown(self.options)
            return AnnealFound(
                estimate=estimate,
                annealing=None,
                n_gradients=self._work.n_gradients,
                whole=False,
                warnings=self._notes or [note],
            )
        found = verdict(
            ladder,
            outward,
            marks=marks,
            radii=self._radii,
            nearer=self._nearer,
            n=len(self.anchor),
            radius=self._radius,
            upper=self._upper,
            levels={name: plan.levels for name, plan in self._plans.items()},
            options=self.options,
            symmetries=self.symmetries,
            n_gradients=self._work.n_gradients,
            gradient_seconds=self._work.gradient_seconds,
            bare_seconds=self.bare,
        )
        return AnnealFound(
            estimate=found.estimate,
            annealing=found.annealing,
            n_gradients=self._work.n_gradients,
            whole=not (cut or self._notes),
            warnings=[*found.warnings, *self._notes],
        )


def keep_annealing(annealing: Annealing, chains: int, units: Units) -> None:
    """Take the runs of a complete result as finished work; its pilots are repeated.

    More runs go the same path where the result converged, its islands are nearly even, and the
    error asked for is not much smaller; otherwise a finer one, if that error wants it, which leaves
    them behind.

    Args:
        annealing: of the same run, by as many chains.
        chains: particles of a run.
        units: where work is kept.
    """
    count = chains // ISLAND
    for name, islands, levels in (
        ("ladder", annealing.ladder, annealing.ladder_levels),
        ("outward", annealing.outward, annealing.outward_levels),
    ):
        if islands is None:
            continue
        ends, stderr = islands.log_partition[-1], math.inf
        if annealing.converged and np.isfinite(ends).all() and ends.var(ddof=1) <= _EVEN:
            stderr = float(ends.std(ddof=1)) / math.sqrt(len(ends))
        units.put(f"anneal/{name}/plan", {"levels": levels, "stderr": stderr})
        for index, part in enumerate(parted(islands, count)):
            units.put(run_label(name, levels, index), part.as_unit())
    if math.isfinite(annealing.reverse_partition):
        units.put("anneal/reverse", {"bound": annealing.reverse_partition, "n_gradients": 0})


def reaches_further(annealing: Annealing, chains: int, limit: int) -> bool:
    """Whether so many gradients in all are enough for one more run of a complete result's ladder.

    Args:
        annealing: of the result.
        chains: particles of a run.
        limit: gradients in all.
    """
    runs = annealing.ladder.loss.shape[1] // (chains // ISLAND)
    # Runs differ a little in what they take.
    return bool(limit - annealing.n_gradients > 1.1 * annealing.ladder.n_gradients / max(runs, 1))


def mark_places(islands: Islands, lengths: Sequence[float]) -> list[int]:
    """Numbers of the marks that belong to lengths: marks are the distinct lengths, ascending."""
    order = np.unique(np.asarray(lengths))
    places = np.searchsorted(order, np.asarray(lengths))
    return [int(place) for place in np.minimum(places, len(islands.marks) - 1)]
