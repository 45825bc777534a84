"""The application as a whole: version, help, entry points, training and the demonstration."""

from __future__ import annotations

import json
import re

import pytest

import landscape
from landscape_cli.app import app

COMMANDS = sorted(command.name for command in app.registered_commands)


def test_version(cli):
    done = cli("--version")
    assert (done.code, done.out, done.err) == (0, f"landscape {landscape.__version__}\n", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(cli, flag):
    done = cli(flag)
    assert done.code == 0
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", done.out)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_completion(cli, monkeypatch, shell):
    # Else the shell is looked for among the processes above this one.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = cli("--show-completion", shell)
    assert (done.code, done.err) == (0, "")
    assert "_LANDSCAPE_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("landscape ins", ["inspect"]),
        ("landscape check --ta", ["--task"]),
        ("landscape check a.pt --task hf-cl", ["hf-classifier"]),
        ("landscape xyz", []),
    ],
)
def test_words_are_completed(cli, monkeypatch, words, found):
    monkeypatch.setenv("_LANDSCAPE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    done = cli()
    assert (done.code, done.out.split(), done.err) == (0, found, "")


def test_no_arguments_is_help(cli):
    done = cli()
    assert done.code == 2
    assert "Usage" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_and_options_with_help(cli, name):
    done = cli(name, "--help")
    assert done.code == 0
    examples = done.out[done.out.index("Examples") :]
    assert f"$ landscape {name} " in examples
    # Every command takes these.
    for option in ("--json", "--quiet", "--debug"):
        assert option in done.out


@pytest.mark.parametrize("name", ["check", "hessian"])
def test_measuring_commands_share_their_options(cli, name):
    out = cli(name, "--help").out
    shared = (
        "task set loss params examples batch-size device dtype seed out overwrite config strict"
    )
    for option in [*shared.split(), "weights-key", "unsafe-pickle"]:
        assert f"--{option} " in out
    assert "--flush-seconds" not in out


def test_examples_in_the_help_parse(cli):
    """Every option that an example uses exists."""
    for name in COMMANDS:
        out = cli(name, "--help").out
        usage, examples = out.split("Examples")
        lines = [line for line in examples.split("$ landscape ") if line.split()[:1] == [name]]
        assert lines
        for option in re.findall(r" (--[a-z-]+)", " ".join(lines)):
            assert option in usage


def test_train_writes_a_series(cli, tmp_path):
    arguments = ("train", "regression-mlp", "--steps", "3", "--checkpoints", "3", "-o", tmp_path)
    done = cli(*arguments, "--json")
    assert done.code == 0
    steps = [result["step"] for result in done.document["results"]]
    assert steps[0] == 0
    assert steps[-1] == 3
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        f"step_{step:06d}.safetensors" for step in steps
    ]
    plain = cli(*arguments)
    assert "train loss" in plain.out
    assert "step 3: training loss" in plain.err
    assert cli(*arguments, "--quiet").err == ""


def test_interrupted_training_exits_with_130(cli, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("landscape.training.train", interrupt)
    done = cli("train", "regression-mlp", "-o", tmp_path, "--json")
    assert done.code == 130
    assert done.document["errors"][0]["exit_code"] == 130
    assert len(done.errors) == 1


def test_demo(cli, tmp_path):
    done = cli("demo", tmp_path / "demo")
    assert done.code == 0, done.err
    words = ("What to try next", "landscape hessian", "negative mass", "figure", "log V", "steep")
    for word in words:
        assert word in done.out
    assert "\x1b" not in done.out
    for figure in ("spectrum.png", "volume.png"):
        assert (tmp_path / "demo" / figure).stat().st_size > 10_000
    assert len(list((tmp_path / "demo" / "checkpoints").iterdir())) == 5
    for command in ("hessian", "volume"):
        assert len(list((tmp_path / "demo" / "results").glob(f"*.{command}.*.h5"))) == 5
    assert not list(tmp_path.rglob("*.partial"))
    again = cli("demo", tmp_path / "demo", "--json", "--quiet")
    assert again.code == 0
    # Warnings are never quiet: that rays give no more than a lower bound, what annealing costs.
    words = ("lower bound", "anneal was left out")
    assert all(any(word in line for word in words) for line in again.err.splitlines())
    assert len(json.loads(again.out)["results"]) == 10
