"""Laws of directions that rays are drawn from, with exact densities on the sphere.

Every law here is that of ``u = y / |y|`` for a Gaussian y ~ N(-M^-1 b, M^-1), with M known along
orthonormal rows and a multiple of the identity on their complement: sampling, determinant and
density are then exact, without a matrix of size n. Tilted: the prior times ``exp(-s Q)`` seen from
the anchor. Symmetric: b = 0, what other estimators use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import NotFiniteError, UsageError
from landscape.reductions import deviation, gram
from landscape.rng import normal, stream
from landscape.volume.radial_integrals import log_radial_integral, typical_radius

__all__ = ["DirectionLaw", "GaussianLaw", "symmetric_law", "tilted_law"]

FloatArray = NDArray[np.float64]

_ORTHONORMAL = 1e-10  # Rows farther from orthonormal are made so: the determinant relies on it.
_PLAUSIBLE = 1e-2  # Rows farther from orthonormal than any rounding are a mistake.


class DirectionLaw(Protocol):
    """A law on the unit sphere of R^n; ray i's direction depends on i and the law only."""

    def sample(self, index: int) -> Tensor:
        """Direction of one ray: a unit vector (n,), float64."""

    def log_density(self, directions: Tensor) -> FloatArray:
        """Log density per surface area at unit rows (k, n), in nats: (k,)."""

    def typical_radius(self, directions: Tensor) -> FloatArray:
        """Where to look for the end of the ray first, for unit rows (k, n): (k,)."""


