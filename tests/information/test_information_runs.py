"""Whole measurements of information: resumed, stored, drawn and over a series."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from labelled_points import LABELS, N, X, network, probes, task_of
from scipy import stats

import landscape
from landscape.errors import ResultFileError, UsageError
from landscape.information.options import InformationOptions
from landscape.information.records import InformationResult
from landscape.information_plot import information_figure
from landscape.information_runs import InformationRun, information_of_data
from landscape.information_series import information_columns, rank_correlations
from landscape.measurement import prepared
from landscape.settings import Settings
from landscape.store import load, save
from landscape.units import MemoryUnits


def _nothing(outputs, batch):
    return 0 * outputs.sum()


class Interrupted(MemoryUnits):
    """Stores at once, and ends after some units."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def due(self):
        return True

    def put(self, name, unit):
        super().put(name, unit)
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def run_of(loss="task", **options):
    settings = Settings(loss=loss, seed=3)
    return InformationRun(
        **prepared(task_of(), None, settings, None), options=InformationOptions(**options)
    )


def same(a, b):
    for kind in ("gradients", "split"):
        one, two = (dataclasses.asdict(getattr(r, kind)) for r in (a, b))
        np.testing.assert_equal(one, two)
    np.testing.assert_equal(a.activations, b.activations)


class TestRuns:
    @pytest.mark.parametrize("loss", ["task", "behaviour"])
    @pytest.mark.parametrize("method", ["exact", "probes"])
    def test_interrupted_and_continued(self, loss, method):
        options = {"method": method, "probes": 3, "steps": 5}
        whole = run_of(loss, **options).measure()
        ends = 0
        units = Interrupted(0)
        while True:
            try:
                found = run_of(loss, **options).measure(units=units)
                break
            except KeyboardInterrupt:
                ends, units.left = ends + 1, ends % 3
        assert ends >= 2
        same(found, whole)

    def test_more_probes_continue(self):
        from landscape_cli.information_job import InformationJob

        few, many = (run_of(method="probes", probes=n, steps=5) for n in (2, 5))
        assert few.key == many.key != run_of(method="probes", steps=6).key
        earlier = few.measure()
        assert many.missing(earlier)
        assert not few.missing(earlier)
        units = MemoryUnits()
        InformationJob(many.options).extend(earlier, many, units)
        same(many.measure(units=units), run_of(method="probes", probes=5, steps=5).measure())

    def test_seeds_and_data_are_in_the_key(self):
        task, settings = task_of(), Settings(examples=6)
        keys = {
            InformationRun(**prepared(task, None, s, None), options=InformationOptions()).key
            for s in (settings, dataclasses.replace(settings, data_seed=1), Settings())
        }
        assert len(keys) == 3
        result = information_of_data(task, settings=settings)
        assert len(result.indices) == 6 == result.info.n_examples

    def test_refused(self):
        with pytest.raises(UsageError, match="bfloat16: expected float64 or float32"):
            information_of_data(task_of(), settings=Settings(dtype="bfloat16"))
        with pytest.raises(UsageError, match=r"--method exact: .* up to 4096"):
            information_of_data(
                task_of(network(hidden=600)), options=InformationOptions(method="exact")
            )

    def test_float32(self):
        result = information_of_data(task_of(), settings=Settings(dtype="float32"))
        double = information_of_data(task_of())
        assert result.gradients.ranks[0].entropy == pytest.approx(
            double.gradients.ranks[0].entropy, rel=1e-4
        )
        assert result.gradients.tolerance == 1e-5


@pytest.fixture(scope="module")
def result():
    return information_of_data(task_of(), options=probes(3, steps=5))


class TestFiles:
    def test_round_trip(self, file, result):
        stored = landscape.load(file)
        assert isinstance(stored, InformationResult)
        same(stored, result)

    def test_xarray(self, file):
        import xarray

        tree = xarray.open_datatree(file, engine="h5netcdf")
        assert tree["gradients"]["kernel"].shape == (N, N)
        assert tree["split"]["squares"].dims == ("probe", "block", "part")
        tree.close()

    @pytest.mark.parametrize(
        "name",
        [
            *("gradients", "gradients/kernel", "gradients/eigenvalues", "gradient_ranks/rank"),
            *("activation_ranks/layer", "split", "split/squares", "split_norms/ratio"),
        ],
    )
    def test_damaged(self, file, name):
        import h5py

        with h5py.File(file, "a") as opened:
            del opened[name]
        with pytest.raises(ResultFileError, match="damaged"):
            load(file)

    def test_figures(self, result, tmp_path):
        from landscape.plotting import plot_results

        exact = information_of_data(task_of(), settings=Settings(loss="behaviour"))
        assert len(information_figure([exact]).axes) == 4  # With the colour bar.
        assert len(information_figure([result, exact]).axes) == 3
        save(tmp_path / "a.h5", result)
        plot_results([tmp_path / "a.h5"], tmp_path / "a.svg")
        assert (tmp_path / "a.svg").stat().st_size > 1000

    def test_figures_of_nothing(self):
        flat = information_of_data(task_of(criterion=_nothing))
        assert flat.gradients.ranks[0].rank == 0
        assert math.isnan(flat.gradients.ranks[0].entropy)
        assert math.isnan(flat.split.norms[0].ratio)
        single = information_of_data(task_of(inputs=X[:1], targets=LABELS[:1]))
        assert single.gradients.ranks[0].rank == 1 == len(single.gradients.kernel)
        assert [row.rank for row in single.activations] == [0, 0]  # Nothing differs.
        for results in ([flat], [single], [flat, flat]):
            information_figure(results).draw_without_rendering()


class TestSeries:
    def test_columns(self, result):
        columns = information_columns([result, result])
        assert columns["gradients: rank"].tolist() == [N, N]
        assert "activations of 2: entropy" in columns

    def test_correlations(self):
        generator = np.random.default_rng(0)
        x, y = generator.normal(size=(2, 12))
        y[3] = np.nan
        found = rank_correlations({"x": x}, {"up": np.exp(x), "y": y, "flat": 0 * x})
        up, other, flat = found
        assert (up.rho, up.lower, up.upper, up.n) == pytest.approx((1, 1, 1, 12))
        known = np.isfinite(y)
        expected = stats.spearmanr(x[known], y[known]).statistic
        assert other.rho == pytest.approx(expected)
        assert other.lower < other.rho < other.upper
        assert other.n == 11
        assert math.isnan(flat.rho)
        assert math.isnan(flat.lower)

    def test_the_interval_covers(self):
        """Of independent pairs of a Gaussian with correlation r: rho is 6/pi asin(r/2)."""
        generator = np.random.default_rng(1)
        r, runs, inside = 0.6, 120, 0
        truth = 6 / math.pi * math.asin(r / 2)
        for seed in range(runs):
            x, z = generator.normal(size=(2, 40))
            y = r * x + math.sqrt(1 - r * r) * z
            [found] = rank_correlations({"x": x}, {"y": y}, resamples=200, seed=seed)
            inside += found.lower <= truth <= found.upper
        assert 0.86 <= inside / runs <= 1

    def test_too_few(self):
        with pytest.raises(UsageError, match="only 3 checkpoints"):
            rank_correlations({"x": np.arange(4.0)}, {"y": np.array([1, 2, np.nan, 3])})
