"""Whether two networks behave alike on the same data: divergences with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Generator, Tensor

from landscape.compare.laws import Law, law_of
from landscape.compare.records import Behaviour
from landscape.criteria import batch_length
from landscape.errors import NotFiniteError
from landscape.results import Estimate
from landscape.risk import Risk
from landscape.units import Units

__all__ = ["bootstrap", "compare_behaviour"]

_DRAWN = ("kl_ab", "kl_ba", "js", "agreement", "excess_loss")  # Of which there are intervals.
_CHUNK = 1 << 24  # Counts of resamples that are held at once.
_TAIL = 0.025

Outputs = Callable[[int], Tensor]
"""Outputs of a network on micro-batch ``index``."""


def compare_behaviour(
    risk: Risk,
    a: Outputs,
    b: Outputs,
    *,
    n_bootstrap: int = 1000,
    by_example: bool = True,
    generator: Generator,
    units: Units | None = None,
) -> Behaviour:
    """Compare the laws of two networks' outputs on the micro-batches of a risk.

    Args:
        risk: data and criterion; several processes share out the examples.
        a: outputs of network A.
        b: outputs of network B.
        n_bootstrap: resamples.
        by_example: draw whole examples with all their terms, otherwise single terms.
        generator: on the CPU; of the resamples, the same in every process.
        units: the terms are kept there and taken from there.

    Raises:
        UsageError: the criterion names no law.
        NotFiniteError: outputs of a network are NaN.

    Cost: a forward pass of each network.
    """
    law = law_of(risk.criterion)
    stored = None if units is None else units.get("behaviour")
    if stored is None:
        found = _all_terms(risk, law, a, b)
        if units is not None:
            units.put("behaviour", {f.name: _plain(getattr(found, f.name)) for f in fields(_Table)})
    else:
        found = _Table(
            columns=torch.as_tensor(stored["columns"]),
            owner=torch.as_tensor(stored["owner"]),
            examples=int(stored["examples"]),
            divergence=float(stored["divergence"]),
        )
    columns, owner = found.columns[: len(_DRAWN)], found.owner
    sums = torch.zeros(len(columns), found.examples, dtype=torch.float64)
    sums = sums.index_add_(1, owner, columns)
    counts = torch.bincount(owner, minlength=found.examples).double()
    kept = counts > 0
    sums, counts = sums[:, kept], counts[kept]
    single = torch.ones(len(owner), dtype=torch.float64)
    estimates = bootstrap(
        *((sums, counts) if by_example else (columns, single)), n=n_bootstrap, generator=generator
    )
    cross, entropy = found.columns[len(_DRAWN) :].mean(1).tolist()
    examples = dict(zip(_DRAWN, (sums / counts).numpy(), strict=True))
    return Behaviour(
        law=law.name,
        **dict(zip(_DRAWN, estimates, strict=True)),
        cross_entropy=cross,
        entropy=entropy,
        identity=abs(cross - entropy - found.divergence),
        n_terms=len(owner),
        n_bootstrap=n_bootstrap,
        example_kl_ab=examples["kl_ab"],
        example_kl_ba=examples["kl_ba"],
        example_js=examples["js"],
        example_excess_loss=examples["excess_loss"],
        example_terms=counts.numpy(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """What is measured of every term.

    Attributes:
        columns: ``_DRAWN``, cross-entropy and entropy, (7, terms).
        owner: the example of every term, (terms,).
        examples: their number.
        divergence: mean KL(p_A || p_B) as the criterion has it.
    """

    columns: Tensor
    owner: Tensor
    examples: int
    divergence: float


def _plain(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _all_terms(risk: Risk, law: Law, a: Outputs, b: Outputs) -> _Table:
    """The terms of all processes, in the order of the examples."""
    ranks = risk.ranks
    rows = [torch.zeros(0, len(_DRAWN) + 2, dtype=torch.float64)]
    owners = [torch.zeros(0, dtype=torch.int64)]
    divergence, first = 0.0, 0
    with ranks.unanimous(), torch.no_grad():
        for index in range(risk.n_batches):
            part, places, share = _batch_terms(risk, law, a, b, index)
            rows.append(part)
            owners.append(first + places)
            divergence += share
            first += batch_length(risk.batch(index))
    own, owner = torch.cat(rows), torch.cat(owners)
    lengths = [int(count) for count in ranks.each(len(own))]
    counts = [int(count) for count in ranks.each(first)]
    return _Table(
        columns=ranks.joined(own, lengths).T.contiguous(),
        owner=ranks.joined(owner + sum(counts[: ranks.rank]), lengths),
        examples=sum(counts),
        divergence=sum(ranks.each(divergence)),
    )


def _batch_terms(
    risk: Risk, law: Law, a: Outputs, b: Outputs, index: int
) -> tuple[Tensor, Tensor, float]:
    """Of one micro-batch: the terms (terms, 7), the example of each, its share of the KL."""
    criterion, batch = risk.criterion, risk.batch(index)
    outputs = [network(index).double() for network in (a, b)]
    for name, values in zip("AB", outputs, strict=True):
        if bool(torch.isnan(values).any()):
            raise NotFiniteError(
                f"outputs of network {name} are NaN on micro-batch {index + 1}; expected numbers. "
                "Check the checkpoint and the data, or use --dtype float64"
            )
    places = criterion.term_places(outputs[0], batch)
    found = law.terms(*(values.reshape(-1)[places] for values in outputs))
    before, after = (criterion.term_losses(values, batch) for values in outputs)
    columns = [found.kl_ab, found.kl_ba, found.js, found.agreement, after - before]
    columns += [found.cross_entropy, found.entropy]
    share = risk.fractions[index] * float(criterion.divergence(outputs[1], outputs[0], batch))
    width = max(outputs[0].numel() // batch_length(batch), 1)
    return torch.stack(columns, dim=1).cpu(), places[:, 0].cpu() // width, share


def bootstrap(sums: Tensor, weights: Tensor, *, n: int, generator: Generator) -> list[Estimate]:
    """Weighted means ``sum_i s_i / sum_i w_i`` and their intervals over resampled units i.

    Args:
        sums: sums s over the terms of each unit, (quantities, units).
        weights: numbers w of these terms, (units,).
        n: resamples, each of as many units, drawn with replacement.
        generator: on the CPU.

    Returns:
        for each quantity its mean, the standard deviation over resamples and the percentiles 2.5
        and 97.5 (Efron, Annals of Statistics 7, 1979).
    """
    units = len(weights)
    values = sums.sum(1) / weights.sum()
    resampled = []
    left = n
    while left:
        take = min(left, max(_CHUNK // units, 1))
        draws = torch.randint(units, (take, units), generator=generator)
        counts = torch.zeros(take, units, dtype=torch.float64)
        counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
        resampled.append((counts @ sums.T) / (counts @ weights)[:, None])
        left -= take
    drawn = torch.cat(resampled)
    edges = torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)
    found = []
    for value, column in zip(values.tolist(), drawn.T, strict=True):
        finite = bool(torch.isfinite(column).all())
        low, high = torch.quantile(column, edges).tolist() if finite else (math.nan, math.nan)
        spread = float(column.std()) if finite else math.nan
        found.append(Estimate(value=value, stderr=spread, lower=low, upper=high))
    return found
