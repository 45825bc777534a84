"""``landscape init-task``: files that import, fit their checkpoint, and pass the linter."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscape.checkpoint import load_into, read_checkpoint

CONVOLUTIONS = nn.Sequential(
    *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
    *(nn.Conv2d(4, 8, (5, 3), padding=(2, 1)), nn.ReLU(), nn.MaxPool2d(1)),
    *(nn.Flatten(), nn.Linear(8 * 16, 12), nn.Tanh(), nn.Linear(12, 10, bias=False)),
)
COMPLETE = {
    "mlp": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
    "one-output": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 1)),
    "norms": nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.BatchNorm1d(8),
                           nn.Linear(8, 3)),
    "flattened": nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
    "convolutions": CONVOLUTIONS,
    "under-a-name": nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 8), nn.ReLU(),
                                                        nn.Linear(8, 3))}),
    "lightning": nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))})}),
    "named": nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 3)}),
    "named-in-another-order": nn.ModuleDict({"a_head": nn.Linear(8, 3), "b_body": nn.Linear(4, 8)}),
    "named-convolutions": nn.ModuleDict({"conv1": nn.Conv1d(2, 4, 3), "conv2": nn.Conv1d(4, 4, 3),
                                         "fc": nn.Linear(40, 3)}),
}  # fmt: skip
TO_FINISH = {
    "nested": nn.ModuleDict(
        {
            "encoder": nn.ModuleList(
                [nn.TransformerEncoderLayer(8, 2, 16).linear1, nn.LayerNorm(8)]
            ),
            "odd name": nn.Embedding(11, 8),
            "tokens_embedding": nn.Embedding(11, 8),
            "0": nn.Conv3d(1, 2, 3),
        }
    ),
    "parameters-by-themselves": nn.ParameterDict({"scale": nn.Parameter(torch.ones(3))}),
    "recurrent": nn.LSTM(3, 4),
    "attention": nn.TransformerEncoderLayer(8, 2, 16),
    "many": nn.ModuleList([nn.Linear(3, 4) for _ in range(150)]),
}


def written(cli, tmp_path: Path, model: nn.Module) -> tuple[Path, Path, str]:
    checkpoint, task = tmp_path / "c.safetensors", tmp_path / "made" / "task.py"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, checkpoint)
    done = cli("init-task", checkpoint, "-o", task, "--json")
    assert done.code == 0, done.err
    return checkpoint, task, done.values["guess"]


def imported(path: Path):
    spec = importlib.util.spec_from_file_location("made_task", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMPLETE)
def test_layers_that_follow_each_other_are_measured_as_they_stand(cli, tmp_path, name):
    checkpoint, task, guess = written(cli, tmp_path, COMPLETE[name])
    assert "follow" in guess or "sequence" in guess
    options = ["--top", "1", "--params", "*bias", "--no-density", "-o", tmp_path / "results"]
    done = cli("hessian", checkpoint, "--task", task, *options)
    assert done.code == 0, done.err
    assert "random numbers" in done.err


@pytest.mark.parametrize("name", ["nested"])
def test_other_modules_have_the_names_of_the_checkpoint(cli, tmp_path, name):
    checkpoint, task, _ = written(cli, tmp_path, TO_FINISH[name])
    model = imported(task).build().model
    load_into(model, read_checkpoint(checkpoint))
    assert model.state_dict().keys() == TO_FINISH[name].state_dict().keys()
    done = cli("hessian", checkpoint, "--task", task, "-o", tmp_path / "results")
    assert done.code == 3
    assert "TODO: the computation" in done.err


def test_batch_norms_of_named_modules_have_the_dimension_of_the_convolutions(cli, tmp_path):
    blocks = [nn.ModuleDict({"bn1": nn.BatchNorm2d(4), "conv1": nn.Conv2d(3, 4, 3)})]
    model = nn.ModuleDict({"bn1": nn.BatchNorm2d(4), "fc": nn.Linear(4, 2),
                           "layer1": nn.ModuleList(blocks), "norm": nn.BatchNorm1d(5)})  # fmt: skip
    _, task, _ = written(cli, tmp_path, model)
    text = task.read_text()
    assert text.count("nn.BatchNorm2d(4)") == 2
    assert "nn.BatchNorm" in text.partition("self.norm = ")[2]


@pytest.mark.parametrize("name", [*COMPLETE, *TO_FINISH])
def test_the_file_is_clean(cli, tmp_path, name):
    _, task, _ = written(cli, tmp_path, {**COMPLETE, **TO_FINISH}[name])
    assert imported(task).build().criterion in ("cross_entropy", "mse")
    ruff = [sys.executable, "-m", "ruff"]
    rules = [
        "check",
        "--isolated",
        "--line-length=100",
        "--select=E,F,W,I,B,UP,D1,N,SIM",
        "--ignore=D107",
    ]
    style = ["format", "--isolated", "--line-length=100", "--diff"]
    for arguments in (rules, style):
        done = subprocess.run(
            [*ruff, *arguments, task], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        'a"""\nimport os\nos.mkdir("marker")\n"""',
        'x"); __import__("os").mkdir("marker"); ("',
        "f{__import__('os').mkdir('marker')}",
        "self.x = __import__('os').mkdir('marker') #",
        "class",
        "forward",
        "__class__",
        "training",
        "data\\",
        "\u202eevil\x1b[2J",
        "einﬁ",
    ],
)
@pytest.mark.parametrize("where", ["{}", "a.{}", "{}.a.b", "a.{}.0"])
def test_names_cannot_add_code(cli, tmp_path, monkeypatch, name, where):
    monkeypatch.chdir(tmp_path)
    state = {f"{where.format(name)}.weight": torch.ones(2, 3), "other.weight": torch.ones(4, 7)}
    save_file(state, tmp_path / "c.safetensors")
    assert cli("init-task", "c.safetensors", "-o", "task.py").code == 0
    module = imported(Path("task.py"))
    assert not Path("marker").exists()
    text = Path("task.py").read_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert hasattr(module, "build")


def test_an_existing_file_stays(cli, tiny):
    out = tiny.folder / "mine.py"
    out.write_text("mine")
    done = cli("init-task", tiny.checkpoint, "-o", out)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert out.read_text() == "mine"
    assert cli("init-task", tiny.checkpoint, "-o", out, "--overwrite").code == 0
    assert "nn.Linear(3, 4)" in out.read_text()


def test_an_adapter_that_needs_no_file_is_named(cli, tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    done = cli("init-task", folder, "-o", tmp_path / "task.py")
    assert done.code == 0, done.err
    assert "hf-causal-lm needs no task file" in done.err
    assert "--task hf-causal-lm" in " ".join(done.err.split())
    (folder / "config.json").unlink()
    done = cli("init-task", folder, "-o", tmp_path / "task.py", "--overwrite")
    assert "needs no task file" not in done.err


@pytest.mark.parametrize("name", ["convolutions", "named-convolutions", "nested"])
def test_what_is_guessed_of_convolutions_is_marked(cli, tmp_path, name):
    _, task, _ = written(cli, tmp_path, {**COMPLETE, **TO_FINISH}[name])
    text = task.read_text()
    assert "TODO: strides and padding" in text
    assert ("TODO: the size of an input" in text) == (name != "nested")


def test_nothing_is_said_of_convolutions_where_there_are_none(cli, tmp_path):
    _, task, _ = written(cli, tmp_path, COMPLETE["mlp"])
    assert "padding" not in task.read_text()
    assert "size of an input" not in task.read_text()


@pytest.mark.parametrize("folder", [".", "a b", "x" * 90])
def test_the_file_names_the_command_to_go_on_with(cli, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(exist_ok=True)
    state = {k: v.contiguous() for k, v in COMPLETE["mlp"].state_dict().items()}
    path = Path(folder) / "my.safetensors"
    save_file(state, path)
    assert cli("init-task", path, "-o", "mine.py").code == 0
    [line] = [t for t in Path("mine.py").read_text().splitlines() if t.startswith("Then: ")]
    words = shlex.split(line)[1:]
    seen = str(path) if len(folder) < 9 else path.name
    assert words == ["landscape", "check", seen, "--task", "mine.py"]
