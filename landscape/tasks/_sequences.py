"""Token sequences: documents cut into windows, padded, or packed several to a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.tasks._files import read_arrays, read_table, read_text

IGNORED = -100
LAYOUTS = ("auto", "windows", "padded", "packed")
DOCUMENTS = ("file", "lines", "paragraphs")

Document = tuple[Tensor, Tensor]
"""Tokens and the labels at the same places, ``IGNORED`` where a token is not predicted."""


def read_texts(path: Path, documents: str, field: str, extra: str) -> list[str]:
    """The texts in a file, one string a document; empty ones are left out.

    Args:
        path: a text file, or a table with a column of texts.
        documents: how a text file is cut.
        field: the column.
        extra: the extra that reads tables.

    Raises:
        UsageError: an unreadable file, no such column, or no text in it.
    """
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        texts = [str(text) for text in read_table(path, [field], extra)[field].fillna("")]
    else:
        whole = read_text(path)
        if documents == "lines":
            texts = whole.splitlines()
        else:
            texts = whole.split("\n\n") if documents == "paragraphs" else [whole]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text; expected at least one document")
    return texts


def read_tokens(path: Path) -> tuple[list[Document], bool]:
    """The documents in a token array, and whether it has one in each row.

    ``input_ids`` of shape (T,) or (N, T); where they are present, ``attention_mask`` is 0 at
    padding and ``labels`` are ``IGNORED`` at tokens that are not predicted.

    Raises:
        UsageError: an unreadable file, no integers, or shapes that do not fit.
    """
    names = ("input_ids", "attention_mask", "labels")
    arrays = read_arrays(path, names)
    for name, array in arrays.items():
        if array.is_floating_point() or array.is_complex() or array.dim() not in (1, 2):
            raise UsageError(
                f"{path}: {name} has shape {tuple(array.shape)} and type {_short(array.dtype)}; "
                "expected whole numbers of shape (tokens,) or (sequences, tokens)"
            )
        if array.shape != arrays["input_ids"].shape:
            raise UsageError(
                f"{path}: {name} has shape {tuple(array.shape)}, input_ids "
                f"{tuple(arrays['input_ids'].shape)}; expected the same"
            )
    ids = arrays["input_ids"].long()
    rows = ids.dim() == 2
    kept = arrays.get("attention_mask", torch.ones_like(ids)) != 0
    labels = arrays.get("labels", ids).long()
    if not rows:
        ids, kept, labels = ids[None], kept[None], labels[None]
    found: list[Document] = []
    for row, (tokens, mask) in enumerate(zip(ids, kept, strict=True)):
        places = mask.nonzero().flatten()
        if len(places) and int(places[-1] - places[0]) + 1 != len(places):
            raise UsageError(
                f"{path}: attention_mask of row {row} has zeros between tokens; expected padding "
                "at the ends only"
            )
        if len(places):
            found.append((tokens[places], labels[row, places]))
    return found, rows


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tokens(documents: Sequence[Document], vocabulary: int, path: Path) -> None:
    """Require every token, and every label that counts, to be one that the model knows.

    Raises:
        UsageError: it is not.
    """
    for ids, labels in documents:
        for values in (ids, labels[labels != IGNORED]):
            outside = values[(values < 0) | (values >= vocabulary)]
            if len(outside):
                raise UsageError(
                    f"{path} has the token {int(outside[0])}, outside the model's vocabulary of "
                    f"{vocabulary}; expected tokens of this model's own tokenizer"
                )


def lay_out(documents: Sequence[Document], length: int, layout: str) -> dict[str, Tensor]:
    """One batch of sequences with the next token as every position's target.

    - ``windows``: the documents are one stream, cut into windows of ``length`` inputs; every token
      but the first is a target once.
    - ``padded``: every document is a sequence of its own, cut where it is longer than ``length``,
      and filled up at its end.
    - ``packed``: the same sequences, several to a row, with their numbers in ``segments`` and their
      positions counted from the start of each.

    Args:
        documents: tokens and labels.
        length: inputs in a row, at most.
        layout: one of the above.

    Returns:
        ``input_ids``, ``labels`` and, as needed, ``attention_mask`` or ``segments`` and
        ``position_ids``, all (rows, T).

    Raises:
        UsageError: no token is predicted.
    """
    if layout == "windows" and documents:
        ids, labels = (torch.cat(parts) for parts in zip(*documents, strict=True))
        documents = [(ids, labels)]
    pieces = [
        (ids[start : start + length], labels[start + 1 : start + length + 1])
        for ids, labels in documents
        for start in range(0, len(ids) - 1, length)
    ]
    pieces = [(ids[: len(targets)], targets) for ids, targets in pieces]
    if not any(bool((targets != IGNORED).any()) for _, targets in pieces):
        raise UsageError(
            "no token is predicted from another one; expected a sequence of at least two tokens "
            "whose labels count"
        )
    rows = _packed(pieces, length) if layout == "packed" else [[piece] for piece in pieces]
    width = max(sum(len(targets) for _, targets in row) for row in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "labels": torch.full((len(rows), width), IGNORED),
        "segments": torch.full((len(rows), width), -1),
        "position_ids": torch.zeros(len(rows), width, dtype=torch.long),
    }
    for index, row in enumerate(rows):
        start = 0
        for segment, (ids, targets) in enumerate(row):
            place = (index, slice(start, start + len(targets)))
            batch["input_ids"][place] = ids
            batch["labels"][place] = targets
            batch["segments"][place] = segment
            batch["position_ids"][place] = torch.arange(len(targets))
            start += len(targets)
    segments = batch["segments"]
    if layout != "packed":
        del batch["segments"], batch["position_ids"]
        if bool((segments < 0).any()):
            batch["attention_mask"] = (segments >= 0).long()
    return batch


def _packed(pieces: Sequence[Document], length: int) -> list[list[Document]]:
    """Pieces in rows of at most ``length``, the first row that has room, longest pieces first."""
    rows: list[list[Document]] = []
    room: list[int] = []
    for ids, targets in sorted(pieces, key=lambda piece: -len(piece[1])):
        size = len(targets)
        index = next((i for i, free in enumerate(room) if free >= size), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(length)
        rows[index].append((ids, targets))
        room[index] -= size
    return rows


def attention_between(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask (N, 1, T, T) by which a token sees the earlier ones of its own segment."""
    size = segments.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=segments.device).tril()
    seen = (segments[:, :, None] == segments[:, None, :]) & earlier
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def encode(texts: Sequence[str], tokenizer: Callable[[list[str]], Any]) -> list[Document]:
    """Documents from texts, by a tokenizer that returns their ``input_ids``."""
    tokens = [torch.tensor(ids, dtype=torch.long) for ids in tokenizer(list(texts))["input_ids"]]
    return [(ids, ids) for ids in tokens if len(ids)]
