"""Results of ``landscape information``; needs only numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landscape.results import FloatArray, Result

__all__ = [
    "EffectiveRank",
    "GradientGram",
    "InformationResult",
    "Split",
    "SplitNorms",
]

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EffectiveRank:
    """How many dimensions the rows of one matrix X (a row an example) span, and how evenly.

    ``l_i = s_i^2`` are the eigenvalues of the Gram matrix ``X X^T``, s_i the singular values of X.

    Attributes:
        layer: name of the module; empty for the whole.
        size: columns: parameters, or features of the activations.
        rank: singular values above the tolerance times the largest: the numerical rank.
        last_kept: the smallest that counts, relative to the largest; NaN where the rank is 0.
        first_dropped: the largest that does not, likewise; 0 where there is none.
        looser: the rank at a tolerance ten times smaller.
        tighter: the rank at one ten times larger.
        entropy: ``exp(-sum p_i log p_i)`` with ``p_i = l_i / sum l``: the effective rank of the
            Gram matrix (Roy and Vetterli, EUSIPCO 2007); NaN where X is 0, as the next.
        participation: ``(sum l)^2 / sum l^2``.
        trace: ``sum l``, the squared Frobenius norm of X.
    """

    layer: str
    size: int
    rank: int
    last_kept: float
    first_dropped: float
    looser: int
    tighter: int
    entropy: float
    participation: float
    trace: float

    @property
    def clear(self) -> bool:
        """Whether the rank stays the same at ten times more or less tolerance."""
        return self.looser == self.rank == self.tighter


@dataclass(frozen=True, kw_only=True)
class GradientGram:
    """The Gram matrix of the gradients of single examples, ``K_ij = sqrt(f_i f_j) <g_i, g_j>``.

    f_i is the weight of example i in the loss ``L = sum f_i l_i`` (1/N for N alike), so that K has
    the non-zero eigenvalues of the empirical Fisher matrix ``sum f_i g_i g_i^T``. With
    ``behaviour``, where every gradient is 0, the rows are those of the factor of the GGN, one for
    each output direction of each term: gradients under targets of the network's own law.

    Attributes:
        n_rows: rows of the factor: examples that count, or more with ``behaviour``.
        distinct_examples: different examples (inputs and targets) among those measured.
        distinct_gradients: gradients that differ by more than the tolerance times the largest
            norm; with ``behaviour`` the parts of the GGN, by their product with a random vector.
        tolerance: of ranks and of equal gradients.
        eigenvalues: of K, descending, (min(n_rows, n),).
        ranks: of the whole, then of every module's parameters.
        kernel: K of some examples, sorted by label where there is one, (p, p); with ``behaviour``
            the Frobenius norms of its blocks.
        kernel_example: which, as numbers among those measured, (p,).
        kernel_label: their integer targets, (p,); -1 where the targets are something else.
    """

    n_rows: int
    distinct_examples: int
    distinct_gradients: int
    tolerance: float
    eigenvalues: FloatArray
    ranks: tuple[EffectiveRank, ...]
    kernel: FloatArray
    kernel_example: IntArray
    kernel_label: IntArray


@dataclass(frozen=True, kw_only=True)
class SplitNorms:
    """Frobenius norms of the parts of ``H = GGN + R``, of all parameters or of a diagonal block.

    Standard errors are 0 where the matrices were built, else from the jackknife over probes.

    Attributes:
        layer: name of the module; empty for the whole.
        size: parameters.
        hessian: ``|H|_F``.
        ggn: ``|GGN|_F``.
        residual: ``|R|_F``.
        ratio: ``|R|_F / |H|_F``; NaN where H is 0.
        negative: eigenvalues of (this block of) H below minus the tolerance times the largest
            magnitude; NaN where they were not counted.
    """

    layer: str
    size: int
    hessian: float
    hessian_stderr: float
    ggn: float
    ggn_stderr: float
    residual: float
    residual_stderr: float
    ratio: float
    ratio_stderr: float
    negative: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """The Hessian, and what is in it beside the GGN.

    Attributes:
        exact: whether the matrices were built.
        n_probes: probes behind the norms; 0 where they are exact.
        norms: of the whole, then of every module's diagonal block.
        smallest: smallest eigenvalue of H, or Ritz value, which is no smaller; NaN where none was
            looked for.
        largest: largest eigenvalue, or Ritz value, which is no larger.
        at_least: whether the whole's ``negative`` only bounds their number from below.
        squares: ``|A v|^2`` for each probe v, each row of ``norms`` and A = H, GGN, R,
            (probes, rows, 3); no probes where the matrices were built.
    """

    exact: bool
    n_probes: int
    norms: tuple[SplitNorms, ...]
    smallest: float
    largest: float
    at_least: bool
    squares: FloatArray


@dataclass(frozen=True, kw_only=True)
class InformationResult(Result):
    """Result of ``landscape information``.

    Attributes:
        gradients: the Gram matrix of the gradients.
        activations: effective ranks of what every module with parameters returns, centred about
            its mean over the examples.
        split: ``H = GGN + R``.
    """

    gradients: GradientGram
    activations: tuple[EffectiveRank, ...]
    split: Split

    @property
    def self_test(self) -> float:
        """``|R|_F / |H|_F`` with ``behaviour``, which is 0 to rounding; NaN with other losses."""
        behaviour = self.info.config.get("loss") == "behaviour"
        return self.split.norms[0].ratio if behaviour else math.nan
