"""``hf-causal-lm``: a Hugging Face causal language model, loss per predicted token of a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from landscape.errors import TaskError, UsageError
from landscape.task import Task
from landscape.tasks._common import check_choice, check_integer, fitting_batch
from landscape.tasks._files import ARRAYS, existing
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
from landscape.tasks._sequences import (
    DOCUMENTS,
    LAYOUTS,
    Document,
    attention_between,
    check_tokens,
    encode,
    lay_out,
    read_texts,
    read_tokens,
)

__all__ = ["build"]

_LENGTH = 128
_PROBE = 6


def build(
    *,
    text: str | None = None,
    length: int | None = None,
    layout: str = "auto",
    documents: str = "file",
    field: str = "text",
    model: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    checkpoint: str | Path | None = None,
) -> Task:
    """Build the task: the cross-entropy of every next token, a mean over the tokens that count.

    Args:
        text: a UTF-8 text file, a table with a column of texts (.csv, .tsv, .jsonl), or tokens:
            ``input_ids`` in .npy, .npz or .safetensors, of shape (T,) or (N, T), in the last two
            also with ``attention_mask`` and ``labels``.
        length: inputs in a sequence, at most; 128, or the row length of an (N, T) array, unless
            given.
        layout: windows, padded or packed (:func:`landscape.tasks._sequences.lay_out`); auto is
            padded for an (N, T) array and for tables, else windows.
        documents: file, lines or paragraphs: what is one document of a text file.
        field: the column of the texts.
        model: folder with the configuration, where it is not the checkpoint's.
        tokenizer: folder with the tokenizer, where the model's has none.
        base: folder of the model that PEFT adapters are for.
        checkpoint: given by the command.

    Raises:
        UsageError: a missing file or library, tokens that the model does not know, a length beyond
            its positions, or a setting of the wrong type.
        TaskError: the model cannot be built, is not causal, or cannot keep packed sequences apart.
    """
    folder = model_folder(model, checkpoint)
    check_architecture("hf-causal-lm", folder, checkpoint)
    layout = check_choice("layout", layout, LAYOUTS)
    documents = check_choice("documents", documents, DOCUMENTS)
    what = f"a text file, a table (.csv, .jsonl) or tokens ({', '.join(ARRAYS)})"
    path = existing("text", text, what=what)
    found = load_model("AutoModelForCausalLM", folder, base=base)
    sequences: list[Document]
    if path.suffix in ARRAYS:
        sequences, separate = read_tokens(path)
        longest = max((len(ids) for ids, _ in sequences), default=0) - 1 if separate else None
    else:
        texts = read_texts(path, documents, field, EXTRA)
        with quiet():
            sequences = encode(texts, load_tokenizer(found, tokenizer))
        separate, longest = documents != "file" or path.suffix in (".csv", ".tsv", ".jsonl"), None
    check_tokens(sequences, found.vocabulary, path)
    if layout == "auto":
        layout = "padded" if separate else "windows"
    batch = lay_out(sequences, _length(length, longest, found.positions), layout)
    forward = _packed_forward if layout == "packed" else _forward
    _require_apart(found, forward, packed=layout == "packed")
    widest = {name: value[:1] for name, value in batch.items()}
    return Task(
        model=found.model,
        data=[batch],
        criterion="cross_entropy",
        forward=forward,
        initialise=found.initialise,
        convert_weights=found.convert,
        batch_size=fitting_batch(found.model, forward, widest),
        files=found.files,
    )


def _length(length: object, longest: int | None, positions: int | None) -> int:
    """Inputs in a sequence, within the model's positions."""
    wanted = longest if length is None else check_integer("length", length, 1)
    if wanted is None:
        return _LENGTH if positions is None else min(_LENGTH, positions)
    if positions is not None and wanted > positions:
        raise UsageError(
            f"sequences of {wanted} tokens are longer than the model's {positions} positions; "
            f"use --set length={positions} or less, which cuts them"
        )
    return max(wanted, 1)


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits (N, T, vocabulary)."""
    names = ("input_ids", "attention_mask")
    return logits(model, {name: batch[name] for name in names if name in batch})


def _packed_forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits (N, T, vocabulary) of sequences that share rows and do not see each other."""
    dtype = next(model.parameters()).dtype
    inputs = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "attention_mask": attention_between(batch["segments"], dtype),
    }
    return logits(model, inputs)


@torch.no_grad()
def _require_apart(
    found: HuggingFaceModel,
    forward: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    *,
    packed: bool,
) -> None:
    """Require that no logit depends on later tokens, nor on another sequence in its row."""
    generator = Generator().manual_seed(0)
    first, second = torch.randint(0, found.vocabulary, (2, _PROBE), generator=generator)
    short = min(_PROBE, found.positions or _PROBE) // (2 if packed else 1)
    if short < 2:
        return
    name = type(found.model).__name__
    other = torch.cat([first[: short - 1], second[:1]])
    other[-1] += other[-1] == first[short - 1]
    other %= found.vocabulary
    ids = torch.stack([first[:short], other])
    alone = _forward(found.model, {"input_ids": ids})
    if not torch.allclose(alone[0, :-1], alone[1, :-1], rtol=1e-4, atol=1e-5):
        raise TaskError(
            f"{name} is not causal: its predictions depend on later tokens, which would tell it "
            "the targets. Expected a decoder (is_decoder in config.json)"
        )
    if not packed:
        return
    row = {
        "input_ids": torch.cat([second[:short], first[:short]])[None],
        "segments": torch.arange(2).repeat_interleave(short)[None],
        "position_ids": torch.arange(short).repeat(2)[None],
    }
    try:
        together: Any = forward(found.model, row)[0, short:]
    except Exception:
        together = None
    if together is None or not torch.allclose(together, alone[0], rtol=1e-4, atol=1e-5):
        raise TaskError(
            f"{name} does not keep packed sequences apart by a mask and positions of their own; "
            "use --set layout=padded"
        )
