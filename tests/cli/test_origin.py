"""What wrote a checkpoint, and the command that goes on with it."""

import json
import shlex

import pytest
import torch
from checkpoint_files import in_memory, save

from landscape.checkpoint import read_checkpoint
from landscape.origin import recognise
from landscape.tasks import ADAPTERS, BUILTIN_TASKS

CONFIGS = {
    "GPT2LMHeadModel": ({"architectures": ["GPT2LMHeadModel"]}, "hf-causal-lm"),
    "MistralForCausalLM": ({"architectures": ["MistralForCausalLM"]}, "hf-causal-lm"),
    "BertForSequence": ({"architectures": ["BertForSequenceClassification"]}, "hf-classifier"),
    "T5": ({"architectures": ["T5ForConditionalGeneration"]}, None),
    "without": ({"model_type": "gpt2"}, None),
    "odd": ({"architectures": {"a": [1]}, "architecture": 3}, None),
    "timm": ({"architecture": "resnet18", "pretrained_cfg": {"a": 1}}, "timm"),
}
NAMES = {
    "timm": ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"],
    "torchvision": ["conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_are_told_by_their_configuration(tmp_path, name):
    config, task = CONFIGS[name]
    folder = tmp_path / "my model"
    folder.mkdir()
    save(folder / "model.safetensors", {"w": torch.ones(2)}, "safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    origin = recognise(read_checkpoint(folder))
    assert origin.task == task
    words = shlex.split(origin.command)
    assert str(folder) in words
    if task is None:
        assert words[:2] == ["landscape", "init-task"]
    else:
        assert task in ADAPTERS
        assert words[:2] == ["landscape", "check"]
        assert words[words.index("--task") + 1] == task
    assert ("timm, resnet18" if name == "timm" else "transformers") in origin.library


def test_the_base_of_adapters_is_asked_for_where_it_is_not_known(tmp_path):
    save(tmp_path / "adapter_model.safetensors", {"w": torch.ones(2)}, "safetensors")
    for base, asked in ((tmp_path / "away", True), (tmp_path, False)):
        config = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        words = shlex.split(recognise(read_checkpoint(tmp_path)).command)
        assert ("base=FOLDER" in words) == asked


@pytest.mark.parametrize("library", NAMES)
def test_image_models_are_told_by_their_names(library):
    origin = recognise(in_memory({name: torch.ones(1) for name in NAMES[library]}))
    assert origin.task == library
    assert f"as in {library}" in origin.library
    assert "model=NAME" in origin.command


def test_own_training_runs(cli, tmp_path):
    assert cli("train", "regression-mlp", "-o", tmp_path, "--steps", "2", "-q").code == 0
    checkpoint = tmp_path / "step_000002.safetensors"
    origin = recognise(read_checkpoint(checkpoint))
    assert (origin.library, origin.task) == ("landscape train", "regression-mlp")
    assert origin.task in BUILTIN_TASKS
    assert cli(*shlex.split(origin.command)[1:]).code == 0


def test_metadata_that_only_claim_to_be_of_a_training_run():
    claimed = {"task": "digits-mlp\x1b", "settings": "", "recipe": ""}
    assert recognise(in_memory({"w": torch.ones(1)}, metadata=claimed)).task is None


def test_what_nothing_tells_gets_a_task_file_and_the_key_that_was_chosen(tmp_path):
    state = {"w": torch.ones(2)}
    path = save(tmp_path / "a b.pt", {"model": state, "ema": state})
    checkpoint = read_checkpoint(path)
    assert checkpoint.others == ("ema",)
    origin = recognise(checkpoint)
    assert origin.library == "torch.save"
    words = shlex.split(origin.command)
    assert words == [
        *("landscape", "init-task", str(path), "--weights-key", "model", "-o", "task.py")
    ]


def test_a_shard_leads_to_its_folder(tmp_path, monkeypatch):
    name = "model-00001-of-00004.safetensors"
    save(tmp_path / name, {"w": torch.ones(2)}, "safetensors")
    origin = recognise(read_checkpoint(tmp_path / name))
    assert origin.library == "one shard of a model (1 of 4): name its folder"
    assert shlex.split(origin.command) == ["landscape", "inspect", str(tmp_path)]
    monkeypatch.chdir(tmp_path)
    assert recognise(read_checkpoint(name)).command == "landscape inspect ."
    save("model-00001-of-00001.safetensors", {"w": torch.ones(2)}, "safetensors")
    whole = recognise(read_checkpoint("model-00001-of-00001.safetensors"))
    assert "init-task" in whole.command


@pytest.mark.parametrize(
    ("noted", "names", "task", "model"),
    [
        ({"arch": "vit_tiny_patch16_224"}, NAMES["timm"], "timm", "vit_tiny_patch16_224"),
        ({"arch": "visiontransformer"}, NAMES["timm"], "timm", "NAME"),
        ({"arch": "a; rm -r 1"}, NAMES["timm"], "timm", "NAME"),
        ({"arch": "resnet18"}, NAMES["torchvision"], "torchvision", "resnet18"),
        ({"arch": "convnext_tiny", "version": "2"}, ["stem.0.weight"], "timm", "convnext_tiny"),
    ],
)
def test_a_training_script_s_note_names_the_image_model(noted, names, task, model):
    origin = recognise(in_memory({name: torch.ones(1) for name in names}, metadata=noted))
    assert origin.task == task
    assert f"model={model}" in shlex.split(origin.command)


def test_the_note_of_another_training_script_names_no_library():
    noted = {"arch": "my_model_2"}
    assert recognise(in_memory({"w": torch.ones(1)}, metadata=noted)).task is None


def test_scores_that_callbacks_keep_are_no_weights(tmp_path):
    callbacks = {
        "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)},
        "Averaging": {"average": torch.ones(2)},
    }
    path = save(tmp_path / "pl.ckpt", {"state_dict": {"w": torch.ones(2)}, "callbacks": callbacks})
    assert read_checkpoint(path).others == ("callbacks.Averaging",)
