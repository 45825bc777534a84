"""Data: one fixed, ordered list of batches, its digest, subsets and micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from landscape.coordinates import cuts
from landscape.criteria import Batch, batch_length
from landscape.errors import LandscapeError, TaskError, UsageError
from landscape.rng import stream

__all__ = ["DataSet", "map_tensors", "materialise", "micro_batches", "shard"]

_COLLATE = 1024  # Examples collated at a time from a map-style data set.


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """All batches of a task, in memory and in fixed order.

    Attributes:
        batches: pytrees of CPU tensors.
        n_examples: total size of the first dimension.
        digest: SHA-256 of the contents in order; it does not depend on where batches are cut.
        indices: the examples taken, where ``examples`` asked for a subset.
    """

    batches: tuple[Batch, ...]
    n_examples: int
    digest: str
    indices: Tensor | None = None


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a batch (tuples, lists and mappings are kept)."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        values = [map_tensors(value, function) for value in batch]
        # Named tuples keep their names, which a task's forward function may use.
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return batch


def _leaves(batch: Batch, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, f"{path}/{key}")
    elif isinstance(batch, list | tuple):
        for index, value in enumerate(batch):
            yield from _leaves(value, f"{path}/{index}")
    else:
        yield path, batch


def _digest(batches: Iterable[Batch]) -> str:
    """SHA-256 over each leaf's stream of rows, so that batch boundaries do not matter."""
    hashers: dict[str, Any] = {}
    for batch in batches:
        for path, leaf in _leaves(batch):
            if isinstance(leaf, Tensor):
                key = f"{path}:{leaf.dtype}{tuple(leaf.shape[1:])}"
                rows = leaf.detach().cpu().contiguous().reshape(-1)
                content = rows.view(torch.uint8).numpy().data if len(rows) else b""
            else:
                key, content = path, repr(leaf).encode()
            hashers.setdefault(key, hashlib.sha256()).update(content)
    total = hashlib.sha256()
    for path in sorted(hashers):
        total.update(path.encode() + hashers[path].digest())
    return total.hexdigest()


def _collate_dataset(data: Dataset[Any], indices: Sequence[int]) -> list[Batch]:
    from torch.utils.data import Subset

    loader = DataLoader(Subset(data, indices), batch_size=_COLLATE, shuffle=False)
    return list(loader)


