"""``landscape collect``: from results to a series, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from landscape.series_store import load_series

STEPS = (0, 1, 5, 30)


@pytest.fixture
def results(cli, tiny, draw):
    """Results of four checkpoints, with eigenvectors."""
    for step in STEPS:
        tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
    done = cli(
        *("hessian", tiny.folder / "runs" / "*", "--task", tiny.task, "--top", 3),
        *("--save-vectors", "-o", tiny.folder / "out", "--json"),
    )
    assert done.code == 0, done.err
    return [entry["file"] for entry in done.document["results"]]


@pytest.fixture
def series(tiny):
    """Where the series is written."""
    return tiny.folder / "series.h5"


class TestCollect:
    def test_a_quoted_glob(self, cli, tiny, results, series):
        done = cli("collect", tiny.folder / "out" / "*.h5", "-o", series)
        assert done.code == 0
        assert done.err == f"series: {series} (4 checkpoints)\n"
        assert "hessian over training" in done.out
        loaded = load_series(series)
        assert loaded.step.tolist() == list(STEPS)
        overlap = loaded.operators["hessian"].overlap
        assert ((overlap[1:] > 0) & (overlap[1:] < 1)).all()

    def test_json(self, cli, results, series):
        done = cli("collect", *results, "-o", series, "--json")
        assert done.code == 0
        assert done.document["command"] == "collect"
        (entry,) = done.document["results"]
        assert set(entry) == {
            *("file", "checkpoint", "step", "status", "new", "config", "values", "warnings")
        }
        assert entry["new"] is True
        values = entry["values"]
        assert values["step"] == list(STEPS)
        assert values["hessian"]["overlap"][0] is None
        assert len(values["hessian"]["eigenvalues"]) == 4
        assert values["hessian"]["trace"]["lower"] == values["hessian"]["trace"]["value"]
        json.dumps(done.document, allow_nan=False)

    def test_again_does_nothing(self, cli, results, series):
        cli("collect", *results, "-o", series)
        before = series.stat()
        done = cli("collect", *reversed(results), "-o", series)
        assert done.code == 0
        assert "nothing to do" in done.err
        assert series.stat().st_mtime_ns == before.st_mtime_ns

    def test_another_content_needs_overwrite(self, cli, results, series):
        cli("collect", *results[:3], "-o", series)
        before = series.read_bytes()
        done = cli("collect", *results, "-o", series)
        assert done.code == 2
        assert "--overwrite" in done.errors[0]
        assert series.read_bytes() == before
        assert cli("collect", *results, "-o", series, "--overwrite").code == 0
        assert len(load_series(series).step) == 4

    def test_the_series_of_the_last_run_is_left_out(self, cli, tiny, results):
        out = tiny.folder / "out" / "series.h5"
        for _ in range(2):
            done = cli("collect", tiny.folder / "out" / "*.h5", "-o", out)
            assert done.code == 0, done.err
        assert "left out: it is a series itself" in done.err
        assert "nothing to do" in done.err

    def test_a_result_named_twice_counts_once(self, cli, tiny, results, series):
        copy = tiny.folder / "copy.h5"
        shutil.copy(results[0], copy)
        done = cli("collect", results[0], *results, copy, "-o", series)
        assert done.code == 0
        assert f"{copy} is left out" in done.err
        assert len(load_series(series).step) == 4

    def test_quiet(self, cli, results, series):
        done = cli("collect", *results, "-o", series, "-q")
        assert (done.code, done.err) == (0, "")

    def test_without_vectors_there_is_a_warning(self, cli, tiny, series):
        command = ("hessian", tiny.folder / "*.safetensors", "--task", tiny.task)
        tiny.write_checkpoint("step_8.safetensors", {})
        shutil.copy(tiny.checkpoint, tiny.folder / "step_8.safetensors")
        cli(*command, "-o", tiny.folder / "out")
        done = cli("collect", tiny.folder / "out" / "*.h5", "-o", series)
        assert done.code == 0
        assert "warning: hessian: 2 of 2 results hold no eigenvectors" in done.err


class TestRefused:
    def test_one_corrupt_result_among_many_is_named(self, cli, tiny, results, series):
        broken = tiny.folder / "out" / "broken.h5"
        with open(results[0], "rb") as file:
            broken.write_bytes(file.read()[:5000])
        done = cli("collect", tiny.folder / "out" / "*.h5", "-o", series)
        assert done.code == 2
        (error,) = done.errors
        assert str(broken) in error
        assert not series.exists()

    def test_no_match(self, cli, tiny, series):
        done = cli("collect", tiny.folder / "nothing*.h5", "-o", series)
        assert done.code == 2
        assert "no such file and no match" in done.errors[0]

    def test_mixed_configurations(self, cli, tiny, results, series):
        done = cli(
            *("hessian", tiny.checkpoint, "--task", tiny.task, "--loss", "behaviour"),
            *("-o", tiny.folder / "other"),
        )
        assert done.code == 0
        done = cli("collect", *results, tiny.folder / "other" / "*.h5", "-o", series, "--json")
        assert done.code == 2
        (error,) = done.document["errors"]
        assert error["exit_code"] == 2
        assert "--loss" in error["message"]
        assert not series.exists()

    @pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=str)
    def test_a_result_is_never_replaced(self, cli, results, options):
        for given in (results, results[1:]):
            done = cli("collect", *given, "-o", results[0], *options)
            assert done.code == 2
            assert results[0] in done.errors[0]
        assert cli("show", results[0]).code == 0

    def test_another_file_needs_overwrite(self, cli, results, series):
        series.write_text("mine")
        done = cli("collect", *results, "-o", series)
        assert done.code == 2
        assert series.read_text() == "mine"
        assert cli("collect", *results, "-o", series, "--overwrite").code == 0

    def test_unwritable(self, cli, tiny, results):
        done = cli("collect", *results, "-o", tiny.checkpoint / "series.h5")
        assert done.code == 2
        assert "cannot write" in done.errors[0]
        assert cli("collect", *results, "-o", tiny.folder, "--overwrite").code == 2

    def test_only_series(self, cli, results, series):
        cli("collect", *results, "-o", series)
        done = cli("collect", series, "-o", series)
        assert done.code == 2
        assert "no result to collect" in done.errors[0]


class TestShowAndPlot:
    def test_show_has_a_row_per_step(self, cli, results, series):
        collected = cli("collect", *results, "-o", series, "--json")
        done = cli("show", series)
        assert (done.code, done.err) == (0, "")
        rows = [line for line in done.out.splitlines() if line.startswith("│")]
        assert [int(row.split("│")[1]) for row in rows] == list(STEPS)
        assert cli("show", series, "--json").values == collected.values

    def test_show_of_a_series_has_no_sums(self, cli, results, series):
        cli("collect", *results, "-o", series)
        done = cli("show", series, "--threshold", "0.1")
        assert done.code == 2
        assert "--threshold" in done.errors[0]

    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_plot(self, cli, tiny, results, series, ending):
        cli("collect", *results, "-o", series)
        figure = tiny.folder / f"series.{ending}"
        done = cli("plot", series, "-o", figure)
        assert done.code == 0, done.err
        assert figure.stat().st_size > 5000

    def test_plot_refuses_a_series_among_results(self, cli, tiny, results, series):
        cli("collect", *results, "-o", series)
        done = cli("plot", series, *results, "-o", tiny.folder / "f.png")
        assert done.code == 2
        assert str(series) in done.errors[0]

    def test_per_module(self, cli, tiny, draw, series):
        for step in (1, 2):
            tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
        done = cli(
            *("hessian", tiny.folder / "runs" / "*", "--task", tiny.task, "--per-module"),
            *("--top", 3, "--save-vectors", "-o", tiny.folder / "out"),
        )
        assert done.code == 0, done.err
        done = cli("collect", tiny.folder / "out" / "*.h5", "-o", series, "--json")
        assert done.code == 0, done.err
        blocks = [name for name in done.values if "/modules/" in name]
        assert len(blocks) == 2
        assert all(done.values[name]["n"] < 26 for name in blocks)
        assert "2 diagonal blocks" in cli("show", series).out
        assert cli("plot", series).code == 0
