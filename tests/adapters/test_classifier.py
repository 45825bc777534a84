"""Hugging Face classifiers: genuine folders, tables of texts, padding that does not count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional

from landscape import Risk, load, resolve_task
from landscape.checkpoint import read_checkpoint
from landscape.data import materialise
from landscape.errors import TaskError, UsageError
from landscape.loading import load_weights
from landscape.operators import curvature
from landscape_cli.app import run

HAMLET = "to be or not that is the question whether tis nobler in mind suffer slings"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *HAMLET.split()]
SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
NAMES = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
ROWS = [
    ("to be", "or not", "yes"),
    ("that is the question whether tis nobler", "in mind", "no"),
    ("slings", "to suffer in the mind", "maybe"),
    ("not to be", "not", "no"),
    ("is it a question", "the question", "yes"),
]


def save_model(folder: Path, kind: str = "Bert", **options: object):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **NAMES, **options})
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    save_model(tmp_path / "bert")
    return tmp_path / "bert"


def write(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "pair": p, "label": y}) for t, p, y in rows]
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [separator.join(map(str, row)) for row in [("text", "pair", "label"), *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path


def task_for(folder: Path, **settings: object):
    given = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    return resolve_task("hf-classifier", given, checkpoint=folder / "model.safetensors").task


def risk_of(folder: Path, *, batch_size: int = 2, **settings: object) -> Risk:
    task = task_for(folder, **settings)
    task.model.double()
    load_weights(task, task.model, read_checkpoint(folder / "model.safetensors"))
    return Risk(task, materialise(task.data), batch_size=batch_size)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_the_loss_is_the_librarys(bert: Path, tmp_path: Path, ending: str) -> None:
    risk = risk_of(bert, data=write(tmp_path / f"data.{ending}"), pair="pair")
    model = transformers.BertForSequenceClassification.from_pretrained(bert).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    losses = []
    for text, pair, label in ROWS:  # One by one: no padding at all.
        inputs = tokenizer(text, pair, return_tensors="pt")
        with torch.no_grad():
            found = model(**inputs).logits
        losses.append(
            float(functional.cross_entropy(found, torch.tensor([NAMES["label2id"][label]])))
        )
    # Not to rounding: the library rounds to float32 inside.
    assert risk.loss() == pytest.approx(np.mean(losses), rel=1e-6)


def test_padding_changes_no_number(bert: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.csv")
    risks = [risk_of(bert, data=data, batch_size=size) for size in (1, 2, 5)]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, risks[0].n, dtype=torch.float64, generator=generator)
    for risk in risks[1:]:
        assert risk.loss() == pytest.approx(risks[0].loss(), rel=1e-13)
        for operator in ("hessian", "ggn"):
            a, b = (curvature(operator, r).rows(vectors) for r in (risks[0], risk))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(a.abs().max()))


def test_spectrum_and_volume_equal_those_of_the_plain_state_dict(
    bert: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "data.csv")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    inputs = dict(tokenizer([row[0] for row in ROWS], padding=True, return_tensors="pt"))
    torch.save({**inputs, "labels": torch.tensor([2, 0, 1, 0, 2])}, tmp_path / "batch.pt")
    model = transformers.BertForSequenceClassification.from_pretrained(bert)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    (tmp_path / "task.py").write_text(
        "import torch, transformers\n"
        "from landscape import Task\n"
        "def build(batch, folder):\n"
        "    config = transformers.AutoConfig.from_pretrained(folder)\n"
        "    auto = transformers.AutoModelForSequenceClassification\n"
        "    def forward(model, batch):\n"
        "        return model(**{k: v for k, v in batch.items() if k != 'labels'}).logits\n"
        "    model = auto.from_config(config, attn_implementation='eager')\n"
        "    data, criterion = [torch.load(batch)], 'cross_entropy'\n"
        "    return Task(model=model, data=data, criterion=criterion, forward=forward)\n"
    )
    adapter = [str(bert), "--task", "hf-classifier", "--set", f"data={data}"]
    plain = [str(tmp_path / "plain.pt"), "--task", str(tmp_path / "task.py")]
    plain += ["--set", f"batch={tmp_path / 'batch.pt'}", "--set", f"folder={bert}"]
    results = {}
    for name, own in (("adapter", adapter), ("plain", plain)):
        out = tmp_path / name
        common = [*own, "--dtype", "float32", "-o", str(out), "--quiet"]
        options = ["--operator", "ggn", "--operator", "hessian", "--method", "lanczos"]
        assert run(["hessian", *common, *options, "--top", "4", "--no-density"]) == 0
        assert run(["volume", *common, "--method", "quadratic", "--cutoff", "0.01"]) == 0
        [spectrum] = out.glob("*.hessian.*.h5")
        [volume] = out.glob("*.volume.*.h5")
        results[name] = load(spectrum), load(volume)
    (a, b), (c, d) = results["adapter"], results["plain"]
    assert a.info.n_parameters == c.info.n_parameters == sum(p.numel() for p in model.parameters())
    assert a.info.loss == pytest.approx(c.info.loss, rel=1e-6)
    for operator, found in a.spectra.items():
        expected = c.spectra[operator].eigenvalues
        np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-4)
    logs = [r.estimates["quadratic"].log_volume for r in (b, d)]
    assert np.isfinite(logs[0]).all()
    np.testing.assert_allclose(*logs, rtol=1e-4)


def test_numbers_instead_of_names_of_classes(bert: Path, tmp_path: Path) -> None:
    named = task_for(bert, data=write(tmp_path / "a.csv")).data[0]["labels"]
    numbered = [(t, p, NAMES["label2id"][y]) for t, p, y in ROWS]
    for name in ("b.csv", "b.jsonl"):
        torch.testing.assert_close(
            task_for(bert, data=write(tmp_path / name, numbered)).data[0]["labels"], named
        )


def test_one_label_is_a_regression(tmp_path: Path) -> None:
    names = {"id2label": {0: "score"}, "label2id": {"score": 0}}
    model = save_model(tmp_path / "bert", **names)
    rows = [(t, p, 0.5 * i) for i, (t, p, _) in enumerate(ROWS)]
    risk = risk_of(tmp_path / "bert", data=write(tmp_path / "a.csv", rows))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    with torch.no_grad():
        found = model(
            **tokenizer([row[0] for row in rows], padding=True, return_tensors="pt")
        ).logits
    expected = 0.5 * (found[:, 0] - torch.tensor([row[2] for row in rows])).square().mean()
    assert risk.loss() == pytest.approx(float(expected), rel=1e-5)


def test_positions_of_robertas_family_begin_behind_the_padding(tmp_path: Path) -> None:
    save_model(tmp_path / "roberta", "Roberta", max_position_embeddings=12, pad_token_id=1)
    long = [("to be or not to be that is the question whether tis nobler", "", "yes")]
    path = write(tmp_path / "a.csv", long)
    risk = risk_of(tmp_path / "roberta", data=path)
    assert risk.batch(0)["input_ids"].shape == (1, 10)
    assert np.isfinite(risk.loss())
    with pytest.raises(UsageError, match="longer than the model's 10 positions"):
        task_for(tmp_path / "roberta", data=path, length=11)


def test_longer_texts_are_cut(bert: Path, tmp_path: Path) -> None:
    [batch] = task_for(bert, data=write(tmp_path / "a.csv"), length=5).data
    assert batch["input_ids"].shape == (5, 5)


class TestWrongUse:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "--set data=PATH is missing"),
            ({"data": "absent.csv"}, "no such file"),
            ({"data": "GOOD", "text": "sentence"}, "no column 'sentence'; its columns: text, pair"),
            ({"data": "GOOD", "pair": "second"}, "no column 'second'"),
            ({"data": "GOOD", "label": "y"}, "no column 'y'"),
            ({"data": "GOOD", "label": "pair"}, "expected 0 to 2 or one of maybe, no, yes"),
            ({"data": "GOOD", "length": 17}, "longer than the model's 16 positions"),
            ({"data": "GOOD", "num_labels": "many"}, "expected an integer"),
        ],
    )
    def test_settings(self, bert: Path, tmp_path: Path, settings, message: str) -> None:
        good = write(tmp_path / "good.csv")
        given = {k: str(good) if v == "GOOD" else v for k, v in settings.items()}
        with pytest.raises(UsageError, match=message):
            task_for(bert, **given)

    @pytest.mark.parametrize("label", [3, -1, 0.5, "perhaps", "", True])
    def test_a_label_that_is_no_class(self, bert: Path, tmp_path: Path, label) -> None:
        path = write(tmp_path / "a.jsonl", [*ROWS, ("to be", "", label)])
        with pytest.raises(UsageError, match=r"row 6 has the label .* expected 0 to 2"):
            task_for(bert, data=path)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.csv", "", "cannot be read as CSV"),
            ("a.csv", "text,label\n", "has no rows"),
            ("a.csv", 'text,label\n"to be,1\n', "cannot be read as CSV"),
            ("a.jsonl", "{", "cannot be read as JSONL"),
            ("a.txt", "to be", "expected one of .csv, .tsv, .jsonl"),
        ],
    )
    def test_tables(self, bert: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=message):
            task_for(bert, data=tmp_path / name)

    def test_no_tokenizer(self, bert: Path, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (bert / name).unlink()
        with pytest.raises(UsageError, match="has no tokenizer"):
            task_for(bert, data=write(tmp_path / "a.csv"))

    def test_several_labels_at_once(self, tmp_path: Path) -> None:
        save_model(tmp_path / "bert", problem_type="multi_label_classification")
        with pytest.raises(TaskError, match="several labels"):
            task_for(tmp_path / "bert", data=write(tmp_path / "a.csv"))

    def test_a_language_model_is_told_before_anything_else(
        self, bert: Path, tmp_path: Path
    ) -> None:
        config = json.loads((bert / "config.json").read_text())
        (bert / "config.json").write_text(
            json.dumps(config | {"architectures": ["BertLMHeadModel"]})
        )
        data = write(tmp_path / "a.csv", [("to be", "", "no such label")])
        words = (
            r"is BertLMHeadModel, by .*config\.json, .*; expected \.\.\.ForSequenceClassification. "
            "Use --task hf-causal-lm"
        )
        with pytest.raises(TaskError, match=words):
            task_for(bert, data=data)

    def test_a_configuration_of_another_place_tells_no_head(
        self, bert: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "base").mkdir()
        config = json.loads((bert / "config.json").read_text())
        config["architectures"] = ["BertLMHeadModel"]
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        data = write(tmp_path / "a.csv")
        assert task_for(bert, data=data, model=tmp_path / "base", tokenizer=bert).data
