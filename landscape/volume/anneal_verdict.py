"""From islands to an estimate that says whether to believe it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landscape.flat.learning import effective_dimension
from landscape.volume.anneal_records import Annealing, Check, Curve
from landscape.volume.belief import (
    AGREE,
    NOT_COMPARED,
    Start,
    agree,
    checks,
    finding,
    start,
)
from landscape.volume.islands import Islands, volumes
from landscape.volume.options import VolumeOptions
from landscape.volume.records import VolumeEstimate
from landscape.volume.weights import log_mean_exp

__all__ = ["Verdict", "unknown", "verdict"]

FloatArray = NDArray[np.float64]

_MARKOV = math.log(20)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the islands come to.

    Attributes:
        estimate: log V at every cutoff.
        annealing: what it rests on.
        warnings: for the user to read.
    """

    estimate: VolumeEstimate
    annealing: Annealing
    warnings: list[str]


def verdict(
    ladder: Islands | None,
    outward: Islands | None,
    *,
    marks: Sequence[int],
    radii: Sequence[float],
    nearer: Mapping[int, Start],
    n: int,
    radius: float,
    upper: float,
    levels: Mapping[str, int],
    options: VolumeOptions,
    symmetries: Sequence[tuple[str, float]],
    n_gradients: int,
    gradient_seconds: float,
    bare_seconds: float,
) -> Verdict:
    """Judge the runs of both starts.

    Args:
        ladder: from the Gaussian; None where there was none.
        outward: from the anchor; likewise, but one of them there is.
        marks: the estimate's mark of every cutoff, in ``ladder``, or in ``outward`` without it.
        radii: R at each mark of ``outward``.
        nearer: what ladders at smaller radii said, by the number of that mark.
        n: number of coordinates.
        radius: R that was asked for.
        upper: bound of log Z at the ladder's end from the reverse run, inf where there was none.
        levels: planned levels of both starts' paths.
        options: cutoffs and error.
        symmetries: names and log-orders of the discrete symmetries.
        n_gradients: for the record, as the next two.
        gradient_seconds: wall time of one of many together.
        bare_seconds: of one by the model alone.
    """
    main = ladder if ladder is not None else outward
    if main is None:
        raise ValueError("neither a ladder nor an outward run: there is nothing to judge")
    cutoffs = np.array(options.cutoffs)
    goal = int(np.argmin(cutoffs))
    found = [
        start(main, mark, float(cutoff), n=n, radius=radius)
        for mark, cutoff in zip(marks, cutoffs, strict=True)
    ]
    if ladder is None or outward is None:
        curve = _point(found[goal], radius, ladder=ladder is not None)
    else:
        curve = _curve(found[goal], outward, radii, nearer, n=n, options=options)
    made = [] if ladder is None else checks("ladder", ladder)
    made += [] if outward is None else checks("outward", outward)
    if ladder is not None and outward is not None:
        last = start(outward, len(outward.marks) - 1, float(cutoffs[goal]), n=n, radius=radius)
        made = [*agree(found[goal], last, error=options.error), *made]
    else:
        made = [_one_start(), *made]
    converged = all(check.passed for check in made)
    agreed = curve.radius[curve.agrees]
    means = np.array(
        [
            log_mean_exp(volumes(main, mark, float(cutoff), radius * math.sqrt(n)))
            for mark, cutoff in zip(marks, cutoffs, strict=True)
        ]
    )
    markov = means - _MARKOV
    reverse = np.full(len(cutoffs), np.inf)
    if math.isfinite(upper):
        # Both of the same kind: what islands have in common cancels.
        partition = log_mean_exp(main.log_partition[main.marks[marks[goal]]])
        reverse[goal] = min(upper + means[goal] - partition, 0.0)
    annealing = Annealing(
        radius=radius,
        converged=converged,
        agreed_radius=float(agreed.max()) if len(agreed) else math.nan,
        checks=tuple(made),
        curve=curve,
        ladder=main,
        marks=np.asarray(marks, dtype=np.int64),
        outward=outward if ladder is not None else None,
        markov=markov,
        reverse=reverse,
        reverse_partition=upper,
        ladder_levels=levels["ladder" if ladder is not None else "outward"],
        outward_levels=levels.get("outward", 0) if ladder is not None else 0,
        symmetries=tuple(name for name, _ in symmetries),
        log_orders=np.array([order for _, order in symmetries], dtype=np.float64),
        n_gradients=n_gradients,
        gradient_seconds=gradient_seconds,
        bare_seconds=bare_seconds,
    )
    path = "ladder from the prior" if ladder is not None else "outward from the anchor"
    estimate = _estimate(found, main, marks, markov, converged, cutoffs, path)
    return Verdict(
        estimate=estimate, annealing=annealing, warnings=_warnings(annealing, estimate, options)
    )


def _one_start() -> Check:
    return Check(
        name="independent starts",
        value=1.0,
        limit=2.0,
        at_least=True,
        passed=False,
        remedy="a larger --budget: one start proves nothing",
    )