def _as_batches(data: Any, examples: int | None, seed: int) -> tuple[list[Batch], Tensor | None]:
    """Read the data once, in order; a subset of a map-style data set reads only its examples."""
    if isinstance(data, IterableDataset):
        raise TaskError(
            "the task's data are an IterableDataset; expected data of known length and order: a "
            "map-style Dataset, a DataLoader, tensors or a list of batches"
        )
    if isinstance(data, DataLoader):
        if isinstance(data.sampler, RandomSampler):
            raise TaskError(
                "the task's DataLoader shuffles, so the loss is not one deterministic function. "
                "Build it with shuffle=False"
            )
        first = list(data)
        if _digest(first) != _digest(data):
            raise TaskError(
                "the task's DataLoader yields other batches when read twice (a shuffling sampler "
                "or random augmentation), so the loss is not deterministic. Fix the order and "
                "the transforms"
            )
        return first, None
    if isinstance(data, Tensor):
        return [(data,)], None
    if isinstance(data, list | tuple):
        if data and all(isinstance(item, Tensor) for item in data):
            sizes = {item.shape[0] if item.dim() else None for item in data}
            if len(sizes) != 1 or None in sizes:
                raise TaskError(
                    f"the task's tensors have first dimensions {[tuple(t.shape[:1]) for t in data]}"
                    "; expected one size, the number of examples"
                )
            return [tuple(data)], None
        return list(data), None
    if isinstance(data, Mapping):
        raise TaskError(
            "the task's data are a mapping; expected a sequence of batches. Where it is one batch "
            "with all examples, put it into a list: data=[batch]"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        indices = _subset(len(data), examples, seed)
        order = range(len(data)) if indices is None else indices.tolist()
        return _collate_dataset(data, order), indices
    raise TaskError(
        f"the task's data are a {type(data).__name__}; expected a Dataset, a DataLoader, a tuple "
        "of tensors or a sequence of batches"
    )


def _subset(total: int, examples: int | None, seed: int) -> Tensor | None:
    """Sorted indices of a seeded random subset, or None for everything."""
    if examples is None or examples >= total:
        return None
    generator = stream(seed, "examples", total)
    return torch.randperm(total, generator=generator)[:examples].sort().values


def _take(batches: list[Batch], lengths: list[int], indices: Tensor) -> list[Batch]:
    taken, offset = [], 0
    for batch, length in zip(batches, lengths, strict=True):
        local = indices[(indices >= offset) & (indices < offset + length)] - offset
        if len(local):
            taken.append(_select(batch, length, local))
        offset += length
    return taken


def _select(batch: Batch, length: int, chosen: Tensor | slice) -> Batch:
    """The chosen examples of a batch; tensors without an example dimension are kept whole."""

    def select(tensor: Tensor) -> Tensor:
        return tensor[chosen] if tensor.dim() and len(tensor) == length else tensor

    return map_tensors(batch, select)


def materialise(data: Any, *, examples: int | None = None, seed: int = 0) -> DataSet:
    """Read a task's data once into memory.

    Args:
        data: see :class:`landscape.task.Task`.
        examples: at most so many examples, a seeded random subset (data may be sorted by label).
        seed: seed of the subset.

    Raises:
        UsageError: ``examples`` is not positive.
        TaskError: no examples, an unusable type, batches that change between two readings, or the
            data set's own code failed.
    """
    if examples is not None and examples < 1:
        raise UsageError(f"--examples {examples}: expected a positive number of examples")
    try:
        # A DataLoader draws from the global generator even where it does not shuffle.
        with torch.random.fork_rng(devices=[]):
            batches, indices = _as_batches(data, examples, seed)
        lengths = [batch_length(batch) for batch in batches]
        if indices is None:
            indices = _subset(sum(lengths), examples, seed)
            if indices is not None:
                batches = _take(batches, lengths, indices)
        batches = [map_tensors(batch, lambda t: t.detach().cpu()) for batch in batches]
        kept = [batch for batch in batches if batch_length(batch) > 0]
        digest = _digest(kept)
    except LandscapeError:
        raise
    except Exception as error:
        raise TaskError(
            f"reading the task's data raised {type(error).__name__}: {error}"
        ) from error
    if not kept:
        raise TaskError("the task's data hold zero examples; expected at least one")
    return DataSet(
        batches=tuple(kept),
        n_examples=sum(batch_length(batch) for batch in kept),
        digest=digest,
        indices=indices,
    )


def micro_batches(data: DataSet, size: int | None) -> list[Batch]:
    """Split every batch that is larger than ``size`` into pieces of at most ``size`` examples."""
    if size is not None and size < 1:
        raise UsageError(f"--batch-size {size}: expected a positive number of examples")
    pieces: list[Batch] = []
    for batch in data.batches:
        length = batch_length(batch)
        if size is None or length <= size:
            pieces.append(batch)
            continue
        for start in range(0, length, size):
            pieces.append(_select(batch, length, slice(start, start + size)))
    return pieces


def shard(data: DataSet, rank: int, size: int) -> DataSet:
    """The part of one of several processes: contiguous, of equal size up to one example.

    The digest stays that of all the data. A part is empty where there are too few examples.
    """
    first, last = cuts(data.n_examples, size)[rank : rank + 2]
    taken, offset = [], 0
    for batch in data.batches:
        length = batch_length(batch)
        start, stop = max(first - offset, 0), min(last - offset, length)
        if start < stop:
            taken.append(_select(batch, length, slice(start, stop)))
        offset += length
    return DataSet(batches=tuple(taken), n_examples=last - first, digest=data.digest)
