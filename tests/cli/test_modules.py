"""``landscape modules`` from the command line: numbers, files, figures, wrong use."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import xarray

import landscape
from landscape.errors import TerminatedError
from landscape_cli.app import run

FREE = ("--method", "matrix-free", "--probes", "4", "--tilt", "50")


@pytest.fixture
def modules(cli, tiny, draw):
    """``landscape modules`` of the network of 26 parameters, with --json."""

    def command(*arguments, checkpoint="step_7.safetensors", task=None, json=True):
        return cli(
            *("modules", tiny.folder / checkpoint),
            *("--task", tiny.task if task is None else task, "-o", tiny.folder / "out"),
            *(("--json",) if json else ()),
            *arguments,
        )

    return command


def files(tiny):
    return sorted((tiny.folder / "out").iterdir())


def test_exact(modules, tiny, cli):
    done = modules("--plot", tiny.folder / "f.png")
    assert done.code == 0, done.err
    values = done.values
    assert values["names"] == ["0", "2"]
    assert values["size"] == [16, 10]
    assert values["method"] in ("dense", "gram")
    total = values["total"]["value"]
    assert total == pytest.approx(values["coupling"][0][1], rel=1e-8)
    assert total > 0
    halves = 0.5 * (sum(values["log_det_groups"]) - values["log_det"]["value"])
    assert total == pytest.approx(halves, abs=1e-9)
    assert values["lowest"] <= values["lowest_diagonal"] + 1e-12
    assert values["highest_diagonal"] <= values["highest"]
    assert (tiny.folder / "f.png").stat().st_size > 1000
    (file,) = files(tiny)
    assert file.name.startswith("step_7.modules.")
    stored = landscape.load(file)
    assert stored.names == ("0", "2")
    assert stored.modules.total.value == total
    assert stored.modules.correlations.shape == (2, 2, 8)
    again = modules()
    assert again.document["results"][0]["new"] is False
    assert again.values == values
    shown = cli("show", file)
    assert shown.code == 0, shown.err
    assert "coupling with the rest" in " ".join(shown.out.split())
    assert cli("plot", file, "-o", tiny.folder / "g.svg").code == 0
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        assert tree["modules"]["coupling"].values.tolist() == values["coupling"]
        assert tree["modules"]["name"].values.tolist() == ["0", "2"]


def test_the_tilt_is_that_of_volume(modules, cli, tiny):
    values = modules("--cutoff", "0.003").values
    volume = cli(
        *("volume", tiny.checkpoint, "--task", tiny.task, "-o", tiny.folder / "out", "--json"),
        *("--cutoff", "0.003", "--method", "quadratic"),
    )
    assert volume.code == 0, volume.err
    (file,) = [f for f in files(tiny) if ".volume." in f.name]
    tilt = landscape.load(file).estimates["quadratic"].tilt[0]
    assert values["tilt"] == pytest.approx(tilt, rel=1e-12)


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_rounding_of_float32_counts_towards_no_rank(modules, method):
    options = ("--tilt", "50", "--method", method)
    exact, found = modules(*options).values, modules(*options, "--dtype", "float32").values
    assert exact["rank"][0][1] < 10
    assert found["rank"] == exact["rank"]
    assert found["rank_bound"] == exact["rank_bound"]
    assert (exact["tol"], found["tol"]) == (1e-10, 1e-5)


def test_matrix_free_agrees_and_more_probes_continue(modules, tiny):
    exact = modules("--tilt", "50").values
    found = modules(*FREE)
    assert found.code == 0, found.err
    values = found.values
    assert values["method"] == "matrix-free"
    assert values["total"]["lower"] - 1e-6 <= exact["total"]["value"]
    assert exact["total"]["value"] <= values["total"]["upper"] + 1e-6
    assert values["rank"] == exact["rank"]
    assert np.allclose(values["norm"][0][1], exact["norm"][0][1], rtol=1e-8)
    assert values["highest"] == pytest.approx(exact["highest"], rel=1e-6)
    more = modules(*FREE, "--probes", "7").values
    assert more["n_probes"] == 7
    (file,) = [f for f in files(tiny) if landscape.load(f).modules.method == "matrix-free"]
    seen = landscape.load(file).modules.log_det_high
    fresh = modules(*FREE, "--probes", "7", "--overwrite").values
    assert fresh["total"] == more["total"]
    assert np.array_equal(landscape.load(file).modules.log_det_high, seen)
    fewer = modules(*FREE)
    assert fewer.document["results"][0]["new"] is False


@pytest.mark.parametrize("when", [4, 9, 14])
def test_a_stopped_run_continues_to_the_same_numbers(modules, tiny, monkeypatch, when):
    from landscape.partial import PartialFile

    wanted = modules(*FREE).values
    put, count = PartialFile.put, 0

    def stopping(self, name, unit):
        nonlocal count
        put(self, name, unit)
        count += 1
        if count == when:
            raise TerminatedError("terminated")

    monkeypatch.setattr(PartialFile, "put", stopping)
    stopped = modules(*FREE, "--overwrite")
    assert stopped.code == 143
    assert any(f.name.endswith(".partial") for f in files(tiny))
    # The old result is complete; without it the saved state is what there is.
    for file in files(tiny):
        if file.suffix == ".h5":
            file.unlink()
    done = modules(*FREE)
    assert done.code == 0, done.err
    assert "resuming" in done.err
    assert done.values == wanted
    assert not any(f.name.endswith(".partial") for f in files(tiny))


def test_a_budget_is_reported_and_continued(modules):
    found = modules(*FREE, "--probes", "6", "--budget", "1mv")
    assert found.code == 0, found.err
    (result,) = found.document["results"]
    assert result["status"] == "budget"
    assert result["values"]["total"]["stderr"] >= 0
    whole = modules(*FREE, "--probes", "6")
    assert whole.document["results"][0]["status"] == "complete"
    assert whole.values["n_probes"] == 6


def test_a_series_shares_the_prior_and_has_a_figure(modules, tiny, draw, cli):
    tiny.write_checkpoint("step_9.safetensors", draw(9))
    found = modules("--plot", tiny.folder / "f.pdf", checkpoint="*.safetensors")
    assert found.code == 0, found.err
    one, two = found.document["results"]
    assert one["config"]["sigma"] == two["config"]["sigma"]
    assert (tiny.folder / "f.pdf").stat().st_size > 1000
    done = cli("collect", *files(tiny), "-o", tiny.folder / "s.h5")
    assert done.code == 2
    assert "no series holds" in done.errors[0]


def test_a_file_of_groups(modules, tiny):
    path = tiny.folder / "groups.toml"
    path.write_text('rest = true\n[groups]\nweights = ["*.weight"]\n')
    values = modules("--groups", path).values
    assert values["names"] == ["weights", "rest"]
    assert values["size"] == [20, 6]
    other = tiny.folder / "same.toml"
    other.write_text(path.read_text())
    assert modules("--groups", other).document["results"][0]["new"] is False
    some = modules("--groups", path, "--params", "2.*").values
    assert some["size"] == [8, 2]


def test_pairs_that_are_not_measured_are_said_and_drawn_by_their_norms(modules, tiny, cli):
    path = tiny.folder / "groups.toml"
    path.write_text('[groups]\na = "0.weight"\nb = "0.bias"\nc = "2.weight"\nd = "2.bias"\n')
    options = (*FREE, "--groups", path)
    found = modules(*options, "--no-pairs", "--plot", tiny.folder / "f.png")
    assert found.code == 0, found.err
    (result,) = found.document["results"]
    values = result["values"]
    assert any("6 pairs of 4 groups are not measured" in text for text in result["warnings"])
    assert values["coupling"][0][1] is None
    assert values["total"]["value"] > 0
    assert (tiny.folder / "f.png").stat().st_size > 1000
    more = modules(*options, "--pairs").values
    assert more["total"] == values["total"]
    exact = modules("--tilt", "50", "--groups", path).values
    for i, j in ((0, 1), (0, 2), (1, 3), (2, 3)):
        error = 6 * more["coupling_stderr"][i][j] + 1e-6
        assert more["coupling"][i][j] == pytest.approx(exact["coupling"][i][j], abs=error)


def test_too_few_steps_are_said_and_fail_under_strict(modules):
    options = (*FREE, "--steps", "2", "--tilt", "1e4")
    found = modules(*options, "--strict")
    assert found.code == 4
    assert "--steps" in found.errors[0]
    (result,) = found.document["results"]
    assert any("Lanczos steps leave" in text for text in result["warnings"])
    assert result["values"]["truncation"] > 0


def test_a_plan(modules, tiny):
    found = modules(*FREE, "--dry-run")
    assert found.code == 0, found.err
    assert found.values["groups"] == {"0": 16, "2": 10}
    # 3 regions of at most 26 coordinates, 4 probes; 16 and 10 test vectors.
    assert found.values["products"] == 4 * (26 + 16 + 10) + 26 + 300
    assert not (tiny.folder / "out").exists()
    assert modules("--dry-run").values["route"] in ("dense", "gram")


@pytest.mark.parametrize("network", ["modular", "dense"])
def test_two_tasks(cli, tmp_path, network):
    """A modular network's halves share nothing; a dense one's do."""
    settings = ("--set", f"network={network}", "--set", "width=4")
    trained = cli(
        *("train", "two-tasks", *settings, "--steps", "60", "--checkpoints", "1"),
        *("-o", tmp_path / "runs"),
    )
    assert trained.code == 0, trained.err
    path = tmp_path / "groups.toml"
    parts = {
        "modular": 'left = ["left.*"]\nright = ["right.*"]',
        "dense": 'first = ["0.*"]\nsecond = ["2.*"]',
    }
    path.write_text(f"[groups]\n{parts[network]}\n")
    common = ("--task", "two-tasks", *settings, "--examples", "60", "--groups", path, "--json")
    checkpoint = sorted((tmp_path / "runs").glob("*.safetensors"))[-1]
    for method in ("exact", "matrix-free"):
        found = cli("modules", checkpoint, *common, "--method", method, "-o", tmp_path / "out")
        assert found.code == 0, found.err
        values = found.values
        if network == "modular":
            assert abs(values["total"]["value"]) < 1e-8
            assert values["rank"] == [[0, 0], [0, 0]]
            assert values["highest"] == pytest.approx(values["highest_diagonal"], rel=1e-6)
        else:
            assert values["total"]["lower"] > 1
            assert values["rank"][0][1] > 0
            assert values["highest"] > values["highest_diagonal"]


WRONG = [
    (("--groups", "layers"), 2, ("--groups 'layers'", "layer, block, head or a TOML file")),
    (("--groups", "none.toml"), 2, ("none.toml", "cannot be read")),
    (("--groups", "{tmp}/bad.toml"), 2, ("bad.toml", "is not TOML")),
    (("--groups", "{tmp}/both.toml"), 2, ("'0.weight'", "'a' and 'b'")),
    (("--groups", "{tmp}/part.toml"), 2, ("'2.weight' is in no group", "rest = true")),
    (("--groups", "head"), 2, ("no attention",)),
    (("--params", "0.*"), 2, ("in one group, '0'",)),
    (("--prior", "uniform"), 2, ("--prior uniform", "gaussian")),
    (("--method", "dense"), 2, ("--method 'dense'", "matrix-free")),
    (("--curvature", "fisher"), 2, ("--curvature 'fisher'", "ggn")),
    (("--cutoff", "-1"), 2, ("--cutoff -1", "positive")),
    (("--tilt", "-1"), 2, ("--tilt -1", "not negative")),
    (("--tilt", "nan"), 2, ("--tilt nan", "not negative")),
    (("--tilt", "3", "--cutoff", "0.1"), 2, ("--tilt 3 --cutoff 0.1", "one of them")),
    (("--tol", "2"), 2, ("--tol 2", "between 0 and 1")),
    (("--probes", "1"), 2, ("--probes 1", "at least 2")),
    (("--steps", "1"), 2, ("--steps 1", "at least 2")),
    (("--sketch", "2"), 2, ("--sketch 2", "at least 8")),
    (("--sigma", "-2"), 2, ("--sigma -2",)),
    (("--plot", "f.gif"), 2, ("--plot f.gif", ".png")),
    (("--loss", "task", "--tilt", "1e6"), 4, ("not positive definite", "--curvature ggn")),
    (
        ("--loss", "task", "--tilt", "1e6", "--method", "matrix-free"),
        4,
        ("not positive definite", "a tilt below", "--loss behaviour"),
    ),
]


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_use(modules, tiny, arguments, code, words):
    (tiny.folder / "bad.toml").write_text("[groups")
    (tiny.folder / "both.toml").write_text("[groups]\na = ['0.*']\nb = ['*.weight', '2.*']\n")
    (tiny.folder / "part.toml").write_text("[groups]\na = ['0.*']\n")
    done = modules(*(text.replace("{tmp}", str(tiny.folder)) for text in arguments))
    assert done.code == code, done.err
    (message,) = done.errors
    assert all(word in message for word in words), message


def test_the_hessian_below_the_limit_says_that_it_is_negative(modules):
    done = modules("--loss", "task", "--tilt", "0.5")
    assert done.code == 0, done.err
    (result,) = done.document["results"]
    assert result["values"]["lowest"] < 0
    assert any("negative eigenvalues" in text for text in result["warnings"])


def test_a_cutoff_above_the_prior_s_own_excess_couples_nothing(modules):
    done = modules("--cutoff", "1e3")
    assert done.code == 0, done.err
    (result,) = done.document["results"]
    assert (result["values"]["tilt"], result["values"]["total"]["value"]) == (0, 0)
    assert any("tilt is 0" in text for text in result["warnings"])


def test_a_damaged_result(modules, tiny, cli):
    modules()
    (file,) = files(tiny)
    with h5py.File(file, "r+") as opened:
        opened["modules/size"][0] = 3
    done = cli("show", file)
    assert done.code == 2
    assert "damaged" in done.errors[0]


def test_attention_heads(cli, tmp_path):
    common = ("--set", "d_model=4", "--set", "heads=2", "--set", "p=5")
    trained = cli(
        *("train", "modular-addition", *common, "--steps", "3", "--checkpoints", "1"),
        *("-o", tmp_path / "runs"),
    )
    assert trained.code == 0, trained.err
    checkpoint = sorted((tmp_path / "runs").glob("*.safetensors"))[-1]
    done = cli(
        *("modules", checkpoint, "--task", "modular-addition", *common, "--groups", "head"),
        *("--params", "*attention*", "-o", tmp_path / "out", "--json"),
    )
    assert done.code == 0, done.err
    names = done.values["names"]
    assert names == ["blocks.0.attention.head.0", "blocks.0.attention.head.1"]
    assert done.values["total"]["value"] > 0


def test_help_names_examples(capsys):
    assert run(["modules", "--help"]) == 0
    assert "--groups" in capsys.readouterr().out
