"""``landscape compare`` from the command line: numbers, files, figures, wrong use."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
import xarray

import landscape
from landscape.compare_plot import compare_figure
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


def test_log_volumes(compare, tiny, cli):
    options = ("--volume", "behaviour", "--sigma", "1", "--cutoff", "0.01,0.1", "--points", "0")
    done = compare(*options, "--plot", tiny.folder / "v.png")
    assert done.code == 0, done.err
    found = done.values["volume"]
    assert (tiny.folder / "v.png").stat().st_size > 1000
    for which, name in (("a", "step_7"), ("b", "step_9")):
        alone = cli(
            *("volume", tiny.folder / f"{name}.safetensors", "--task", tiny.task, "--json"),
            *("--sigma", "1", "--cutoff", "0.01,0.1", "--method", "quadratic"),
            *("-o", tiny.folder / "alone"),
        )
        (stored,) = (landscape.load(entry["file"]) for entry in alone.document["results"])
        expected = stored.estimates["quadratic"].log_volume.tolist()
        assert found[which]["log_volume"] == pytest.approx(expected, rel=1e-12)
    (file,) = files(tiny)
    kept = landscape.load(file).volume
    assert kept.difference.tolist() == found["difference"]
    assert kept.loss == "behaviour"
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        assert tree["volume/difference"]["difference"].values.tolist() == found["difference"]
    shown = cli("show", file)
    assert "log V by the quadratic model" in shown.out
    assert "Gradient of the task loss" in shown.out
    assert compare(*options).document["results"][0]["new"] is False
    other = compare(*options, "--error", "0.5")  # Other amounts are another result.
    assert other.document["results"][0]["new"] is True
    same = compare(*options, second="step_7").values["volume"]
    assert same["difference"] == [0.0, 0.0]


def test_the_prior_of_a_series_is_that_of_its_first(compare, tiny):
    """With the standard deviation from the weights, which both checkpoints have others of."""
    done = compare("--volume", "behaviour", "--points", "0", first="step_*", second="step_9")
    assert done.code == 0, done.err
    sigmas = [entry["config"]["volume"]["sigma"] for entry in done.document["results"]]
    assert len(sigmas) == 2
    assert sigmas[0] == sigmas[1]


def test_a_damaged_volume(compare, tiny, cli):
    compare("--volume", "behaviour", "--sigma", "1", "--points", "0")
    (file,) = files(tiny)
    with h5py.File(file, "r+") as opened:
        opened["volume/b/cutoff"][0] = 7.0
    done = cli("show", file)
    assert done.code == 2
    assert "damaged" in done.errors[0]


def test_matching_by_activations(compare):
    found = compare("--align", "activations").values
    assert [entry["units"] for entry in found["matching"]] == [4]
    assert compare("--align", "none").values["aligned"] is None


def test_the_figure_tells_steps_of_two_runs_apart(compare, tiny, draw):
    (tiny.folder / "other").mkdir()
    tiny.write_checkpoint("other/step_7.safetensors", draw(5))
    assert compare(second="other/step_7").code == 0
    (file,) = files(tiny)
    figure = compare_figure([landscape.load(file)])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == f"KL({tiny.folder.name}/step_7 || other/step_7)"


@pytest.mark.parametrize("ends", [(0.02, 2.2), (0.17, 7.0), (0.011, 0.9), (0.21, 0.49), (3.0, 3.2)])
def test_labels_of_divergences_do_not_overlap(compare, tiny, ends):
    assert compare().code == 0
    (file,) = files(tiny)
    found = landscape.load(file)
    values = np.geomspace(*ends, 20)
    behaviour = dataclasses.replace(
        found.behaviour, example_kl_ab=values, example_kl_ba=values, example_js=values
    )
    figure = compare_figure([dataclasses.replace(found, behaviour=behaviour)])
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = figure.axes[0].get_xlim()
    shown = [tick for tick in axis.get_major_ticks() + axis.get_minor_ticks() if tick.get_visible()]
    spans = sorted(
        (box.x0, box.x1)
        for tick in shown
        if tick.label1.get_text() and low <= tick.get_loc() <= high
        for box in [tick.label1.get_window_extent()]
    )
    assert len(spans) >= 2
    assert all(one[1] < two[0] for one, two in pairwise(spans))
