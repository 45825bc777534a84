"""Results of ``landscape compare``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.results import Estimate, FloatArray, Result
from landscape.volume.records import VolumeEstimate

__all__ = ["Behaviour", "CompareResult", "Eigenspaces", "Matching", "Volumes", "WeightPath"]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How far the laws of two networks' outputs are apart, as means over the terms of the loss.

    A term is an example, or a token of one. Intervals are percentiles of the bootstrap (95%).

    Attributes:
        law: ``categorical``, ``bernoulli`` or ``gaussian`` (of unit variance).
        kl_ab: mean KL(p_A || p_B), in nats.
        kl_ba: mean KL(p_B || p_A).
        js: mean Jensen-Shannon divergence, from 0 to log 2 for each Bernoulli, categorical or
            Gaussian law.
        agreement: share of terms whose most likely outcome is the same; NaN for ``gaussian``.
        excess_loss: task loss of B less that of A, in units of the loss.
        cross_entropy: mean CE(p_A, p_B).
        entropy: mean H(p_A).
        identity: ``|CE(p_A, p_B) - H(p_A) - KL|`` with KL from the criterion's own divergence.
        n_terms: terms behind the means.
        n_bootstrap: resamples behind the intervals.
        example_kl_ab: mean over the terms of every example that has any, (examples,).
        example_kl_ba: the same of kl_ba.
        example_js: the same of js.
        example_excess_loss: the same of excess_loss.
        example_terms: terms of every example: its weight in the means.
    """

    law: str
    kl_ab: Estimate
    kl_ba: Estimate
    js: Estimate
    agreement: Estimate
    excess_loss: Estimate
    cross_entropy: float
    entropy: float
    identity: float
    n_terms: int
    n_bootstrap: int
    example_kl_ab: FloatArray
    example_kl_ba: FloatArray
    example_js: FloatArray
    example_excess_loss: FloatArray
    example_terms: FloatArray


@dataclass(frozen=True, kw_only=True)
class WeightPath:
    """Task loss on the straight path ``(1 - t) w_A + t w_B``.

    Attributes:
        t: positions, (points,).
        loss: task loss there, (points,).
        barrier: ``max_t L(w_t) - (1 - t) L(w_A) - t L(w_B)``: never negative, since it is 0 at the
            ends.
        distance: ``|w_A - w_B|`` over all parameters.
    """

    t: FloatArray
    loss: FloatArray
    barrier: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Units of one layer of B that changed places to match A's.

    Attributes:
        layer: the module that writes them.
        units: their number.
        moved: how many are in another place.
    """

    layer: str
    units: int
    moved: int


@dataclass(frozen=True, kw_only=True)
class Eigenspaces:
    """Spaces of the k largest eigenvalues of the Hessians of the task loss at A and at B.

    Attributes:
        eigenvalues_a: at A, descending, (k,).
        eigenvalues_b: at B; permuting hidden units does not change them.
        overlap: mean squared cosine of the principal angles of both spaces, from 0 to 1.
        aligned: the same after the units of B were matched to those of A; NaN where they were not.
        chance: ``k / n``, what random spaces have.
        converged: whether every eigenpair is.
    """

    eigenvalues_a: FloatArray
    eigenvalues_b: FloatArray
    overlap: float
    aligned: float
    chance: float
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """Log-volumes of both networks by the quadratic model, under one prior; arrays are (c,).

    Attributes:
        loss: whose rise is measured: of ``behaviour`` and ``relabelled`` each network's own.
        gradient_norm: of the task loss at B; that at A is in the record of the run.
        a: log V of A.
        b: log V of B at the same cutoffs, ablated where it is.
    """

    loss: str
    gradient_norm: float
    a: VolumeEstimate
    b: VolumeEstimate

    @property
    def difference(self) -> FloatArray:
        """``log V_B - log V_A`` in nats; exactly 0 where both are the same."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.b.log_volume - self.a.log_volume)

    @property
    def stderr(self) -> FloatArray:
        """Standard error of the difference, the errors of both taken as independent.

        Both have the same probe vectors: for similar networks it is too large.
        """
        return np.hypot(self.a.stderr, self.b.stderr)

    @property
    def lower(self) -> FloatArray:
        """Lower end of B's interval less the upper end of A's."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.b.lower - self.a.upper)

    @property
    def upper(self) -> FloatArray:
        """Upper end of B's interval less the lower end of A's."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.b.upper - self.a.lower)


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """Result of ``landscape compare``; the run's record is that of A.

    Attributes:
        behaviour: divergences, agreement and excess loss.
        path: between the weights, where there is one.
        aligned: the same after the units of B were matched to those of A.
        matching: what that moved.
        eigenspaces: of the Hessians, where they were asked for.
        volume: log-volumes of both, where they were asked for.
    """

    behaviour: Behaviour
    path: WeightPath | None = None
    aligned: WeightPath | None = None
    matching: tuple[Matching, ...] = ()
    eigenspaces: Eigenspaces | None = None
    volume: Volumes | None = None
