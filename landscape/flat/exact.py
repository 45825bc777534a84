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
    term_frame,
    triangle,
)
from landscape.flat.records import PriorCounts, RankCount, SymmetryTable
from landscape.flat.subject import Subject
from landscape.flat.symmetries import known_nulls
from landscape.gram import output_spectra
from landscape.memory import stored_tensor
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.spectrum import EXACT_LIMIT
from landscape.units import MemoryUnits, Progress, Units, silent
from landscape.volume.curvature import dense_eigenpairs
from landscape.volume.records import Directions, VolumeEstimate

__all__ = [
    "ExactCounts",
    "exact_counts",
    "prior_counts",
    "require_exact",
    "symmetry_table",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactCounts:
    """Ranks and what they rest on.

    Attributes:
        ranks: by ``jacobian``, ``ggn`` and ``hessian``, as far as they were asked for.
        participation: of ``ggn`` and ``hessian``, likewise.
        jacobian: rows (at most n, n) with the singular values and the null space of the behavioural
            Jacobian, float64.
        factor: the same of the factor of the GGN; None without it.
        null: an orthonormal basis of the Jacobian's null space, (q, n).
        n_matvecs: rows pulled back and matrix-vector products.
    """

    ranks: dict[str, RankCount]
    participation: dict[str, float]
    jacobian: Tensor
    factor: Tensor | None
    null: Tensor
    n_matvecs: int


def require_exact(n: int, dtype: torch.dtype) -> None:
    """Refuse what has no exact ranks.

    Raises:
        UsageError: not float64, or more than 4096 parameters.
    """
    if dtype != torch.float64:
        raise UsageError(
            f"ranks in {dtype}: expected float64, in which rounding can be told from small "
            "values. Use --dtype float64"
        )
    if n > EXACT_LIMIT:
        raise UsageError(
            f"{n} parameters: ranks need every singular value, which are found up to "
            f"{EXACT_LIMIT} parameters. Select fewer with --params"
        )


def exact_counts(
    risk: Risk,
    *,
    tol: float = TOLERANCE,
    ggn: bool = True,
    hessian: bool = True,
    units: Units | None = None,
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
        units: where finished parts are kept.
        progress: called with the work done.

    Raises:
        UsageError: not float64, or more than 4096 parameters.

    Cost: r vector-Jacobian products, from which the factor of the GGN follows too, n products for
    the Hessian, O(r n^2 + n^3) flops, and about r n + 5 n^2 numbers. A product pulls back a whole
    micro-batch for a row of one of its examples: micro-batches of about 32 are cheapest.
    """
    n = risk.n
    require_exact(n, risk.dtype)
    units = MemoryUnits() if units is None else units
    convex = risk.criterion.fisher_is_ggn or risk.loss_kind == "behaviour"
    parts = _rows(risk, ggn and convex, units, progress)
    found, count = parts["jacobian"]
    ranks: dict[str, RankCount] = {}
    participation: dict[str, float] = {}
    for name, (rows, n_rows) in parts.items():
        values = singular_values(rows).numpy()
        ranks["ggn" if name == "factor" else name] = rank_count(values, n=n, n_rows=n_rows, tol=tol)
        if name == "factor":
            participation["ggn"] = participation_ratio(values**2)
    products = count
    if hessian:
        operator = curvature("hessian", risk)
        eigenvalues, _ = dense_eigenpairs(operator, units, progress)
        operator.release()
        products += n
        ranks["hessian"] = rank_count(eigenvalues.numpy(), n=n, tol=tol)
        participation["hessian"] = participation_ratio(eigenvalues.numpy())
    return ExactCounts(
        ranks=ranks,
        participation=participation,
        jacobian=found,
        factor=parts["factor"][0] if "factor" in parts else None,
        null=null_space(found, rank=ranks["jacobian"].rank),
        n_matvecs=products,
    )


def _rows(risk: Risk, ggn: bool, units: Units, progress: Progress) -> dict[str, tuple[Tensor, int]]:
    """Triangles of the Jacobian and of the factor of the GGN, and how many rows each had."""
    names = ("jacobian", "factor") if ggn else ("jacobian",)
    stored = {name: units.get(name) for name in names}
    if all(unit is not None for unit in stored.values()):
        return {
            name: (stored_tensor(unit["rows"]), int(unit["n_rows"]))
            for name, unit in stored.items()
            if unit is not None
        }
    rows, weighted = _Rows(risk.n), _Weighted(risk)

    def add(block: Tensor, index: int) -> None:
        rows.add(block)
        if ggn:
            weighted.add(block, index)
        progress("behavioural Jacobian", rows.seen, None)

    behaviour_jacobian(risk, on_rows=add)
    found = dict(zip(names, (rows, weighted.rows), strict=False))
    parts = {name: (part.whole(), part.seen) for name, part in found.items()}
    for name, (triangle_, seen) in parts.items():
        units.put(name, {"rows": triangle_.numpy(), "n_rows": seen})
    return parts


class _Rows:
    """Rows that are compressed to a triangle whenever they are twice as many as columns."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._blocks: list[Tensor] = []
        self._held = 0
        self.seen = 0

    def add(self, rows: Tensor) -> None:
        self._blocks.append(rows)
        self._held += len(rows)
        self.seen += len(rows)
        if self._held > 2 * self._n + 512:
            self._blocks = [triangle(torch.cat(self._blocks))]
            self._held = len(self._blocks[0])

    def whole(self) -> Tensor:
        if not self._blocks:
            return torch.zeros(0, self._n, dtype=torch.float64)
        return triangle(torch.cat(self._blocks))


class _Weighted:
    """Rows of the factor of the GGN, ``L^T J`` of every term from its rows of the Jacobian.

    What the divergence does not see of the outputs the loss does not see either, so that nothing is
    lost where the rows are those of differences of logits.
    """

    def __init__(self, risk: Risk) -> None:
        self.rows = _Rows(risk.n)
        self._risk, self._index = risk, -1
        self._roots = self._held = torch.zeros(0, dtype=torch.float64)

    def add(self, rows: Tensor, index: int) -> None:
        if index != self._index:
            self._index, self._roots = index, self._roots_of(index)
            self._held = rows[:0]
        self._held = torch.cat([self._held, rows])
        width = self._roots.shape[2]
        count = len(self._held) // width
        terms = self._held[: count * width].reshape(count, width, rows.shape[1])
        self._held = self._held[count * width :]
        roots, self._roots = self._roots[:count], self._roots[count:]
        counted = roots.any(dim=2)
        self.rows.add(torch.bmm(roots, terms)[counted])

    def _roots_of(self, index: int) -> Tensor:
        """``L^T`` of every term of a micro-batch in the frame of the Jacobian's rows, (t, w, k)."""
        outputs = self._risk.outputs(index).detach()
        _, values, vectors = output_spectra(self._risk, index, outputs)
        roots = (vectors * values.sqrt()[:, None, :]).mT.cpu()
        shift = self._risk.criterion.shift_invariant
        return roots @ term_frame(roots.shape[2], shift_invariant=shift).T


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
