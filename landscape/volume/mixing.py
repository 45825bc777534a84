"""How well particles move at the end of an annealed path, from their draws there.

Source: Vehtari et al., Rank-normalization, folding, and localization: an improved R-hat for
assessing convergence of MCMC, Bayesian Anal. 16 (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.volume.islands import Islands

__all__ = ["FEWEST", "Mixing", "mixing", "split_rhat"]

FloatArray = NDArray[np.float64]

FEWEST = 8  # Draws of a chain of which halves say anything.


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Draws of one quantity at the last mark of a path, a chain for each particle.

    Attributes:
        rhat: rank-normalised split R-hat: 1 where chains have forgotten where they began.
        ess: bulk effective number of draws, as of chains that began independently; those of an
            island may have begun at copies.
        draws: number of draws.
    """

    rhat: float
    ess: float
    draws: int


def mixing(islands: Islands) -> dict[str, Mixing]:
    """R-hat and ESS of the excess loss and of ``|z - z*|^2``; empty with fewer than 8 draws."""
    found = {"excess loss": islands.draw_loss, "distance": islands.draw_distance}
    return {
        name: Mixing(rhat=split_rhat(draws[-1]), ess=_effective(draws[-1]), draws=draws[-1].size)
        for name, draws in found.items()
        if len(draws) and draws.shape[1] >= FEWEST
    }


def split_rhat(draws: FloatArray) -> float:
    """Rank-normalised split R-hat of draws (s, i, p), a chain for each particle.

    1 where they are all the same, NaN where one is not finite.
    """
    from arviz_stats.base.array import array_stats

    chains = _chains(draws)
    if not np.isfinite(chains).all():
        return math.nan
    if not np.ptp(chains) > 0:
        return 1.0
    rhat: Any = array_stats.rhat
    with np.errstate(divide="ignore"):  # Chains that do not move at all: inf.
        return float(rhat(chains, chain_axis=0, draw_axis=1))


def _effective(draws: FloatArray) -> float:
    """Bulk ESS of draws (s, i, p); NaN where they are all the same, or not finite."""
    from arviz_stats.base.array import array_stats

    chains = _chains(draws)
    if not (np.isfinite(chains).all() and np.ptp(chains) > 0):
        return math.nan
    ess: Any = array_stats.ess
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(ess(chains, chain_axis=0, draw_axis=1, method="bulk"))


def _chains(draws: FloatArray) -> FloatArray:
    return draws.reshape(len(draws), -1).T
