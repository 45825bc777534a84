"""Laws of outputs: divergences between two networks' laws in closed form, term by term."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from landscape.criteria import BinaryCrossEntropy, Criterion, CrossEntropy, SquaredError
from landscape.errors import UsageError

__all__ = ["Law", "Terms", "law_of"]

_NODES = 100  # Of the Gauss-Hermite rule.
_LARGE = 30.0  # log((1 + e^x) / 2) is x - log 2 beyond, to float64's rounding.


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """What is measured of every term, (terms,) each, in nats.

    Attributes:
        kl_ab: KL(p_A || p_B).
        kl_ba: KL(p_B || p_A).
        js: ``(KL(p_A || m) + KL(p_B || m)) / 2`` with ``m = (p_A + p_B) / 2``.
        agreement: part of the most likely outcomes that are the same.
        cross_entropy: ``-E_A log p_B``.
        entropy: ``-E_A log p_A``.
    """

    kl_ab: Tensor
    kl_ba: Tensor
    js: Tensor
    agreement: Tensor
    cross_entropy: Tensor
    entropy: Tensor


class Law(ABC):
    """The law of the target that a term's outputs stand for."""

    name: str

    @abstractmethod
    def terms(self, a: Tensor, b: Tensor) -> Terms:
        """Divergences of rows of outputs (terms, outputs) of two networks, in float64.

        All are exactly 0, and the agreement exactly 1, where the rows are equal.
        """


class Categorical(Law):
    """Softmax over the outputs."""

    name = "categorical"

    def terms(self, a: Tensor, b: Tensor) -> Terms:
        """Divergences of the categorical laws."""
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        return _finite_terms(log_p, log_q, (a.argmax(-1) == b.argmax(-1)).double())


class Bernoulli(Law):
    """Independent Bernoulli variables with the outputs as logits; divergences are sums over them.

    The agreement is the mean over them.
    """

    name = "bernoulli"

    def terms(self, a: Tensor, b: Tensor) -> Terms:
        """Sums over the outputs of divergences of Bernoulli laws."""
        logs = [
            torch.stack([functional.logsigmoid(x), functional.logsigmoid(-x)], -1) for x in (a, b)
        ]
        found = _finite_terms(logs[0], logs[1], ((a > 0) == (b > 0)).double())
        summed = {name: values.sum(-1) for name, values in vars(found).items()}
        return Terms(**{**summed, "agreement": found.agreement.mean(-1)})


class Gaussian(Law):
    """Normal law of unit variance around the outputs, whose negative log-density is the loss.

    ``KL = d^2 / 2`` both ways with ``d = |f_A - f_B|``, and ``JS = log 2 - E log(1 + exp(d z -
    d^2 / 2))`` with z standard normal, by Gauss-Hermite quadrature. Densities lack the constant
    ``(outputs / 2) log 2 pi``, as the loss does: ``H = outputs / 2``.
    """

    name = "gaussian"

    def terms(self, a: Tensor, b: Tensor) -> Terms:
        """Divergences of the normal laws."""
        square = (a - b).square().sum(-1)
        kl = square / 2
        entropy = torch.full_like(kl, a.shape[-1] / 2)
        nothing = torch.full_like(kl, math.nan)
        return Terms(
            kl_ab=kl,
            kl_ba=kl,
            js=_gaussian_js(square.sqrt()),
            agreement=nothing,
            cross_entropy=kl + entropy,
            entropy=entropy,
        )


def _gaussian_js(distance: Tensor) -> Tensor:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    z = torch.from_numpy(nodes).to(distance)
    share = torch.from_numpy(weights / weights.sum()).to(distance)
    d = distance[:, None]
    # log(2 / (1 + q/p)) = -(log of the mean of 1 and q/p), which is exact at d = 0.
    js = -(_log_mean_one_exp(d * z - d * d / 2) * share).sum(-1)
    return js.clamp(0.0, math.log(2)) + 0.0


def _log_mean_one_exp(x: Tensor) -> Tensor:
    """``log((1 + e^x) / 2)``, exactly 0 at 0."""
    near = torch.log1p(torch.expm1(x.clamp(max=_LARGE)) / 2)
    return torch.where(x > _LARGE, x - math.log(2), near)


def _finite_terms(log_p: Tensor, log_q: Tensor, agreement: Tensor) -> Terms:
    """Divergences between laws over the last axis, from log-probabilities (-inf is allowed)."""
    p, q = log_p.exp(), log_q.exp()

    def mean(law: Tensor, values: Tensor) -> Tensor:
        return torch.where(law > 0, law * values, 0.0).sum(-1)

    return Terms(
        # Rounding must not make them negative.
        kl_ab=mean(p, log_p - log_q).clamp(min=0.0),
        kl_ba=mean(q, log_q - log_p).clamp(min=0.0),
        # log(m / p) = log((1 + q/p) / 2).
        js=-(mean(p, _log_mean_one_exp(log_q - log_p)) + mean(q, _log_mean_one_exp(log_p - log_q)))
        / 2
        + 0.0,
        agreement=agreement,
        cross_entropy=mean(p, -log_q),
        entropy=mean(p, -log_p),
    )


_LAWS: tuple[tuple[type[Criterion], type[Law]], ...] = (
    (CrossEntropy, Categorical),
    (BinaryCrossEntropy, Bernoulli),
    (SquaredError, Gaussian),
)


def law_of(criterion: Criterion) -> Law:
    """The law that a built-in criterion, or a subclass of one, is the negative log-density of.

    Raises:
        UsageError: a criterion of another kind.
    """
    for kind, law in _LAWS:
        if isinstance(criterion, kind):
            return law()
    raise UsageError(
        f"the criterion {criterion.name!r} names no law of the outputs to compare; expected "
        f"{', '.join(kind.name for kind, _ in _LAWS)} or a subclass of one of their classes"
    )
