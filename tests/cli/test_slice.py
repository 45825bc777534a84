"""``landscape slice`` from the command line: numbers, files, figures, wrong use."""

from __future__ import annotations

import functools

import h5py
import numpy as np
import pytest
import torch
import xarray

import landscape
import landscape.slices.eigenvectors as eigenvectors_module
import landscape.slices.surface as surface_module
from landscape_cli.app import run


@pytest.fixture
def slice_(cli, tiny, draw):
    """``landscape slice`` of the network of 26 parameters, with --json."""
    tiny.write_checkpoint("step_9.safetensors", draw(9))
    tiny.write_checkpoint("step_11.safetensors", draw(11))

    def command(*arguments, json=True, checkpoint="step_7.safetensors", task=None):
        return cli(
            *("slice", tiny.folder / checkpoint, "--task", task or tiny.task),
            *("-o", tiny.folder / "out", *(("--json",) if json else ()), *arguments),
        )

    return command


@pytest.fixture
def count(monkeypatch):
    """Points that were evaluated."""
    calls = []
    real = surface_module.loss_here
    monkeypatch.setattr(surface_module, "loss_here", lambda r: (calls.append(1), real(r))[1])
    return calls


def files(tiny):
    return sorted(p for p in (tiny.folder / "out").iterdir() if p.suffix == ".h5")


def test_a_line(slice_, tiny, cli):
    done = slice_("--points", "5", "--plot", tiny.folder / "f.png")
    assert done.code == 0, done.err
    values = done.values
    assert [d["name"] for d in values["directions"]] == ["eigen:1"]
    assert values["excess_loss"][2] == 0
    assert values["y"] is None
    assert (tiny.folder / "f.png").stat().st_size > 1000
    (file,) = files(tiny)
    assert file.name.startswith("step_7.slice.")
    stored = landscape.load(file)
    assert stored.loss.tolist() == values["loss"]
    again = slice_("--points", "5")
    assert again.document["results"][0]["new"] is False
    assert again.values == values
    shown = cli("show", file)
    assert shown.code == 0, shown.err
    assert "quadratic prediction" in shown.out
    assert "eigen:1" in shown.out
    assert cli("plot", file, "-o", tiny.folder / "g.svg").code == 0
    found = landscape.loss_slice(
        str(tiny.task),
        tiny.checkpoint,
        options=landscape.SliceOptions(points=5),
    )
    assert found.loss.tolist() == values["loss"]


def test_a_plane_with_a_trajectory(slice_, tiny, cli):
    glob = tiny.folder / "step_*.safetensors"
    done = slice_(
        *("--along", "pca:1", "--along", f"to:{tiny.folder / 'step_9.safetensors'}"),
        *("--trajectory", glob, "--points", "4", "--plot", tiny.folder / "f.png", "--surface"),
    )
    assert done.code == 0, done.err
    values = done.values
    assert [p["step"] for p in values["trajectory"]] == [7, 9, 11]
    assert np.array(values["excess_loss"]).shape == (4, 4)
    # The whole plane of the second checkpoint: nothing of it is off.
    assert values["trajectory"][1]["off"] < 1e-9
    (file,) = files(tiny)
    assert cli("plot", file, "-o", tiny.folder / "g.pdf").code == 0
    assert cli("plot", file, "--surface", "-o", tiny.folder / "g.png").code == 0
    assert "checkpoints, at most" in cli("show", file).out


def test_other_grids_reuse_points_eigenvectors_and_products(slice_, tiny, count):
    first = slice_("--points", "3", "--along", "eigen:1", "--along", "random").document
    assert len(count) == 9
    (file,) = files(tiny)
    before = landscape.load(file)
    second = slice_("--points", "5", "--along", "eigen:1", "--along", "random")
    assert len(count) == 25
    assert files(tiny) == [file]
    after = landscape.load(file)
    assert np.array_equal(after.loss[::2, ::2], before.loss)
    assert after.info.n_matvecs == before.info.n_matvecs
    assert second.values["n_known"] == 25
    wide = slice_("--points", "3", "--along", "eigen:1", "--along", "random", "--span=-1,1")
    assert wide.code == 0, wide.err
    back = slice_("--points", "3", "--along", "eigen:1", "--along", "random")
    assert back.values["excess_loss"] == first["results"][0]["values"]["excess_loss"]
    calls = len(count)
    slice_("--points", "3", "--along", "eigen:1", "--along", "random", "--overwrite")
    assert len(count) == calls + 9


