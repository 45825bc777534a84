"""The factor of the gradients of single examples, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.criteria import batch_length
from landscape.errors import NotFiniteError, UsageError
from landscape.gram import output_roots, pull_back
from landscape.information.data import distinct_examples, integer_labels
from landscape.information.effective import distinct_rows, effective_rank, row_values
from landscape.information.records import GradientGram
from landscape.memory import stored_tensor, total_memory
from landscape.risk import Risk
from landscape.rng import stream
from landscape.units import Progress, Units

__all__ = ["GRAM_SIDE", "GradientRows", "gradient_gram", "gradient_rows", "require_memory"]

GRAM_SIDE = 4096  # Most rows or parameters, whichever is fewer, whose singular values are found.
_BLOCK = 32  # Rows pulled back at a time,
_BYTES = 1 << 28  # as far as their cotangents take no more than this.
_SHOWN = 400  # Examples whose kernel is kept.
_ENTRIES = 4096  # Rows behind that kernel.


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientRows:
    """Rows X with ``X^T X = sum_i f_i g_i g_i^T``, or the GGN with ``behaviour``.

    Attributes:
        rows: ``sqrt(f_i) g_i``, or rows of the factor of the GGN, (r, n), float64 on the CPU.
        example: to which example each belongs, (r,).
        n_examples: examples, with those that have no row.
    """

    rows: Tensor
    example: Tensor
    n_examples: int


def require_memory(n_rows: int, n: int) -> None:
    """Refuse gradients that take more than a quarter of the host's memory, or too long an SVD.

    Raises:
        UsageError: says how many examples would do.
    """
    total = total_memory(torch.device("cpu")) // 4
    size = n_rows * n * 8
    if size > total:
        raise UsageError(
            f"gradients of {n_rows} rows and {n} parameters take {size / 2**30:.1f} GB, more than "
            f"a quarter of the memory ({total / 2**30:.1f} GB); use fewer --examples (a random "
            "subset), or select parameters with --params"
        )
    if min(n_rows, n) > GRAM_SIDE:
        raise UsageError(
            f"{n_rows} gradients of {n} parameters: all singular values are found up to "
            f"{GRAM_SIDE} rows or parameters. Use --examples {GRAM_SIDE} or fewer (a random "
            "subset), or select parameters with --params"
        )


def gradient_rows(
    risk: Risk,
    *,
    rows: Tensor | None = None,
    on_rows: Callable[[int, Callable[[], Tensor]], None] | None = None,
) -> GradientRows:
    """Gradients of single examples, weighted so that their Gram matrix is that of the whole loss.

    Args:
        risk: the loss at the model's parameters. Small micro-batches are cheapest: each gradient
            pulls back its whole micro-batch.
        rows: leading rows that an earlier run built.
        on_rows: called after every block with the number of rows so far, and what joins them.

    Raises:
        UsageError: outputs that do not belong to the examples one by one, or with ``behaviour`` a
            criterion that is not convex in the outputs.
        NotFiniteError: a gradient is not finite.

    Cost: r vector-Jacobian products of one micro-batch each, and r n numbers.
    """
    blocks = [] if rows is None else [rows]
    skip = done = 0 if rows is None else len(rows)
    owners: list[Tensor] = []
    first = 0
    for index in range(risk.n_batches):
        outputs = risk.outputs(index)
        length = batch_length(risk.batch(index))
        owner, parts = _cotangents(risk, index, outputs, length)
        owners.append(first + owner)
        first += length
        known = min(skip, len(owner))
        skip -= known
        bytes_each = outputs.numel() * outputs.element_size()
        size = max(min(_BLOCK, _BYTES // max(bytes_each, 1)), 1)
        for start in range(known, len(owner), size):
            stop = min(start + size, len(owner))
            block = pull_back(risk, outputs, parts(start, stop))
            if not bool(torch.isfinite(block).all()):
                raise NotFiniteError(
                    f"the gradient of an example of micro-batch {index + 1} is not finite; "
                    "expected numbers. Check the checkpoint and the data, or use --dtype float64"
                )
            blocks.append(block)
            done += len(block)
            if on_rows is not None:
                on_rows(done, lambda: torch.cat(blocks))
    return GradientRows(
        rows=torch.cat(blocks) if blocks else torch.zeros(0, risk.n, dtype=torch.float64),
        example=torch.cat(owners),
        n_examples=first,
    )


def _cotangents(
    risk: Risk, index: int, outputs: Tensor, length: int
) -> tuple[Tensor, Callable[[int, int], Tensor]]:
    """To which example each row belongs, and the outputs' cotangents of some rows."""
    detached = outputs.detach()
    if detached.numel() % length:
        raise UsageError(
            f"outputs of shape {tuple(outputs.shape)} of {length} examples do not belong to them "
            "one by one; expected as many for each. Check the task's forward function"
        )
    width = detached.numel() // length

    if risk.loss_kind == "behaviour":
        places, values = output_roots(risk, index, detached)

        def of_roots(start: int, stop: int) -> Tensor:
            flat = detached.new_zeros(stop - start, detached.numel())
            flat.scatter_(1, places[start:stop], values[start:stop])
            return flat.reshape(-1, *outputs.shape)

        return places[:, 0].cpu() // width, of_roots

    terms = risk.criterion.term_places(detached, risk.batch(index))[:, 0].cpu() // width
    counts = torch.bincount(terms, minlength=length).double()
    owner = counts.nonzero()[:, 0]
    fraction = risk.fractions[index] * counts[owner] / counts.sum()
    detached.requires_grad_()
    loss = risk.output_loss(detached, index) * risk.fractions[index]
    (slope,) = torch.autograd.grad(loss, detached)
    slope = slope.reshape(length, width)
    scale = fraction.rsqrt().to(slope)

    def of_examples(start: int, stop: int) -> Tensor:
        chosen = owner[start:stop].to(slope.device)
        flat = slope.new_zeros(stop - start, length, width)
        flat[torch.arange(stop - start), chosen] = scale[start:stop, None] * slope[chosen]
        return flat.reshape(-1, *outputs.shape)

    return owner, of_examples


