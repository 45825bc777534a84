"""Null directions that nothing known explains, and where in the network they lie."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscape.flat.family import null_rows, orthonormal
from landscape.flat.records import SymmetryTable
from landscape.flat.symmetries import KnownNulls
from landscape.params import ParameterSpace

__all__ = ["explained"]

_ANGLE = 1e-6  # Between a null direction and the known ones.


def explained(known: KnownNulls, null: Tensor, space: ParameterSpace) -> SymmetryTable:
    """How far the null directions of a Jacobian are explained.

    Args:
        known: symmetries and what the data cause.
        null: an orthonormal basis of the Jacobian's null space, rows (q, n).
        space: the selected parameters.

    Returns:
        the table. Counts are those of the known directions' parts in the null space, so that their
        sum cannot be larger than q. The share of a layer is the part of the squared components of
        an orthonormal basis of what is left over.

    Cost: O(k q n) flops for k known directions.
    """
    inside = known.symmetry @ null.T
    symmetric = len(_span(inside))
    everything = _span(known.everything @ null.T)
    left = null_rows(everything, tol=_ANGLE) @ null if len(null) else null
    modules = space.modules()
    parts = space.split(left.square().sum(0))
    share = np.array([math.fsum(float(parts[i].sum()) for i in p) for p in modules.values()])
    return SymmetryTable(
        entries=known.entries,
        null=len(null),
        symmetry_total=symmetric,
        data_total=len(everything) - symmetric,
        unexplained=len(null) - len(everything),
        layers=tuple(modules),
        share=share / share.sum() if share.sum() > 0 else share,
        notes=known.notes,
    )


def _span(rows: Tensor) -> Tensor:
    return orthonormal(rows, tol=_ANGLE) if rows.numel() else torch.zeros(0, rows.shape[1]).double()
