"""Names of checkpoints, their steps and their order."""

from pathlib import Path

import pytest
import torch
from checkpoint_files import refusal, save

from landscape.checkpoint import read_checkpoint
from landscape.errors import UsageError
from landscape.folders import expand_checkpoints, training_step
from landscape.text import escape_name, natural_key


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_000100.safetensors", 100),
        ("runs/step=100.ckpt", 100),
        ("checkpoint-100", 100),
        ("ckpt_100.pt", 100),
        ("iter100.pt", 100),
        ("iteration_100.pt", 100),
        ("epoch=3-step=100.ckpt", 100),
        ("step=100-epoch=3.ckpt", 100),
        ("global_step100.pt", 100),
        ("STEP_7.pt", 7),
        ("000250.pt", 250),
        ("0.pt", 0),
        ("checkpoint-100/model.safetensors", 100),
        ("checkpoint-100/step_7.pt", 7),
        ("step_100_ema.pt", 100),
        ("mnist-v2", None),
        ("mnist-v2.pt", None),
        ("epoch=3.ckpt", None),
        ("footstep3.pt", None),
        ("step_100k.pt", None),
        ("step_.pt", None),
        ("2024/model.pt", None),
        ("runs_step_3_of_4/model.pt", None),
        ("9" * 30 + ".pt", None),
        ("", None),
    ],
)
def test_training_step_from_the_name(name, step):
    assert training_step(name, {}) == step
    assert training_step(Path(name), {}) == step


def test_training_step_from_the_metadata():
    assert training_step("step_3.pt", {"global_step": "12"}) == 12
    assert training_step("step_3.pt", {"step": "5", "global_step": "12"}) == 5
    assert training_step("step_3.pt", {"step": "5.0"}) == 5
    assert training_step("step_3.pt", {"step": "many", "epoch": "9"}) == 3
    assert training_step("x.pt", {"epoch": "9"}) is None


def test_natural_order():
    names = ["step_10", "step_9", "step_100", "a", "step_09", "10", "9", "step_9.pt"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["9", "10", "a", "step_09", "step_9", "step_9.pt", "step_10", "step_100"]
    assert natural_key("1" * 5000) > natural_key("2" * 4999)


def test_expand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s_10.pt", "s_9.pt", "s_[1].pt", "s_1.pt", "other"):
        Path(name).touch()
    assert expand_checkpoints(["s_?.pt"]) == [Path("s_1.pt"), Path("s_9.pt")]
    # A literal name wins over the pattern that it would be.
    assert expand_checkpoints(["s_[1].pt"]) == [Path("s_[1].pt")]
    assert expand_checkpoints(["s_[19].pt"]) == [Path("s_1.pt"), Path("s_9.pt")]
    found = expand_checkpoints(["s_10.pt", "s_*", str(tmp_path / "s_9.pt"), "./other", "other"])
    names = ["s_10.pt", "s_1.pt", "s_9.pt", "s_[1].pt", "other"]
    assert [path.name for path in found] == names
    for bad in (["none.pt"], ["none*"], ["other", "gone"], [""], ["a\0b*"], []):
        with pytest.raises(UsageError):
            expand_checkpoints(bad)


def test_expand_recursively(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.pt").touch()
    assert expand_checkpoints([str(tmp_path / "**" / "*.pt")]) == [tmp_path / "a" / "b" / "x.pt"]


def test_escape_name():
    assert escape_name("layer.0.weight ü [b]") == "layer.0.weight ü [b]"
    assert escape_name("a\x1b[31m\n\x00\x7f") == "a\\x1b[31m\\x0a\\x00\\x7f"
    assert escape_name("\u202e\u2028\ud800\U000e0001") == "\\u202e\\u2028\\ud800\\U000e0001"


# Folders ---------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """What a training run left, with other files among its checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    state = {"w": torch.ones(2)}
    for name in (
        "step_000100.pt",
        "step_9.pt",
        "epoch=3-step=400.ckpt",
        "epoch=10.ckpt",
        "last.pt",
    ):
        save(folder / name, state)
    save(folder / "step_20", state, "safetensors")  # No ending: told by its content.
    (folder / "step_30.safetensors").write_bytes(b"damaged")
    for name in ("step_50.txt", "step_60.json", ".step_70.pt", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_text("{}")
    (folder / "step_80").mkdir()
    return folder


def test_a_folder_is_a_series(run_folder, monkeypatch):
    expected = ["epoch=3-step=400.ckpt", "epoch=10.ckpt", "step_9.pt", "step_20"]
    expected += ["step_30.safetensors", "step_000100.pt"]
    assert [path.name for path in expand_checkpoints([str(run_folder)])] == expected
    monkeypatch.chdir(run_folder.parent)
    mixed = expand_checkpoints(["run/step_9.pt", "run"])
    assert [path.name for path in mixed[:3]] == ["step_9.pt", *expected[:2]]
    assert len(mixed) == len(expected)
    steps = [read_checkpoint(path).step for path in mixed if "30" not in path.name]
    assert steps == [9, 400, None, 20, 100]
    assert "folder of 6 checkpoints" in refusal(run_folder)


def test_a_folder_that_is_a_checkpoint_and_a_series_must_be_said_which(run_folder):
    save(run_folder / "model.safetensors", {"w": torch.ones(2)}, "safetensors")
    with pytest.raises(UsageError, match=r"quoted glob such as .*epoch=\*-step=\*\.ckpt"):
        expand_checkpoints([str(run_folder)])
    assert read_checkpoint(run_folder).format == "huggingface-safetensors"


def test_a_folder_without_steps_is_left_to_the_reader(tmp_path):
    save(tmp_path / "best.pt", {"w": torch.ones(2)})
    assert expand_checkpoints([str(tmp_path)]) == [tmp_path]
    assert "Name a file in it: best.pt" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["blobs", "elsewhere"])
def test_links_of_the_hugging_face_cache(tmp_path, place):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    other = tmp_path / "models--a--b" / place
    other.mkdir()
    save(other / "f00d", {"w": torch.ones(2)}, "safetensors")
    (snapshot / "model.safetensors").symlink_to(f"../../{place}/f00d")
    if place == "blobs":
        assert list(read_checkpoint(snapshot).tensors) == ["w"]
    else:
        assert "leads out of it" in refusal(snapshot)


def test_weights_have_precedence_as_the_library_has_it(tmp_path):
    save(tmp_path / "pytorch_model.bin", {"w": torch.zeros(2)})
    save(tmp_path / "model.safetensors", {"w": torch.ones(2)}, "safetensors")
    assert float(read_checkpoint(tmp_path).tensors["w"][0]) == 1
