"""``landscape collect`` with log-volumes: series over training, and shards merged to one result."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest

import landscape
from landscape.series_store import load_series

STEPS = (0, 5, 30)
CUTOFFS = ("--cutoff", "0.01,0.1,1")
METHODS = ("--method", "quadratic", "--method", "radial")


@pytest.fixture
def volume(cli, tiny):
    """``landscape volume`` into a folder; the result files."""

    def command(folder, *arguments, checkpoints=None):
        done = cli(
            *("volume", tiny.checkpoint if checkpoints is None else checkpoints),
            *("--task", tiny.task, "-o", folder, "--samples", 12, "--error", 100, "--json"),
            *METHODS,
            *CUTOFFS,
            *arguments,
        )
        assert done.code == 0, done.err
        return [entry["file"] for entry in done.document["results"]]

    return command


class TestSeries:
    @pytest.fixture
    def results(self, volume, tiny, draw):
        for step in STEPS:
            tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
        return volume(tiny.folder / "out", checkpoints=tiny.folder / "runs" / "*")

    @pytest.fixture
    def series(self, tiny):
        return tiny.folder / "series.h5"

    def test_collect_show_and_plot(self, cli, tiny, results, series):
        done = cli("collect", tiny.folder / "out" / "*.h5", "-o", series, "--json")
        assert done.code == 0, done.err
        (entry,) = done.document["results"]
        assert entry["new"] is True
        values = entry["values"]
        assert values["step"] == list(STEPS)
        assert values["cutoff"] == [0.01, 0.1, 1]
        loaded = [landscape.load(file) for file in results]
        for name in ("quadratic", "radial"):
            for part in ("log_volume", "stderr", "effective_dimension"):
                expected = np.stack([getattr(r.estimates[name], part) for r in loaded])
                np.testing.assert_array_equal(np.array(values[name][part], dtype=float), expected)
        counts = [values["directions"][name]["count"] for name in ("steep", "intermediate", "flat")]
        np.testing.assert_allclose(np.sum(counts, axis=0), np.full((3, 3), 26.0))
        json.dumps(done.document, allow_nan=False)

        shown = cli("show", series)
        assert shown.code == 0
        assert shown.out.count("log V in nats at cutoff") == 3
        rows = [line for line in shown.out.splitlines() if line.startswith("│")]
        assert [int(row.split("│")[1]) for row in rows] == [*STEPS] * 3
        assert cli("show", series, "--json").values == values

        figure = tiny.folder / "series.png"
        assert cli("plot", series, "-o", figure).code == 0
        assert cli("plot", *results, "-o", tiny.folder / "results.png").code == 0
        assert figure.read_bytes() == (tiny.folder / "results.png").read_bytes()
        assert cli("plot", results[0], "-o", tiny.folder / "one.pdf").code == 0

        again = cli("collect", *reversed(results), "-o", series)
        assert "nothing to do" in again.err
        assert cli("collect", *results[1:], "-o", series).code == 2

    def test_the_two_kinds_apart(self, cli, tiny, results, series):
        done = cli(
            "hessian", tiny.folder / "runs" / "*", "--task", tiny.task, "-o", series.parent / "h"
        )
        assert done.code == 0, done.err
        both = (*results, tiny.folder / "h" / "*.h5")
        done = cli("collect", *both, "-o", series)
        assert done.code == 2
        assert "Collect each kind by itself" in done.errors[0]
        assert not series.exists()
        spectra = sorted((tiny.folder / "h").iterdir())
        done = cli("plot", *results, *spectra, "-o", tiny.folder / "x.png")
        assert done.code == 2
        assert "Draw each kind by itself" in done.errors[0]
        assert cli("collect", tiny.folder / "h" / "*.h5", "-o", series).code == 0
        assert cli("collect", *results, "-o", series).code == 2  # A series of other content.

    def test_show_of_a_series_has_no_sums(self, cli, results, series):
        cli("collect", *results, "-o", series)
        done = cli("show", series, "--threshold", "0.1")
        assert done.code == 2
        assert "--threshold" in done.errors[0]

    def test_text_from_the_file_is_escaped(self, cli, results, series):
        cli("collect", *results, "-o", series)
        with h5py.File(series, "r+") as file:
            forged = "[red]x[/red] \x1b[31m"
            for name in ("prior", "mean", "tether", "units", "loss"):
                file.attrs["config"] = json.dumps(json.loads(file.attrs["config"]) | {name: forged})
            file.attrs["task"] = forged
            file.move("volume/radial", f"volume/{forged.replace('/', '|')}")
        done = cli("show", series)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out + done.err
        assert "[red]x" in done.out
        assert cli("plot", series, "-o", series.with_suffix(".png")).code == 0

    @pytest.mark.parametrize("command", ["show", "plot"])
    def test_damage(self, cli, results, series, command):
        cli("collect", *results, "-o", series)
        with h5py.File(series, "r+") as file:
            del file["volume/radial/lower"]
        done = cli(command, series)
        assert done.code == 2
        assert str(series) in done.errors[0]


class TestMerge:
    @pytest.fixture
    def shards(self, volume, tiny):
        """Three shards of one run."""
        parts = [volume(tiny.folder / "out", "--shard", f"{i}/3") for i in (1, 2, 3)]
        return [file for part in parts for file in part]

    @pytest.fixture
    def merged(self, shards):
        """Where they are merged to."""
        return shards[0].replace(".1-of-3", "")

    def equal(self, one, two):
        one, two = landscape.load(one), landscape.load(two)
        records = [(one.rays, two.rays), (one.directions, two.directions)]
        assert list(one.estimates) == list(two.estimates) == ["quadratic", "radial"]
        records += [(one.estimates[name], two.estimates[name]) for name in one.estimates]
        for left, right in records:
            for name, value in vars(left).items():
                np.testing.assert_array_equal(value, getattr(right, name), err_msg=name)
        for name in ("key", "config", "status", "n_parameters", "warnings"):
            assert getattr(one.info, name) == getattr(two.info, name), name

    def test_is_bit_for_bit_one_run(self, cli, volume, tiny, shards, merged):
        done = cli("collect", "--merge", *reversed(shards))
        assert done.code == 0, done.err
        assert f"merged 3 results: {merged}" in done.err
        (whole,) = volume(tiny.folder / "whole")
        self.equal(merged, whole)
        costs = [landscape.load(file).info for file in shards]
        info = landscape.load(merged).info
        for name in ("wall_seconds", "n_forward", "n_matvecs"):
            assert getattr(info, name) == pytest.approx(sum(getattr(c, name) for c in costs))
        assert cli("show", merged).code == 0

    def test_is_a_complete_result_of_the_command(self, cli, tiny, shards, merged):
        cli("collect", "--merge", tiny.folder / "out" / "*.h5")
        command = (
            "volume",
            tiny.checkpoint,
            "--task",
            tiny.task,
            "-o",
            tiny.folder / "out",
            *METHODS,
        )
        command += ("--samples", 12, "--error", 100, *CUTOFFS)
        done = cli(*command)
        assert "nothing to do" in done.err
        # Without merging it would have been measured.
        assert merged in done.err

    def test_again_does_nothing(self, cli, tiny, shards, merged):
        every = tiny.folder / "out" / "*.h5"
        assert cli("collect", "--merge", every).code == 0
        with open(merged, "rb") as file:
            before = file.read()
        done = cli("collect", "--merge", every)
        assert done.code == 0, done.err
        assert f"{merged} is left out" in done.err
        assert "nothing to do" in done.err
        with open(merged, "rb") as file:
            assert file.read() == before

    def test_shards_that_come_later(self, cli, volume, tiny, shards, merged):
        done = cli("collect", "--merge", *shards[:2])
        assert done.code == 0
        assert "warning: radial: 4 of 12 rays are missing (2, 5, 8, 11)" in done.err
        # What was merged can go on with the last shard alone.
        done = cli("collect", "--merge", merged, shards[2])
        assert done.code == 0, done.err
        assert "missing" not in done.err
        (whole,) = volume(tiny.folder / "whole")
        self.equal(merged, whole)
        done = cli("collect", "--merge", *shards[:2])
        assert done.code == 2
        assert "holds rays that are not among these" in done.errors[0]
        assert cli("collect", "--merge", *shards[:2], "--overwrite").code == 0
        assert len(landscape.load(merged).rays.index) == 8

    def test_missing_rays_are_found_by_the_command(self, cli, volume, tiny, shards, merged):
        cli("collect", "--merge", shards[0], shards[2])
        (again,) = volume(tiny.folder / "out")
        assert again == merged
        (whole,) = volume(tiny.folder / "whole")
        self.equal(merged, whole)

    def test_out(self, cli, tiny, shards, merged):
        out = tiny.folder / "new" / "merged.h5"
        done = cli("collect", "--merge", *shards, "-o", out, "--json")
        assert done.code == 0, done.err
        (entry,) = done.document["results"]
        assert entry["file"] == str(out)
        assert entry["config"]["samples"] == 12
        assert entry["config"]["shard"] is None
        assert len(landscape.load(out).rays.index) == 12

    def test_what_is_not_of_one_run(self, cli, volume, tiny, draw, shards):
        copy = tiny.folder / "copy.h5"
        shutil.copy(shards[0], copy)
        done = cli("collect", "--merge", *shards, copy)
        assert done.code == 2
        assert "ray 0 is in" in done.errors[0]
        (other,) = volume(tiny.folder / "other", "--shard", "2/3", "--seed", 1)
        done = cli("collect", "--merge", shards[0], other)
        assert done.code == 2
        assert "different runs" in done.errors[0]
        done = cli(
            "hessian", tiny.checkpoint, "--task", tiny.task, "-o", tiny.folder / "h", "--json"
        )
        hessian = done.document["results"][0]["file"]
        for order in ((shards[0], hessian), (hessian, shards[0]), (hessian,)):
            done = cli("collect", "--merge", *order)
            assert done.code == 2
            assert f"{hessian} is a result of landscape hessian" in done.errors[0]

    @pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=str)
    def test_another_result_is_never_replaced(self, cli, volume, tiny, shards, options):
        (other,) = volume(tiny.folder / "other", "--seed", 1)
        done = cli("collect", "--merge", *shards, "-o", other, *options)
        assert done.code == 2
        assert "never replaced" in done.errors[0]

    def test_another_file_needs_overwrite(self, cli, tiny, shards):
        out = tiny.folder / "mine.h5"
        out.write_text("mine")
        assert cli("collect", "--merge", *shards, "-o", out).code == 2
        assert out.read_text() == "mine"
        assert cli("collect", "--merge", *shards, "-o", out, "--overwrite").code == 0
        assert cli("collect", "--merge", *shards, "-o", tiny.folder, "--overwrite").code == 2

    def test_damage(self, cli, shards):
        with h5py.File(shards[1], "r+") as file:
            del file["volume/radial/radius"]
        done = cli("collect", "--merge", *shards)
        assert done.code == 2
        assert shards[1] in done.errors[0]

    def test_unmerged_shards_in_a_series(self, cli, tiny, shards):
        out = tiny.folder / "series.h5"
        done = cli("collect", *shards, "-o", out)
        assert done.code == 0
        assert "holds the rays of shard 1/3 only" in done.err
        assert done.err.count("is left out") == 2
        done = cli("plot", *shards, "-o", tiny.folder / "x.png")
        assert done.code == 2
        assert "merge shards" in done.errors[0]
        cli("collect", "--merge", *shards)
        done = cli("collect", tiny.folder / "out" / "*.h5", "-o", out, "--overwrite")
        assert done.code == 0
        assert load_series(out).methods["radial"].n_samples.tolist() == [[12, 12, 12]]
        assert "holds the rays of shard" not in done.err
