"""What ``landscape flat`` returns: frozen dataclasses, the same ones that a result file loads as.

Arrays over cutoffs have the axis c, over symmetries s, over layers l, over numbers of examples e.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landscape.results import Result
from landscape.volume.records import PriorTable

__all__ = [
    "DiscreteCount",
    "ExampleSweep",
    "FlatResult",
    "LearningCoefficient",
    "NullWalk",
    "PriorCounts",
    "RankCount",
    "Symmetry",
    "SymmetryTable",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RankCount:
    """A numerical rank, with the gap that it rests on.

    Attributes:
        n: number of parameters.
        rank: values above ``tolerance`` times the largest.
        tolerance: relative, of the values as they are: singular values of the Jacobian and of the
            factor of the GGN, absolute eigenvalues of the Hessian.
        largest: the largest value.
        last_kept: the smallest value that counts, relative to the largest; NaN where the rank is 0.
        first_dropped: the largest that does not, likewise; 0 where there is none, or where it is
            exactly zero.
        looser: the rank at a tolerance ten times smaller, which counts more values.
        tighter: the rank at one ten times larger.
        n_rows: rows of the Jacobian or of the factor: the rank cannot be larger. n for a Hessian.
        negative: eigenvalues of the Hessian below ``-tolerance`` times the largest; 0 otherwise.
    """

    n: int
    rank: int
    tolerance: float
    largest: float
    last_kept: float
    first_dropped: float
    looser: int
    tighter: int
    n_rows: int
    negative: int = 0

    @property
    def null(self) -> int:
        """Null directions, ``n - rank``."""
        return self.n - self.rank

    @property
    def gap(self) -> float:
        """``last_kept / first_dropped``: how clear the count is; inf where nothing is dropped."""
        return self.last_kept / self.first_dropped if self.first_dropped > 0 else float("inf")

    @property
    def clear(self) -> bool:
        """Whether the count stays the same at ten times more or less tolerance."""
        return self.looser == self.rank == self.tighter

    @property
    def resolution(self) -> float:
        """Values up to this size count as zero, in their own units."""
        return self.tolerance * self.largest

    @property
    def near_zero(self) -> float:
        """Share of the n values within the resolution of zero."""
        return self.null / self.n if self.n else 0.0


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """A continuous symmetry of one layer, or null directions that the data cause.

    Attributes:
        name: ``relu rescaling``, ``softmax shift``, ...
        layer: the module that it acts on; ``declared`` for the user's own.
        count: its null directions.
        added: those that the entries before it do not explain; they add up to the total.
        change: relative change of the outputs under a random finite element; of declared
            directions the slope along them, relative to a random direction.
        by_data: whether the data cause it rather than the architecture.
    """

    name: str
    layer: str
    count: int
    added: int
    change: float
    by_data: bool = False


@dataclass(frozen=True, kw_only=True)
class SymmetryTable:
    """All null directions of the Jacobian, and how far they are explained.

    Attributes:
        entries: symmetries in the order in which they were counted, then what the data cause.
        null: null directions of the Jacobian.
        symmetry_total: those that symmetries explain, all together.
        data_total: further ones that the data cause.
        unexplained: the rest.
        layers: names of the modules.
        share: part of the unexplained directions in each, (l,): it adds up to 1, or is 0 where
            nothing is left over.
        notes: what was refuted or not read.
    """

    entries: tuple[Symmetry, ...]
    null: int
    symmetry_total: int
    data_total: int
    unexplained: int
    layers: tuple[str, ...]
    share: FloatArray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiscreteCount:
    """A discrete symmetry of one layer.

    Attributes:
        name: ``permutations of units``, ``sign flips``, ...
        layer: the module that it acts on.
        units: how many units or heads.
        log_order: log of the number of its elements, in nats.
        continuous: whether a continuous symmetry contains it.
    """

    name: str
    layer: str
    units: int
    log_order: float
    continuous: bool


@dataclass(frozen=True, kw_only=True)
class PriorCounts:
    """Directions by what a prior lets them be, at every cutoff.

    Attributes:
        cutoff: largest excess loss, (c,).
        steep: directions of the class, (c,); as the next two.
        intermediate: see :data:`landscape.volume.records.CLASSES`.
        flat: likewise.
        n_eff: MacKay's number of well-determined directions, ``sum a / (a + 1/s)``, (c,).
        effective_dimension: ``2 d log V / d log cutoff``, (c,).
    """

    cutoff: FloatArray
    steep: FloatArray
    intermediate: FloatArray
    flat: FloatArray
    n_eff: FloatArray
    effective_dimension: FloatArray


@dataclass(frozen=True, kw_only=True)
class LearningCoefficient:
    """The fit ``log V = lambda log e + (m - 1) log log(1/e) + c``.

    Attributes:
        value: lambda; NaN where it was refused.
        stderr: its standard error; NaN likewise.
        multiplicity: m, as given.
        n_cutoffs: cutoffs that the fit used.
        lowest: the smallest of them.
        highest: the largest.
        misfit: largest distance of a log V from the fit, in nats.
        reason: why it was refused; empty otherwise.
    """

    value: float
    stderr: float
    multiplicity: int
    n_cutoffs: int
    lowest: float
    highest: float
    misfit: float
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class NullWalk:
    """How far walks along null directions stay in the basin.

    Attributes:
        cutoff: largest excess loss.
        distance: straight distance from the anchor where each walk ended, in prior standard
            deviations, (w,).
        arc: length of each walk, likewise, (w,).
        left: whether it ended because the excess loss passed the cutoff, (w,).
        excess: excess loss at the end of each, (w,).
        largest_excess: the largest on the way, (w,).
        null: null directions at each end, (w,); -1 where the walk did not get there.
        start_null: null directions at the anchor.
        limit: distance at which walks were stopped.
        n_steps: steps of each, (w,).
    """

    cutoff: float
    distance: FloatArray
    arc: FloatArray
    left: NDArray[np.bool_]
    excess: FloatArray
    largest_excess: FloatArray
    null: IntArray
    start_null: int
    limit: float
    n_steps: IntArray


@dataclass(frozen=True, kw_only=True)
class ExampleSweep:
    """The rank of the Jacobian on the first of the examples in one random order.

    Attributes:
        examples: numbers of examples, ascending, (e,).
        rank: (e,).
        null: null directions, (e,): they never rise.
        last_kept: smallest value that counts, relative to the largest, (e,).
        first_dropped: largest that does not, likewise, (e,).
    """

    examples: IntArray
    rank: IntArray
    null: IntArray
    last_kept: FloatArray
    first_dropped: FloatArray


@dataclass(frozen=True, kw_only=True)
class FlatResult(Result):
    """Result of ``landscape flat``.

    Attributes:
        ranks: by ``jacobian``, ``ggn``, ``hessian``, as far as each was found exactly.
        symmetries: what explains the null directions of the Jacobian.
        discrete: discrete symmetries, whose orders multiply.
        participation: ``(tr H)^2 / tr H^2`` of each operator: how concentrated its steep end is.
        counts: by prior and cutoff, where a prior was given.
        learning: the learning coefficient, where log-volumes were found.
        walk: where it was asked for.
        sweep: where it was asked for.
        prior: the prior.
    """

    ranks: Mapping[str, RankCount]
    symmetries: SymmetryTable
    discrete: tuple[DiscreteCount, ...] = ()
    participation: Mapping[str, float] = field(default_factory=dict)
    counts: PriorCounts | None = None
    learning: LearningCoefficient | None = None
    walk: NullWalk | None = None
    sweep: ExampleSweep | None = None
    prior: PriorTable | None = None
