"""``landscape flat`` from the command line: counts, resuming, series, figures, wrong use."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from flat_tasks import LINEAR, LINEAR_NULL, LINEAR_SHAPES, RELU, RELU_NULL, RELU_SHAPES
from safetensors.torch import save_file

import landscape
from landscape.partial import PartialFile
from landscape_cli.app import run

OPERATORS = ("jacobian", "ggn", "hessian")
CUTOFFS = ("--cutoff", "1e-4:1e-2:3")


@pytest.fixture
def relu(tiny, draw):
    """A task file and a checkpoint of a generic ReLU network with softmax outputs."""
    task = tiny.write_task("relu.py", **RELU)
    state = {name: tensor.double() / 2 for name, tensor in draw(5, RELU_SHAPES).items()}
    return task, tiny.write_checkpoint("step_3.safetensors", state)


@pytest.fixture
def flat(cli, tiny, relu):
    """``landscape flat`` on it with --json."""

    def command(*arguments, checkpoint=relu[1], task=relu[0], out="out", json=True):
        return cli(
            *("flat", checkpoint, "--task", task, "-o", tiny.folder / out),
            *(("--json",) if json else ()),
            *arguments,
        )

    return command


# Of the last layer: 21 parameters, of which the softmax shift leaves 7 null.
LAST = ("--params", "2.*", "--examples", "10")
STEPS = (0, 5, 30)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, texts, draw):
    """Results of three checkpoints, with walks and a sweep."""
    folder = tmp_path_factory.mktemp("measured")
    task = folder / "relu.py"
    task.write_text(texts(**RELU))
    for step in STEPS:
        state = {name: tensor.double() for name, tensor in draw(step, RELU_SHAPES).items()}
        save_file(state, folder / f"step_{step}.safetensors")
    command = ["flat", folder / "*.safetensors", "--task", task, "-o", folder / "out", *LAST]
    command += [*CUTOFFS, "--walk", "--examples-sweep", "5"]
    assert run(list(map(str, command))) == 0
    return folder / "out"


@pytest.fixture
def results(measured, tiny):
    """Copies of them, in the order of the steps."""
    shutil.copytree(measured, tiny.folder / "measured")
    return [next((tiny.folder / "measured").glob(f"step_{step}.*")) for step in STEPS]


def files(tiny, out="out"):
    return sorted((tiny.folder / out).iterdir())


class TestCounts:
    def test_of_a_generic_relu_network(self, flat, tiny):
        done = flat(*CUTOFFS)
        assert done.code == 0, done.err
        values = done.values
        for name in OPERATORS:
            assert values[name]["null"] == RELU_NULL
            assert values[name]["clear"] is True
            assert values[name]["gap"] > 1e6
        table = values["symmetries"]
        found = {entry["name"]: entry["added"] for entry in table["entries"]}
        assert found == {"relu rescaling": 6, "softmax shift": 7}
        assert (table["symmetry_total"], table["data_total"], table["unexplained"]) == (13, 0, 0)
        assert all(entry["change"] < 1e-12 for entry in table["entries"])
        counts = values["counts"]
        total = np.sum([counts[k] for k in ("steep", "intermediate", "flat")], axis=0)
        assert total.tolist() == [57] * 3
        assert (np.array(counts["flat"]) >= RELU_NULL).all()
        assert (np.array(counts["n_eff"]) <= 57 - RELU_NULL).all()
        # The law's slope goes to the rank as the cutoff goes to 0.
        assert counts["effective_dimension"][0] == pytest.approx(44, abs=1)
        assert values["learning"]["n_cutoffs"] == 3
        assert values["discrete"][0]["log_order"] == pytest.approx(np.log(720))
        assert (values["walk"], values["sweep"]) == (None, None)
        (file,) = files(tiny)
        assert file.name.startswith("step_3.flat.")

    def test_of_the_quadratic_volume(self, flat, cli, tiny, relu):
        """The same classes as landscape volume finds by another route."""
        task, checkpoint = relu
        done = cli(
            *("volume", checkpoint, "--task", task, "-o", tiny.folder / "v", "--json"),
            *("--method", "quadratic", *CUTOFFS),
        )
        counts, other = flat(*CUTOFFS).values["counts"], done.values["directions"]
        for name in ("steep", "intermediate", "flat"):
            assert counts[name] == other[name]["count"]

    def test_tables(self, flat):
        done = flat(*CUTOFFS, "--examples-sweep", "5,10", json=False)
        assert "13: 13 by symmetries, 0 more by the data, 0 unexplained" in done.out
        for text in ("relu rescaling", "softmax shift", "1e-10", "N_eff", "examples", "gap"):
            assert text in done.out
        assert "not explained by the rows above" in done.out
        # One cutoff is no fit.
        assert "expected 3 or more" in flat(json=False, out="one").out

    def test_deep_linear_network(self, flat, tiny, draw):
        task = tiny.write_task("linear.py", **LINEAR)
        checkpoint = tiny.write_checkpoint("deep.safetensors", draw(1, LINEAR_SHAPES))
        values = flat(task=task, checkpoint=checkpoint).values
        assert values["jacobian"]["null"] == LINEAR_NULL == 125
        assert values["symmetries"]["unexplained"] == 0

    def test_duplicated_examples_change_nothing(self, flat, tiny):
        parts = {**RELU, "data": "(torch.cat([X, X]), torch.arange(120) % 3)"}
        once, twice = flat().values, flat(task=tiny.write_task("two.py", **parts)).values
        for name in OPERATORS:
            assert twice[name]["rank"] == once[name]["rank"]
        assert twice["symmetries"]["symmetry_total"] == RELU_NULL
        assert twice["counts"]["steep"] == once["counts"]["steep"]

    def test_too_few_examples_are_named(self, flat):
        table = flat("--examples", "10").values
        assert table["jacobian"]["null"] == 57 - 20
        assert table["symmetries"]["unexplained"] > 0
        share = table["symmetries"]["share"]
        assert sum(share) == pytest.approx(1)
        assert any("more examples" in note for note in table["symmetries"]["notes"])
        shown = flat("--examples", "10", json=False).out
        assert "Unexplained by layer" in shown

    def test_some_parameters(self, flat):
        found = flat("--params", "2.*").values
        assert found["n_parameters"] == 21
        assert found["jacobian"]["null"] == 7

    def test_task_loss(self, flat):
        done = flat("--loss", "task")
        assert done.code == 0, done.err
        assert done.values["jacobian"]["null"] == RELU_NULL
        assert done.values["hessian"]["negative"] > 0
        assert "eigenvalues of the Hessian are negative" in flat("--loss", "task", json=False).out

    def test_a_looser_tolerance_counts_more(self, flat):
        tight = flat("--tol", "0.3")
        assert tight.values["jacobian"]["null"] > RELU_NULL
        assert "is not clear" in tight.err
        assert flat("--tol", "0.3", "--strict").code == 4


def test_a_dry_run_shows_the_prior_and_writes_nothing(flat, tiny):
    values = flat("--dry-run").values
    assert values["rows"] == 120
    assert values["prior"]["sizes"]["0.weight"] == 30
    shown = flat("--dry-run", "--examples-sweep", "5", json=False).out
    assert "about 120 vector-Jacobian products" in shown
    assert "5, 60" in shown
    assert not (tiny.folder / "out").exists()


DECLARED = """
from landscape import DeclaredSymmetry
def all_units(parameters, c):
    up = {name: parameters[name] * torch.exp(c) for name in ("0.weight", "0.bias")}
    return {**up, "2.weight": parameters["2.weight"] / torch.exp(c)}
