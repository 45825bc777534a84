"""Quadratic problems whose log-volume is known exactly, by roads that this library does not take.

The excess loss is ``sum_i a_i (z_i - z*_i)^2 / 2`` under the prior N(0, I), with an anchor
z* ~ N(0, I) away from the prior's mean. Curvatures are diagonal: every method but the dense one
sees a problem through Gaussian vectors, whose law no rotation changes, and the dense one is given
the problem rotated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor

from landscape.operators import DenseOperator, LinearOperator
from landscape.quadratic_form import QuadraticForm, log_cdf
from landscape.rng import normal, stream
from landscape.volume.radial_integrals import log_radial_integral, typical_radius
from landscape.volume.tilted import DirectionLaw, symmetric_law, tilted_law

FloatArray = NDArray[np.float64]

CUTOFF = 1e-2
SPECTRA = ("isotropic", "power law", "90% zero")
DAMPING = 1e-3  # Of the symmetric preconditioner, in units of the root of the curvature.
_NUMBERS = 1_000_000  # In explicit rows of eigenvectors; more would take up to gigabytes.


def spectrum(name: str, n: int) -> FloatArray:
    """Eigenvalues in descending order: 1; i^-1.5; or 1 for a tenth of them and else 0."""
    index = np.arange(1, n + 1, dtype=np.float64)
    if name == "power law":
        return index**-1.5
    return np.ones(n) if name == "isotropic" else (index <= max(1, n // 10)).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """One problem.

    Attributes:
        name: of the spectrum.
        n: number of coordinates.
    """

    name: str
    n: int

    @cached_property
    def values(self) -> Tensor:
        """Curvatures a, (n,)."""
        return torch.from_numpy(spectrum(self.name, self.n))

    @cached_property
    def anchor(self) -> Tensor:
        """z*, (n,), of one problem for every seed of the estimators."""
        like = torch.empty(0, dtype=torch.float64)
        return normal(self.n, stream(0, "anchor", self.n), like=like)

    @cached_property
    def form(self) -> QuadraticForm:
        """The law of the excess loss from the spectrum as it is given."""
        return QuadraticForm(
            eigenvalues=self.values.numpy(),
            multiplicity=np.ones(self.n),
            location=self.anchor.numpy() ** 2,
        )

    @cached_property
    def tilt(self) -> float:
        """The s of the tilted law whose mean excess loss is the cutoff."""
        return float(log_cdf(self.form, CUTOFF).saddle[0])

    @cached_property
    def truth(self) -> float:
        """The log-volume, by :func:`parabola`."""
        return parabola(self.values.numpy(), self.anchor.numpy(), CUTOFF)

    def checks(self) -> dict[str, float]:
        """How far other roads are from the truth, in nats, where they apply."""
        found = {"log_cdf": float(log_cdf(self.form, CUTOFF).log_probability[0]) - self.truth}
        if self.name != "power law":
            curved = self.anchor[self.values > 0].numpy()
            square = float((curved**2).sum())
            found["mixture"] = mixture(len(curved), square, CUTOFF) - self.truth
            with np.errstate(all="ignore"):
                logs = float(stats.ncx2.logcdf(2 * CUTOFF, len(curved), square))
            if math.isfinite(logs):
                found["scipy"] = logs - self.truth
        return found

    def excess(self, points: Tensor) -> Tensor:
        """Excess losses at rows (k, n): (k,)."""
        return (points - self.anchor).square() @ self.values / 2

    def rotated(self) -> tuple[LinearOperator, Tensor]:
        """Curvature matrix and anchor in other coordinates, so that rounding has its say."""
        draw = torch.Generator().manual_seed(self.n)
        square = torch.randn(self.n, self.n, generator=draw, dtype=torch.float64)
        Q = torch.linalg.qr(square).Q
        A = (Q * self.values) @ Q.T
        return DenseOperator((A + A.T) / 2), Q @ self.anchor

    def law(self, kind: str, seed: int, pairs: int) -> DirectionLaw:
        """The law of the directions.

        Args:
            kind: ``tilted``; ``low rank``: the same from some eigenpairs and the mean of the other
                eigenvalues; ``symmetric``; ``preconditioned``: symmetric after the exact Hessian.
            seed: seed of the directions.
            pairs: eigenpairs of ``low rank``.
        """
        if kind == "symmetric":
            return symmetric_law(self.anchor, seed=seed)
        rank = int((self.values > 0).sum())
        if kind != "low rank" and rank * self.n > _NUMBERS:
            if kind == "tilted":
                return DiagonalLaw(1 + self.tilt * self.values, self.anchor, seed)
            return DiagonalLaw(
                (self.values.sqrt() + DAMPING).square(), torch.zeros_like(self.anchor), seed
            )
        d = min(pairs, self.n) if kind == "low rank" else rank
        rows = torch.zeros(d, self.n, dtype=torch.float64)
        rows.fill_diagonal_(1.0)
        bulk = float(self.values[d:].mean()) if d < self.n else 0.0
        if kind == "preconditioned":
            return symmetric_law(
                self.anchor, rows, self.values[:d], bulk=bulk, damping=DAMPING, seed=seed
            )
        return tilted_law(self.anchor, rows, self.values[:d], scale=self.tilt, bulk=bulk, seed=seed)


class Diagonal(LinearOperator):
    """A diagonal matrix."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.n, self.dtype, self.device = len(values), values.dtype, values.device

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.values * vector

    def _rows(self, rows: Tensor) -> Tensor:
        return self.values * rows


