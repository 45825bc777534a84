"""Hugging Face causal language models: genuine folders, measured through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from landscape import Risk, load, resolve_task
from landscape.data import materialise
from landscape_cli.app import run

VOCABULARY = 16
LENGTH = 6
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
ROTARY = {
    **SMALL,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
CONFIGURATIONS = {
    "llama": transformers.LlamaConfig(**ROTARY, num_key_value_heads=1),
    "gpt2": transformers.GPT2Config(**SMALL, n_embd=8, n_layer=1, n_head=2, n_positions=12),
    "gpt-neox": transformers.GPTNeoXConfig(**{**ROTARY, "num_hidden_layers": 1}),
}
WORDS = [
    "<unk>",
    *[
        "to",
        "be",
        "or",
        "not",
        "that",
        "is",
        "the",
        "question",
        "whether",
        "tis",
        "nobler",
        "in",
        "mind",
        "suffer",
        "slings",
    ],
]

TASK_FILE = """
import torch, transformers
from landscape import Task

def build(tokens, folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    rows = torch.load(tokens)
    data = (rows[:, :-1], rows[:, 1:])
    forward = lambda model, batch: model(input_ids=batch[0], use_cache=False).logits
    return Task(model=model, data=data, criterion="cross_entropy", forward=forward)
"""


def save_model(folder: Path, name: str, seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGURATIONS[name])
    with torch.no_grad():  # Far from where every logit is alike.
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save_model(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def tokens(count: int, width: int = LENGTH + 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count, width), generator=generator)


def task_for(folder: Path, **settings: object):
    given = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    return resolve_task("hf-causal-lm", given, checkpoint=folder / "model.safetensors").task


def risk_of(folder: Path, **settings: object) -> Risk:
    from landscape.checkpoint import read_checkpoint
    from landscape.loading import load_weights

    task = task_for(folder, **settings)
    task.model.double()
    load_weights(task, task.model, read_checkpoint(folder / "model.safetensors"))
    return Risk(task, materialise(task.data), batch_size=3)


def measured(tmp_path: Path, name: str, arguments: list[str]):
    """The result of a command, from its file."""
    out = tmp_path / name
    command, *rest = arguments
    assert run([command, *rest, "-o", str(out), "--quiet"]) == 0
    [file] = out.glob("*.h5")
    return load(file)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_spectrum_and_volume_equal_those_of_the_plain_state_dict(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    model = save_model(folder, name)
    rows = tokens(8)
    np.save(tmp_path / "tokens.npy", rows.numpy())
    torch.save(rows, tmp_path / "rows.pt")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    (tmp_path / "task.py").write_text(TASK_FILE)
    adapter = [str(folder / "model.safetensors"), "--task", "hf-causal-lm"]
    adapter += ["--set", f"text={tmp_path / 'tokens.npy'}"]
    plain = [str(tmp_path / "plain.pt"), "--task", str(tmp_path / "task.py")]
    plain += ["--set", f"tokens={tmp_path / 'rows.pt'}", "--set", f"folder={folder}"]
    spectrum = ["--dtype", "float64", "--top", "5", "--no-density", "--operator", "ggn"]
    a = measured(tmp_path, "a", ["hessian", *adapter, *spectrum])
    b = measured(tmp_path, "b", ["hessian", *plain, *spectrum])
    assert a.info.n_parameters == b.info.n_parameters == sum(p.numel() for p in model.parameters())
    # The plain task rounds to float32 inside its normalisations, the adapter does not.
    assert a.info.loss == pytest.approx(b.info.loss, rel=1e-6)
    np.testing.assert_allclose(
        a.spectra["ggn"].eigenvalues, b.spectra["ggn"].eigenvalues, rtol=1e-5
    )
    volume = ["--method", "quadratic", "--cutoff", "0.01", "--dtype", "float64"]
    c = measured(tmp_path, "c", ["volume", *adapter, *volume])
    d = measured(tmp_path, "d", ["volume", *plain, *volume])
    assert c.volumes and d.volumes
