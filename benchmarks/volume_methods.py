"""What every method finds of one problem, as records that JSON can hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from volume_problems import CUTOFF, Diagonal, Quadratic

from landscape.eigensolver import extreme_eigenpairs
from landscape.operators import LinearOperator
from landscape.quadratic_form import QuadraticForm
from landscape.spectrum import dense_spectrum
from landscape.volume.measures import eigenpair_measure, location_measure, probe_measure
from landscape.volume.quadratic import QuadraticVolume, combine, quadratic_exact, quadratic_volume
from landscape.volume.radial import RaySample, radial_estimate, radial_rays
from landscape.volume.ray_priors import NormalPrior
from landscape.volume.tilted import DirectionLaw

Record = dict[str, Any]

PRODUCTS, PAIRS, STEPS = 500, 75, 30
"""Of the matrix-free path: all products, eigenpairs, Lanczos steps of a probe."""

RANK = 50
"""Eigenpairs that a low-rank law of directions knows."""

_TOL = 1e-6  # Of eigenpairs, as in the library's own runs.
_BUILT = 2000  # Largest matrix that is built and diagonalised.


def matrix_free(
    operator: LinearOperator,
    anchor: Tensor,
    *,
    cutoffs: ArrayLike = CUTOFF,
    seed: int,
    products: int = PRODUCTS,
    pairs: int = PAIRS,
    steps: int = STEPS,
) -> QuadraticVolume:
    """The quadratic model's log V from so many products: eigenpairs first, then probes.

    Where eigenpairs and probes leave no error, the products are not used up.
    """
    found = extreme_eigenpairs(
        operator,
        top=min(pairs, operator.n),
        tol=_TOL,
        seed=seed,
        max_matvecs=2 * products // 5,
    )
    chosen = torch.from_numpy(found.converged)
    vectors = found.vectors[chosen]
    options: dict[str, Any] = {"steps": steps, "deflate": vectors}
    known = eigenpair_measure(found.values[found.converged], vectors, anchor)
    location = location_measure(operator, anchor, **options)
    probes: list[QuadraticForm] = []

    def combined() -> QuadraticVolume:
        return combine(
            n=operator.n,
            eigenpairs=known if len(vectors) else None,
            location=location,
            probes=probes,
            cutoffs=cutoffs,
            steps=steps,
        )

    while len(vectors) < operator.n and operator.n_matvecs + steps <= products:
        probes.append(probe_measure(operator, index=len(probes), seed=seed, **options))
        if len(probes) == 2 and (combined().stderr <= 1e-12 * abs(combined().log_volume)).all():
            break
    return combined()


def quadratic_record(
    found: QuadraticVolume, place: int = 0, *, products: int, seconds: float
) -> Record:
    """One cutoff of a quadratic log-volume."""
    return {
        "value": float(found.log_volume[place]),
        "stderr": float(found.stderr[place]),
        "lower": float(found.lower[place]),
        "upper": float(found.upper[place]),
        "truncation": float(found.truncation[place]),
        "probes": found.n_probes,
        "products": products,
        "seconds": seconds,
    }


def dense(problem: Quadratic) -> Record:
    """The dense path on the rotated matrix; on the spectrum itself where that is too large."""
    began = time.perf_counter()
    if problem.n > _BUILT:
        exact = quadratic_volume(problem.form, CUTOFF, n=problem.n)
        return quadratic_record(exact, products=0, seconds=time.perf_counter() - began)
    operator, anchor = problem.rotated()
    began = time.perf_counter()
    spectrum, vectors = dense_spectrum(operator, "curvature", top=0, bottom=0, tol=1e-8)
    exact = quadratic_exact(spectrum.eigenvalues, vectors, anchor, cutoffs=CUTOFF)
    seconds = time.perf_counter() - began
    return quadratic_record(exact, products=operator.n_matvecs, seconds=seconds)


def lanczos(problem: Quadratic, seed: int, *, pairs: int = PAIRS, steps: int = STEPS) -> Record:
    """The matrix-free path."""
    began = time.perf_counter()
    operator = Diagonal(problem.values)
    found = matrix_free(operator, problem.anchor, seed=seed, pairs=pairs, steps=steps)
    seconds = time.perf_counter() - began
    return quadratic_record(found, products=operator.n_matvecs, seconds=seconds)


def rays(
    excess: Callable[[Tensor], Tensor],
    law: DirectionLaw,
    anchor: Tensor,
    *,
    cutoff: float = CUTOFF,
    counts: tuple[int, ...],
) -> list[Record]:
    """Estimates from the first so many rays of one sample, with the maximum beside the mean.

    The maximum over rays of the log-weight is what some tools report for log V; it is here to be
    compared with and nowhere in the library.
    """
    began = time.perf_counter()
    sample = radial_rays(
        excess, law, NormalPrior(anchor), cutoff=cutoff, indices=range(max(counts))
    )
    seconds = (time.perf_counter() - began) / max(counts)
    return [_rays_record(_first(sample, count), seconds * count) for count in counts]


def _first(sample: RaySample, count: int) -> RaySample:
    return RaySample(
        **{field.name: getattr(sample, field.name)[:count] for field in fields(sample)}
    )


def _rays_record(sample: RaySample, seconds: float) -> Record:
    found = radial_estimate(sample)
    return {
        "value": found.log_volume,
        "stderr": found.stderr,
        "lower": found.lower,
        "upper": found.upper,
        "label": found.label,
        "ess": found.ess,
        "rays": found.n_rays,
        "share": found.largest_share,
        "tail": found.tail_index,
        "maximum": float(np.max(sample.log_weight)),
        "infinite": found.n_infinite,
        "non_monotone": found.n_non_monotone,
        "evaluations": found.n_evaluations,
        "seconds": seconds,
    }


def quadratic_methods(problem: Quadratic, seed: int, counts: tuple[int, ...]) -> dict[str, Record]:
    """Every method on one quadratic problem with one seed; the counts are those of tilted rays."""
    found = {"quadratic, dense": dense(problem)} if not seed else {}
    if problem.n > PAIRS:
        found[f"quadratic, {PRODUCTS} products"] = lanczos(problem, seed)
    tilted = _problem_rays(problem, "tilted", seed, counts)
    found |= {f"radial, {count} rays": record for count, record in zip(counts, tilted, strict=True)}
    few = counts[:1]
    if problem.n > RANK:
        (found[f"radial, {RANK} pairs"],) = _problem_rays(problem, "low rank", seed, few)
    (found["symmetric"],) = _problem_rays(problem, "symmetric", seed, few)
    (found["symmetric, exact Hessian"],) = _problem_rays(problem, "preconditioned", seed, few)
    return found


def _problem_rays(
    problem: Quadratic, kind: str, seed: int, counts: tuple[int, ...]
) -> list[Record]:
    law = problem.law(kind, seed, RANK)
    return rays(problem.excess, law, problem.anchor, counts=counts)


_ROUNDED = {"stderr", "truncation", "ess", "share", "tail", "seconds"}


def plain(value: Any, key: str = "") -> Any:
    """The same with None for numbers that JSON does not know, and without digits of no use."""
    if isinstance(value, dict):
        return {name: plain(part, name) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.6g}") if key in _ROUNDED else value
    return value
