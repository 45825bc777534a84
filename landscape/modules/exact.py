"""Coupling from all eigenpairs, by dense matrices of at most a few thousand coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.coupling import block_coupling
from landscape.modules.records import ModuleCoupling
from landscape.results import Estimate
from landscape.volume.curvature import Curved

__all__ = ["exact_coupling", "reduced"]


def exact_coupling(
    model: Curved,
    groups: Sequence[Tensor],
    *,
    tilt: float,
    tol: float,
    on_group: Callable[[int], None] | None = None,
) -> ModuleCoupling:
    """Coupling between groups of coordinates of the whitened curvature.

    Args:
        model: its eigenpairs, all (``dense``) or all but zeros (``gram``).
        groups: coordinates of every group.
        tilt: s >= 0.
        tol: relative tolerance of ranks.
        on_group: called with the number of groups done.

    Raises:
        NotFiniteError: ``I + s A`` is not positive definite.

    Cost: no products; see :func:`landscape.coupling.block_coupling`.
    """
    matrix, parts = reduced(model, groups)
    found = block_coupling(matrix, parts, tilt=tilt, tol=tol, on_group=on_group)
    # What the reduction leaves out are zeros of the curvature.
    short = np.array([len(p) < len(g) for p, g in zip(parts, groups, strict=True)])
    lowest = np.where(
        short, np.minimum(found.extremes_groups[:, 0], 0), found.extremes_groups[:, 0]
    )
    count = len(groups)
    none, nothing = np.zeros(count), np.zeros((count, count))
    rest = np.maximum(0.5 * (found.log_det_groups - found.log_det_schur), 0.0)
    return ModuleCoupling(
        method=model.route,
        tilt=tilt,
        size=np.array([len(group) for group in groups], dtype=np.int64),
        norm=found.norm,
        norm_stderr=nothing,
        rank=found.rank,
        rank_bound=np.zeros((count, count), dtype=np.bool_),
        tol=tol,
        coupling=found.coupling,
        coupling_stderr=nothing,
        coupling_lower=found.coupling,
        coupling_upper=found.coupling,
        correlations=found.correlations,
        rest=rest,
        rest_stderr=none,
        rest_lower=rest,
        rest_upper=rest,
        log_det_groups=found.log_det_groups,
        log_det_groups_stderr=none,
        log_det_schur=found.log_det_schur,
        log_det_schur_stderr=none,
        log_det=_known(found.log_det),
        total=_known(found.total),
        truncation=0.0,
        lowest=min(found.extremes[0], 0.0) if short.any() else found.extremes[0],
        highest=found.extremes[1],
        lowest_groups=lowest,
        highest_groups=found.extremes_groups[:, 1],
        residual=0.0,
        converged=1,
        steps=0,
        region=np.zeros((0, count), dtype=np.bool_),
        log_det_high=np.zeros((0, 0)),
        log_det_low=np.zeros((0, 0)),
    )


def _known(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0, lower=value, upper=value)


def reduced(model: Curved, groups: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The curvature as an explicit matrix, and where its groups are.

    With ``A = F^T F`` of d rows a group of more than d coordinates needs only d of them: with the
    QR decomposition ``F_a^T = Q_a R_a`` all blocks ``A_ab = Q_a (R_a R_b^T) Q_b^T`` keep their
    singular values in the orthonormal coordinates Q_a, and A is zero on all others.

    Cost: 4 n d^2 flops.
    """
    values, vectors = model.values, model.vectors
    if model.route == "dense":
        return vectors.T @ (values[:, None] * vectors), list(groups)
    rows = values.sqrt()[:, None] * vectors
    rows = rows if len(rows) else vectors.new_zeros(1, vectors.shape[1])
    parts = []
    for group in groups:
        part = rows[:, group]
        if part.shape[1] > len(rows):
            part = torch.linalg.qr(part.T, mode="r").R.T
        parts.append(part)
    whole = torch.cat(parts, dim=1)
    ends = np.cumsum([0, *(part.shape[1] for part in parts)]).tolist()
    places = [torch.arange(*pair) for pair in itertools.pairwise(ends)]
    return whole.T @ whole, places
