"""Checkpoints that other libraries wrote: they measure as their plain state dicts do."""

import json
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import assert_same, make_model, refusal, save
from other_libraries import ARCHITECTURES, answer_to, hugging_face_model, library
from torch import nn

import landscape
from landscape.checkpoint import load_into, read_checkpoint
from landscape.folders import expand_checkpoints
from landscape.origin import recognise
from landscape_cli.app import run

# Of transformers and its dependencies, when imported late.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def hugging_face_task(architecture):
    """Logits of the last token, or of the image, for random inputs; weights of another seed."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (6, 5), generator=generator)
    inputs = torch.randn(6, 1, 8, 8, generator=generator) if "ViT" in architecture else tokens

    def forward(model, batch):
        logits = model(batch[0]).logits
        return logits[:, -1] if logits.ndim == 3 else logits

    return landscape.Task(
        model=hugging_face_model(architecture, seed=5),
        data=(inputs, torch.arange(6) % 2),
        criterion="cross_entropy",
        forward=forward,
    )


def measured(task, checkpoint):
    """Top eigenvalues and the quadratic log-volume."""
    settings = landscape.Settings(dtype="float64")
    options = landscape.HessianOptions(top=3, density=False, method="lanczos")
    spectrum = landscape.hessian_spectrum(task, checkpoint, settings=settings, options=options)
    volume = landscape.log_volume(
        task,
        checkpoint,
        options=landscape.VolumeOptions(methods=("quadratic",)),
    )
    eigenvalues = spectrum.spectra["hessian"].eigenvalues[:3]
    return np.append(eigenvalues, volume.estimates["quadratic"].log_volume)


def assert_measures_alike(task, checkpoint, state, tmp_path):
    plain = save(tmp_path / "plain.safetensors", state, "safetensors")
    np.testing.assert_allclose(measured(task, checkpoint), measured(task, plain), rtol=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hugging_face_folders_measure_as_their_state_dict(tmp_path, architecture):
    model = hugging_face_model(architecture)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    # Without names that are tied to others, as the library saves them.
    whole, shards = (read_checkpoint(tmp_path / name) for name in ("whole", "shards"))
    assert whole.format == shards.format == "huggingface-safetensors"
    assert_same(shards.tensors, whole.tensors)
    # Of some architectures the library's files have older names than its modules.
    own = model.state_dict()
    renamed = {
        next(n for n, value in own.items() if torch.equal(value, tensor)): name
        for name, tensor in whole.tensors.items()
        if name not in own
    }
    assert bool(renamed) == architecture.startswith(("ViT", "GPTNeoX"))
    state = {renamed.get(name, name): tensor for name, tensor in own.items()}
    assert_same({**state, **whole.tensors}, state)
    origin = recognise(shards)
    assert architecture in origin.library
    adapters = {
        "LM": "hf-causal-lm",
        "SequenceClassification": "hf-classifier",
        "ImageClassification": "hf-image-classifier",
    }
    assert [origin.task] == [adapters[end] for end in adapters if end in architecture]
    task = hugging_face_task(architecture)
    answer_to(task.model, renamed)
    assert_measures_alike(task, tmp_path / "shards", state, tmp_path)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPTNeoXForCausalLM"])
def test_the_command_that_is_suggested_measures(tmp_path, architecture, capsys):
    hugging_face_model(architecture).save_pretrained(tmp_path / "model", max_shard_size="1KB")
    np.save(tmp_path / "tokens.npy", np.arange(40).reshape(4, 10) % 11)
    command = recognise(read_checkpoint(tmp_path / "model")).command
    assert command.startswith("landscape check ")
    words = shlex.split(command.replace("FILE.txt", str(tmp_path / "tokens.npy")))
    assert run(words[1:]) == 0, capsys.readouterr().err


def test_hugging_face_torch_files(tmp_path):
    model = hugging_face_model("GPT2LMHeadModel")
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    save(whole / "pytorch_model.bin", state)
    names = list(state)
    files = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, part in files.items():
        save(shards / file, {name: state[name] for name in part})
    owner = {name: file for file, part in files.items() for name in part}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owner}))
    for folder in (whole, shards):
        checkpoint = read_checkpoint(folder)
        assert checkpoint.format == "huggingface-torch"
        assert_same(checkpoint.tensors, state)
    load_into(model, read_checkpoint(shards))


def test_half_precision_is_cast_up(tmp_path):
    model = hugging_face_model("LlamaForCausalLM").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    checkpoint = read_checkpoint(tmp_path / "half")
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.bfloat16}
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    task = hugging_face_task("LlamaForCausalLM")
    assert_measures_alike(task, tmp_path / "half", state, tmp_path)


@pytest.mark.parametrize("kind", ["CAUSAL_LM", "SEQ_CLS"])
def test_adapters_of_peft(tmp_path, kind):
    peft = library("peft")
    model = hugging_face_model("LlamaForCausalLM")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(path.read_text().replace("CAUSAL_LM", kind))
    checkpoint = read_checkpoint(tmp_path / "lora")
    assert len(checkpoint.tensors) == 4
    assert recognise(checkpoint).task == {"CAUSAL_LM": "hf-causal-lm"}.get(kind, "hf-classifier")
    assert "peft" in recognise(checkpoint).library
    # The library leaves the adapter's name out of the file.
    expected = {
        name.replace(".default", ""): value
        for name, value in adapted.state_dict().items()
        if "lora" in name
    }
    assert_same(checkpoint.tensors, expected)


# A folder of training checkpoints ----------------------------------------------------------------


def test_a_folder_of_trainer_checkpoints_is_a_series(tmp_path):
    for step in (1000, 200, 30):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        hugging_face_model("GPT2LMHeadModel", seed=step).save_pretrained(folder)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 0.5}))
        save(folder / "optimizer.pt", {"state": {}})
    (tmp_path / "run" / "logs-100").mkdir()
    found = expand_checkpoints([str(tmp_path / "run")])
    assert [path.name for path in found] == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    checkpoints = [read_checkpoint(path) for path in found]
    assert [checkpoint.step for checkpoint in checkpoints] == [30, 200, 1000]
    assert checkpoints[0].metadata == {"global_step": "30", "epoch": "0.5"}
    assert len({checkpoint.sha256 for checkpoint in checkpoints}) == 3


# Lightning ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory):
    """Checkpoints of Lightning's own trainer, and the weights at the end."""
    folder = tmp_path_factory.mktemp("lightning")
    module = library("lightning")

    class Net(module.LightningModule):
        def __init__(self, width=4, start=Path("somewhere")):
            super().__init__()
            self.save_hyperparameters(ignore=["start"])
            self.model = make_model()
            self.model[1].reset_running_stats()  # Random ones hold negative variances.

        def training_step(self, batch, _index):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 3, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, torch.arange(24) % 2)
    net = Net()
    callbacks = library("lightning.pytorch.callbacks")
    saver = callbacks.ModelCheckpoint(folder / "run", every_n_train_steps=4, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Advice on workers, on logging and on clusters.
        trainer = module.Trainer(
            max_epochs=2,
            accelerator="cpu",
            callbacks=[saver],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=4))
    return folder / "run", {k: v.detach().clone() for k, v in net.model.state_dict().items()}


