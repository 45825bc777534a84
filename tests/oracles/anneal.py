"""Closed forms for annealing: laws tilted by ``exp(-beta dL)`` and volumes that are not quadratic.

Energies map whitened rows (C, n) to excess losses (C,) and gradients (C, n), as annealing wants
them. All priors are N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, special
from torch import Tensor

from landscape.quadratic_form import QuadraticForm, log_cdf
from landscape.volume.path import Metric

F64 = torch.float64
Energy = Callable[[Tensor], tuple[Tensor, Tensor]]


def normal_rows(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of_loss(loss: Callable[[Tensor], Tensor]) -> Energy:
    """An energy whose gradient is taken by automatic differentiation."""

    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        leaf = z.detach().double().requires_grad_()
        values = loss(leaf)
        (slope,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slope.to(z)

    return energy


class Counted:
    """An energy that counts its rows."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self.rows = 0

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.rows += len(z)
        return self.energy(z)


def no_metric(n: int) -> Metric:
    """Curvature 0."""
    return Metric(vectors=torch.zeros(0, n, dtype=F64), values=torch.zeros(0, dtype=F64), bulk=0.0)


def metric_of_matrix(matrix: Tensor) -> Metric:
    """The metric of a dense curvature."""
    values, vectors = torch.linalg.eigh(matrix)
    return Metric(vectors=vectors.T.contiguous(), values=values.clamp(min=0.0), bulk=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """An excess loss that is a sum of squares ``|f(z)|^2``, with its anchor.

    Attributes:
        anchor: z*, (n,).
        residual: f, of one point (n,).
    """

    anchor: Tensor
    residual: Callable[[Tensor], Tensor]

    def energy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The excess loss and its gradient."""
        return of_loss(lambda x: self.residual(x.T).square().reshape(-1, len(x)).sum(0))(z)

    def metric_at(self, positions: Tensor, number: int) -> Metric:
        """The mean Gauss-Newton matrix over positions, as a network's metric is."""
        total = torch.zeros(len(self.anchor), len(self.anchor), dtype=F64)
        for position in positions[:8]:
            jacobian = torch.autograd.functional.jacobian(
                lambda x: self.residual(x).reshape(-1), position
            )
            total += 2 * jacobian.T @ jacobian / min(len(positions), 8)
        return metric_of_matrix(total)


def _problem(anchor: list[float], residual: Callable[[Tensor], Tensor]) -> Problem:
    return Problem(anchor=torch.tensor(anchor, dtype=F64), residual=residual)


FLAT_MINIMA: dict[str, tuple[Problem, Callable[[float], float]]] = {
    "x^4": (
        _problem([0.0], lambda z: z[0] ** 2),
        lambda e: math.log(math.erf(e**0.25 / 2**0.5)),
    ),
    "x^2 y^2": (
        _problem([0.0, 0.0], lambda z: z[0] * z[1]),
        lambda e: math.log(2 / math.pi * integrate.quad(special.k0, 0, e**0.5)[0]),
    ),
    "(a b)^2": (
        _problem([0.0] * 4, lambda z: z[0] * z[1] + z[2] * z[3]),
        lambda e: math.log(-math.expm1(-(e**0.5))),
    ),
    "|a|^2 |b|^2": (
        _problem(
            [0.0] * 4, lambda z: torch.stack([z[0] * z[2], z[0] * z[3], z[1] * z[2], z[1] * z[3]])
        ),
        lambda e: math.log1p(-(e**0.5) * special.k1(e**0.5)),
    ),
}
"""Problems without curvature at the anchor, and log V at a cutoff."""

HYPERBOLA = _problem([1.0, 1.0], lambda z: z[0] * z[1] - 1)
"""``(x y - 1)^2`` from (1, 1): two components."""


def hyperbola(cutoff: float, radius: float = math.inf) -> float:
    """Log V of both components of ``(x y - 1)^2 <= cutoff`` within a radius of (1, 1)."""
    root = math.sqrt(cutoff)
    if math.isinf(radius):
        return math.log(integrate.quad(special.k0, 1 - root, 1 + root)[0] / math.pi)
    reach = radius * math.sqrt(2)
    x = 1 + reach * np.sin((np.arange(400_000) + 0.5) * math.pi / 400_000 - math.pi / 2)
    weight = np.sqrt(np.maximum(reach**2 - (x - 1) ** 2, 0)) * math.pi / 400_000
    half = np.sqrt(np.maximum(reach**2 - (x - 1) ** 2, 0))
    ends = np.sort(np.stack([(1 - root) / x, (1 + root) / x]), axis=0)
    low, high = np.maximum(ends[0], 1 - half), np.minimum(ends[1], 1 + half)
    inner = np.maximum(special.ndtr(high) - special.ndtr(low), 0.0)
    return math.log(np.sum(inner * np.exp(-x * x / 2) * weight) / math.sqrt(2 * math.pi))


# Laws at an inverse temperature ---------------------------------------------------------------


def quartic(beta: float, tether: float = 0.0) -> tuple[float, float, float]:
    """Of x^4: log Z, E[dL] and E[x^2] under the law at (beta, k), anchored at 0."""

    def moment(power: int) -> float:
        def density(x: float) -> float:
            return x**power * math.exp(-(1 + tether) * x * x / 2 - beta * x**4)

        reach = min(12.0, 6 / max(beta, 1e-9) ** 0.25)
        return 2 * integrate.quad(density, 0, reach, epsabs=0, epsrel=1e-11)[0]

    whole = moment(0)
    log_z = math.log(whole / math.sqrt(2 * math.pi))
    return log_z, moment(4) / whole, moment(2) / whole


def product(beta: float) -> tuple[float, float]:
    """Of x^2 y^2: log Z and E[dL] under the law at beta; y is integrated out."""

    def over_x(f: Callable[[float], float]) -> float:
        def integrand(t: float) -> float:
            x = math.exp(t)
            return 2 * x * math.exp(-x * x / 2) * f(x) / math.sqrt(2 * math.pi)

        return integrate.quad(integrand, -30, 3, epsabs=0, epsrel=1e-11, limit=200)[0]

    whole = over_x(lambda x: (1 + 2 * beta * x * x) ** -0.5)
    return math.log(whole), over_x(lambda x: x * x * (1 + 2 * beta * x * x) ** -1.5) / whole


def log_gaussian_reference(anchor: np.ndarray, tether: float) -> float:
    """``log int phi(z) exp(-k |z - z*|^2 / 2) dz`` from the dense Gaussian's precision and mean."""
    n = len(anchor)
    precision = np.eye(n) + tether * np.eye(n)
    shift = tether * anchor
    mean = np.linalg.solve(precision, shift)
    _, log_det = np.linalg.slogdet(precision)
    return float(-log_det / 2 + shift @ mean / 2 - tether * (anchor @ anchor) / 2)


# Quadratics -----------------------------------------------------------------------------------


class Quadratic:
    """``sum_i a_i (z_i - c_i)^2 / 2`` about an anchor drawn from the prior, and its truths.

    Args:
        n: coordinates.
        part: share of them whose curvature ``a_i = scale i^-power`` is not 0.
        kept: eigenvectors that the metric has; the others are its bulk.
    """

    def __init__(
        self,
        n: int,
        part: float = 1.0,
        *,
        scale: float = 1.0,
        power: float = 1.0,
        kept: int | None = None,
        seed: int = 99,
    ) -> None:
        rank = max(1, round(part * n))
        self.a = torch.zeros(n, dtype=F64)
        self.a[:rank] = scale * torch.arange(1, rank + 1, dtype=F64) ** -power
        self.anchor = normal_rows(n, seed=seed)
        kept = rank if kept is None else kept
        self.metric = Metric(
            vectors=torch.eye(n, dtype=F64)[:kept],
            values=self.a[:kept],
            bulk=float(self.a[kept:].mean()) if kept < n else 0.0,
        )
        self.form = QuadraticForm(
            eigenvalues=self.a.numpy(),
            multiplicity=np.ones(n),
            location=self.anchor.numpy() ** 2,
        )

    def energy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The excess loss and its gradient."""
        away = z - self.anchor
        return (away.square() * self.a / 2).sum(1), away * self.a

    def metric_at(self, positions: Tensor, number: int) -> Metric:
        """The curvature."""
        return self.metric

    def log_volume(self, cutoff: float) -> float:
        """Log V."""
        return float(log_cdf(self.form, cutoff).log_probability[0])

    def log_partition(self, beta: float, tether: float = 0.0) -> float:
        """Log Z(k, beta), as the integral of a Gaussian in each coordinate."""
        pull, m = tether + beta * self.a.numpy(), self.anchor.numpy() ** 2
        return float(-0.5 * (np.log1p(pull) + m * pull / (1 + pull)).sum())


# Two wells and matrices -----------------------------------------------------------------------


def two_wells(n: int, *, narrow: float, wide: float, apart: float) -> tuple[Energy, Tensor]:
    """The smaller of two bowls, ``narrow`` at the anchor 0 and a wide one at a distance."""
    centre = torch.full((n,), apart / math.sqrt(n), dtype=F64)

    def energy(z: Tensor) -> tuple[Tensor, Tensor]:
        away = z - centre
        near, far = narrow * z.square().sum(1) / 2, wide * away.square().sum(1) / 2
        first = (near <= far)[:, None]
        return torch.minimum(near, far), torch.where(first, narrow * z, wide * away)

    return energy, torch.zeros(n, dtype=F64)


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> Problem:
    """``|B A - W|^2 / 2`` with W of a rank, at a balanced factorisation of W.

    A is (hidden, inputs) and B (outputs, hidden); W has singular values 1.
    """
    a = torch.zeros(hidden, inputs, dtype=F64)
    b = torch.zeros(outputs, hidden, dtype=F64)
    for i in range(rank):
        a[i, i] = b[i, i] = 1.0
    target = b @ a

    def residual(z: Tensor) -> Tensor:
        # Trailing axes are points.
        first = z[: hidden * inputs].reshape(hidden, inputs, *z.shape[1:])
        second = z[hidden * inputs :].reshape(outputs, hidden, *z.shape[1:])
        product = torch.einsum("oh...,hi...->oi...", second, first)
        return (product - target.reshape(outputs, inputs, *[1] * (z.dim() - 1))) / math.sqrt(2)

    return Problem(anchor=torch.cat([a.reshape(-1), b.reshape(-1)]), residual=residual)


REDUCED_RANK = {
    (1, 1, 1, 0): (0.5, 2),
    (2, 1, 2, 0): (1.0, 2),
    (5, 4, 5, 4): (12.0, 1),
    (5, 4, 5, 2): (10.5, 1),
    (5, 4, 5, 0): (8.0, 1),
}
"""Learning coefficients and multiplicities of reduced-rank regression (M, H, N, r).

Source: Aoyagi and Watanabe, Neural Networks 18 (2005).
"""