def wrong(parameters, c):
    return {"2.weight": parameters["2.weight"] * torch.exp(c)}
def broken(parameters, c):
    raise RuntimeError("no such thing")
"""


class TestDeclared:
    def with_declaration(self, tiny, text):
        return tiny.write_task(
            "declared.py",
            **{**RELU, "extra": RELU["extra"] + DECLARED, "more": f"symmetries=[{text}]"},
        )

    def test_a_wrong_one_is_caught(self, flat, tiny):
        task = self.with_declaration(
            tiny, "DeclaredSymmetry(name='larger [red]outputs', size=1, action=wrong)"
        )
        table = flat(task=task).values["symmetries"]
        assert {entry["name"] for entry in table["entries"]} == {"relu rescaling", "softmax shift"}
        assert any("larger [red]outputs" in note for note in table["notes"])
        assert table["symmetry_total"] == RELU_NULL
        assert "[red]outputs of 'declared' does not hold" in flat(task=task, json=False).out

    def test_what_known_ones_contain_adds_nothing(self, flat, tiny):
        task = self.with_declaration(
            tiny, "DeclaredSymmetry(name='all units', size=1, action=all_units)"
        )
        table = flat(task=task).values["symmetries"]
        assert table["symmetry_total"] == RELU_NULL
        assert not any("all units" in note for note in table["notes"])

    @pytest.mark.parametrize(
        ("text", "code", "words"),
        [
            ("DeclaredSymmetry(name='x', size=1, action=broken)", 3, "no such thing"),
            ("'relu'", 3, "hold a str; expected landscape.DeclaredSymmetry"),
            ("DeclaredSymmetry(name='x', size=1, action=lambda p, c: 3)", 3, "returned a int"),
            ("DeclaredSymmetry(name='x', basis=lambda p: {'w': p['0.bias'][None]})", 2, "'w'"),
        ],
    )
    def test_what_cannot_be_checked_is_refused(self, flat, tiny, text, code, words):
        done = flat(task=self.with_declaration(tiny, text))
        assert done.code == code
        assert words in done.errors[0]


class TestContinuing:
    def test_the_same_command_again_does_nothing(self, flat, tiny):
        first = flat(*CUTOFFS)
        (file,) = files(tiny)
        before = file.read_bytes()
        again = flat(*CUTOFFS)
        assert "nothing to do" in again.err
        assert again.values == first.values
        assert file.read_bytes() == before
        assert "nothing to do" not in flat(*CUTOFFS, "--overwrite").err
        assert flat(*CUTOFFS, "--tol", "1e-9").document["results"][0]["new"] is True
        assert len(files(tiny)) == 2

    def test_a_walk_and_a_sweep_are_added(self, flat, tiny):
        counted = flat().values
        swept = flat("--examples-sweep", "10,20").values
        assert swept["jacobian"] == counted["jacobian"]
        assert swept["sweep"]["examples"] == [10, 20, 60]
        assert swept["sweep"]["null"] == [37, 17, RELU_NULL]
        more = flat("--examples-sweep", "15").values
        assert more["sweep"]["examples"] == [10, 15, 20, 60]
        assert "nothing to do" in flat("--examples-sweep", "10,15").err
        assert len(files(tiny)) == 1
        walked = flat("--walk", *LAST, out="w").values["walk"]
        # The softmax shift of the last layer is straight.
        assert walked["arc"] == pytest.approx(walked["distance"])
        assert min(walked["distance"]) >= 5
        assert not any(walked["left"])
        assert walked["null"] == [7] * 4
        shown = flat(*LAST, out="w", json=False).out
        assert shown.count("at the limit") == 4

    @pytest.mark.parametrize("stage", ["jacobian", "walk-1", "sweep"])
    def test_an_interrupted_run_continues(self, flat, tiny, monkeypatch, stage):
        options = ("--walk", *LAST, "--examples-sweep", "7", *CUTOFFS)
        whole = flat(*options, out="whole").values
        put = PartialFile.put

        def interrupted(units, name, unit):
            put(units, name, unit)
            if name == stage:
                raise KeyboardInterrupt

        monkeypatch.setattr(PartialFile, "put", interrupted)
        assert flat(*options).code == 130
        (file,) = files(tiny)
        assert file.name.endswith(".h5.partial")
        monkeypatch.setattr(PartialFile, "put", put)
        again = flat(*options)
        assert "resuming" in again.err
        assert [f.suffix for f in files(tiny)] == [".h5"]
        changing = {"wall_seconds"}
        for name, value in whole.items():
            assert name in changing or again.values[name] == value, name

    def test_a_spent_budget_leaves_the_counts(self, flat, tiny):
        options = ("--walk", *LAST)
        cut = flat(*options, "--budget", "0.001")
        assert cut.code == 0, cut.err
        assert cut.document["results"][0]["status"] == "budget"
        assert cut.values["walk"] is None
        assert "budget was spent" in cut.err
        without = flat(*LAST)
        assert without.document["results"][0]["status"] == "complete"
        assert without.values["walk"] is None
        again = flat(*options)
        assert again.document["results"][0]["status"] == "complete"
        assert len(again.values["walk"]["distance"]) == 4
        assert again.values["jacobian"] == cut.values["jacobian"]
        assert "budget was spent" not in again.err


class TestFile:
    @pytest.fixture
    def file(self, results):
        return results[0]

    def test_round_trip(self, file, tmp_path):
        result = landscape.load(file)
        landscape.store.save(tmp_path / "again.h5", result)
        assert repr(landscape.load(tmp_path / "again.h5")) == repr(result)

    def test_xarray_reads_it(self, file):
        import xarray

        tree = xarray.open_datatree(file, engine="h5netcdf")
        assert tree["flat"].attrs["null_jacobian"] == 7
        assert tree["flat"].attrs["near_zero_ggn"] == pytest.approx(7 / 21)
        assert tree["flat"]["steep"].dims == ("cutoff",)
        assert tree["flat/sweep"]["null"].values.tolist() == [11, 7]
        assert list(tree["flat"]["name"].values) == ["softmax shift"]
        tree.close()

    def test_show_and_plot(self, cli, file, tmp_path):
        shown = cli("show", file)
        assert shown.code == 0, shown.err
        assert "softmax shift" in shown.out
        assert cli("show", file, "--json").values["walk"]["start_null"] == 7
        assert cli("show", file, "--threshold", "1").code == 2
        one, two = tmp_path / "one.svg", tmp_path / "two.svg"
        for target in (one, two):
            assert cli("plot", file, "-o", target).code == 0
        assert one.read_bytes() == two.read_bytes()

    @pytest.mark.parametrize(
        ("path", "attribute", "value"),
        [
            ("flat", "rank_jacobian", 3),
            ("flat", "n_parameters", 22),
            ("flat", "unexplained", 5),
            ("flat", "tolerance_ggn", "much"),
            ("flat", "notes", "{"),
            ("flat/walk", "limit", None),
            ("flat/learning", "reason", None),
            ("flat", "rank_jacobian", None),
            ("flat", "looser_hessian", -1),
        ],
    )
    def test_damaged_attributes_are_refused(self, cli, file, path, attribute, value):
        with h5py.File(file, "r+") as stored:
            del stored[path].attrs[attribute]
            if value is not None:
                stored[path].attrs[attribute] = value
        done = cli("show", file)
        assert done.code == 2
        assert "damaged" in done.errors[0]

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("flat/steep", np.array([1.0, 2.0])),
            ("flat/steep", np.array([1.0, 2.0, 3.0])),
            ("flat/count", np.array([1.5])),
            ("flat/layers/share", np.array([[1.0]])),
            ("flat/sweep/null", np.array([3, 4])),
            ("flat/walk/left", np.array([0, 0, 0, 1])),
            ("flat/cutoff", np.array([-1.0, 1.0, 2.0])),
            ("flat/added", np.array([-7])),
            ("flat/name", np.array([1.0])),
            ("flat/discrete/units", None),
        ],
    )
    def test_damaged_arrays_are_refused(self, cli, file, name, values):
        with h5py.File(file, "r+") as stored:
            if name == "flat/discrete/units" and name not in stored:
                pytest.fail("the test changes nothing")
            del stored[name]
            if values is not None:
                stored[name] = values
        done = cli("plot", file, "-o", file.with_suffix(".png"))
        assert done.code == 2
        assert "damaged" in done.errors[0]

    def test_text_from_the_file_is_escaped(self, cli, file):
        forged = "[red]x[/red] \x1b[31m$"
        with h5py.File(file, "r+") as stored:
            stored["flat/name"][0] = forged
            stored["flat/layer"][0] = forged
            stored["flat/layers/name"][0] = forged
            stored["flat"].attrs["notes"] = json.dumps([forged])
            config = json.loads(stored.attrs["config"])
            stored.attrs["config"] = json.dumps(config | {"units": forged, "mean": forged})
        done = cli("show", file)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out + done.err
        assert "[red]x" in done.out
        assert cli("plot", file, "-o", file.with_suffix(".png")).code == 0
        assert cli("collect", file, "-o", file.with_name("series.h5")).code == 0
        assert "\x1b" not in cli("show", file.with_name("series.h5")).out


class TestSeries:
    def test_collect_show_and_plot(self, cli, tiny, results):
        series = tiny.folder / "series.h5"
        done = cli("collect", *results, "-o", series, "--json")
        assert done.code == 0, done.err
        values = done.values
        assert values["step"] == list(STEPS)
        assert values["jacobian"]["null"] == [7] * 3
        assert values["symmetry"] == ["softmax shift"]
        assert values["explained"] == [[7]] * 3
        loaded = [landscape.load(file) for file in results]
        expected = [result.counts.n_eff.tolist() for result in loaded]
        assert values["n_eff"] == expected
        assert len({tuple(result.prior.scale) for result in loaded}) == 1
        assert min(values["walked"]) >= 5

        stored = landscape.load_series(series)
        assert repr(stored) == repr(
            landscape.collect(loaded, sources=[str(file) for file in results])
        )
        shown = cli("show", series)
        rows = [line for line in shown.out.splitlines() if line.startswith("│")]
        assert [int(row.split("│")[1]) for row in rows] == [*STEPS] * 4
        assert cli("show", series, "--json").values == values
        figures = [tiny.folder / name for name in ("series.png", "results.png")]
        assert cli("plot", series, "-o", figures[0]).code == 0
        assert cli("plot", *results, "-o", figures[1]).code == 0
        assert figures[0].read_bytes() == figures[1].read_bytes()
        assert "nothing to do" in cli("collect", *reversed(results), "-o", series).err
        assert cli("collect", *results[1:], "-o", series).code == 2

    def test_what_does_not_belong_together(self, cli, flat, tiny, results):
        (other,) = [
            entry["file"] for entry in flat(*CUTOFFS, *LAST, "--tol", "1e-8").document["results"]
        ]
        done = cli("collect", *results, other, "-o", tiny.folder / "x.h5")
        assert done.code == 2
        assert "--tol" in done.errors[0]
        cli(
            "volume",
            tiny.checkpoint,
            "--task",
            tiny.task,
            "-o",
            tiny.folder / "v",
            "--method",
            "quadratic",
        )
        done = cli("collect", *results, tiny.folder / "v" / "*.h5", "-o", tiny.folder / "x.h5")
        assert done.code == 2
        assert "Collect each kind by itself" in done.errors[0]

    def test_a_result_of_the_same_checkpoint_is_not_drawn_twice(self, cli, tiny, results):
        copy = tiny.folder / "copy.h5"
        shutil.copy(results[0], copy)
        done = cli("plot", results[0], copy, "-o", tiny.folder / "x.png")
        assert done.code == 2
        assert "one result of each checkpoint" in done.errors[0]

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("flat/totals/unexplained", np.array([1, 1, 1])),
            ("flat/totals/learning", np.array([1.0])),
            ("flat/ranks/jacobian", None),
            ("flat/prior/steep", np.zeros((3, 2))),
            ("flat/symmetries/by_data", np.zeros(1)),
        ],
    )
    def test_a_damaged_series_is_refused(self, cli, tiny, results, name, values):
        series = tiny.folder / "series.h5"
        cli("collect", *results, "-o", series)
        with h5py.File(series, "r+") as stored:
            del stored[name]
            if values is not None:
                stored[name] = values
        done = cli("show", series)
        assert done.code == 2
        assert "damaged" in done.errors[0]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--tol", "0"), 2, ("--tol 0.0", "between 0 and 1")),
        (("--tol", "much"), 2, ("--tol", "much")),
        (("--prior", "uniform"), 2, ("--prior uniform", "gaussian")),
        (("--cutoff", "-1"), 2, ("--cutoff", "positive")),
        (("--multiplicity", "0"), 2, ("--multiplicity 0",)),
        (("--examples-sweep", "1,x"), 2, ("--examples-sweep", "joined by commas")),
        (("--examples-sweep", "0"), 2, ("--examples-sweep", "positive")),
        (("--examples-sweep", "61"), 2, ("--examples-sweep 61", "60 examples")),
        (("--dtype", "float32"), 2, ("float32", "--dtype float64")),
        (("--loss", "other"), 2, ("--loss",)),
        (("--params", "nothing"), 2, ("--params",)),
        (("--plot", "a.txt"), 2, ("--plot", ".png")),
        (("--sigma", "-1"), 2, ("--sigma",)),
        (("--compile",), 2, ("--compile",)),
    ],
)
def test_wrong_use(flat, tiny, options, code, words):
    done = flat(*options)
    assert done.code == code
    (message,) = done.errors
    assert all(word in message for word in words), message
    assert len(done.document["errors"]) == 1
    out = tiny.folder / "out"
    assert not out.exists() or not files(tiny)


def test_too_many_parameters(flat, tiny):
    parts = {**RELU, "model": "nn.Sequential(nn.Linear(5, 700), nn.ReLU(), nn.Linear(700, 3))"}
    shapes = {"0.weight": (700, 5), "0.bias": (700,), "2.weight": (3, 700), "2.bias": (3,)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    done = flat(
        task=tiny.write_task("wide.py", **parts),
        checkpoint=tiny.write_checkpoint("wide.safetensors", state),
    )
    assert done.code == 2
    (message,) = done.errors
    assert "6303 parameters" in message
    assert "--params" in message


def test_several_checkpoints_of_which_one_fails(flat, tiny, relu):
    tiny.write_checkpoint("step_9.safetensors", {"0.weight": torch.zeros(6, 5)})
    done = flat(checkpoint=tiny.folder / "step_[39].safetensors")
    assert done.code == 5
    assert len(done.document["results"]) == 1


def test_a_criterion_that_is_not_convex(flat, cli, tiny):
    parts = {
        **RELU,
        "criterion": "lambda outputs, batch: outputs.square().square().sum(1).mean() "
        "- outputs.square().sum(1).mean()",
    }
    task = tiny.write_task("odd.py", **parts)
    done = flat("--loss", "task", task=task)
    assert done.code == 0, done.err
    assert "not convex" in done.err
    assert "ggn" not in done.values
    assert done.values["counts"] is None
    assert done.values["jacobian"]["null"] == 6
    (file,) = files(tiny)
    assert landscape.load(file).counts is None
    assert cli("plot", file, "-o", file.with_suffix(".png")).code == 0
    assert cli("show", file).code == 0