def gradient_gram(
    risk: Risk, *, tol: float, seed: int, units: Units, progress: Progress
) -> GradientGram:
    """The spectrum, the effective ranks and a picture of the Gram matrix of the gradients.

    Args:
        risk: see :func:`gradient_rows`.
        tol: relative tolerance of ranks and of equal gradients.
        seed: of the random directions by which gradients are told apart.
        units: where rows and finished singular values are kept.
        progress: called with the rows done.

    Raises:
        UsageError, NotFiniteError: as :func:`gradient_rows`.

    Cost: that of the rows, and O(r n min(r, n)) flops for their singular values.
    """
    unit = units.get("gram") or {}
    if not unit:
        unit = _measured(_stored_rows(risk, units, progress), risk, tol, seed, progress)
        units.put("gram", unit)
        units.drop("gradients")
    modules = risk.space.modules()
    sizes = {"": risk.n} | {
        name: sum(risk.space.sizes[i] for i in positions) for name, positions in modules.items()
    }
    values = {layer: stored_tensor(unit[f"values_{i}"]) for i, layer in enumerate(sizes)}
    return GradientGram(
        n_rows=int(unit["n_rows"]),
        distinct_examples=int(unit["distinct_examples"]),
        distinct_gradients=int(unit["distinct_gradients"]),
        tolerance=tol,
        eigenvalues=values[""].numpy() ** 2,
        ranks=tuple(
            effective_rank(values[layer], layer=layer, size=size, tol=tol)
            for layer, size in sizes.items()
        ),
        kernel=unit["kernel"],
        kernel_example=unit["kernel_example"],
        kernel_label=unit["kernel_label"],
    )


def _stored_rows(risk: Risk, units: Units, progress: Progress) -> GradientRows:
    def on_rows(done: int, snapshot: Callable[[], Tensor]) -> None:
        progress("gradients of examples", done, None)
        if units.due():
            units.put("gradients", {"rows": snapshot().numpy()})

    stored = units.get("gradients")
    rows = None if stored is None else stored_tensor(stored["rows"])
    return gradient_rows(risk, rows=rows, on_rows=on_rows)


def _measured(
    found: GradientRows, risk: Risk, tol: float, seed: int, progress: Progress
) -> dict[str, Any]:
    """All numbers of the Gram matrix, as arrays."""
    rows = found.rows
    parts = list(torch.split(rows, risk.space.sizes, dim=1))
    blocks = [rows]
    for positions in risk.space.modules().values():
        blocks.append(torch.cat([parts[i] for i in positions], dim=1))
    values: dict[str, Any] = {}
    for i, block in enumerate(blocks):
        progress("singular values", i, len(blocks))
        values[f"values_{i}"] = row_values(block).numpy()
    kernel, chosen, labels = _kernel(found, integer_labels(risk))
    return {
        **values,
        "n_rows": len(rows),
        "distinct_examples": distinct_examples(risk),
        "distinct_gradients": distinct_rows(
            _signatures(found, risk, seed), tol=tol, generator=stream(seed, "distinct")
        ),
        "kernel": kernel.numpy(),
        "kernel_example": chosen.numpy(),
        "kernel_label": labels.numpy(),
    }


def _signatures(found: GradientRows, risk: Risk, seed: int) -> Tensor:
    """What tells the gradients of two examples apart, one row an example that has any.

    Rows of the factor are determined up to a rotation among those of a term: their product
    ``F_i^T F_i v`` with a random vector is not.
    """
    if risk.loss_kind != "behaviour":
        return found.rows
    probe = torch.randn(risk.n, generator=stream(seed, "signature"), dtype=torch.float64)
    along = found.rows * (found.rows @ probe)[:, None]
    owners, place = torch.unique(found.example, return_inverse=True)
    return along.new_zeros(len(owners), risk.n).index_add_(0, place, along)


def _kernel(found: GradientRows, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The Gram matrix of some examples, sorted by label, with their numbers and labels."""
    owners, counts = torch.unique(found.example, return_counts=True)
    order = owners if labels is None else owners[labels[owners].argsort(stable=True)]
    rows_each = int(counts.max()) if len(counts) else 1
    shown = min(len(order), _SHOWN, max(_ENTRIES // rows_each, 1))
    # Evenly spaced, so that every label has its share.
    chosen = order[torch.linspace(0, len(order) - 1, shown).round().long()] if shown else order
    place = torch.full((found.n_examples,), -1, dtype=torch.int64)
    place[chosen] = torch.arange(len(chosen))
    kept = (place[found.example] >= 0).nonzero()[:, 0]
    rows, where = found.rows[kept], place[found.example[kept]]
    gram = rows @ rows.T
    if bool((counts == 1).all()):
        kernel = gram[where.argsort()][:, where.argsort()]
    else:
        squares = gram.new_zeros(len(chosen), len(gram)).index_add_(0, where, gram.square())
        kernel = squares.new_zeros(len(chosen), len(chosen)).index_add_(1, where, squares).sqrt()
    return kernel, chosen, labels[chosen] if labels is not None else torch.full_like(chosen, -1)
