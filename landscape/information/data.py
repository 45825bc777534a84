"""The examples themselves: how many differ, and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from landscape.criteria import Batch, batch_length
from landscape.risk import Risk, batch_tensors

__all__ = ["distinct_examples", "integer_labels"]


def distinct_examples(risk: Risk) -> int:
    """Number of different examples, inputs and targets together, to the last bit."""
    found: set[bytes] = set()
    for index in range(risk.n_batches):
        batch = risk.batch(index)
        length = batch_length(batch)
        parts = [
            t.detach().cpu().contiguous().reshape(length, -1)
            for t in batch_tensors(batch)
            if t.dim() and len(t) == length and t.numel()
        ]
        rows = torch.cat([part.view(torch.uint8) for part in parts], dim=1).numpy()
        found |= {hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows}
    return len(found)


def integer_labels(risk: Risk) -> Tensor | None:
    """The integer target of every example, (examples,); None where targets are something else."""
    labels = [_label(risk.batch(index)) for index in range(risk.n_batches)]
    known = [label for label in labels if label is not None]
    return torch.cat(known) if len(known) == len(labels) else None


def _label(batch: Batch) -> Tensor | None:
    if isinstance(batch, Mapping):
        names = ("labels", "targets", "target", "label")
        found = next((batch[name] for name in names if name in batch), None)
    else:
        found = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(found, Tensor) or found.is_floating_point() or found.is_complex():
        return None
    length = batch_length(batch)
    return found.detach().cpu().long().reshape(-1) if found.numel() == length else None
