"""Hugging Face causal language models: genuine folders, measured through the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional

from landscape import HessianOptions, Risk, Settings, hessian_spectrum, load, resolve_task
from landscape.checkpoint import read_checkpoint
from landscape.data import materialise
from landscape.errors import LandscapeError, TaskError, UsageError
from landscape.initialisation import initial_moments
from landscape.loading import load_weights
from landscape.operators import curvature
from landscape.tasks._hugging_face import _KeepDouble
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
HAMLET = "to be or not that is the question whether tis nobler in mind suffer slings"
WORDS = ["<unk>", *HAMLET.split()]

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
    adapter = [str(folder), "--task", "hf-causal-lm"]
    adapter += ["--set", f"text={tmp_path / 'tokens.npy'}", "--dtype", "float32"]
    plain = [str(tmp_path / "plain.pt"), "--task", str(tmp_path / "task.py"), "--dtype", "float32"]
    plain += ["--set", f"tokens={tmp_path / 'rows.pt'}", "--set", f"folder={folder}"]
    spectrum = ["--operator", "ggn", "--operator", "hessian", "--top", "5", "--no-density"]
    spectrum += ["--method", "lanczos"]
    a = measured(tmp_path, "a", ["hessian", *adapter, *spectrum])
    b = measured(tmp_path, "b", ["hessian", *plain, *spectrum])
    assert a.info.n_parameters == b.info.n_parameters == sum(p.numel() for p in model.parameters())
    assert a.info.loss == pytest.approx(b.info.loss, rel=1e-6)
    for operator, found in a.spectra.items():
        expected = b.spectra[operator].eigenvalues
        np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-4)
    volume = ["--method", "quadratic", "--cutoff", "0.01"]
    c = measured(tmp_path, "c", ["volume", *adapter, *volume]).estimates["quadratic"]
    d = measured(tmp_path, "d", ["volume", *plain, *volume]).estimates["quadratic"]
    assert np.isfinite(c.log_volume).all()
    np.testing.assert_allclose(c.log_volume, d.log_volume, rtol=1e-4)


def test_the_spectrum_of_a_two_layer_llama_is_that_of_its_dense_hessian(
    tmp_path: Path, llama: Path
) -> None:
    rows = tokens(3, width=5)
    np.save(tmp_path / "tokens.npy", rows.numpy())
    risk = risk_of(llama, text=tmp_path / "tokens.npy")
    names, values = risk.space.names, risk.space.parameters
    shapes = [value.shape for value in values]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        # Written out, apart from the task's forward function and criterion.
        with _KeepDouble():
            found = torch.func.functional_call(
                risk.model, weights, (), {"input_ids": rows[:, :-1], "use_cache": False}
            )
        log_p = found.logits.log_softmax(-1)
        return -log_p.gather(-1, rows[:, 1:, None]).mean()

    dense = torch.func.hessian(loss)(risk.space.vector())
    assert float((dense - dense.T).abs().max()) < 1e-13 * float(dense.abs().max())
    expected = torch.linalg.eigvalsh(dense)
    arguments = [str(llama), "--task", "hf-causal-lm", "--no-density"]
    arguments += ["--set", f"text={tmp_path / 'tokens.npy'}", "--dtype", "float64"]
    arguments += ["--top", "8", "--bottom", "8", "--method", "lanczos"]
    found = measured(tmp_path, "out", ["hessian", *arguments]).spectra["hessian"].eigenvalues
    both = torch.cat([expected[-8:].flip(0), expected[:8].flip(0)])
    np.testing.assert_allclose(np.sort(found), np.sort(both.numpy()), atol=1e-8 * float(both[0]))


def test_float64_is_not_rounded_to_float32_inside_the_model(llama: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", tokens(4).numpy())
    risk = risk_of(llama, text=tmp_path / "tokens.npy")
    # The slope along a direction from differences of the loss is as good as float64 makes it.
    vector = risk.space.vector()
    step = 1e-5 * torch.nn.functional.normalize(risk.gradient(), dim=0)
    losses = []
    for sign in (1, -1):
        risk.space.assign(vector + sign * step)
        losses.append(risk.loss())
    risk.space.assign(vector)
    slope = float(risk.gradient().norm())
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-8)


class TestLayouts:
    """The same documents as padded sequences, packed ones, and one by one."""

    @pytest.fixture
    def texts(self, llama: Path, tmp_path: Path) -> Path:
        save_tokenizer(llama)
        path = tmp_path / "texts.jsonl"
        generator = torch.Generator().manual_seed(3)
        lines = []
        for length in (2, 5, 9, 3, 7, 4):
            words = torch.randint(1, VOCABULARY, (length,), generator=generator)
            lines.append(json.dumps({"text": " ".join(WORDS[i] for i in words)}))
        path.write_text("\n".join(lines) + "\n")
        return path

    def test_padding_changes_no_number(self, llama: Path, texts: Path, tmp_path: Path) -> None:
        together = risk_of(llama, text=texts)
        losses, counts = [], []
        for index, line in enumerate(texts.read_text().splitlines()):
            one = tmp_path / f"{index}.jsonl"
            one.write_text(line)
            risk = risk_of(llama, text=one)
            assert "attention_mask" not in risk.batch(0)
            losses.append(risk.loss())
            counts.append(len(json.loads(line)["text"].split()) - 1)
        expected = np.average(losses, weights=counts)
        assert "attention_mask" in together.batch(0)
        assert together.loss() == pytest.approx(float(expected), rel=1e-13)

    def test_packing_equals_separate_sequences(self, llama: Path, texts: Path) -> None:
        padded = risk_of(llama, text=texts, layout="padded")
        packed = risk_of(llama, text=texts, layout="packed", length=10)
        assert len(packed.data.batches[0]["labels"]) == 3
        assert len(padded.data.batches[0]["labels"]) == 6
        assert packed.loss() == pytest.approx(padded.loss(), rel=1e-13)
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(2, padded.n, dtype=torch.float64, generator=generator)
        for operator in ("hessian", "ggn"):
            a, b = (curvature(operator, risk).rows(vectors) for risk in (padded, packed))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(a.abs().max()))

    def test_without_its_mask_packing_is_another_loss(self, llama: Path, texts: Path) -> None:
        packed = risk_of(llama, text=texts, layout="packed", length=10)
        batch = dict(packed.batch(0))
        apart = packed.task.forward(packed.model, batch)
        batch["segments"] = torch.zeros_like(batch["segments"])
        mixed = packed.task.forward(packed.model, batch)
        assert float((apart - mixed).detach().abs().max()) > 1e-3

    def test_behaviour_is_the_kl_per_counted_token(self, llama: Path, texts: Path) -> None:
        risk = risk_of(llama, text=texts)
        moved = Risk(risk.task, risk.data, loss="behaviour", batch_size=4)
        assert moved.loss() == pytest.approx(0, abs=1e-14)
        vector = moved.space.vector()
        [batch] = risk.data.batches
        before = risk.task.forward(risk.model, batch).log_softmax(-1)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(moved.n, dtype=torch.float64, generator=generator)
        moved.space.assign(vector + 0.05 * noise)
        after = risk.task.forward(risk.model, batch).log_softmax(-1)
        terms = (before.exp() * (before - after)).sum(-1)
        expected = terms[batch["labels"] != -100].mean().detach()
        assert moved.loss() == pytest.approx(float(expected), rel=1e-10)

    def test_windows_predict_every_token_but_the_first_once(self, llama: Path, tmp_path) -> None:
        stream = tokens(1, width=23)[0]
        np.save(tmp_path / "stream.npy", stream.numpy())
        task = task_for(llama, text=tmp_path / "stream.npy", length=4)
        [batch] = task.data
        counted = batch["labels"] != -100
        torch.testing.assert_close(batch["labels"][counted], stream[1:])
        torch.testing.assert_close(batch["input_ids"][counted], stream[:-1])
        assert batch["input_ids"].shape == (6, 4)

    def test_labels_and_masks_of_an_array_are_kept(self, llama: Path, tmp_path: Path) -> None:
        ids = tokens(3, width=6)
        mask, labels = torch.ones_like(ids), ids.clone()
        mask[0, :2] = 0  # Padding at the left, then at the right.
        mask[1, 4:] = 0
        labels[2, :3] = -100  # A prompt.
        for ending in ("npz", "safetensors"):
            path = tmp_path / f"rows.{ending}"
            arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            if ending == "npz":
                np.savez(path, **{k: v.numpy() for k, v in arrays.items()})
            else:
                save_file(arrays, path)
            risk = risk_of(llama, text=path)
            total = 0.0
            for row in ([ids[0, 2:]], [ids[1, :4]], [ids[2]]):
                found = risk.task.forward(risk.model, {"input_ids": row[0][None, :-1]})[0]
                losses = functional.cross_entropy(found, row[0][1:], reduction="none")
                total += float(losses[-3:].detach().sum())  # Three targets each.
            assert risk.loss() == pytest.approx(total / 9, rel=1e-13)

    def test_lines_and_paragraphs_are_documents(self, llama: Path, tmp_path: Path) -> None:
        save_tokenizer(llama)
        path = tmp_path / "hamlet.txt"
        path.write_text("to be or not\nto be\n\nthat is the question\n")
        shapes = {}
        for documents in ("file", "lines", "paragraphs"):
            [batch] = task_for(llama, text=path, documents=documents, length=12).data
            shapes[documents] = tuple(batch["labels"].shape)
        assert shapes == {"file": (1, 9), "lines": (3, 3), "paragraphs": (2, 5)}


def test_micro_batches_are_as_large_as_memory_allows(llama: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", tokens(3).numpy())
    small = task_for(llama, text=tmp_path / "tokens.npy")
    assert small.batch_size == 1024
    config = transformers.LlamaConfig(**{**ROTARY, "vocab_size": 100_000})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    np.save(tmp_path / "tokens.npy", tokens(60).numpy())
    wide = task_for(tmp_path / "wide", text=tmp_path / "tokens.npy")
    # Logits twice, of the last layer and of the model: 6e5 numbers each.
    assert 2**26 // 1_210_000 <= wide.batch_size <= 2**26 // 1_200_000
    assert Risk(wide, materialise(wide.data), dtype=torch.float32).n_batches == 2
    assert Risk(wide, materialise(wide.data), batch_size=60, dtype=torch.float32).n_batches == 1


class TestWeights:
    """Names in files that the model does not use itself."""

    def test_a_file_without_the_heads_prefix(self, tmp_path: Path) -> None:
        folder = tmp_path / "gpt2"
        save_model(folder, "gpt2")
        np.save(tmp_path / "tokens.npy", tokens(3).numpy())
        expected = risk_of(folder, text=tmp_path / "tokens.npy").loss()
        weights = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("transformer."): w for name, w in weights.items()}
        # As in old files: masks among the weights.
        bare["h.0.attn.bias"] = torch.ones(1, 1, 12, 12).tril().bool()
        save_file(bare, folder / "model.safetensors")
        risk = risk_of(folder, text=tmp_path / "tokens.npy")
        assert risk.loss() == expected
        assert risk.model.config._attn_implementation == "eager"

    def test_experts_stored_one_by_one(self, tmp_path: Path) -> None:
        config = transformers.MixtralConfig(**ROTARY, num_key_value_heads=1, num_local_experts=2)
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM(config).eval()
        model.save_pretrained(tmp_path)
        rows = tokens(3)
        np.save(tmp_path / "tokens.npy", rows.numpy())
        risk = risk_of(tmp_path, text=tmp_path / "tokens.npy")
        assert set(load_file(tmp_path / "model.safetensors")) != set(risk.model.state_dict())
        with torch.no_grad():
            found = model(input_ids=rows[:, :-1]).logits
        expected = functional.cross_entropy(found.flatten(0, 1), rows[:, 1:].flatten())
        assert risk.loss() == pytest.approx(float(expected), rel=1e-5)

    @pytest.mark.parametrize("form", ["shards", "bin", "bfloat16"])
    def test_other_forms_of_a_folder(self, tmp_path: Path, form: str) -> None:
        model = save_model(tmp_path / "whole", "llama")
        if form == "bfloat16":  # Exact in every wider type.
            model.bfloat16().save_pretrained(tmp_path / "other")
            model.float().save_pretrained(tmp_path / "whole")
        elif form == "shards":
            model.save_pretrained(tmp_path / "other", max_shard_size="2KB")
            assert len([*(tmp_path / "other").glob("*.safetensors")]) > 1
        else:
            model.config.save_pretrained(tmp_path / "other")
            torch.save(model.state_dict(), tmp_path / "other" / "pytorch_model.bin")
        np.save(tmp_path / "tokens.npy", tokens(3).numpy())
        losses = []
        for name in ("whole", "other"):
            text = {"text": str(tmp_path / "tokens.npy")}
            found = hessian_spectrum(
                "hf-causal-lm",
                tmp_path / name,
                settings=Settings(dtype="float64"),
                options=HessianOptions(top=1, density=False, method="lanczos"),
                task_settings=text,
            )
            losses.append(found.info.loss)
        assert losses[0] == losses[1]

    def test_weights_that_do_not_fit_are_named(self, llama: Path, tmp_path: Path, capsys) -> None:
        np.save(tmp_path / "tokens.npy", tokens(3).numpy())
        weights = load_file(llama / "model.safetensors")
        weights["model.layers.7.mlp.up_proj.weight"] = weights.pop("model.norm.weight")
        save_file(weights, tmp_path / "other.safetensors")
        arguments = [str(tmp_path / "other.safetensors"), "--task", "hf-causal-lm"]
        arguments += ["--set", f"model={llama}", "--set", f"text={tmp_path / 'tokens.npy'}"]
        assert run(["check", *arguments]) == 3
        message = capsys.readouterr().err
        assert "model.norm.weight" in message
        assert "model.layers.7.mlp.up_proj.weight" in message

    def test_the_configuration_is_part_of_a_results_identity(
        self, llama: Path, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "tokens.npy", tokens(3).numpy())
        given = {"text": str(tmp_path / "tokens.npy")}
        first = resolve_task("hf-causal-lm", given, checkpoint=llama)
        assert resolve_task("hf-causal-lm", given, checkpoint=llama).sha256 == first.sha256
        settings = json.loads((llama / "config.json").read_text())
        (llama / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.1}))
        assert resolve_task("hf-causal-lm", given, checkpoint=llama).sha256 != first.sha256

    def test_initial_weights_are_the_librarys(self, llama: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "tokens.npy", tokens(3).numpy())
        risk = risk_of(llama, text=tmp_path / "tokens.npy")
        moments = initial_moments(risk.task, risk.space, seed=0)
        spread = dict(zip(risk.space.names, moments.spread, strict=True))
        assert spread["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.02, rel=0.1)
        assert spread["model.norm.weight"] == 0


class TestWrongUse:
    """One message each, with the right exit code."""

    @pytest.fixture
    def good(self, llama: Path, tmp_path: Path) -> Path:
        np.save(tmp_path / "tokens.npy", tokens(3).numpy())
        return tmp_path / "tokens.npy"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "--set text=PATH is missing"),
            ({"text": "absent.txt"}, "no such file"),
            ({"text": 3}, "expected the path of a file"),
            ({"text": "."}, "is a folder; expected a file"),
            ({"text": "GOOD", "length": 13}, "longer than the model's 12 positions"),
            ({"text": "GOOD", "length": 0}, "an integer of at least 1"),
            ({"text": "GOOD", "layout": "dense"}, "expected one of auto, windows, padded, packed"),
            ({"text": "GOOD", "documents": "words"}, "expected one of file, lines, paragraphs"),
            ({"text": "GOOD", "model": "absent"}, "no such folder"),
            ({"text": "GOOD", "model": "/"}, "expected a folder written by save_pretrained"),
            ({"text": "GOOD", "colour": 1}, "unknown setting 'colour'"),
        ],
    )
    def test_settings(self, llama: Path, good: Path, settings, message: str) -> None:
        given = {k: str(good) if v == "GOOD" else v for k, v in settings.items()}
        with pytest.raises(UsageError, match=message):
            task_for(llama, **given)

    def test_a_text_without_a_tokenizer(self, llama: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("to be or not")
        with pytest.raises(UsageError, match="has no tokenizer, which a text needs"):
            task_for(llama, text=tmp_path / "a.txt")

    def test_a_tokenizer_of_another_folder(self, llama: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("to be or not")
        save_tokenizer(tmp_path / "words")
        task = task_for(llama, text=tmp_path / "a.txt", tokenizer=str(tmp_path / "words"))
        assert task.data[0]["labels"].tolist() == [[2, 3, 4]]

    def test_an_empty_text(self, llama: Path, tmp_path: Path) -> None:
        save_tokenizer(llama)
        (tmp_path / "a.txt").write_text(" \n")
        with pytest.raises(UsageError, match="holds no text"):
            task_for(llama, text=tmp_path / "a.txt")
        (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UsageError, match="expected a text file in UTF-8"):
            task_for(llama, text=tmp_path / "a.txt")
        (tmp_path / "a.txt").write_text("be")
        with pytest.raises(UsageError, match="no token is predicted"):
            task_for(llama, text=tmp_path / "a.txt")

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"input_ids": np.array([[1, 99]])}, "the token 99, outside the model's vocabulary"),
            ({"input_ids": np.array([[1, -3]])}, "the token -3, outside the model's vocabulary"),
            ({"input_ids": np.ones((2, 3))}, "expected whole numbers"),
            ({"input_ids": np.ones((2, 3, 1), int)}, "expected whole numbers"),
            ({"ids": np.ones((2, 3), int), "b": np.ones(2)}, "expected an array 'input_ids'"),
            (
                {"input_ids": np.ones((2, 3), int), "labels": np.ones((2, 2), int)},
                r"labels has shape \(2, 2\)",
            ),
            (
                {"input_ids": np.ones((1, 3), int), "attention_mask": np.array([[1, 0, 1]])},
                "zeros between tokens",
            ),
            ({"input_ids": np.array([{"a": 1}], dtype=object)}, "allow_pickle=False"),
        ],
        ids=str,
    )
    def test_arrays(self, llama: Path, tmp_path: Path, arrays, message: str) -> None:
        np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
        with pytest.raises(UsageError, match=message):
            task_for(llama, text=tmp_path / "a.npz")

    def test_a_folder_whose_code_would_have_to_run(
        self, llama: Path, good: Path, tmp_path: Path
    ) -> None:
        settings = json.loads((llama / "config.json").read_text())
        settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
        (llama / "config.json").write_text(json.dumps(settings))
        (llama / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(TaskError, match="its architecture is code that comes with it"):
            task_for(llama, text=good)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"model_type": "none-such"}', "\0"])
    def test_a_broken_configuration(self, llama: Path, good: Path, text: str) -> None:
        (llama / "config.json").write_text(text)
        with pytest.raises(LandscapeError, match=r"config\.json"):
            task_for(llama, text=good)

    def test_a_tokenizer_whose_code_would_have_to_run(self, llama: Path, tmp_path: Path) -> None:
        save_tokenizer(llama)
        settings = json.loads((llama / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
        (llama / "tokenizer_config.json").write_text(json.dumps(settings))
        (llama / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        (tmp_path / "a.txt").write_text("to be or not")
        with pytest.raises(TaskError, match="cannot read the tokenizer"):
            task_for(llama, text=tmp_path / "a.txt")
        assert not (tmp_path / "ran").exists()

    def test_a_quantised_model(self, llama: Path, good: Path) -> None:
        settings = json.loads((llama / "config.json").read_text())
        settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (llama / "config.json").write_text(json.dumps(settings))
        with pytest.raises(TaskError, match="is a quantised model"):
            task_for(llama, text=good)

    @pytest.mark.parametrize("shape", [(0,), (1,), (0, 5), (3, 1), (3, 0)])
    def test_arrays_without_a_prediction(self, llama: Path, tmp_path: Path, shape) -> None:
        np.save(tmp_path / "a.npy", np.zeros(shape, int))
        with pytest.raises(UsageError, match="no token is predicted"):
            task_for(llama, text=tmp_path / "a.npy")

    def test_no_configuration(self, llama: Path, good: Path) -> None:
        (llama / "config.json").unlink()
        with pytest.raises(UsageError, match="the architecture is unknown"):
            task_for(llama, text=good)

    def test_a_model_that_sees_the_targets(self, good: Path, tmp_path: Path) -> None:
        config = transformers.BertConfig(**ROTARY)
        transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
        with pytest.raises(TaskError, match="is not causal"):
            task_for(tmp_path / "bert", text=good)

    def test_a_model_that_cannot_keep_packed_sequences_apart(
        self, good: Path, tmp_path: Path
    ) -> None:
        config = transformers.BloomConfig(**SMALL, hidden_size=8, n_layer=1, n_head=2)
        transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
        task_for(tmp_path / "bloom", text=good, layout="padded")
        with pytest.raises(TaskError, match="use --set layout=padded"):
            task_for(tmp_path / "bloom", text=good, layout="packed")

    def test_an_absent_library(self, llama: Path, good: Path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(UsageError, match=r"pip install 'landscape-geometry\[hf\]'"):
            task_for(llama, text=good)
