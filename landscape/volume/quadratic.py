"""The log-volume of the quadratic model of a basin, exact or matrix-free.

In whitened coordinates the model is ``Q(z) = (z - z*)^T A (z - z*) / 2 + g^T (z - z*)`` under the
prior N(0, I), and ``log V(e) = log P(Q <= e)``: exact from every eigenvalue; matrix-free from the
parts of :mod:`landscape.volume.measures`, with a standard error over probes and with bounds on what
the Lanczos steps do not resolve.

Source of the error: Efron and Stein, Ann. Statist. 9 (1981), the jackknife.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from landscape.eigensolver import RitzPairs
from landscape.errors import UsageError
from landscape.operators import LinearOperator
from landscape.quadratic_form import QuadraticForm, log_cdf, log_cdf_reweighted
from landscape.volume.measures import (
    eigenpair_measure,
    exact_form,
    location_measure,
    merged,
    probe_measure,
    radau_measure,
)

__all__ = [
    "NegativeCurvature",
    "QuadraticVolume",
    "combine",
    "eigenpair_measure",
    "exact_form",
    "location_measure",
    "negative_curvature",
    "probe_measure",
    "quadratic_exact",
    "quadratic_stochastic",
    "quadratic_volume",
]

FloatArray = NDArray[np.float64]

_TOL = 1e-8  # Negative eigenvalues down to this part of the largest are rounding.


@dataclass(frozen=True, kw_only=True)
class NegativeCurvature:
    """How much of a spectrum is negative, beyond rounding.

    Attributes:
        count: expected number of eigenvalues below ``-threshold``.
        fraction: their part of all.
        least: the most negative one; 0 where none is below ``-threshold``.
        threshold: what counts as rounding.
    """

    count: float
    fraction: float
    least: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class QuadraticVolume:
    """The quadratic model's log-volume at cutoffs; arrays are (c,), in nats.

    Attributes:
        cutoffs: e.
        log_volume: log V.
        stderr: standard error over probes; 0 where log V is exact, NaN for a single probe.
        truncation: by how much log V can be too low because of the number of Lanczos steps, for
            curvature that is not negative; 0 where it is exact.
        lower: lower end of a 95% interval, by Student's t over probes.
        upper: upper end, the truncation included, at most 0.
        width: ``-1/2 log det(I + s A)`` at the saddle s: what the basin's width costs.
        location: ``K(-s)`` less the width, for g = 0 ``-1/2 z*^T s A (I + s A)^-1 z*``: what it
            costs that the anchor lies away from the prior's mean in directions that matter.
        remainder: ``log V - width - location``.
        saddle: s, at which the tilted law's mean of Q is e; negative for e above the prior's mean
            of Q, NaN where there is none.
        saddlepoint: log V by the saddle-point formula, a check.
        effective_dimension: ``2 d log V / d log e``.
        n_eff: ``sum s a / (1 + s a)``, MacKay's number of well-determined directions.
        n: number of directions.
        n_eigenpairs: how many of them are known exactly.
        n_probes: probes that stand for the others.
        negative: how much of the curvature is negative: the numbers are then those of a model that
            falls for ever in some directions.
        form: the law that the numbers are of.
    """

    cutoffs: FloatArray
    log_volume: FloatArray
    stderr: FloatArray
    truncation: FloatArray
    lower: FloatArray
    upper: FloatArray
    width: FloatArray
    location: FloatArray
    remainder: FloatArray
    saddle: FloatArray
    saddlepoint: FloatArray
    effective_dimension: FloatArray
    n_eff: FloatArray
    n: int
    n_eigenpairs: int
    n_probes: int
    negative: NegativeCurvature
    form: QuadraticForm


def quadratic_exact(
    eigenvalues: ArrayLike,
    vectors: Tensor,
    z_star: Tensor,
    gradient: Tensor | None = None,
    *,
    cutoffs: ArrayLike,
    tol: float = _TOL,
) -> QuadraticVolume:
    """The exact log-volume from eigenpairs; see :func:`landscape.volume.measures.exact_form`.

    Args:
        eigenvalues: of A, (k,).
        vectors: orthonormal eigenvectors as rows (k, n); A vanishes on the rest of the space.
        z_star: the anchor z* in whitened coordinates, (n,).
        gradient: g, (n,); zero where None.
        cutoffs: e, (c,).
        tol: negative eigenvalues down to this part of the largest count as rounding.
    """
    form = exact_form(eigenvalues, vectors, z_star, gradient)
    return quadratic_volume(form, cutoffs, n=vectors.shape[1], tol=tol)


def quadratic_volume(
    form: QuadraticForm, cutoffs: ArrayLike, *, n: int, tol: float = _TOL
) -> QuadraticVolume:
    """The log-volume of a fully known law of n directions, with errors of 0."""
    found = log_cdf(form, cutoffs)
    product = found.saddle[:, None] * form.eigenvalues
    exact = np.zeros_like(found.cutoffs)
    return QuadraticVolume(
        cutoffs=found.cutoffs,
        log_volume=found.log_probability,
        stderr=exact,
        truncation=exact,
        lower=found.log_probability,
        upper=found.log_probability,
        width=found.width,
        location=found.location,
        remainder=found.remainder,
        saddle=found.saddle,
        saddlepoint=found.saddlepoint,
        effective_dimension=2 * found.slope,
        n_eff=(product / (1 + product)) @ form.multiplicity,
        n=n,
        n_eigenpairs=n,
        n_probes=0,
        negative=negative_curvature(form.eigenvalues, form.multiplicity, tol=tol),
        form=form,
    )


def negative_curvature(
    eigenvalues: FloatArray, multiplicity: FloatArray, *, tol: float = _TOL
) -> NegativeCurvature:
    """How many eigenvalues are negative beyond rounding.

    Args:
        eigenvalues: eigenvalues or quadrature nodes, (k,).
        multiplicity: how many eigenvalues each stands for, (k,).
        tol: what counts as rounding, relative to the largest absolute value.
    """
    threshold = tol * float(np.abs(eigenvalues[multiplicity > 0]).max(initial=0.0))
    negative = (multiplicity > 0) & (eigenvalues < -threshold)
    count = float(multiplicity[negative].sum())
    return NegativeCurvature(
        count=count,
        fraction=count / float(multiplicity.sum()) if count else 0.0,
        least=float(eigenvalues[negative].min(initial=0.0)),
        threshold=threshold,
    )


def quadratic_stochastic(
    operator: LinearOperator,
    z_star: Tensor,
    gradient: Tensor | None = None,
    *,
    cutoffs: ArrayLike,
    pairs: RitzPairs | None = None,
    steps: int = 30,
    probes: int = 10,
    seed: int = 0,
    tol: float = _TOL,
) -> QuadraticVolume:
    """The log-volume from products alone: converged eigenpairs, probes and the anchor's own run.

    A quarter of the products or more is well spent on eigenpairs: the probes' error is that of the
    eigenvalues left to them, and those need fewer steps.

    Args:
        operator: A, whitened, of size n.
        z_star: the anchor z* in whitened coordinates, (n,).
        gradient: g, (n,); zero where None.
        cutoffs: e, (c,).
        pairs: eigenpairs; those that converged are known exactly, and the rest is estimated.
        steps: Lanczos steps of every probe and of the anchor's run.
        probes: number of probes.
        seed: seed of the probes.
        tol: negative eigenvalues down to this part of the largest count as rounding.

    Raises:
        UsageError: shapes do not fit, or there are no steps or no probes where they are needed.

    Cost: ``(probes + 1) steps`` products, and ``steps`` more with a gradient.
    """
    if steps < 1:
        raise UsageError(f"{steps} Lanczos steps: expected one or more. Ask for about 30")
    options: dict[str, Any] = {"steps": steps}
    known: QuadraticForm | None = None
    if pairs is not None and pairs.converged.any():
        chosen = torch.as_tensor(pairs.converged, device=pairs.vectors.device)
        options["deflate"] = vectors = pairs.vectors[chosen]
        known = eigenpair_measure(pairs.values[pairs.converged], vectors, z_star, gradient)
    rest = operator.n - (0 if known is None else len(known.eigenvalues))
    return combine(
        n=operator.n,
        eigenpairs=known,
        location=location_measure(operator, z_star, gradient, **options),
        probes=[
            probe_measure(operator, index=index, seed=seed, **options)
            for index in range(probes if rest else 0)
        ],
        cutoffs=cutoffs,
        steps=steps,
        tol=tol,
    )


def combine(
    *,
    n: int,
    eigenpairs: QuadraticForm | None,
    location: QuadraticForm,
    probes: Sequence[QuadraticForm],
    cutoffs: ArrayLike,
    steps: int | None = None,
    tol: float = _TOL,
) -> QuadraticVolume:
    """The log-volume from the parts of the law.

    Args:
        n: number of directions.
        eigenpairs: those known exactly, whose vectors the other parts deflate.
        location: the measure of the anchor on the rest of the space.
        probes: trace measures there; none are needed where nothing is left.
        cutoffs: e, (c,).
        steps: Lanczos steps that the runs were given; without, the truncation stays unknown.
        tol: negative eigenvalues down to this part of the largest count as rounding.

    Returns:
        log V of all parts together, multiplicities averaged over the p probes. Its standard error
        is the delete-one jackknife: every estimate left out is an exact log-probability again. The
        interval reaches from the Gauss rules' lower end to the Gauss-Radau rules' upper end.

    Raises:
        UsageError: no probes, but directions that they would stand for.

    Cost: no products; about 3 times :func:`landscape.quadratic_form.log_cdf`.
    """
    d = 0 if eigenpairs is None else len(eigenpairs.eigenvalues)
    if d < n and not probes:
        raise UsageError(
            f"{n - d} of {n} directions are not known and no probe stands for them; expected one "
            "or more. Ask for a probe"
        )
    fixed = [location] if eigenpairs is None else [eigenpairs, location]
    probes = probes if d < n else []
    volume = quadratic_volume(_law(fixed, probes), cutoffs, n=n, tol=tol)
    value = volume.log_volume
    stderr = high_stderr = _jackknife(fixed, probes, volume.cutoffs)
    truncation = np.full_like(value, np.nan if probes else 0.0)
    if probes and steps is not None:
        fixed[-1] = radau_measure(location, steps=steps, rest=n - d)
        bounds = [radau_measure(probe, steps=steps, rest=n - d) for probe in probes]
        high = log_cdf(_law(fixed, bounds), volume.cutoffs).log_probability
        high_stderr = _jackknife(fixed, bounds, volume.cutoffs)
        below = np.isneginf(value)
        truncation = np.maximum(np.where(below, 0.0, high) - np.where(below, 0.0, value), 0.0)
    with np.errstate(invalid="ignore"):
        lower = value - _margin(stderr, len(probes))
        upper = value + np.nan_to_num(truncation) + _margin(high_stderr, len(probes))
    return replace(
        volume,
        stderr=stderr,
        truncation=truncation,
        lower=lower,
        upper=np.minimum(np.where(np.isnan(upper), 0.0, upper), 0.0),
        n_eigenpairs=d,
        n_probes=len(probes),
    )


def _law(fixed: Sequence[QuadraticForm], probes: Sequence[QuadraticForm]) -> QuadraticForm:
    """The law of the fixed parts and the mean of the probes."""
    return merged([*fixed, *probes], [1.0] * len(fixed) + [1 / len(probes) for _ in probes])


def _margin(stderr: FloatArray, count: int) -> FloatArray:
    """Half the width of a 95% interval by Student's t over so many probes."""
    if count == 1:
        return np.full_like(stderr, np.inf)
    return stderr * float(stats.t.ppf(0.975, count - 1)) if count else stderr


def _jackknife(
    fixed: Sequence[QuadraticForm], probes: Sequence[QuadraticForm], cutoffs: FloatArray
) -> FloatArray:
    """Standard error (c,) of log V over the probes: 0 without any, NaN for one."""
    count = len(probes)
    if count < 2:
        return np.full_like(cutoffs, np.nan if count else 0.0)
    parts = [*fixed, *probes]
    whole = np.concatenate([part.multiplicity for part in parts])
    owner = np.repeat(np.arange(len(parts)) - len(fixed), [len(p.eigenvalues) for p in parts])
    weights = np.where(owner < 0, whole, whole / (count - 1))
    left_out = np.where(owner == np.arange(count)[:, None], 0.0, weights)
    found = log_cdf_reweighted(_law(fixed, probes), left_out, cutoffs)
    # Below the support there is no volume whichever probe is left out.
    found = np.where(np.isneginf(found).all(0), 0.0, found)
    return np.asarray(np.sqrt((count - 1) / count * ((found - found.mean(0)) ** 2).sum(0)))
