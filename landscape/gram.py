"""Exact spectra of ``J^T C J`` from the Gram matrix of its factor, where that is the smaller one.

With ``C_n = L_n L_n^T`` per term, the rows of ``L^T J`` (terms times outputs, or outputs minus 1
for softmax) form a factor F with ``J^T C J = F^T F``, whose non-zero eigenvalues are those of the
small matrix ``F F^T``. Everything beyond the pull-back is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.risk import Risk

__all__ = ["GRAM_LIMIT", "factor", "factor_width", "output_roots", "output_spectra", "pull_back"]

GRAM_LIMIT = 4096  # Largest number of rows whose Gram matrix is built.
_BLOCK = 32  # Rows pulled back at a time.
_NULL = 1e-14  # Output directions of relative curvature below this are zeros plus rounding.


def factor_width(risk: Risk) -> int:
    """Rows of the factor that one term has at most: its outputs, or one less for softmax."""
    with torch.no_grad():
        outputs = risk.outputs(0)
    width = risk.criterion.term_places(outputs, risk.batch(0)).shape[1]
    return width - 1 if risk.criterion.shift_invariant else width


def factor(
    risk: Risk,
    *,
    batches: Sequence[int] | None = None,
    rows: Tensor | None = None,
    on_rows: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The factor F with ``GGN = F^T F``, shape (r, n), in float64 on the CPU.

    Args:
        risk: the loss at the model's parameters, in float64 for exact results.
        batches: micro-batches whose rows are wanted; all where None.
        rows: leading rows that an earlier run built.
        on_rows: called with the rows so far after every block.

    Raises:
        UsageError: the criterion is not convex in the outputs, so that no real factor exists.

    Several processes build the rows of their examples, and all get all of them; nothing is said of
    rows in between.

    Cost: r vector-Jacobian products of one micro-batch each, and r n numbers.
    """
    if risk.ranks.size > 1:
        return _joined_factor(risk, batches)
    return _factor(risk, batches, rows, on_rows)


def _joined_factor(risk: Risk, batches: Sequence[int] | None) -> Tensor:
    mine = torch.zeros(0, risk.n, dtype=torch.float64)
    with risk.ranks.unanimous():
        mine = _factor(risk, batches, None, None)
    return risk.ranks.joined(mine, [int(count) for count in risk.ranks.each(float(len(mine)))])


def _factor(
    risk: Risk,
    batches: Sequence[int] | None,
    rows: Tensor | None,
    on_rows: Callable[[Tensor], None] | None,
) -> Tensor:
    blocks = [] if rows is None else [rows]
    skip = 0 if rows is None else len(rows)
    for index in range(risk.n_batches) if batches is None else batches:
        outputs = risk.outputs(index)
        places, roots = output_roots(risk, index, outputs.detach())
        # The rows at hand may be of other micro-batches: they need not end where one ends here.
        known = min(skip, len(places))
        skip -= known
        for start in range(known, len(places), _BLOCK):
            stop = min(start + _BLOCK, len(places))
            cotangents = torch.zeros(
                stop - start, outputs.numel(), dtype=outputs.dtype, device=outputs.device
            )
            cotangents.scatter_(1, places[start:stop], roots[start:stop])
            blocks.append(pull_back(risk, outputs, cotangents.reshape(-1, *outputs.shape)))
            if on_rows is not None:
                blocks = [torch.cat(blocks)] if len(blocks) > 64 else blocks
                on_rows(torch.cat(blocks))
    return torch.cat(blocks) if blocks else torch.zeros(0, risk.n, dtype=torch.float64)


def output_roots(risk: Risk, index: int, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of ``sqrt(fraction) L`` of one micro-batch.

    Returns:
        flat places in the outputs (r, width) and the values there (r, width), one term each row.
    """
    places, values, vectors = output_spectra(risk, index, outputs)
    term, direction = values.nonzero(as_tuple=True)
    roots = vectors[term, :, direction] * values[term, direction].sqrt()[:, None]
    return places[term], roots.to(outputs.dtype)


def output_spectra(risk: Risk, index: int, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenpairs of the loss's Hessian in the outputs of every term of a micro-batch.

    Args:
        risk: the loss.
        index: number of the micro-batch, whose part of the loss is counted in.
        outputs: its outputs, detached.

    Returns:
        flat places in the outputs (t, width), eigenvalues (t, width), 0 where they are rounding,
        and eigenvectors in columns (t, width, width), float64.

    Raises:
        UsageError: the criterion is not convex in the outputs.

    Cost: one derivative of the criterion for each output of a term.
    """
    criterion = risk.criterion
    places = criterion.term_places(outputs, risk.batch(index))
    detached = outputs.requires_grad_()
    loss = risk.output_loss(detached, index) * risk.fractions[index]
    (slope,) = torch.autograd.grad(loss, detached, create_graph=True)
    terms, width = places.shape
    blocks = torch.zeros(terms, width, width, dtype=torch.float64, device=outputs.device)
    # Terms are independent: one probe per output, for all terms at once, gives their Hessians.
    for column in range(width if slope.requires_grad else 0):
        probe = torch.zeros(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
        probe[places[:, column]] = 1
        (curved,) = torch.autograd.grad(
            slope, detached, grad_outputs=probe.reshape(outputs.shape), retain_graph=True
        )
        blocks[:, :, column] = curved.reshape(-1)[places].double()
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    largest = float(values.abs().max()) if values.numel() else 0.0
    slack = max(1e-9, 10 * torch.finfo(outputs.dtype).eps)
    if values.numel() and float(values.min()) < -slack * largest:
        raise UsageError(
            f"the criterion {criterion.name!r} is not convex in the outputs, so the GGN has no "
            "Gram matrix; use --method lanczos"
        )
    return places, torch.where(values > _NULL * largest, values, 0.0), vectors


def pull_back(risk: Risk, outputs: Tensor, cotangents: Tensor) -> Tensor:
    """``cotangents^T J``: (k, n) in float64 on the CPU, vmapped where that works."""

    def pull(cotangent: Tensor, batched: bool) -> Tensor:
        parts = torch.autograd.grad(
            outputs,
            risk.space.parameters,
            grad_outputs=cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=batched,
        )
        lead = (len(cotangent),) if batched else ()
        return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)

    try:
        rows = pull(cotangents, True)
    except RuntimeError:
        rows = torch.stack([pull(cotangent, False) for cotangent in cotangents])
    return rows.double().cpu()