class GaussianLaw:
    """Directions u = y / |y| of a Gaussian y ~ N(-M^-1 b, M^-1).

    ``M = V^T diag(m) V + c (I - V^T V)``. Along a ray the density of y is
    ``q(r u) = exp(e - a r^2 / 2 - l r)`` with ``a = u^T M u``, ``l = b^T u`` and
    ``e = -n/2 log(2 pi) + log det(M) / 2 - b^T M^-1 b / 2``, so the direction has the density
    ``exp(e) * integral of r^(n-1) exp(-a r^2 / 2 - l r) dr`` (for b = 0 the angular Gaussian).

    Args:
        rows: V, orthonormal (d, n), d <= n; any float type, made orthonormal in float64.
        values: m > 0, (d,).
        bulk: c > 0; without effect where d = n.
        linear: b, (n,), float64.
        seed: seed of the directions. Laws with the same seed and size share the normal vectors.

    Raises:
        NotFiniteError: an argument has NaN or infinite entries.
        UsageError: the shapes do not fit, m or c is not positive, the rows are not orthonormal.

    Cost: (d + 2) n numbers, d^2 n flops; for a direction 4 d n flops, for its density 2 d n.
    """

    def __init__(
        self, rows: Tensor, values: Tensor, *, bulk: float, linear: Tensor, seed: int = 0
    ) -> None:
        n, d = linear.numel(), len(values)
        self.n = n
        self.linear = linear.double()
        self.values, self.bulk = values.to(self.linear), float(bulk)
        if rows.shape != (d, n) or d > n or linear.dim() != 1:
            raise UsageError(
                f"rows of shape {tuple(rows.shape)} with {d} values in {n} dimensions; expected "
                "(d, n) with d <= n. Pass eigenvectors as rows, one for each value"
            )
        lists = (rows, self.values, self.linear, torch.tensor(self.bulk))
        if not all(bool(torch.isfinite(part).all()) for part in lists):
            raise NotFiniteError(
                "the curvature or gradient behind the directions is not finite; expected finite "
                "numbers. Check the weights and the data (landscape check)"
            )
        if bool((self.values <= 0).any()) or (self.bulk <= 0 and d < n):
            raise UsageError(
                "the directions' Gaussian has a precision that is not positive; expected positive "
                "values. Raise the floor or the damping"
            )
        self.rows = _orthonormal(rows.to(self.linear))
        self._seed = seed
        self._centre = -self._apply(lambda m: 1 / m, self.linear)
        self._constant = (
            self.log_det + float(self.linear @ self._centre) - n * math.log(2 * math.pi)
        ) / 2

    @property
    def log_det(self) -> float:
        """``log det M``, in nats."""
        rest = self.n - len(self.values)
        return float(self.values.log().sum()) + (rest * math.log(self.bulk) if rest else 0.0)

    def _apply(self, function: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
        """``f(M) v`` for a vector (n,)."""
        whole = len(self.values) == self.n
        base = self.values.new_zeros(()) if whole else function(self.values.new_tensor(self.bulk))
        along = (function(self.values) - base) * (self.rows @ vector)
        return torch.addmv(base * vector, self.rows.T, along)

    def sample(self, index: int) -> Tensor:
        """Direction of one ray, from its own random stream: a unit vector (n,)."""
        draw = normal(self.n, stream(self._seed, "ray", index), like=self.linear)
        y = self._centre + self._apply(torch.rsqrt, draw)
        unit: Tensor = y / torch.linalg.vector_norm(y)
        return unit

    def log_terms(self, directions: Tensor) -> tuple[float, FloatArray, FloatArray]:
        """e, a and l of ``log q(r u) = e - a r^2 / 2 - l r`` for unit rows u (k, n)."""
        rest = self.bulk if len(self.values) < self.n else 0.0
        # Row by row, since the rounding of a matrix product depends on the other rows.
        quadratic = [rest + (self.values - rest) @ (self.rows @ u).square() for u in directions]
        linear = [u @ self.linear for u in directions]
        return self._constant, to_array(quadratic), to_array(linear)

    def log_density(self, directions: Tensor) -> FloatArray:
        """Log density per surface area at unit rows (k, n), in nats: (k,)."""
        constant, quadratic, linear = self.log_terms(directions)
        return constant + log_radial_integral(self.n, quadratic, linear, np.inf)

    def typical_radius(self, directions: Tensor) -> FloatArray:
        """About where y lies on each ray, (k,): near the cutoff, where the law is tilted to it."""
        _, quadratic, linear = self.log_terms(directions)
        return typical_radius(self.n, quadratic, linear)


def tilted_law(
    anchor: Tensor,
    rows: Tensor,
    values: Tensor,
    *,
    scale: float,
    bulk: float = 0.0,
    gradient: Tensor | None = None,
    floor: float = 0.1,
    seed: int = 0,
) -> GaussianLaw:
    """Directions from the anchor under ``N(0, I) exp(-s Q)``, Q the quadratic model.

    With ``Q(y) = y^T A y / 2 + g^T y`` the law of y = z - z* is N(-M^-1 b, M^-1) with
    ``M = I + s A`` and ``b = z* + s g``. A is given as ``V^T diag(a) V + c (I - V^T V)``: the dense
    path has d = n, the Gram path d = rank and c = 0, the matrix-free one the top pairs and the mean
    of the other eigenvalues. Whatever A is, weights by the law's own density stay exact.

    Negative curvature: ``1 + s a`` below the floor is raised to it, for the proposal only. A
    negative s (a cutoff above the mean of Q under the prior) counts as 0, the prior itself: the
    region then holds most of the prior's mass.

    Args:
        anchor: z*, (n,), in whitened coordinates.
        rows: V, orthonormal (d, n).
        values: a, (d,).
        scale: s, where E[Q] under the law is the cutoff.
        bulk: c.
        gradient: g, (n,); 0 where None.
        floor: least precision of the proposal, in units of the prior's: 0.1 is 3.2 of its standard
            deviations.
        seed: seed of the directions.

    Raises:
        NotFiniteError: an argument has NaN or infinite entries.
        UsageError: the shapes do not fit or the rows are not orthonormal.

    Source: exponential tilting, e.g. Butler, Saddlepoint Approximations (2007), section 2.
    """
    s = max(float(scale), 0.0) if math.isfinite(scale) else float(scale)
    linear = anchor.double() if gradient is None else anchor.double() + s * gradient.double()
    return GaussianLaw(
        rows,
        (1 + s * values.double()).clamp(min=floor),
        bulk=max(1 + s * bulk, floor),
        linear=linear,
        seed=seed,
    )


def symmetric_law(
    anchor: Tensor,
    rows: Tensor | None = None,
    values: Tensor | None = None,
    *,
    bulk: float = 0.0,
    damping: float = 1e-3,
    seed: int = 0,
) -> GaussianLaw:
    """Directions symmetric about the anchor, with or without a preconditioner: for comparison.

    Uniform on the sphere, or y = P x with x standard normal and ``P = (|A|^(1/2) + damping)^-1``
    (whose determinant, set to 1 elsewhere, cancels from the weights). Also the law of choice where
    A = 0 and no tilt exists.

    Args:
        anchor: z*, (n,): only its size and device matter.
        rows: V of A, orthonormal (d, n); uniform directions where None.
        values: a of A, (d,).
        bulk: c of A.
        damping: in units of the root of A.
        seed: seed of the directions.

    Source: Scherlis and Belrose, Estimating the probability of sampling a trained neural network
    at random (arXiv 2501.18812), section 3 and its code (the preconditioner).
    """
    linear = torch.zeros_like(anchor, dtype=torch.float64)
    if rows is None or values is None:
        return GaussianLaw(
            linear.new_empty(0, len(linear)),
            linear.new_empty(0),
            bulk=1.0,
            linear=linear,
            seed=seed,
        )
    return GaussianLaw(
        rows,
        (values.double().abs().sqrt() + damping).square(),
        bulk=(math.sqrt(abs(bulk)) + damping) ** 2,
        linear=linear,
        seed=seed,
    )


def to_array(numbers: Sequence[Tensor]) -> FloatArray:
    """Scalar tensors as an array (k,)."""
    return np.array([float(number) for number in numbers])


def _orthonormal(rows: Tensor) -> Tensor:
    """The rows, made orthonormal where a coarser type's rounding keeps them from it."""
    error = deviation(gram(rows))
    if error <= _ORTHONORMAL:
        return rows
    if error > _PLAUSIBLE:
        raise UsageError(
            f"rows that are {error:.2g} from orthonormal; expected orthonormal rows. Pass the "
            "eigenvectors of a symmetric matrix"
        )
    basis, triangle = torch.linalg.qr(rows.T)
    signed: Tensor = basis * triangle.diagonal().sign()
    return signed.T.contiguous()