def test_an_interrupted_run_continues(slice_, tiny, count, monkeypatch):
    whole = slice_("--along", "random", "--points", "6").values
    (file,) = files(tiny)
    file.unlink()
    real = surface_module.loss_here

    def stops(risk):
        if len(count) == 6 + 4:
            raise KeyboardInterrupt
        return real(risk)

    with monkeypatch.context() as patched:
        patched.setattr(surface_module, "loss_here", stops)
        done = slice_("--along", "random", "--points", "6")
        assert done.code == 130
    assert not file.exists()
    done = slice_("--along", "random", "--points", "6")
    assert done.code == 0, done.err
    assert len(count) == 12
    assert {k: v for k, v in done.values.items() if k != "n_known"} == {
        k: v for k, v in whole.items() if k != "n_known"
    }
    assert [p.name for p in (tiny.folder / "out").iterdir() if "partial" in p.name] == []


def test_losses_and_parameters(slice_):
    behaviour = slice_("--along", "random", "--points", "3", "--loss", "behaviour").values
    assert behaviour["loss"] == behaviour["excess_loss"]
    assert abs(behaviour["directions"][0]["slope"]) < 1e-12
    part = slice_("--along", "random", "--points", "3", "--params", "0.*").values
    other = slice_("--along", "random", "--points", "3").values
    assert part["directions"][0]["length"] < other["directions"][0]["length"]


def test_several_checkpoints_and_their_figure(slice_, tiny, cli):
    done = slice_("--points", "3", checkpoint="step_*.safetensors")
    assert done.code == 0, done.err
    assert [r["step"] for r in done.document["results"]] == [7, 9, 11]
    assert cli("plot", *files(tiny), "-o", tiny.folder / "f.png").code == 0


def test_points_that_are_not_finite(slice_, tiny, cli):
    args = ("--along", "random", "--along", "random", "--points", "3", "--dtype", "float32")
    done = slice_(*args, "--span=-1e38,1e38", "--plot", tiny.folder / "f.png")
    assert done.code == 0, done.err
    (result,) = done.document["results"]
    assert any("not finite" in note for note in result["warnings"])
    assert any(value is None for row in result["values"]["excess_loss"] for value in row)
    assert result["values"]["excess_loss"][1][1] == 0
    (file,) = files(tiny)
    assert "not finite" in cli("show", file).out
    assert cli("plot", file, "--surface", "-o", tiny.folder / "g.png").code == 0


def test_strict_refuses_what_is_not_converged(slice_, monkeypatch):
    short = functools.partial(eigenvectors_module.extreme_eigenpairs, max_matvecs=4)
    monkeypatch.setattr(eigenvectors_module, "extreme_eigenpairs", short)
    done = slice_("--points", "3", "--strict")
    assert done.code == 4, done.err
    assert "not converged" in done.errors[0]


