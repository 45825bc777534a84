"""Whether two networks behave alike on the same data: divergences with bootstrap intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from landscape.compare.laws import Terms, law_of
from landscape.compare.records import Behaviour
from landscape.criteria import batch_length
from landscape.errors import NotFiniteError
from landscape.results import Estimate
from landscape.risk import Risk

__all__ = ["bootstrap", "compare_behaviour"]

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
) -> Behaviour:
    """Compare the laws of two networks' outputs on the micro-batches of a risk.

    Args:
        risk: data and criterion.
        a: outputs of network A.
        b: outputs of network B.
        n_bootstrap: resamples.
        by_example: draw whole examples with all their terms, otherwise single terms.
        generator: on the CPU; of the resamples.

    Raises:
        UsageError: the criterion names no law.
        NotFiniteError: outputs of a network are NaN.

    Cost: a forward pass of each network.
    """
    criterion = risk.criterion
    law = law_of(criterion)
    found: list[Terms] = []
    losses: list[Tensor] = []
    owners: list[Tensor] = []
    divergence, first = 0.0, 0
    for index in range(risk.n_batches):
        batch = risk.batch(index)
        with torch.no_grad():
            outputs = [network(index).double() for network in (a, b)]
            for name, values in zip("AB", outputs, strict=True):
                if bool(torch.isnan(values).any()):
                    raise NotFiniteError(
                        f"outputs of network {name} are NaN on micro-batch {index + 1}; expected "
                        "numbers. Check the checkpoint and the data, or use --dtype float64"
                    )
            places = criterion.term_places(outputs[0], batch)
            rows = [values.reshape(-1)[places] for values in outputs]
            found.append(law.terms(*rows))
            before, after = (criterion.term_losses(values, batch) for values in outputs)
            losses.append(after - before)
            value = float(criterion.divergence(outputs[1], outputs[0], batch))
            divergence += risk.fractions[index] * value
        length = batch_length(batch)
        owners.append(first + places[:, 0].cpu() // max(outputs[0].numel() // length, 1))
        first += length
    joined = {
        f.name: torch.cat([getattr(part, f.name) for part in found]).cpu()
        for f in dataclasses.fields(Terms)
    }
    columns = torch.stack(
        [joined[n] for n in ("kl_ab", "kl_ba", "js", "agreement")] + [torch.cat(losses).cpu()]
    )
    owner = torch.cat(owners)
    sums = torch.zeros(len(columns), first, dtype=torch.float64).index_add_(1, owner, columns)
    counts = torch.bincount(owner, minlength=first).double()
    kept = counts > 0
    sums, counts = sums[:, kept], counts[kept]
    single = torch.ones(len(owner), dtype=torch.float64)
    estimates = bootstrap(
        *((sums, counts) if by_example else (columns, single)), n=n_bootstrap, generator=generator
    )
    cross, entropy = (float(joined[n].mean()) for n in ("cross_entropy", "entropy"))
    examples = (sums / counts).numpy()
    return Behaviour(
        law=law.name,
        kl_ab=estimates[0],
        kl_ba=estimates[1],
        js=estimates[2],
        agreement=estimates[3],
        excess_loss=estimates[4],
        cross_entropy=cross,
        entropy=entropy,
        identity=abs(cross - entropy - divergence),
        n_terms=len(owner),
        n_bootstrap=n_bootstrap,
        example_kl_ab=examples[0],
        example_kl_ba=examples[1],
        example_js=examples[2],
        example_excess_loss=examples[4],
        example_terms=counts.numpy(),
    )


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