def _curve(
    end: Start,
    outward: Islands,
    radii: Sequence[float],
    nearer: Mapping[int, Start],
    *,
    n: int,
    options: VolumeOptions,
) -> Curve:
    """Both starts at every radius of the outward run; ``end`` is the ladder's at the last."""
    rows, found = [], []
    for place, radius in enumerate(radii):
        out = start(outward, place, min(options.cutoffs), n=n, radius=radius)
        inward = end if place == len(radii) - 1 else nearer.get(place)
        looked = inward is not None
        found.append(finding(inward, out, error=options.error) if looked else NOT_COMPARED)
        rows.append((radius, *_numbers(inward), *_numbers(out)))
    return _of_rows(rows, found)


def _point(end: Start, radius: float, *, ladder: bool) -> Curve:
    """The only start at the only radius."""
    starts = (end, None) if ladder else (None, end)
    row = (radius, *(v for found in starts for v in _numbers(found)))
    return _of_rows([row], [finding(*starts, error=math.inf)])


def _of_rows(rows: Sequence[tuple[float, ...]], findings: Sequence[str]) -> Curve:
    order = np.argsort([row[0] for row in rows], kind="stable")
    names = [f.name for f in dataclasses.fields(Curve) if f.name not in ("agrees", "findings")]
    columns = np.array(rows, dtype=np.float64)[order].T
    texts = tuple(findings[place] for place in order)
    return Curve(
        **dict(zip(names, columns, strict=True)),
        agrees=np.array([text == AGREE for text in texts]),
        findings=texts,
    )


def _numbers(found: Start | None) -> tuple[float, ...]:
    if found is None:
        return (math.nan,) * 5
    v = found.volume
    value, lower, upper = np.minimum([v.value, v.lower, v.upper], 0.0).tolist()
    upper = upper if v.label == "estimate" else math.inf  # Of a bound nothing is known above it.
    return (value, v.stderr, lower, upper, found.distance)


def _estimate(
    found: Sequence[Start],
    main: Islands,
    marks: Sequence[int],
    markov: FloatArray,
    converged: bool,
    cutoffs: FloatArray,
    path: str,
) -> VolumeEstimate:
    unknown = np.full(len(cutoffs), np.nan)
    volumes_ = [s.volume for s in found]
    logs = np.minimum([v.value for v in volumes_], 0.0)
    bound = np.array([not converged or v.label != "estimate" for v in volumes_])
    beta = main.beta[main.marks[np.asarray(marks)]]
    dimension = np.where(beta > 0, 2 * beta * cutoffs, np.nan)
    if len(cutoffs) >= 3 and np.isfinite(logs).all():
        order = np.argsort(cutoffs)
        dimension[order] = effective_dimension(cutoffs[order], logs[order])
    size = main.draw_loss.shape[-1]
    return VolumeEstimate(
        method_name="anneal",
        path=f"{path}, {found[0].islands} islands of {size}",
        cutoff=cutoffs,
        log_volume=logs,
        stderr=np.array([v.stderr for v in volumes_]),
        lower=np.where(bound, markov, [v.lower for v in volumes_]),
        upper=np.where(bound, np.inf, np.minimum([v.upper for v in volumes_], 0.0)),
        lower_bound=bound,
        width=unknown,
        location=unknown,
        remainder=unknown,
        effective_dimension=dimension,
        tilt=beta,
        n_samples=np.array([s.islands for s in found], dtype=np.int64),
        ess=np.array([v.ess for v in volumes_]),
        largest_share=np.array([v.largest_share for v in volumes_]),
        n_matvecs=0,
        n_forward=0,
    )


def unknown(options: VolumeOptions) -> VolumeEstimate:
    """What is known of log V before any run: nothing, as a lower bound of -inf."""
    cutoffs = np.array(options.cutoffs)
    none, nothing = np.full(len(cutoffs), np.nan), np.full(len(cutoffs), -np.inf)
    return VolumeEstimate(
        method_name="anneal",
        path="no run within the budget",
        cutoff=cutoffs,
        log_volume=nothing,
        stderr=none,
        lower=nothing,
        upper=-nothing,
        lower_bound=np.ones(len(cutoffs), dtype=np.bool_),
        width=none,
        location=none,
        remainder=none,
        effective_dimension=none,
        tilt=none,
        n_samples=np.zeros(len(cutoffs), dtype=np.int64),
        ess=none,
        largest_share=none,
        n_matvecs=0,
        n_forward=0,
    )


def _warnings(annealing: Annealing, estimate: VolumeEstimate, options: VolumeOptions) -> list[str]:
    notes = []
    if not annealing.converged:
        failed = next(check for check in annealing.checks if not check.passed)
        sign = "at least" if failed.at_least else "at most"
        notes.append(
            f"anneal: not converged, a lower bound only: {failed.name} {failed.value:.3g}, "
            f"expected {sign} {failed.limit:.3g}. Use {failed.remedy}"
        )
    known = ~estimate.lower_bound
    worst = float(estimate.stderr[known].max(initial=0.0))
    if worst > options.error:
        notes.append(
            f"anneal: the standard error is {worst:.2g} nats, above --error; a larger --budget "
            "lowers it"
        )
    return notes
