"""Results of many checkpoints joined over the training step; needs only numpy.

The top eigenspace of a checkpoint is compared with the previous one's by
``|U_prev U_cur^T|_F^2 / K`` for orthonormal rows U of the K largest eigenvalues: the mean squared
cosine of the principal angles, 1 for the same space, 0 for orthogonal ones, and K/n on average for
random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from landscape.agreement import MAY, MUST, Rules, joined, option, require_one_command
from landscape.errors import UsageError
from landscape.flat.records import FlatResult
from landscape.flat_series import FlatSeries, collect_flat
from landscape.log_density import BANDWIDTH, counts_per_decade, log_grid
from landscape.results import MODULES, Density, HessianResult, Moments, Spectrum, block_size
from landscape.series_records import Band, OperatorSeries, Series
from landscape.volume.records import VolumeResult
from landscape.volume_series import VolumeSeries, collect_volumes

__all__ = ["APART", "Band", "OperatorSeries", "Series", "collect", "subspace_overlap"]

FloatArray = NDArray[np.float64]
Vectors = Callable[[int, str], NDArray[Any] | None]

APART = {
    "slice": ("is a slice, which is no series", "slices together with landscape plot"),
    "compare": (
        "compares two networks, which are no series",
        "comparisons together with landscape plot",
    ),
    "information": (
        "is a result of landscape information, which are not collected",
        "results of information together with landscape plot, or set them against others with "
        "information --against",
    ),
    "modules": (
        "couples groups of parameters, which no series holds",
        "these together with landscape plot",
    ),
}
"""Commands whose results no series holds: what they are, and what to draw instead."""
_QUANTITIES = ("trace", "trace_square", "negative_mass", "near_zero_mass")


def _operators(result: HessianResult) -> list[str]:
    return sorted(name for name in result.spectra if MODULES not in name)


def _modules(result: HessianResult) -> list[str]:
    return sorted(name for name in result.spectra if MODULES in name)


def _methods(result: HessianResult) -> dict[str, str]:
    return {name: result.spectra[name].method for name in _operators(result)}


def _depth(result: HessianResult) -> tuple[Any, ...]:
    spectra, moments = result.spectra.values(), result.moments.values()
    return (
        result.info.status == "complete",
        sum(s.exact for s in spectra),
        len(moments),
        sum(len(s.eigenvalues) for s in spectra),
        sum(m.n_probes for m in moments),
    )


_RULES = Rules(
    must={
        **MUST,
        "the operators (--operator)": _operators,
        "the diagonal blocks (--per-module)": _modules,
    },
    may={**MAY, "--method": _methods, "--tol": option("tol")},
    depth=_depth,
)


@overload
def collect(
    results: Sequence[HessianResult],
    *,
    sources: Sequence[str] | None = None,
    vectors: Vectors | None = None,
) -> Series: ...


@overload
def collect(
    results: Sequence[VolumeResult], *, sources: Sequence[str] | None = None
) -> VolumeSeries: ...


@overload
def collect(
    results: Sequence[FlatResult], *, sources: Sequence[str] | None = None
) -> FlatSeries: ...


def collect(
    results: Sequence[Any],
    *,
    sources: Sequence[str] | None = None,
    vectors: Vectors | None = None,
) -> Series | VolumeSeries | FlatSeries:
    """Join results over the training step.

    Args:
        results: of one command, one network and one configuration, in any order.
        sources: where each result comes from, for messages; default: its checkpoint.
        vectors: eigenvectors of a result by its index and an operator's name, where the results do
            not hold them; called for one pair of results at a time, so that few are in memory.

    Returns:
        the series. Of results of the same checkpoint the most complete one is kept.

    Raises:
        UsageError: the results do not belong to one series.
    """
    if not results:
        raise UsageError(
            "no result to collect; expected results of landscape hessian, volume or flat"
        )
    names = [r.info.checkpoint for r in results] if sources is None else list(sources)
    require_one_command(results, names, "Collect each kind by itself")
    if isinstance(results[0], VolumeResult):
        return collect_volumes(results, names)
    command = results[0].info.command
    if command in APART:
        what, together = APART[command]
        raise UsageError(
            f"{names[0]} {what}; expected results of landscape hessian, volume or flat. Draw "
            f"{together}"
        )
    if isinstance(results[0], FlatResult):
        return collect_flat(results, names)
    order, rows = joined(results, names, _RULES)
    chosen: list[HessianResult] = [results[i] for i in order]

    def vectors_of(row: int, operator: str) -> NDArray[Any] | None:
        if vectors is not None:
            return vectors(order[row], operator)
        return chosen[row].spectra[operator].eigenvectors

    warnings: list[str] = rows.pop("warnings")
    operators = {
        name: _operator_series(name, chosen, vectors_of, warnings) for name in chosen[0].spectra
    }
    notices = tuple(rows.pop("notices"))
    return Series(**rows, operators=operators, warnings=tuple(warnings), notices=notices)


def subspace_overlap(previous: NDArray[Any], current: NDArray[Any]) -> float:
    """Mean squared cosine of the principal angles between two spaces, from orthonormal rows (k, n).

    Cost: 2 k^2 n flops.
    """
    cosines = previous.astype(np.float64) @ current.astype(np.float64).T
    return float(min(max((cosines**2).sum() / len(previous), 0.0), 1.0))


def _operator_series(
    name: str, results: Sequence[HessianResult], vectors: Vectors, warnings: list[str]
) -> OperatorSeries:
    spectra = [r.spectra[name] for r in results]
    moments = [r.moments.get(name) for r in results]
    densities = [r.densities.get(name) for r in results]
    n = block_size(results[0], name)
    top = _common_number(name, "largest", [_available(s)[0] for s in spectra], warnings)
    top = min(top, max(s.top for s in spectra))  # Of an exact spectrum, not all n.
    bottom = _common_number(name, "smallest", [_available(s)[1] for s in spectra], warnings)
    bottom = min(bottom, max(1, *(s.bottom for s in spectra)))

    def largest(field: str) -> NDArray[Any]:
        return np.stack([getattr(s, field)[:top] for s in spectra])

    def smallest(field: str) -> NDArray[Any]:
        return np.stack([getattr(s, field)[::-1][:bottom] for s in spectra])

    converged = largest("converged")
    if missed := int((~converged).sum()):
        warnings.append(
            f"{name}: {missed} of {converged.size} largest eigenvalues are not converged; their "
            "residuals bound their distance from an eigenvalue"
        )
    if MODULES not in name:
        _warn_of_missing(name, moments, warnings)
    size = min(top, *(s.top for s in spectra))
    overlap = _overlaps(name, len(results), size, vectors, warnings)
    whole = np.asarray(converged[:, :size].all(1))
    grid, positive, negative = _log_densities(densities, moments, n)
    products = [
        s.n_matvecs + (0 if d is None else d.n_matvecs)
        for s, d in zip(spectra, densities, strict=True)
    ]
    return OperatorSeries(
        operator=name,
        n=n,
        eigenvalues=largest("eigenvalues"),
        residuals=largest("residuals"),
        converged=converged,
        smallest=smallest("eigenvalues"),
        smallest_residuals=smallest("residuals"),
        smallest_converged=smallest("converged"),
        **{quantity: _band(quantity, moments) for quantity in _QUANTITIES},
        resolution=np.array([np.nan if m is None else m.resolution for m in moments]),
        n_probes=np.array([-1 if m is None else m.n_probes for m in moments], dtype=np.int64),
        n_matvecs=np.array(products, dtype=np.int64),
        overlap=overlap,
        overlap_converged=np.isfinite(overlap) & whole & np.append([False], whole[:-1]),
        overlap_size=size,
        log_lambda=grid,
        positive=positive,
        negative=negative,
        bandwidth=BANDWIDTH,
    )


def _available(spectrum: Spectrum) -> tuple[int, int]:
    """How many of the largest and of the smallest eigenvalues a spectrum holds."""
    k = len(spectrum.eigenvalues)
    if spectrum.exact:
        return k, k
    top = min(spectrum.top, k)
    return top, min(spectrum.bottom, k - top)


def _common_number(name: str, which: str, numbers: Sequence[int], warnings: list[str]) -> int:
    least, most = min(numbers), max(numbers)
    option = "--top" if which == "largest" else "--bottom"
    exact_only = which == "smallest" and least == 0
    if least < most and not exact_only:
        warnings.append(
            f"{name}: the results hold {least} to {most} of the {which} eigenvalues; the first "
            f"{least} of each are kept (use one {option} for all)"
        )
    return least


def _warn_of_missing(name: str, moments: Sequence[Moments | None], warnings: list[str]) -> None:
    missing = sum(m is None for m in moments)
    if 0 < missing < len(moments):
        warnings.append(
            f"{name}: {missing} of {len(moments)} results have no density and no trace "
            "(--no-density); they are NaN there"
        )


def _band(quantity: str, moments: Sequence[Moments | None]) -> Band:
    found = [None if m is None else getattr(m, quantity) for m in moments]
    return Band(
        **{
            part: np.array([np.nan if e is None else getattr(e, part) for e in found])
            for part in ("value", "stderr", "lower", "upper")
        }
    )


def _overlaps(
    name: str, count: int, size: int, vectors: Vectors, warnings: list[str]
) -> FloatArray:
    found = np.full(count, np.nan)
    missing, previous = 0, None
    for row in range(count if size else 0):
        current = vectors(row, name)
        # Rows are those of the largest eigenvalues first.
        current = None if current is None or len(current) < size else current[:size]
        missing += current is None
        if previous is not None and current is not None:
            found[row] = subspace_overlap(previous, current)
        previous = current
    if missing and count > 1:
        warnings.append(
            f"{name}: {missing} of {count} results hold no eigenvectors, so that the overlap of "
            "the top eigenspaces is NaN there; measure with --save-vectors"
        )
    return found


def _log_densities(
    densities: Sequence[Density | None], moments: Sequence[Moments | None], n: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    both = [
        None if d is None or m is None else (d, m.resolution)
        for d, m in zip(densities, moments, strict=True)
    ]
    grid = log_grid(pair for pair in both if pair is not None)
    rows = [
        np.full((2, len(grid)), np.nan)
        if pair is None
        else np.stack(counts_per_decade(pair[0], grid, n=n, resolution=pair[1]))
        for pair in both
    ]
    positive, negative = np.stack(rows, axis=1)
    return grid, positive, negative
