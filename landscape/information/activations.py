"""Effective ranks of what every module with parameters returns, over the examples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.criteria import batch_length
from landscape.data import map_tensors
from landscape.errors import NotFiniteError
from landscape.information.effective import effective_rank, row_values
from landscape.information.gradients import GRAM_SIDE
from landscape.information.records import EffectiveRank
from landscape.memory import total_memory
from landscape.risk import Risk, differentiable_twice
from landscape.units import Progress

__all__ = ["activation_ranks"]


def activation_ranks(
    risk: Risk, *, tol: float, progress: Progress
) -> tuple[tuple[EffectiveRank, ...], list[str]]:
    """Effective ranks of the centred activations of every module that has selected parameters.

    Row i of a module's matrix holds everything that it returns on example i (all positions of a
    sequence, all pixels, and of several calls one after the other), less the mean over the
    examples, times ``1/sqrt(N)``: its Gram matrix has the non-zero eigenvalues of the covariance
    matrix over the examples.

    Returns:
        one entry for each module in the model's order, and what to say of those left out.

    Raises:
        NotFiniteError: an activation is not finite.

    Cost: a forward pass, N d numbers and O(N d min(N, d)) flops for the d values of a module.
    """
    owners = {_owner(name) for name in risk.space.names}
    names = {module: name for name, module in risk.model.named_modules() if name in owners}
    notes: list[str] = []
    with torch.no_grad(), _watched(names) as seen:
        varying = _varying(risk, seen, names.values())
        parts: dict[str, list[Tensor]] = {name: [] for name in names.values()}
        for index in range(risk.n_batches):
            progress("activations", index, risk.n_batches)
            seen.clear()
            risk.outputs(index)
            length = batch_length(risk.batch(index))
            for name, blocks in parts.items():
                rows = _rows(seen.get(name, []), length) if name in varying else None
                blocks.append(torch.zeros(0) if rows is None else rows)
    found = []
    for name, blocks in parts.items():
        if reason := _reason(blocks, name in varying):
            notes.append(f"activations of {name or 'the model'} are left out: {reason}")
            continue
        rows = torch.cat(blocks)
        if not bool(torch.isfinite(rows).all()):
            raise NotFiniteError(
                f"an activation of {name or 'the model'} is not finite; expected numbers. Check "
                "the checkpoint and the data, or use --dtype float64"
            )
        rows -= rows.mean(0)
        values = row_values(rows / len(rows) ** 0.5)
        found.append(effective_rank(values, layer=name, size=rows.shape[1], tol=tol))
    return tuple(found), notes


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


@contextlib.contextmanager
def _watched(names: Mapping[nn.Module, str]) -> Iterator[dict[str, list[Any]]]:
    """What modules return while the block runs, by name."""
    seen: dict[str, list[Any]] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.setdefault(names[module], []).append(output)

    handles = [module.register_forward_hook(note) for module in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _varying(risk: Risk, seen: dict[str, list[Any]], names: Iterable[str]) -> set[str]:
    """Modules whose outputs have one row for one example.

    A table of positions returns as many rows as there are positions, which may happen to be the
    size of a micro-batch.
    """
    batch = risk.batch(0)
    length = batch_length(batch)
    one = map_tensors(batch, lambda t: t[:1] if t.dim() and len(t) == length else t)
    try:
        with differentiable_twice(risk.model):
            risk.task.forward(risk.model, one)
    except Exception:
        return set(names)  # A forward function of batches of one size: nothing can be told.
    return {name for name, outputs in seen.items() if _rows(outputs, 1) is not None}


def _rows(outputs: list[Any], length: int) -> Tensor | None:
    """Everything that a module returned, one row an example; None where that cannot be told."""
    tensors = [_tensor(output) for output in outputs]
    rows = []
    for tensor in tensors:
        if tensor is None or not tensor.dim() or len(tensor) != length or not tensor.numel():
            return None
        rows.append(tensor.detach().reshape(length, -1).double().cpu())
    return torch.cat(rows, dim=1) if rows else None


def _tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor of what a module returned."""
    if isinstance(output, Mapping):
        output = list(output.values())
    while isinstance(output, list | tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def _reason(blocks: list[Tensor], varying: bool) -> str | None:
    """Why a module has no ranks, if it has none."""
    widths = {block.shape[1] if block.dim() == 2 else 0 for block in blocks}
    if not varying or 0 in widths:
        return "it is not called, or does not return a tensor with one row an example"
    if len(widths) > 1:
        return "it returns as many values as an example is long"
    (width,) = widths
    count = sum(map(len, blocks))
    if count * width * 8 > total_memory(torch.device("cpu")) // 4:
        return f"{count} x {width} values take more than a quarter of the memory"
    if min(count, width) > GRAM_SIDE:
        return (
            f"{width} values on {count} examples; singular values are found up to {GRAM_SIDE} of "
            "either. Use fewer --examples"
        )
    return None