def test_lightning_checkpoints(tmp_path, lightning_run):
    folder, state = lightning_run
    found = expand_checkpoints([str(folder)])
    assert [path.name for path in found] == [
        "epoch=0-step=4.ckpt",
        "epoch=1-step=8.ckpt",
        "epoch=1-step=12.ckpt",
    ]
    checkpoints = [read_checkpoint(path) for path in found]
    assert [checkpoint.step for checkpoint in checkpoints] == [4, 8, 12]
    last = checkpoints[-1]
    assert last.weights_key == "state_dict"
    assert_same(last.tensors, {f"model.{name}": tensor for name, tensor in state.items()})
    assert recognise(last).library.startswith("Lightning 2.")
    inputs = torch.linspace(-1, 1, 24).sin().reshape(8, 3)
    task = landscape.Task(
        model=make_model(), data=(inputs, torch.arange(8) % 2), criterion="cross_entropy"
    )
    assert_measures_alike(task, found[-1], state, tmp_path)


# torch.distributed.checkpoint --------------------------------------------------------------------


@pytest.fixture(scope="module")
def distributed_run(tmp_path_factory):
    """What two processes saved, by what was asked for."""
    folder = tmp_path_factory.mktemp("distributed")
    program = Path(__file__).parent / "oracles" / "two_ranks.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), folder / "meeting", folder], stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors.decode()
    return folder


@pytest.fixture
def distributed_folder(distributed_run, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(distributed_run / "wrapped", tmp_path / "step_000040")


def test_distributed_checkpoints(tmp_path, distributed_run):
    from two_ranks import model

    state = model().state_dict()
    for what, key, step in (("wrapped", "model", 40), ("bare", None, None)):
        checkpoint = read_checkpoint(distributed_run / what)
        assert checkpoint.format == "distributed"
        assert (checkpoint.weights_key, checkpoint.step) == (key, step)
        assert_same(checkpoint.tensors, state)
    assert read_checkpoint(distributed_run / "wrapped").metadata == {"step": "40", "epoch": "2"}
    named = read_checkpoint(distributed_run / "wrapped", weights_key="optim.state")
    assert_same(named.tensors, {name: torch.ones(t.shape) for name, t in state.items()})
    task = landscape.Task(
        model=model(),
        data=(torch.linspace(-1, 1, 32).sin().reshape(8, 4), torch.arange(8) % 3),
        criterion="cross_entropy",
    )
    assert_measures_alike(task, distributed_run / "wrapped", state, tmp_path)


def test_distributed_and_converted_agree(tmp_path, distributed_run):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(distributed_run / "wrapped", tmp_path / "one.pt")
    one = read_checkpoint(tmp_path / "one.pt")
    assert_same(read_checkpoint(distributed_run / "wrapped").tensors, one.tensors)


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda f: (f / "__0_0.distcp").unlink(), "lacks the file __0_0.distcp"),
        (lambda f: (f / "__1_0.distcp").write_bytes(b"x" * 10), "and .* are asked for"),
        (lambda f: (f / "__1_0.distcp").write_bytes(bytes(20000)), "no known format"),
        (lambda f: (f / ".metadata").write_bytes(b""), "a damaged pickle"),
        (lambda f: (f / ".metadata").write_bytes(b"\x80\x04}."), "a dict instead of metadata"),
    ],
)
def test_damaged_distributed_checkpoints(distributed_folder, damage, seen):
    damage(distributed_folder)
    with pytest.raises(landscape.LandscapeError, match=seen):
        read_checkpoint(distributed_folder)
    assert "expected" in refusal(distributed_folder)
