"""All counts of one checkpoint that need every singular value: ranks, symmetries, prior classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.flat.declared import DeclaredSymmetry
from landscape.flat.leftover import explained
from landscape.flat.ranks import (
    TOLERANCE,
    behaviour_jacobian,
    mackay,
    null_space,
    participation_ratio,
    rank_count,
    singular_values,
    triangle,
)
from landscape.flat.records import PriorCounts, RankCount, SymmetryTable
from landscape.flat.subject import Subject
from landscape.flat.symmetries import known_nulls
from landscape.gram import factor
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.spectrum import EXACT_LIMIT, dense_spectrum
from landscape.units import Progress, silent
from landscape.volume.records import Directions, VolumeEstimate

__all__ = ["ExactCounts", "exact_counts", "prior_counts", "symmetry_table"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactCounts:
    """Ranks and what they rest on.

    Attributes:
        ranks: by ``jacobian``, ``ggn`` and ``hessian``, as far as they were asked for.
        participation: of ``ggn`` and ``hessian``, likewise.
        jacobian: rows (at most n, n) with the singular values and the null space of the behavioural
            Jacobian, float64.
        null: an orthonormal basis of its null space, (q, n).
        n_matvecs: rows pulled back and matrix-vector products.
    """

    ranks: dict[str, RankCount]
    participation: dict[str, float]
    jacobian: Tensor
    null: Tensor
    n_matvecs: int


def exact_counts(
    risk: Risk,
    *,
    tol: float = TOLERANCE,
    ggn: bool = True,
    hessian: bool = True,
    progress: Progress = silent,
) -> ExactCounts:
    """Ranks of the behavioural Jacobian, the GGN and the Hessian, each on its exact path.

    Args:
        risk: the loss at the anchor, in float64. Its kind matters to the GGN and the Hessian, which
            are equal for ``behaviour``; the Jacobian is always that of the outputs.
        tol: relative tolerance: of singular values (Jacobian, factor of the GGN) and of absolute
            eigenvalues (Hessian).
        ggn: also the GGN; left out where the criterion is not convex in the outputs.
        hessian: also the Hessian, from n matrix-vector products.
        progress: called with the work done.

    Raises:
        UsageError: not float64, or more than 4096 parameters.

    Cost: r vector-Jacobian products each for the Jacobian and the factor, n products for the
    Hessian, O(r n^2 + n^3) flops, and about r n + 4 n^2 numbers. A product pulls back a whole
    micro-batch for a row of one of its examples: micro-batches of about 32 are cheapest.
    """
    n = risk.n
    if risk.dtype != torch.float64:
        raise UsageError(
            f"ranks in {risk.dtype}: expected float64, in which rounding can be told from small "
            "values. Use --dtype float64"
        )
    if n > EXACT_LIMIT:
        raise UsageError(
            f"{n} parameters: ranks need every singular value, which are found up to "
            f"{EXACT_LIMIT} parameters. Select fewer with --params"
        )
    store = _Rows(n, progress)
    behaviour_jacobian(risk, on_rows=store.add)
    jacobian, count = store.whole(), store.seen
    values = singular_values(jacobian)
    ranks = {"jacobian": rank_count(values.numpy(), n=n, n_rows=count, tol=tol)}
    participation: dict[str, float] = {}
    products = count
    if ggn and (risk.criterion.fisher_is_ggn or risk.loss_kind == "behaviour"):
        rows = factor(risk)
        products += len(rows)
        roots = singular_values(rows)
        ranks["ggn"] = rank_count(roots.numpy(), n=n, n_rows=len(rows), tol=tol)
        participation["ggn"] = participation_ratio(roots.square().numpy())
    if hessian:
        operator = curvature("hessian", risk)
        spectrum, _ = dense_spectrum(operator, "hessian", top=0, bottom=0, tol=1e-8)
        operator.release()
        products += n
        ranks["hessian"] = rank_count(spectrum.eigenvalues, n=n, tol=tol)
        participation["hessian"] = participation_ratio(spectrum.eigenvalues)
    return ExactCounts(
        ranks=ranks,
        participation=participation,
        jacobian=jacobian,
        null=null_space(jacobian, rank=ranks["jacobian"].rank),
        n_matvecs=products,
    )


class _Rows:
    """Rows that are compressed to a triangle whenever they are twice as many as columns."""

    def __init__(self, n: int, progress: Progress) -> None:
        self._n, self._progress = n, progress
        self._blocks: list[Tensor] = []
        self._held = 0
        self.seen = 0

    def add(self, rows: Tensor) -> None:
        self._blocks.append(rows)
        self._held += len(rows)
        self.seen += len(rows)
        self._progress("behavioural Jacobian", self.seen, None)
        if self._held > 2 * self._n + 512:
            self._blocks = [triangle(torch.cat(self._blocks))]
            self._held = len(self._blocks[0])

    def whole(self) -> Tensor:
        if not self._blocks:
            return torch.zeros(0, self._n, dtype=torch.float64)
        return triangle(torch.cat(self._blocks))


def symmetry_table(
    risk: Risk,
    counts: ExactCounts,
    *,
    declared: Sequence[DeclaredSymmetry] = (),
    seed: int = 0,
) -> SymmetryTable:
    """What explains the null directions of the Jacobian; see :func:`known_nulls` for the cost."""
    known = known_nulls(
        Subject.of(risk, behaviour=True),
        shift_invariant=risk.criterion.shift_invariant,
        declared=declared,
        jacobian=counts.jacobian,
        seed=seed,
    )
    table = explained(known, counts.null, risk.space)
    rank = counts.ranks["jacobian"]
    if rank.rank == rank.n_rows < rank.n:
        note = (
            f"the {rank.n_rows} rows of the Jacobian are independent: with more examples fewer "
            "directions would be null"
        )
        table = replace(table, notes=(*table.notes, note))
    return table


def prior_counts(directions: Directions, estimate: VolumeEstimate) -> PriorCounts:
    """Classes of directions at every cutoff from what ``quadratic`` found.

    N_eff is MacKay's sum at the precision that the prior has beside the tilted excess loss:
    ``sum m a / (a + 1/s)`` over whitened eigenvalues a of multiplicity m.

    Raises:
        UsageError: the cutoffs differ.
    """
    if not np.array_equal(directions.cutoff, estimate.cutoff):
        raise UsageError("directions and log-volumes of different cutoffs; expected the same")
    steep, intermediate, flat = directions.counts().T
    tilts = estimate.tilt
    return PriorCounts(
        cutoff=directions.cutoff,
        steep=steep,
        intermediate=intermediate,
        flat=flat,
        n_eff=np.array(
            [
                mackay(directions.eigenvalue, 1 / s, multiplicity=directions.multiplicity)
                if s > 0
                else math.nan
                for s in tilts
            ]
        ),
        effective_dimension=estimate.effective_dimension,
    )
