"""One annealed measurement of a loss that needs no network, as a record that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anneal_tables import STARTS
from torch import Tensor

from landscape.units import MemoryUnits, silent
from landscape.volume.anneal_job import Annealer
from landscape.volume.anneal_records import Annealing
from landscape.volume.islands import evaluated, integrated, volumes
from landscape.volume.options import VolumeOptions
from landscape.volume.particles import Energy
from landscape.volume.pilot import MetricAt
from landscape.volume.records import VolumeEstimate

Record = dict[str, Any]

LIMIT = 1_000_000
"""Gradients of a run: pilots, both starts and the way back."""


def measured(
    energy: Energy,
    anchor: Tensor,
    metric_at: MetricAt,
    *,
    cutoff: float,
    error: float,
    seed: int,
    tether: float | None = None,
    chains: int = 64,
    limit: int = LIMIT,
    beyond: Callable[[Annealing], Record] = lambda annealing: {},
) -> Record:
    """Anneal, and tell what was found.

    Args:
        energy: excess loss and gradient at whitened rows.
        anchor: z*, (n,).
        metric_at: mean curvature at positions.
        cutoff: largest excess loss.
        error: standard error that is asked for, in nats.
        seed: of all streams.
        tether: R; None for no limit.
        chains: particles of a run.
        limit: gradients.
        beyond: what else to record.
    """
    options = VolumeOptions(cutoffs=(cutoff,), error=error, tether=tether, chains=chains)
    found = Annealer(
        energy=energy,
        anchor=anchor,
        metrics=lambda name: metric_at,
        options=options,
        seed=seed,
        units=MemoryUnits(),
        stop=lambda count: False,
        limit=limit,
        progress=silent,
    ).measure()
    if found.estimate is None or found.annealing is None:
        return {"missing": found.warnings[0], "seed": seed}
    return {
        "seed": seed,
        "error": error,
        "tether": tether,
        **told(found.estimate, found.annealing, cutoff, len(anchor)),
        **beyond(found.annealing),
    }


def told(estimate: VolumeEstimate, annealing: Annealing, cutoff: float, n: int) -> Record:
    """What an annealed measurement says at its only cutoff.

    ``value``, ``stderr``, ``lower`` and ``upper`` are the t-interval over islands whatever the
    verdict is; ``reported`` is the interval that a user sees: from the Markov bound to infinity
    where it did not converge.
    """
    reach = annealing.radius * math.sqrt(n)
    ladder, mark = annealing.ladder, int(annealing.marks[0])
    interval = evaluated(ladder, int(ladder.marks[mark]), volumes(ladder, mark, cutoff, reach))
    total = integrated(ladder)[ladder.marks[mark]]
    return {
        "value": interval.value,
        "stderr": interval.stderr,
        "lower": interval.lower,
        "upper": interval.upper,
        "label": interval.label,
        "reported": [float(estimate.lower[0]), float(estimate.upper[0])],
        "converged": annealing.converged,
        "failed": [
            {"name": c.name, "value": c.value, "limit": c.limit}
            for c in annealing.checks
            if not c.passed
        ],
        "agreed_radius": "inf" if annealing.agreed_radius == math.inf else annealing.agreed_radius,
        "markov": float(annealing.markov[0]),
        "reverse": float(annealing.reverse[0]),
        "gradients": annealing.n_gradients,
        "levels": [annealing.ladder_levels, annealing.outward_levels],
        "islands": ladder.loss.shape[1],
        "beta": float(ladder.beta[ladder.marks[mark]]),
        "log_partition": float(total.mean()),
        "acceptance": float(ladder.acceptance[1:].mean(1).min()),
    }


def curve(annealing: Annealing) -> Record:
    """Log V against R from both starts, at the smallest cutoff."""
    found = annealing.curve
    names = ("radius", *(f"{s}{what}" for s in STARTS for what in ("", "_stderr", "_distance")))
    columns = {name: getattr(found, name).tolist() for name in names}
    return {**columns, "findings": list(found.findings)}
