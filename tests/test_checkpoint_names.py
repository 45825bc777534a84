"""Names of checkpoints, their steps and their order."""

from pathlib import Path

import pytest

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
