"""How alike the hidden units of two networks are on the data: correlations of their activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from landscape.flat.tracing import read_activations

__all__ = ["correlations"]

_CONSTANT = 1e-12  # A variance below this part of the mean square is rounding.


def correlations(
    a: nn.Module,
    b: nn.Module,
    passes: Sequence[Callable[[nn.Module], Tensor]],
    classes: Sequence[tuple[int, ...]],
) -> Mapping[tuple[int, ...], Tensor]:
    """Pearson correlations over the data of unit i of A with unit j of B, (h, h) for each class.

    ``C_ij = cov(a_i, b_j) / sqrt(var a_i var b_j)`` over examples and places, summed over the
    tensors of one class, such as a layer before and after its non-linearity; 0 where a unit is
    constant. Source of the measure: Li, Yosinski, Clune, Lipson, Hopcroft, "Convergent Learning",
    2015; over the data as in Ainsworth, Hayase, Srinivasa, ICLR 2023, section 3.1.

    Args:
        a: network A, in float64 and in eval mode.
        b: network B, of the same graph.
        passes: run a network on a part of the data each.
        classes: sites whose units have one order (:meth:`landscape.flat.graph.Graph.coupled`).

    Cost: a forward pass of each network, and O(h^2) for each value of a unit.
    """
    owner = {site: sites for sites in classes for site in sites}
    moments: dict[tuple[tuple[int, ...], int], _Moments] = {}
    for run in passes:
        places: dict[tuple[int, ...], int] = {}
        ours, theirs = (read_activations(model, run) for model in (a, b))
        for (site, x), (_, y) in zip(ours, theirs, strict=True):
            if site in owner:
                sites = owner[site]
                places[sites] = place = places.get(sites, -1) + 1
                moments.setdefault((sites, place), _Moments(len(x))).add(x, y)
    found: dict[tuple[int, ...], Tensor] = {}
    for (sites, _), of in moments.items():
        found[sites] = found.get(sites, 0) + of.correlation()
    return found


class _Moments:
    """Sums over values of two tensors with the units first."""

    def __init__(self, units: int) -> None:
        self.count = 0
        self.first = torch.zeros(2, units, dtype=torch.float64)
        self.second = torch.zeros(2, units, dtype=torch.float64)
        self.cross = torch.zeros(units, units, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add values (h, m) of both."""
        self.count += x.shape[1]
        self.first += torch.stack([x.sum(1), y.sum(1)])
        self.second += torch.stack([x.square().sum(1), y.square().sum(1)])
        self.cross += x @ y.T

    def correlation(self) -> Tensor:
        """Correlations (h, h)."""
        means, squares = self.first / self.count, self.second / self.count
        variances = squares - means.square()
        constant = variances <= _CONSTANT * squares
        scale = torch.where(constant, torch.inf, variances.clamp(min=0.0).sqrt())
        covariance = self.cross / self.count - torch.outer(means[0], means[1])
        return covariance / torch.outer(scale[0], scale[1])
