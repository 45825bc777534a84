"""How the rank grows as examples are added: a check that flatness is not lack of data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from landscape.errors import UsageError
from landscape.flat.ranks import TOLERANCE, behaviour_jacobian, singular_values, triangle
from landscape.flat.records import ExampleSweep
from landscape.risk import Risk
from landscape.rng import stream

__all__ = ["example_sweep"]


def example_sweep(
    risk: Risk, sizes: Sequence[int], *, seed: int = 0, tol: float = TOLERANCE
) -> ExampleSweep:
    """Ranks of the behavioural Jacobian on growing parts of one random order of the examples.

    A value counts above ``tol`` times the largest of *all* examples: with one threshold singular
    values can only grow as rows are added, so that the null count never rises.

    Args:
        risk: the loss at the anchor.
        sizes: numbers of examples, each from 1 to all of them.
        seed: of the order.
        tol: relative tolerance.

    Raises:
        UsageError: a size out of range, or none.

    Cost: the Jacobian once, ``O(r n^2)`` flops for its r rows, and a singular value decomposition
    for each size.
    """
    total = risk.data.n_examples
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or wanted[-1] > total:
        raise UsageError(
            f"--examples-sweep {','.join(map(str, sizes)) or '(none)'}: expected numbers of "
            f"examples from 1 to {total}"
        )
    rows, owner = behaviour_jacobian(risk, examples=True)
    order = torch.randperm(total, generator=stream(seed, "examples"))
    place = torch.empty_like(order)
    place[order] = torch.arange(total)
    rank_of = place[owner]
    largest = float(singular_values(rows)[:1].sum())
    known = rows[:0]
    before = 0
    found = []
    for size in wanted:
        known = triangle(torch.cat([known, rows[(rank_of >= before) & (rank_of < size)]]))
        before = size
        values = singular_values(known)
        relative = values / largest if largest else values
        rank = int((relative > tol).sum())
        kept = float(relative[rank - 1]) if rank else np.nan
        dropped = float(relative[rank]) if rank < len(relative) else 0.0
        found.append((size, rank, kept, dropped))
    examples, ranks, last, first = zip(*found, strict=True)
    rank_array = np.array(ranks, dtype=np.int64)
    return ExampleSweep(
        examples=np.array(examples, dtype=np.int64),
        rank=rank_array,
        null=risk.n - rank_array,
        last_kept=np.array(last),
        first_dropped=np.array(first),
    )
