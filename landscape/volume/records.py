"""What ``landscape volume`` returns: frozen dataclasses, the same ones that a result file loads as.

Arrays over cutoffs have the axis c, over directions d, over rays r. Log-volumes are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landscape.results import Result
from landscape.volume.anneal_records import Annealing

__all__ = [
    "CLASSES",
    "Directions",
    "PriorTable",
    "Rays",
    "VolumeEstimate",
    "VolumeResult",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

CLASSES = ("steep", "intermediate", "flat")
"""Classes of directions by the ratio of exp(-s Q)'s width to the prior's: < 0.1, to 2, > 2."""


@dataclass(frozen=True, kw_only=True)
class VolumeEstimate:
    """``log V`` by one method at every cutoff.

    Attributes:
        method_name: ``quadratic``, ``radial`` or ``anneal``.
        path: how: ``dense``, ``gram`` or ``lanczos``; of ``radial`` also the law of its directions.
        cutoff: largest excess loss, (c,), in the units of the loss per example.
        log_volume: log of the prior's mass inside the cutoff, (c,).
        stderr: its standard error; 0 where it is exact, NaN where it is unknown, (c,).
        lower: lower end of the 95% interval, (c,).
        upper: upper end; inf for a lower bound, (c,).
        lower_bound: whether the value only bounds the volume from below, (c,).
        width: ``-1/2 log det(I + s A)``, (c,); NaN where the method does not tell, as the next.
        location: ``-1/2 z*^T s A (I + s A)^-1 z*`` (with a gradient: the rest of K(-s)), (c,).
        remainder: ``log_volume - width - location``, (c,).
        effective_dimension: ``2 d log V / d log cutoff``, (c,).
        tilt: s, where the tilted law's mean excess loss is the cutoff, (c,).
        n_samples: probes or rays behind the value, 0 where it is exact, (c,).
        ess: effective number of rays, (c,); NaN without sampling.
        largest_share: largest weight's share of all, (c,); NaN without sampling.
        n_matvecs: matrix-vector products used.
        n_forward: forward passes over the whole data set used.
    """

    method_name: str
    path: str
    cutoff: FloatArray
    log_volume: FloatArray
    stderr: FloatArray
    lower: FloatArray
    upper: FloatArray
    lower_bound: BoolArray
    width: FloatArray
    location: FloatArray
    remainder: FloatArray
    effective_dimension: FloatArray
    tilt: FloatArray
    n_samples: IntArray
    ess: FloatArray
    largest_share: FloatArray
    n_matvecs: int
    n_forward: int


@dataclass(frozen=True, kw_only=True)
class Directions:
    """The eigenspaces of the whitened curvature, steepest first, and what each costs.

    ``nats`` are the parts of ``-log V``: ``m/2 log(1 + s a) + s a l / (2 (1 + s a))``; with the
    remainder they add up to it.

    Attributes:
        eigenvalue: a, (d,), in loss units per squared prior standard deviation.
        multiplicity: m, dimensions of the eigenspace, or a quadrature's weight, (d,).
        location: l, the part of ``|z*|^2`` there, (d,).
        width: ``sqrt(2 cutoff / a)`` in prior standard deviations, inf where a <= 0, (c, d).
        ratio: ``1 / sqrt(s a)``, the width of exp(-s Q) over the prior's, inf likewise, (c, d).
        kind: index in :data:`CLASSES`, (c, d).
        nats: (c, d).
        cutoff: (c,).
        remainder: ``-log V`` less the sum of ``nats``, (c,).
    """

    eigenvalue: FloatArray
    multiplicity: FloatArray
    location: FloatArray
    width: FloatArray
    ratio: FloatArray
    kind: IntArray
    nats: FloatArray
    cutoff: FloatArray
    remainder: FloatArray

    def counts(self) -> FloatArray:
        """Number of directions of every class, (c, 3)."""
        return self._by_class(np.broadcast_to(self.multiplicity, self.nats.shape))

    def shares(self) -> FloatArray:
        """Nats of every class, (c, 3)."""
        return self._by_class(self.nats)

    def _by_class(self, values: FloatArray) -> FloatArray:
        return np.stack([np.where(self.kind == k, values, 0.0).sum(1) for k in range(3)], axis=1)


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Every ray of ``radial``, so that results of different rays can be merged.

    Attributes:
        cutoff: (c,).
        index: numbers of the rays in ascending order, (r,).
        radius: verified distance to the first passage, inf where there is none, (c, r).
        log_weight: log importance weight, (c, r).
        log_weight_outside: the same at the verified point outside, (c, r).
        converged: the radius is within its tolerance, (c, r).
        not_finite: a NaN was met, (c, r).
        non_monotone: the excess loss was seen to fall along the ray, (c, r).
        evaluations: of the excess loss, (c, r).
    """

    cutoff: FloatArray
    index: IntArray
    radius: FloatArray
    log_weight: FloatArray
    log_weight_outside: FloatArray
    converged: BoolArray
    not_finite: BoolArray
    non_monotone: BoolArray
    evaluations: IntArray


@dataclass(frozen=True, kw_only=True)
class PriorTable:
    """A prior beside the anchor, one entry for each tensor.

    Attributes:
        names: the selected parameters, in the model's order.
        sizes: number of coordinates of each.
        mean: root mean square of the prior's mean.
        scale: root mean square of the prior's scales.
        anchor: root mean square of the anchor.
        location: ``|z*|^2`` of the tensor: about its size where the anchor is typical of a
            Gaussian prior. Half of it is the part of -log density, in nats, that the anchor's
            distance from the mean adds; for a uniform prior it has no such meaning.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    anchor: tuple[float, ...]
    location: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class VolumeResult(Result):
    """Result of ``landscape volume``.

    Attributes:
        estimates: log-volumes by method.
        directions: the table of directions, where ``quadratic`` or tilted rays were asked for.
        rays: the rays, where ``radial`` was.
        annealing: what ``anneal`` rests on, where it was.
        prior: the prior.
    """

    estimates: Mapping[str, VolumeEstimate]
    prior: PriorTable
    directions: Directions | None = None
    rays: Rays | None = None
    annealing: Annealing | None = None

    def anharmonicity(self) -> tuple[FloatArray, FloatArray] | None:
        """``anneal`` less ``quadratic``, and its standard error, in nats, each (c,).

        NaN where either is only a lower bound. None unless both are known of the whole region and
        ``anneal`` converged: what is not believed has no difference.
        """
        if not {"quadratic", "anneal"} <= set(self.estimates) or self.annealing is None:
            return None
        if not self.annealing.converged or self.annealing.radius < np.inf:
            return None
        one, two = self.estimates["anneal"], self.estimates["quadratic"]
        known = ~(one.lower_bound | two.lower_bound)
        known &= np.isfinite(one.log_volume) & np.isfinite(two.log_volume)
        value, error = np.full((2, len(known)), np.nan)
        value[known] = one.log_volume[known] - two.log_volume[known]
        error[known] = np.hypot(one.stderr[known], two.stderr[known])
        return value, error
