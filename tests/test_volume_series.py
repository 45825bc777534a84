"""Log-volumes over training: agreement, files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xarray
from annealings import annealed_result
from volumes import CUTOFFS, volume_result

import landscape
from landscape.errors import ResultFileError, UsageError
from landscape.results import HessianResult
from landscape.series import collect
from landscape.series_store import collect_files, content, kind_of, load_series, save_series
from landscape.store import load, save
from landscape.volume_series import MethodSeries, VolumeSeries


def steps_of(*steps: int | None, **options: object):
    return [volume_result(step, shift=-(step or 0), **options) for step in steps]


def hessian_result() -> HessianResult:
    result = volume_result(3)
    return HessianResult(info=dataclasses.replace(result.info, command="hessian"), spectra={})


class TestTable:
    def test_is_in_the_order_of_the_steps(self):
        series = collect(steps_of(100, 0, 7))
        assert isinstance(series, VolumeSeries)
        assert series.step.tolist() == [0, 7, 100]
        assert series.checkpoint == ("step_0.pt", "step_7.pt", "step_100.pt")
        assert series.cutoff.tolist() == list(CUTOFFS)
        assert set(series.methods) == {"quadratic", "radial"}
        expected = 2 * np.log(CUTOFFS) - 20 - np.array([[0], [7], [100]])
        for name, method in series.methods.items():
            np.testing.assert_array_equal(method.log_volume, expected, err_msg=name)
        radial = series.methods["radial"]
        np.testing.assert_allclose(radial.upper - radial.lower, np.full((3, 3), 2.0))
        assert np.isnan(radial.width).all()
        quadratic = series.methods["quadratic"]
        parts = quadratic.width + quadratic.location + quadratic.remainder
        np.testing.assert_allclose(parts, expected)
        assert series.n_forward.tolist() == [40] * 3
        assert series.warnings == series.notices == ()

    def test_directions_of_every_class(self):
        series = collect(steps_of(0, 7))
        np.testing.assert_array_equal(series.counts, np.tile([1, 2.5, 4.5], (2, 3, 1)))
        np.testing.assert_allclose(series.nats[0, 0, 0], np.log1p(1e6) / 2)
        without = collect([volume_result(0), volume_result(1, table=False)])
        assert np.isnan(without.counts[1]).all()
        assert np.isfinite(without.counts[0]).all()

    def test_the_most_complete_result_of_a_checkpoint_is_kept(self):
        whole, cut = volume_result(5), volume_result(5, status="budget")
        shard = volume_result(5, config={"shard": [1, 2]})
        for order in ([cut, shard, whole], [whole, shard, cut], [shard, whole, cut]):
            series = collect([volume_result(0), *order], sources=["0", *map(str, range(1, 4))])
            assert series.step.tolist() == [0, 5]
            assert series.source[1] == str(1 + [id(o) for o in order].index(id(whole)))
            assert len(series.notices) == 2

    def test_of_two_complete_results_the_one_of_more_rays_is_kept(self):
        few = volume_result(5)
        radial = few.estimates["radial"]
        many = dataclasses.replace(radial, n_samples=radial.n_samples + 96)
        better = dataclasses.replace(few, estimates={**few.estimates, "radial": many})
        for order in ([few, better], [better, few]):
            assert collect(order).methods["radial"].n_samples.tolist() == [[100] * 3]

    def test_an_unmerged_shard_is_told(self):
        shard = volume_result(5, config={"shard": [1, 2]})
        (warning,) = collect([volume_result(0), shard], sources=["a.h5", "b.h5"]).warnings
        assert "b.h5 holds the rays of shard 1/2 only" in warning
        assert "--merge" in warning


class TestAnneal:
    """``--method auto`` anneals only where that is cheap: some results have a value, some none."""

    def mixed(self):
        return [
            volume_result(0, methods=("quadratic",)),
            annealed_result(1),
            annealed_result(2, converged=False),
        ]

    def test_none_is_nan(self):
        series = collect(self.mixed())
        assert list(series.methods) == ["quadratic", "anneal"]
        method = series.methods["anneal"]
        for field in dataclasses.fields(MethodSeries)[1:]:
            values = getattr(method, field.name)
            assert values.shape == (3, 3), field.name
            assert values.dtype == getattr(series.methods["quadratic"], field.name).dtype
        assert np.isnan(method.log_volume).tolist() == [[True] * 3, [False] * 3, [False] * 3]
        assert np.isnan(method.upper[0]).all()
        assert np.isposinf(method.upper[2]).all()
        assert method.lower_bound.tolist() == [[False] * 3, [False] * 3, [True] * 3]
        assert method.n_samples[:, 0].tolist() == [0, 8, 8]
        assert np.isfinite(series.methods["quadratic"].log_volume).all()

    def test_it_is_told(self):
        (warning,) = collect(self.mixed()).warnings
        assert warning.startswith("--method anneal differs between results")
        assert collect(self.mixed()[1:]).warnings == ()

    def test_round_trip(self, tmp_path):
        series = collect(self.mixed())
        save_series(tmp_path / "s.h5", series)
        assert content(load_series(tmp_path / "s.h5")) == content(series)

    def test_other_methods_must_agree_all_the_same(self):
        for other in (annealed_result(1, methods=()), annealed_result(1, methods=("radial",))):
            with pytest.raises(UsageError, match="--method"):
                collect([volume_result(0, methods=("quadratic",)), other])

    def test_of_two_results_the_one_that_was_annealed_is_kept(self):
        without = volume_result(1, methods=("quadratic",))
        for order in ([without, annealed_result(1)], [annealed_result(1), without]):
            assert "anneal" in collect(order).methods


class TestRefusal:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"config": {"loss": "task"}}, "--loss"),
            ({"config": {"params": ["a.*"]}}, "--params"),
            ({"config": {"examples": 5}}, "--examples"),
            ({"config": {"prior": "uniform"}}, "--prior"),
            ({"config": {"mean": "anchor"}}, "--mean"),
            ({"config": {"sigma": [0.25]}}, "--sigma"),
            ({"config": {"half_width": 1.0}}, "--half-width"),
            ({"config": {"uniform": "ball"}}, "--uniform"),
            ({"config": {"tether": 2.0}}, "--tether"),
            ({"config": {"curvature": "hessian"}}, "--curvature"),
            ({"methods": ("radial",)}, "--method"),
            ({"cutoffs": (0.01, 0.1, 0.5)}, "--cutoff"),
            ({"cutoffs": (0.01,)}, "--cutoff"),
            ({"indices": np.arange(3)}, "--seed"),
        ],
        ids=str,
    )
    def test_of_different_measurements_names_what_differs(self, change, named):
        with pytest.raises(UsageError, match=named) as caught:
            collect([volume_result(0), volume_result(1, **change)], sources=["a.h5", "b.h5"])
        assert "a.h5" in str(caught.value)
        assert "b.h5" in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"config": {"route": "lanczos"}}, "--exact"),
            ({"config": {"directions": "symmetric"}}, "--directions"),
            ({"dtype": "float32"}, "--dtype"),
            ({"status": "budget"}, "--budget"),
        ],
        ids=str,
    )
    def test_of_precision_is_only_a_warning(self, change, named):
        series = collect([volume_result(0), volume_result(1, **change)])
        assert any(named in warning for warning in series.warnings)

    def test_of_results_of_two_commands(self):
        for pair in ([volume_result(0), hessian_result()], [hessian_result(), volume_result(0)]):
            with pytest.raises(UsageError, match="Collect each kind by itself") as caught:
                collect(pair, sources=["a.h5", "b.h5"])
            assert "landscape volume" in str(caught.value)
            assert "landscape hessian" in str(caught.value)


class TestFile:
    @pytest.fixture
    def series(self):
        return collect(steps_of(0, 1, 10, 100, checkpoint="ü\udcff.pt"))

    def test_round_trip(self, series, tmp_path):
        path = tmp_path / "new" / "series.h5"
        save_series(path, series)
        loaded = landscape.load_series(path)
        assert kind_of(path) == "series"
        assert content(loaded) == content(series)
        for name in ("step", "cutoff", "loss", "n_forward", "counts", "nats"):
            one, two = getattr(loaded, name), getattr(series, name)
            np.testing.assert_array_equal(one, two, err_msg=name)
            assert one.dtype == two.dtype
        assert list(loaded.methods) == list(series.methods)
        for name, method in series.methods.items():
            for field in dataclasses.fields(MethodSeries):
                one, two = getattr(loaded.methods[name], field.name), getattr(method, field.name)
                np.testing.assert_array_equal(one, two, err_msg=field.name)
                assert np.asarray(one).dtype == np.asarray(two).dtype
        assert loaded.config == dict(series.config)

    def test_content_depends_on_every_number_but_not_on_the_files(self, series):
        assert content(dataclasses.replace(series, source=("x",) * 4)) == content(series)
        changed = np.array(series.methods["radial"].stderr)
        changed[2, 1] += 1e-15
        radial = dataclasses.replace(series.methods["radial"], stderr=changed)
        methods = {**series.methods, "radial": radial}
        assert content(dataclasses.replace(series, methods=methods)) != content(series)
        counts = np.where(series.counts == 1, 2, series.counts)
        assert content(dataclasses.replace(series, counts=counts)) != content(series)

    def test_xarray_reads_it(self, series, tmp_path):
        path = tmp_path / "series.h5"
        save_series(path, series)
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            node = tree["volume/quadratic"]
            assert node["log_volume"].dims == ("step", "cutoff")
            value = node["log_volume"].sel(step=10, cutoff=0.1).item()
            assert value == pytest.approx(2 * np.log(0.1) - 30)
            assert node["lower_bound"].dtype == bool
            classes = tree["classes"]
            assert classes["counts"].dims == ("step", "cutoff", "class")
            assert [str(name) for name in classes["class"].values.astype(str)] == [
                *("steep", "intermediate", "flat")
            ]
            assert tree["run"]["n_forward"].values.tolist() == [40] * 4

    @pytest.mark.parametrize(
        "damage",
        [
            lambda f: f["run"].__delitem__("n_forward"),
            lambda f: f["volume/radial"].__delitem__("lower"),
            lambda f: f["volume/radial"].__delitem__("cutoff"),
            lambda f: f["volume/radial/cutoff"].__setitem__(0, 0.5),
            lambda f: f.__delitem__("classes"),
            lambda f: f["classes"].__delitem__("nats"),
            lambda f: (
                f["classes"].__delitem__("nats"),
                f["classes"].create_dataset("nats", data=np.zeros((4, 3))),
            ),
            lambda f: f.__delitem__("volume"),
            lambda f: f.attrs.__setitem__("of", "hessian"),
            lambda f: f["volume"].__setitem__("outside", h5py.ExternalLink("x.h5", "/")),
        ],
    )
    def test_damage_is_an_error_that_names_the_file(self, series, tmp_path, damage):
        path = tmp_path / "series.h5"
        save_series(path, series)
        with h5py.File(path, "r+") as file:
            damage(file)
        with pytest.raises(ResultFileError, match=r"series\.h5"):
            load_series(path)

    def test_from_files(self, tmp_path):
        paths = [tmp_path / f"{step}.h5" for step in (5, 1)]
        for path in paths:
            save(path, volume_result(int(path.stem)))
        series = collect_files(paths)
        assert series.source == (str(paths[1]), str(paths[0]))
        assert content(series) == content(collect([load(path) for path in paths]))

    @pytest.mark.parametrize("name", ["volume/quadratic/cutoff", "directions/cutoff"])
    def test_a_result_of_different_cutoffs_is_damaged(self, tmp_path, name):
        path = tmp_path / "a.h5"
        save(path, volume_result())
        with h5py.File(path, "r+") as file:
            file[name][0] = 0.5
        with pytest.raises(ResultFileError, match="cutoffs"):
            load(path)

    def test_a_result_without_a_method_is_damaged(self, tmp_path):
        path = tmp_path / "a.h5"
        save(path, volume_result())
        with h5py.File(path, "r+") as file:
            for name in list(file["volume"]):
                del file["volume"][name]
        with pytest.raises(ResultFileError, match="no method"):
            load(path)


def test_nothing_of_it_imports_torch():
    code = (
        "import sys, json, landscape.series_store, landscape.volume_series_plot, "
        "landscape.volume_plot; print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
