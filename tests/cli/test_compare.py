"""``landscape compare`` from the command line: numbers, files, figures, wrong use."""

from __future__ import annotations

import h5py
import pytest
import torch
import xarray

import landscape
from landscape_cli.app import run


@pytest.fixture
def compare(cli, tiny, draw):
    """``landscape compare`` of two checkpoints of the network of 26 parameters, with --json."""
    tiny.write_checkpoint("step_9.safetensors", draw(9))

    def command(*arguments, first="step_7", second="step_9", json=True):
        named = [tiny.folder / f"{name}.safetensors" for name in (first, second) if name]
        return cli(
            *("compare", *named, "--task", tiny.task, "-o", tiny.folder / "out"),
            *(("--json",) if json else ()),
            *arguments,
        )

    return command


def files(tiny):
    return sorted((tiny.folder / "out").iterdir())


def test_two_networks(compare, tiny, cli):
    done = compare("--plot", tiny.folder / "f.png")
    assert done.code == 0, done.err
    values = done.values
    assert values["kl_ab"]["value"] > 0
    assert values["kl_ab"]["lower"] < values["kl_ab"]["value"] < values["kl_ab"]["upper"]
    assert values["identity"] < 1e-12
    assert len(values["path"]["loss"]) == 11
    assert values["aligned"]["distance"] <= values["path"]["distance"]
    assert [m["units"] for m in values["matching"]] == [4]
    assert (tiny.folder / "f.png").stat().st_size > 1000
    (file,) = files(tiny)
    assert file.name.startswith("step_7.compare.")
    # A library user gets the same numbers, and a stored result is what was measured.
    stored = landscape.load(file)
    assert stored.behaviour.kl_ab.value == values["kl_ab"]["value"]
    assert stored.path.loss.tolist() == values["path"]["loss"]
    again = compare()
    assert again.document["results"][0]["new"] is False
    assert again.values == values
    shown = cli("show", file)
    assert shown.code == 0, shown.err
    assert "Jensen-Shannon" in shown.out
    assert cli("plot", file, "-o", tiny.folder / "g.svg").code == 0


def test_of_a_checkpoint_and_itself(compare):
    values = compare(second="step_7").values
    for name in ("kl_ab", "kl_ba", "js", "excess_loss"):
        assert set(values[name].values()) == {0.0}
    assert values["agreement"]["value"] == 1
    assert values["identity"] == 0
    for path in ("path", "aligned"):
        assert (values[path]["barrier"], values[path]["distance"]) == (0, 0)


def test_of_an_ablated_copy(compare, tiny):
    found = compare("--ablate", "1:0-1=resample", "--ablate", "0=mean", second=None)
    assert found.code == 0, found.err
    assert found.values["kl_ab"]["value"] > 0
    assert found.values["path"] is None
    other = compare(
        "--ablate", "weights:2.weight=zero", "--ablate", "weights:2.bias=zero", second=None
    )
    # All outputs are 0 and the law uniform.
    assert other.values["cross_entropy"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    assert other.values["path"]["barrier"] >= 0
    assert len(files(tiny)) == 2


def test_a_few_points_no_path_and_terms(compare, tiny):
    assert len(compare("--points", "3", "--align", "none").values["path"]["t"]) == 3
    values = compare("--points", "0", "--over", "terms", "--examples", "5").values
    assert (values["path"], values["aligned"], values["n_terms"]) == (None, None, 5)
    assert len(files(tiny)) == 2


@pytest.mark.parametrize(
    ("arguments", "second", "words"),
    [
        ((), None, ("nothing to compare with", "--ablate")),
        (("--ablate", "1=none"), None, ("--ablate 1=none", "zero, mean or resample")),
        (("--ablate", "9=zero"), None, ("no module '9'", "expected one of")),
        (("--ablate", "1:4=zero"), None, ("no unit 4", "0 to 3")),
        (("--ablate", "weights:1.weight=zero"), None, ("no parameter '1.weight'",)),
        (("--bootstrap", "1"), "step_9", ("--bootstrap 1", "at least 2")),
        (("--eigenspaces", "-1"), "step_9", ("--eigenspaces -1", "from 0")),
        (("--eigenspaces", "99"), "step_9", ("--eigenspaces 99", "26 parameters")),
        (("--eigenspaces", "2", "--ablate", "1=zero"), None, ("ablated network",)),
        (("--over", "tokens"), "step_9", ("--over tokens", "examples or terms")),
        (("--points", "2"), "step_9", ("--points 2", "from 3")),
        (("--plot", "f.gif"), "step_9", ("--plot f.gif", ".png")),
    ],
)
def test_wrong_use(compare, arguments, second, words):
    done = compare(*arguments, second=second)
    assert done.code == 2, done.err
    (message,) = done.errors
    assert all(word in message for word in words), message


def test_weights_of_another_network(compare, tiny):
    tiny.write_checkpoint("other.safetensors", {"0.weight": torch.zeros(2, 2)})
    done = compare(second="other")
    assert done.code == 3, done.err
    (message,) = done.errors
    assert "other.safetensors" in message


def test_a_damaged_result(compare, tiny, cli):
    compare()
    (file,) = files(tiny)
    with h5py.File(file, "r+") as opened:
        opened["behaviour"].attrs["n_terms"] = 3
    done = cli("show", file)
    assert done.code != 0
    assert "damaged" in done.errors[0]


def test_eigenspaces(compare, tiny):
    found = compare("--eigenspaces", "2").values["eigenspaces"]
    assert 0 <= found["overlap"] <= 1
    assert found["chance"] == pytest.approx(2 / 26)
    (file,) = files(tiny)
    assert landscape.load(file).eigenspaces.eigenvalues_a.tolist() == found["eigenvalues_a"]
    same = compare("--eigenspaces", "2", second="step_7").values["eigenspaces"]
    assert same["overlap"] == pytest.approx(1, abs=1e-12)


def test_xarray_reads_it(compare, tiny):
    values = compare("--eigenspaces", "2").values
    (file,) = files(tiny)
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        assert tree["path"]["loss"].values.tolist() == values["path"]["loss"]
        assert tree["behaviour"]["example_js"].dims == ("example",)


def test_comparisons_are_no_series(compare, tiny, cli):
    compare("--points", "0")
    done = cli("collect", *files(tiny), "-o", tiny.folder / "s.h5")
    assert done.code == 2
    assert "no series" in done.errors[0]


def test_help_names_examples(capsys):
    assert run(["compare", "--help"]) == 0
    assert "--ablate" in capsys.readouterr().out
