"""PEFT adapters: measured in the adapters' parameters only, on a base model from a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from landscape import Risk, load, resolve_task
from landscape.checkpoint import read_checkpoint
from landscape.data import materialise
from landscape.errors import CheckpointError, TaskError, UsageError
from landscape.initialisation import initial_moments
from landscape.loading import load_weights
from landscape_cli.app import run

LLAMA = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}

# Of PEFT and transformers about each other.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A base model and adapters for it whose A and B are both random."""
    torch.manual_seed(0)
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(base)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(adapters)
    np.save(tmp_path / "tokens.npy", tokens().numpy())
    return base, adapters


def tokens() -> torch.Tensor:
    return torch.randint(0, 16, (6, 7), generator=torch.Generator().manual_seed(1))


def task_for(adapters: Path, **settings: object):
    given = {"text": str(adapters.parent / "tokens.npy"), **settings}
    checkpoint = adapters / "adapter_model.safetensors"
    return resolve_task("hf-causal-lm", given, checkpoint=checkpoint)


def risk_of(adapters: Path) -> Risk:
    task = task_for(adapters).task
    task.model.double()
    load_weights(task, task.model, read_checkpoint(adapters / "adapter_model.safetensors"))
    return Risk(task, materialise(task.data))


def test_the_loss_is_the_librarys_and_only_adapters_count(folders: tuple[Path, Path]) -> None:
    base, adapters = folders
    risk = risk_of(adapters)
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapters).eval()
    rows = tokens()
    with torch.no_grad():
        expected = model(input_ids=rows, labels=rows).loss
    assert risk.loss() == pytest.approx(float(expected), rel=1e-6)
    assert risk.n == sum(
        t.numel() for t in load_file(adapters / "adapter_model.safetensors").values()
    )
    assert all("lora_" in name for name in risk.space.names)


def test_spectrum_and_volume_equal_those_of_the_plain_state_dict(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapters = folders
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapters)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save(tokens(), tmp_path / "rows.pt")
    (tmp_path / "task.py").write_text(
        "import peft, torch, transformers\n"
        "from landscape import Task\n"
        "def build(rows, base, adapters):\n"
        "    model = transformers.LlamaForCausalLM.from_pretrained(\n"
        "        base, attn_implementation='eager')\n"
        "    model = peft.PeftModel.from_pretrained(model, adapters, is_trainable=True)\n"
        "    rows = torch.load(rows)\n"
        "    forward = lambda model, batch: model(input_ids=batch[0], use_cache=False).logits\n"
        "    data, criterion = (rows[:, :-1], rows[:, 1:]), 'cross_entropy'\n"
        "    return Task(model=model, data=data, criterion=criterion, forward=forward)\n"
    )
    adapter = [str(adapters), "--task", "hf-causal-lm"]
    adapter += ["--set", f"text={tmp_path / 'tokens.npy'}"]
    plain = [str(tmp_path / "plain.pt"), "--task", str(tmp_path / "task.py")]
    plain += ["--set", f"rows={tmp_path / 'rows.pt'}", "--set", f"base={base}"]
    plain += ["--set", f"adapters={adapters}"]
    results = []
    for name, own in (("adapter", adapter), ("plain", plain)):
        out = tmp_path / name
        common = [*own, "--dtype", "float32", "-o", str(out), "--quiet"]
        options = ["--operator", "ggn", "--operator", "hessian", "--method", "exact"]
        assert run(["hessian", *common, *options, "--no-density"]) == 0
        assert run(["volume", *common, "--method", "quadratic", "--cutoff", "0.01"]) == 0
        [spectrum] = out.glob("*.hessian.*.h5")
        [volume] = out.glob("*.volume.*.h5")
        results.append((load(spectrum), load(volume)))
    (a, b), (c, d) = results
    assert a.info.n_parameters == c.info.n_parameters == 4 * 2 * 8
    assert a.info.loss == pytest.approx(c.info.loss, rel=1e-6)
    for operator, found in a.spectra.items():
        expected = c.spectra[operator].eigenvalues
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.eigenvalues, expected, rtol=0, atol=1e-5 * scale)
    logs = [r.estimates["quadratic"].log_volume for r in (b, d)]
    np.testing.assert_allclose(*logs, rtol=1e-4)


