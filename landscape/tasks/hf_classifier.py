"""``hf-classifier``: a Hugging Face classifier or regressor of texts or of pairs of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import TaskError, UsageError
from landscape.task import Task
from landscape.tasks._common import check_integer, fitting_batch
from landscape.tasks._files import TABLES, existing, read_table
from landscape.tasks._hugging_face import (
    EXTRA,
    HuggingFaceModel,
    check_architecture,
    load_model,
    load_tokenizer,
    logits,
    model_folder,
    quiet,
)
from landscape.tasks._labels import class_indices, numbers

__all__ = ["build"]


def build(
    *,
    data: str | None = None,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    length: int | None = None,
    num_labels: int | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    checkpoint: str | Path | None = None,
) -> Task:
    """Build the task: cross-entropy of the class, or half the squared error where there is one.

    Texts are padded to the longest of a micro-batch, and padding is masked: it changes no number.

    Args:
        data: a table: .csv, .tsv or .jsonl.
        text: its column of texts.
        pair: its column of second texts, for pairs.
        label: its column of labels: the configuration's names of the classes or their numbers.
        length: longest text in tokens, with special ones; longer ones are cut. The model's number
            of positions unless given.
        num_labels: number of classes, where the configuration does not say.
        model: folder with the configuration, where it is not the checkpoint's.
        tokenizer: folder with the tokenizer, where the model's has none.
        base: folder of the model that PEFT adapters are for.
        checkpoint: given by the command.

    Raises:
        UsageError: a missing file, column, tokenizer or library, a label that is no class, a
            length beyond the model's positions, or a setting of the wrong type.
        TaskError: the model cannot be built, or gives every example several labels.
    """
    folder = model_folder(model, checkpoint)
    check_architecture("hf-classifier", folder, checkpoint)
    path = existing("data", data, what=f"a table ({', '.join(TABLES)})")
    if path.suffix not in TABLES:
        raise UsageError(f"setting data={str(data)!r}: expected one of {', '.join(TABLES)}")
    table = read_table(path, [text, label, *([] if pair is None else [pair])], EXTRA)
    options = {}
    if num_labels is not None:
        options["num_labels"] = check_integer("num_labels", num_labels, 1)
    found = load_model("AutoModelForSequenceClassification", folder, base=base, **options)
    classes = int(found.config.num_labels)
    if found.config.problem_type == "multi_label_classification":
        raise TaskError(
            "the model gives every example several labels (problem_type in config.json); expected "
            "one class or one number an example. Write a task file with binary_cross_entropy"
        )
    if classes == 1:
        targets, criterion = numbers(table[label], path, label), "mse"
    else:
        names = {str(k): int(v) for k, v in (found.config.label2id or {}).items()}
        targets, criterion = (
            class_indices(table[label], path, label, classes, names),
            "cross_entropy",
        )
    texts = [[str(value) for value in table[name].fillna("")] for name in (text, pair) if name]
    batch = _encode(found, tokenizer, texts, length)
    longest = int(batch["attention_mask"].sum(-1).argmax())
    widest = {name: value[longest : longest + 1] for name, value in batch.items()}
    return Task(
        model=found.model,
        data=[{**batch, "labels": targets}],
        criterion=criterion,
        forward=_forward,
        initialise=found.initialise,
        convert_weights=found.convert,
        batch_size=fitting_batch(found.model, _forward, widest),
        files=found.files,
    )


def _encode(
    found: HuggingFaceModel, tokenizer: object, texts: list[list[str]], length: object
) -> dict[str, Tensor]:
    """Tokens of every example, padded to the longest at the end."""
    with quiet():
        encode: Any = load_tokenizer(found, tokenizer)
        limits = [n for n in (found.positions, encode.model_max_length) if n and n < 1 << 30]
        if length is not None:
            wanted = check_integer("length", length, 1)
            if limits and wanted > min(limits):
                raise UsageError(
                    f"setting length={wanted} is longer than the model's {min(limits)} positions; "
                    "expected at most so many"
                )
            limits.append(wanted)
        encoded = encode(*texts, truncation=bool(limits), max_length=min(limits, default=None))
    rows = encoded["input_ids"]
    padding = 0 if encode.pad_token_id is None else int(encode.pad_token_id)
    fill = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0}
    width = max(map(len, rows))
    batch = {}
    for name, value in fill.items():
        if name == "token_type_ids" and name not in encoded:
            continue
        filled = torch.full((len(rows), width), value)
        for index, row in enumerate(rows):
            own = encoded[name][index] if name in encoded else [1] * len(row)
            filled[index, : len(row)] = torch.tensor(own, dtype=torch.long)
        batch[name] = filled
    outside = batch["input_ids"].max() >= found.vocabulary
    if bool(outside):
        raise UsageError(
            f"the tokenizer gives the token {int(batch['input_ids'].max())}, outside the model's "
            f"vocabulary of {found.vocabulary}; expected the model's own tokenizer"
        )
    return batch


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits (N, classes), without the columns that are padding in the whole micro-batch."""
    longest = int(batch["attention_mask"].sum(-1).max())
    inputs = {name: value[:, :longest] for name, value in batch.items() if name != "labels"}
    return logits(model, inputs)
