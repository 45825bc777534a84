"""Effective ranks over a series of checkpoints, and their rank correlations with other results.

Needs only numpy and scipy: stored results are enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from landscape.errors import UsageError
from landscape.flat_series import FlatSeries
from landscape.information.records import InformationResult
from landscape.results import FloatArray
from landscape.series_records import Series, TrainingSeries
from landscape.volume_series import VolumeSeries

__all__ = [
    "LEAST",
    "Correlation",
    "aligned",
    "information_columns",
    "other_columns",
    "rank_correlations",
]

LEAST = 4  # Checkpoints that a correlation needs.
_TAIL = 0.025


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation of two quantities over checkpoints.

    Attributes:
        information: what this measurement tells, such as ``gradients: entropy``.
        other: what another does, such as ``N_eff at 0.01``.
        rho: from -1 to 1; NaN where one of them is the same at every checkpoint.
        lower: percentile 2.5 over resampled checkpoints; NaN likewise.
        upper: percentile 97.5.
        n: checkpoints where both are known.
    """

    information: str
    other: str
    rho: float
    lower: float
    upper: float
    n: int


def information_columns(results: Sequence[InformationResult]) -> dict[str, FloatArray]:
    """Quantities of every checkpoint, each (t,): of the whole, then effective ranks by layer."""
    wholes = [result.gradients.ranks[0] for result in results]
    norms = [result.split.norms[0] for result in results]
    columns = {
        **{f"gradients: {name}": [getattr(w, name) for w in wholes] for name in _RANKS},
        "|R|/|H|": [norm.ratio for norm in norms],
        "negative": [norm.negative for norm in norms],
    }
    for kind, of in (
        ("gradients", [r.gradients.ranks[1:] for r in results]),
        ("activations", [r.activations for r in results]),
    ):
        layers = dict.fromkeys(row.layer for rows in of for row in rows)
        for layer in layers:
            columns[f"{kind} of {layer or 'the model'}: entropy"] = [
                next((row.entropy for row in rows if row.layer == layer), math.nan) for rows in of
            ]
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


_RANKS = ("rank", "entropy", "participation")


def other_columns(series: TrainingSeries) -> dict[str, FloatArray]:
    """Quantities of joined results of ``volume``, ``flat`` or ``hessian``, each (t,)."""
    found: dict[str, FloatArray] = {}
    if isinstance(series, VolumeSeries):
        for name, method in series.methods.items():
            for c, cutoff in enumerate(series.cutoff):
                found[f"log V ({name}) at {cutoff:g}"] = method.log_volume[:, c]
    elif isinstance(series, FlatSeries):
        for c, cutoff in enumerate(series.cutoff):
            found[f"N_eff at {cutoff:g}"] = series.n_eff[:, c]
        for name, ranks in series.operators.items():
            found[f"rank of the {name}"] = ranks.rank.astype(np.float64)
    elif isinstance(series, Series):
        for name, operator in series.operators.items():
            if "/" not in name:
                found[f"trace of the {name}"] = operator.trace.value
                if operator.eigenvalues.shape[1]:
                    found[f"largest eigenvalue of the {name}"] = operator.eigenvalues[:, 0]
    return found


def aligned(results: Sequence[InformationResult], series: TrainingSeries) -> dict[str, FloatArray]:
    """Quantities of another series at the checkpoints of these results; NaN where it has none."""
    place = {sha: row for row, sha in enumerate(series.checkpoint_sha256)}
    rows = [place.get(result.info.checkpoint_sha256) for result in results]

    def at(values: FloatArray) -> FloatArray:
        return np.array([np.nan if row is None else values[row] for row in rows])

    return {name: at(values) for name, values in other_columns(series).items()}


def rank_correlations(
    information: Mapping[str, FloatArray],
    others: Mapping[str, FloatArray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Correlation]:
    """Spearman's correlation of every pair of quantities, with a bootstrap interval.

    Checkpoints are drawn anew, with replacement; resamples in which a quantity does not vary are
    left out. Checkpoints of one run follow each other: the interval treats them as independent, and
    is too narrow where they are not.

    Args:
        information: columns (t,), NaN where unknown.
        others: the same of other measurements.
        resamples: behind the intervals.
        seed: of the resamples, which are the same for all pairs that know the same checkpoints.

    Raises:
        UsageError: no pair is known at 4 checkpoints.

    Source: Spearman, American Journal of Psychology 15 (1904); Efron, Annals of Statistics 7
    (1979).
    """
    found = []
    most = 0
    for name, x in information.items():
        for other, y in others.items():
            known = np.isfinite(x) & np.isfinite(y)
            n = int(known.sum())
            most = max(most, n)
            if n < LEAST:
                continue
            rho, (lower, upper) = _spearman(x[known], y[known], resamples, seed)
            found.append(
                Correlation(information=name, other=other, rho=rho, lower=lower, upper=upper, n=n)
            )
    if not found:
        raise UsageError(
            f"--against: only {most} checkpoints have numbers of both kinds; expected at least "
            f"{LEAST}. Measure the same checkpoints with both commands"
        )
    return found


def _spearman(
    x: FloatArray, y: FloatArray, resamples: int, seed: int
) -> tuple[float, tuple[float, float]]:
    rho = _pearson(stats.rankdata(x)[None], stats.rankdata(y)[None])[0]
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    drawn = _pearson(stats.rankdata(x[draws], axis=1), stats.rankdata(y[draws], axis=1))
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(rho) or not len(drawn):
        return float(rho), (math.nan, math.nan)
    lower, upper = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return float(rho), (float(lower), float(upper))


def _pearson(x: NDArray[Any], y: NDArray[Any]) -> FloatArray:
    """Correlation of each row of x with that of y; NaN where one is constant."""
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    product = (x * y).sum(1)
    found: FloatArray = np.divide(product, size, out=np.full(len(x), np.nan), where=size > 0)
    return found
