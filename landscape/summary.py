"""Looking inside a checkpoint: sizes, norms and non-finite counts of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from landscape.checkpoint import Checkpoint
from landscape.tensor_facts import dtype_name, number_kind, statistics
from landscape.text import natural_key, shown

__all__ = ["CheckpointSummary", "TensorSummary", "summarise"]


@dataclass(frozen=True)
class TensorSummary:
    """One tensor: its norm (Euclidean, in float64) and how many elements are NaN or infinite."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    norm: float
    nan: int
    inf: int


@dataclass(frozen=True)
class CheckpointSummary:
    """What is in a checkpoint.

    ``n_parameters`` counts the elements of floating-point and complex tensors (parameters and
    buffers look alike in a file) and ``norm`` is theirs; these and ``n_bytes`` count tied tensors
    once where the file keeps the tie. ``nan`` and ``inf`` sum over all tensors.
    """

    path: str
    format: str
    sha256: str
    step: int | None
    metadata: dict[str, str]
    weights_key: str | None
    others: tuple[str, ...]
    tensors: tuple[TensorSummary, ...]
    n_parameters: int
    n_bytes: int
    norm: float
    nan: int
    inf: int
    warnings: tuple[str, ...]


def summarise(checkpoint: Checkpoint) -> CheckpointSummary:
    """Sizes, norms and non-finite counts of every tensor, in natural order of the names."""
    rows = []
    once: dict[object, tuple[Tensor, TensorSummary]] = {}
    for name in sorted(checkpoint.tensors, key=natural_key):
        tensor = checkpoint.tensors[name]
        shape, size = tuple(tensor.shape), tensor.numel()
        rows.append(TensorSummary(name, shape, dtype_name(tensor), size, *statistics(tensor)))
        place = (tensor.data_ptr(), tensor.dtype, shape, tensor.stride())
        once.setdefault(place, (tensor, rows[-1]))
    weights = [row for t, row in once.values() if number_kind(t) in ("floating-point", "complex")]
    return CheckpointSummary(
        path=checkpoint.path,
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        step=checkpoint.step,
        metadata=checkpoint.metadata,
        weights_key=checkpoint.weights_key,
        others=checkpoint.others,
        tensors=tuple(rows),
        n_parameters=sum(row.size for row in weights),
        n_bytes=sum(t.numel() * t.element_size() for t, _ in once.values()),
        norm=math.hypot(*(row.norm for row in weights)),
        nan=sum(row.nan for row in rows),
        inf=sum(row.inf for row in rows),
        warnings=tuple(_warnings(checkpoint, rows)),
    )


def _warnings(checkpoint: Checkpoint, rows: Sequence[TensorSummary]) -> Iterator[str]:
    if checkpoint.unsafe_pickle:
        yield "read with --unsafe-pickle: code named by the file was run"
    if bad := [row.name for row in rows if row.nan or row.inf]:
        them = "1 tensor has" if len(bad) == 1 else f"{len(bad)} tensors have"
        yield f"{them} NaN or infinite elements: {shown(bad)}"
    dtypes = sorted({row.dtype for row in rows if "float" in row.dtype})
    if len(dtypes) > 1:
        yield f"floating-point tensors of several dtypes: {', '.join(dtypes)}"
    if empty := [row.name for row in rows if row.size == 0]:
        yield f"{len(empty)} tensors are empty: {shown(empty)}"
