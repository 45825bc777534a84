"""The mean curvature where chains are, from a random part of the data: what mass matrices need."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.gram import factor, factor_width
from landscape.risk import Risk
from landscape.rng import stream
from landscape.volume.path import Metric

__all__ = ["BATCH", "SampledMetric", "metric_of_factor"]

BATCH = 16  # Examples in a micro-batch of the risk: a row of the factor costs a pass over one.
_POSITIONS = 16  # Chains that are looked at.
_ROWS = 3.0  # Rows of the factor for each coordinate,
_FEWEST, _MOST = 1024, 16_384  # but so many at least and at most,
_BYTES = 256 << 20  # and within this size.
_SMALL = 1e-5  # Eigenvalues below this part of the largest are left to the mean of the rest.
_WIDEST = 512  # Vectors kept where there are fewer rows than coordinates.


class SampledMetric:
    """Mean whitened GGN over chains, each with its own random micro-batches.

    A mass matrix need not be right, only near: it enters no estimate. GGN rather than Hessian,
    which is indefinite away from a minimum.

    Args:
        risk: with micro-batches of :data:`BATCH` examples, its parameters the anchor's.
        scale: standard deviations of the prior, (n,).
        unwhiten: rows of whitened coordinates to parameters.
        seed: seed of the choice of micro-batches.
        label: of the path, for its streams.
        fallback: the metric of a criterion that is not convex in the outputs.

    Cost: about 3 n rows of the factor (at most 16384), each a backward pass over 16 examples, and
    an eigendecomposition of the smaller of (n, n) and (rows, rows).
    """

    def __init__(
        self,
        risk: Risk,
        scale: Tensor,
        unwhiten: Callable[[Tensor], Tensor],
        *,
        seed: int,
        label: str,
        fallback: Metric,
    ) -> None:
        self.risk, self.scale, self.unwhiten = risk, scale, unwhiten
        self.seed, self.label, self.fallback = seed, label, fallback
        n = risk.n
        rows = min(max(_ROWS * n, _FEWEST), _MOST, max(_BYTES / 8 / n, 64))
        width = max(factor_width(risk), 1) * BATCH
        self._batches = max(1, min(risk.n_batches, round(rows / _POSITIONS / width)))

    def __call__(self, positions: Tensor, number: int) -> Metric:
        """The metric at whitened positions (m, n), of which at most 16 are looked at."""
        generator = stream(self.seed, "metric", self.label, number)
        chosen = torch.randperm(len(positions), generator=generator)[:_POSITIONS]
        blocks = []
        for position in positions[chosen.to(positions.device)]:
            batches = torch.randperm(self.risk.n_batches, generator=generator)[: self._batches]
            point = self.unwhiten(position[None])[0].to(self.risk.space.vector())
            with self.risk.space.placed(point):
                try:
                    rows = factor(self.risk, batches=batches.tolist())
                except UsageError:
                    return self.fallback
            blocks.append(rows[torch.isfinite(rows).all(1)])
        part = self.risk.n_batches / self._batches / len(blocks)
        rows = torch.cat(blocks) * self.scale.to("cpu", torch.float64) * math.sqrt(part)
        found = metric_of_factor(rows)
        return Metric(
            vectors=found.vectors.to(positions),
            values=found.values.to(positions),
            bulk=found.bulk,
        )


def metric_of_factor(rows: Tensor) -> Metric:
    """The largest eigenpairs of ``F^T F`` and the mean of the others, for F (r, n) in float64.

    Cost: O(n r min(n, r)) flops.
    """
    r, n = rows.shape
    if not r:
        return Metric(vectors=rows.new_zeros(0, n), values=rows.new_zeros(0), bulk=0.0)
    if r >= n:
        values, vectors = torch.linalg.eigh(rows.T @ rows)
        vectors = vectors.T
    else:
        values, left = torch.linalg.eigh(rows @ rows.T)
        vectors = (left.T @ rows) / values.clamp(min=1e-300).sqrt()[:, None]
    total = float(values.sum())
    wide = n if r >= n else _WIDEST
    kept = (values > _SMALL * float(values[-1])).nonzero().reshape(-1)[-wide:]
    values, vectors = values[kept], vectors[kept]
    rest = n - len(kept)
    bulk = max(total - float(values.sum()), 0.0) / rest if rest else 0.0
    return Metric(vectors=vectors.contiguous(), values=values, bulk=bulk)