def test_merged_weights_have_the_same_loss(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapters = folders
    risk = risk_of(adapters)
    model = transformers.LlamaForCausalLM.from_pretrained(base).double()
    merged = peft.PeftModel.from_pretrained(model, adapters).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    checkpoint = tmp_path / "merged" / "model.safetensors"
    text = {"text": str(tmp_path / "tokens.npy")}
    task = resolve_task("hf-causal-lm", text, checkpoint=checkpoint).task
    task.model.double()
    load_weights(task, task.model, read_checkpoint(checkpoint))
    other = Risk(task, materialise(task.data))
    assert other.loss() == pytest.approx(risk.loss(), rel=1e-6)
    assert other.n > risk.n


def test_the_base_is_part_of_a_results_identity(folders: tuple[Path, Path]) -> None:
    base, adapters = folders
    first = task_for(adapters).sha256
    assert task_for(adapters).sha256 == first
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert task_for(adapters).sha256 != first


def test_initial_adapters_are_the_librarys(folders: tuple[Path, Path]) -> None:
    risk = risk_of(folders[1])
    moments = initial_moments(risk.task, risk.space, seed=0)
    spread = dict(zip(risk.space.names, moments.spread, strict=True))
    [a] = [v for n, v in spread.items() if "q_proj.lora_A" in n]
    [b] = [v for n, v in spread.items() if "q_proj.lora_B" in n]
    assert a == pytest.approx((1 / 8 / 3) ** 0.5, rel=0.1)  # Uniform up to 1 / sqrt(inputs).
    assert b == 0


def test_a_head_that_the_adapters_bring(tmp_path: Path) -> None:
    """A classifier whose base has no head: the adapters hold it whole."""
    torch.manual_seed(0)
    config = {**LLAMA, "pad_token_id": 0}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(
        tmp_path / "base"
    )
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(tmp_path / "base", num_labels=3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=1))
    adapted.save_pretrained(tmp_path / "adapters")
    from landscape.tasks._hugging_face import load_model

    found = load_model("AutoModelForSequenceClassification", tmp_path / "adapters", num_labels=3)
    trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
    assert any("score.modules_to_save" in name for name in trained)
    tensors = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    found.convert(found.model, tensors)
    ids = tokens()
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids).logits
        torch.testing.assert_close(found.model(input_ids=ids).logits, expected)
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    settings |= {"modules_to_save": None, "task_type": None}
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(TaskError, match="lacks 1 of the weights"):  # They know of no head.
        load_model("AutoModelForSequenceClassification", tmp_path / "adapters", num_labels=3)


class TestWrongUse:
    def test_a_base_that_would_be_downloaded(self, folders: tuple[Path, Path]) -> None:
        base, adapters = folders
        path = adapters / "adapter_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "base_model_name_or_path": "someone/model-7b"}))
        with pytest.raises(UsageError, match=r"'someone/model-7b'.*--set base=FOLDER"):
            task_for(adapters)
        task_for(adapters, base=str(base))
        with pytest.raises(UsageError, match="no such folder"):
            task_for(adapters, base="absent")
        with pytest.raises(UsageError, match=r"has no config\.json"):
            task_for(adapters, base=str(base.parent))

    def test_adapters_of_another_rank(self, folders: tuple[Path, Path], capsys) -> None:
        _, adapters = folders
        settings = json.loads((adapters / "adapter_config.json").read_text())
        (adapters / "adapter_config.json").write_text(json.dumps({**settings, "r": 3}))
        with pytest.raises(CheckpointError, match=r"has shape \(2, 8\); expected \(3, 8\)"):
            risk_of(adapters)

    def test_adapters_of_other_modules(self, folders: tuple[Path, Path]) -> None:
        _, adapters = folders
        settings = json.loads((adapters / "adapter_config.json").read_text())
        settings["target_modules"] = ["q_proj", "k_proj"]
        (adapters / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError, match=r"2 are missing .* and 2 are unknown"):
            risk_of(adapters)