def test_several_processes_are_refused(slice_, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    done = slice_("--points", "3")
    assert done.code == 2, done.err
    assert "landscape slice works in one process" in done.errors[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--along", "up"), ("--along up", "eigen:K, random, to:CHECKPOINT or pca:K")),
        (("--along", "eigen"), ("--along eigen", "eigen:K")),
        (("--along", "eigen:one"), ("--along eigen:one", "eigen:K")),
        (("--along", "eigen:0"), ("--along eigen:0", "counted from 1", "from -1")),
        (("--along", "eigen:27"), ("eigen:27", "26 parameters")),
        (("--along", "eigen:-27"), ("eigen:-27", "26 parameters")),
        (("--along", "random:1"), ("--along random:1", "random")),
        (("--along", "to:"), ("--along to:", "to:CHECKPOINT")),
        (("--along", "to:missing.pt"), ("missing.pt",)),
        (("--along", "pca:0"), ("--along pca:0", "counted from 1")),
        (("--along", "pca:1"), ("--trajectory",)),
        (("--along", "random", "--trajectory", "none*.pt"), ("none*.pt",)),
        (("--along", "pca:1", "--trajectory", "{folder}/step_7.*"), ("one checkpoint",)),
        (("--along", "pca:3", "--trajectory", "{folder}/step_*"), ("pca:3", "2 principal")),
        (("--along", "to:{folder}/step_7.safetensors"), ("same parameters as the anchor",)),
        (("--along", "to:{folder}/step_*.safetensors"), ("3 checkpoints",)),
        (("--along", "random") * 3, ("3 directions", "two for a plane")),
        (("--along", "eigen:1") * 2, ("--along eigen:1 twice",)),
        (("--along", "eigen:1", "--along", "eigen:-26"), ("same eigenvector",)),
        (
            (
                *("--along", "to:{folder}/step_9.safetensors"),
                *("--along", "to:{folder}/copy.safetensors"),
            ),
            ("parallel",),
        ),
        (("--span", "1,-1"), ("--span 1,-1", "smaller one first")),
        (("--span", "1,1"), ("--span 1,1", "smaller one first")),
        (("--span", "0,inf"), ("--span 0,inf", "finite")),
        (("--span", "1"), ("--span 1", "LO,HI")),
        (("--span", "a,b"), ("--span a,b", "LO,HI")),
        (("--span", "0,1", "--span", "0,1"), ("2 spans", "1 directions")),
        (("--points", "1"), ("--points 1", "from 2")),
        (("--points", "1002"), ("--points 1002", "1001")),
        (("--plot", "f.gif"), ("--plot f.gif", ".png")),
        (("--surface",), ("--surface", "--plot")),
        (("--surface", "--plot", "f.png"), ("--surface", "--along twice")),
        (("--along", "random", "--params", "*.bias"), ("has filters",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
def test_wrong_use(slice_, tiny, draw, arguments, words):
    tiny.write_checkpoint("copy.safetensors", draw(9))
    done = slice_(*(a.format(folder=tiny.folder) for a in arguments))
    assert done.code == 2, done.err
    (message,) = done.errors
    assert all(word in message for word in words), message
    assert "Traceback" not in done.err


def test_weights_of_another_network(slice_, tiny):
    tiny.write_checkpoint("other.safetensors", {"0.weight": torch.zeros(2, 2)})
    for arguments in (
        ("--along", f"to:{tiny.folder}/other.safetensors"),
        ("--along", "random", "--trajectory", f"{tiny.folder}/*.safetensors"),
    ):
        done = slice_(*arguments)
        assert done.code == 3, done.err
        (message,) = done.errors
        assert "other.safetensors" in message


def test_a_damaged_result(slice_, tiny, cli):
    slice_("--points", "3")
    (file,) = files(tiny)
    with h5py.File(file, "r+") as opened:
        del opened["slice"]["loss"]
    done = cli("show", file)
    assert done.code == 2
    assert "damaged" in done.errors[0]


def test_xarray_reads_it(slice_, tiny):
    values = slice_("--along", "random", "--along", "eigen:1", "--points", "3").values
    (file,) = files(tiny)
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        assert tree["slice"]["excess_loss"].dims == ("x", "y")
        assert tree["slice"]["excess_loss"].values.tolist() == values["excess_loss"]
        assert tree["slice"]["x"].values.tolist() == values["x"]


def test_slices_are_no_series_and_only_planes_have_surfaces(slice_, tiny, cli):
    slice_("--points", "3")
    done = cli("collect", *files(tiny), "-o", tiny.folder / "s.h5")
    assert done.code == 2
    assert "no series" in done.errors[0]
    done = cli("plot", *files(tiny), "--surface")
    assert done.code == 2
    assert "a line has no surface" in done.errors[0]
    args = ("--task", tiny.task, "-o", tiny.folder / "h", "--json")
    cli("hessian", tiny.checkpoint, *args)
    (other,) = (tiny.folder / "h").glob("*.h5")
    done = cli("plot", other, "--surface")
    assert done.code == 2
    assert "result of landscape hessian" in done.errors[0]


def test_help_names_examples(capsys):
    assert run(["slice", "--help"]) == 0
    assert "--along" in capsys.readouterr().out


def test_directions_are_completed(tmp_path, monkeypatch):
    from landscape_cli.slice import _complete_along

    (tmp_path / "a.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert _complete_along("e") == ["eigen:1", "eigen:2", "eigen:-1"]
    assert _complete_along("to:a") == ["to:a.pt"]