class DiagonalLaw:
    """:class:`landscape.volume.tilted.GaussianLaw` for a diagonal precision, in 3 n numbers.

    Its directions and densities are those of the library's class, which would need n^2 numbers.

    Args:
        precision: m > 0, (n,).
        linear: b, (n,).
        seed: seed of the directions.
    """

    def __init__(self, precision: Tensor, linear: Tensor, seed: int) -> None:
        self._m, self._b, self._seed = precision, linear, seed
        self._centre = -linear / precision
        n = len(precision)
        log_det = float(precision.log().sum())
        square = float(linear @ self._centre)
        self._constant = (log_det + square - n * math.log(2 * math.pi)) / 2

    def sample(self, index: int) -> Tensor:
        """Direction of one ray: a unit vector (n,)."""
        draw = normal(len(self._m), stream(self._seed, "ray", index), like=self._m)
        y = self._centre + draw * self._m.rsqrt()
        return y / torch.linalg.vector_norm(y)

    def _terms(self, directions: Tensor) -> tuple[FloatArray, FloatArray]:
        return (directions.square() @ self._m).numpy(), (directions @ self._b).numpy()

    def log_density(self, directions: Tensor) -> FloatArray:
        """Log density per surface area at unit rows (k, n), in nats: (k,)."""
        quadratic, linear = self._terms(directions)
        return self._constant + log_radial_integral(len(self._m), quadratic, linear, np.inf)

    def typical_radius(self, directions: Tensor) -> FloatArray:
        """About where y lies on each ray, (k,)."""
        return typical_radius(len(self._m), *self._terms(directions))


def parabola(values: FloatArray, anchor: FloatArray, cutoff: float) -> float:
    """The log of P(Q <= e) by the trapezoidal rule on ``s = t (1 + i w x - w^2 x^2 / 2)``.

    Brute force, one factor per coordinate: t is the saddle point by bisection and w the width of
    the integrand there, so that the modulus falls about as exp(-x^2 / 2). The parabola bends to
    the left, where all singularities lie, and the rule converges geometrically.
    """
    low, high = -50.0, 80.0
    for _ in range(200):
        t = math.exp((low + high) / 2)
        m = 1 + t * values
        mean = float((values / m + values * anchor**2 / m**2).sum()) / 2
        low, high = (math.log(t), high) if mean > cutoff else (low, math.log(t))
    r = t * values / m
    w = 1 / math.sqrt(float((r**2 / 2 + anchor**2 * r**2 / m).sum()))
    x = np.arange(0, 14, 0.04)
    d = 1j * w * x - (w * x) ** 2 / 2
    exponent = t * cutoff * d
    for part in range(len(x)):
        # Relative to the saddle: differences keep digits that whole sums would swallow.
        step = r * d[part]
        exponent[part] -= (np.log1p(step) + anchor**2 / m * step / (1 + step)).sum() / 2
    speed = 1j * w - w**2 * x
    integrand = (np.exp(exponent) / (1 + d) * speed / (2j * math.pi)).real
    top = t * cutoff - (np.log(m) + anchor**2 * r).sum() / 2
    return float(top + math.log(0.04 * (2 * integrand.sum() - integrand[0])))


def mixture(rank: int, square: float, cutoff: float) -> float:
    """The log of P(chi^2 <= 2 e), noncentral: a Poisson mixture of central laws."""
    j = np.arange(2000)
    shape = rank / 2 + j
    # The lower incomplete gamma function as its series of positive terms.
    ratios = cutoff / (shape[:, None] + np.arange(1, 40))
    series = 1 + np.cumprod(ratios, axis=1).sum(1)
    central = shape * math.log(cutoff) - cutoff - special.gammaln(shape + 1) + np.log(series)
    poisson = j * math.log(square / 2) - square / 2 - special.gammaln(j + 1)
    return float(special.logsumexp(poisson + central))
