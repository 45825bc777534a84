"""``landscape inspect``: the contents of a checkpoint, printed safely and without running code."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

CONTROL = "\x1b]0;title\x07\x1b[2J"
MARKUP = "[red]red[/red][/nothing]"


def test_table(cli, tiny):
    done = cli("inspect", tiny.checkpoint)
    assert (done.code, done.err) == (0, "")
    for word in ("0.weight", "4x3", "float32", "26 ", "safetensors", "step", "7"):
        assert word in done.out


def test_the_format_that_a_file_notes_is_not_its_own(cli, tiny, draw):
    path = tiny.folder / "noted.safetensors"
    save_file(draw(), path, metadata={"format": "pt"})
    lines = [line.split() for line in cli("inspect", path).out.splitlines()]
    assert ["format", "safetensors"] in lines
    assert ["metadata", "format", "pt"] in lines


def test_json(cli, tiny, draw):
    values = cli("inspect", tiny.checkpoint, "--json").values
    assert values["n_parameters"] == 26
    assert [t["name"] for t in values["tensors"]] == ["0.bias", "0.weight", "2.bias", "2.weight"]
    total = torch.cat([t.reshape(-1) for t in draw().values()])
    assert values["norm"] == pytest.approx(float(total.double().norm()))


def test_not_finite(cli, tiny, draw):
    state = draw()
    state["0.bias"][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    path = tiny.write_checkpoint("bad.safetensors", state)
    done = cli("inspect", path)
    assert done.code == 0
    assert "warning: 1 tensor has NaN or infinite elements: 0.bias" in done.err
    values = cli("inspect", path, "--json").values
    assert (values["nan"], values["inf"], values["norm"]) == (1, 2, None)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_names_and_metadata_are_escaped(cli, tiny, draw, kind):
    name, key = f"w{MARKUP}{CONTROL}", f"k{MARKUP}{CONTROL}"
    state = {**draw(), name: torch.ones(2)}
    if kind == "torch":
        path = tiny.folder / "named.pt"
        torch.save({"state_dict": state, key: f"v{MARKUP}{CONTROL}"}, path)
    else:
        path = tiny.write_checkpoint("named.safetensors", state, **{key: f"v{MARKUP}{CONTROL}"})
    done = cli("inspect", path)
    assert done.code == 0
    assert not {"\x1b", "\x07"} & set(done.out + done.err)
    flat = done.out.replace("\n", "")
    for start in "wkv":
        assert f"{start}[red]red[/red][/nothing]\\x1b]0;title\\x07\\x1b[2J" in flat
    assert cli("inspect", path, "--json").values["tensors"][-1]["name"] == name


def test_a_path_with_markup(cli, tiny):
    path = tiny.folder / "[red]a[blue].safetensors"
    tiny.checkpoint.rename(path)
    done = cli("inspect", path)
    assert done.code == 0
    assert "[red]a[blue]" in done.out


def test_runs_no_task_code(cli, tiny, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    tiny.task.write_text("raise SystemExit('the task ran')")
    assert cli("inspect", tiny.checkpoint).code == 0


def test_weights_key(cli, tiny, draw):
    path = tiny.folder / "nested.pt"
    torch.save({"ema": draw(), "model": draw(seed=1)}, path)
    norms = [
        cli("inspect", path, "--json", *more).values["norm"]
        for more in ([], ["--weights-key", "ema"])
    ]
    assert norms[0] != norms[1]
