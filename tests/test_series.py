"""Series over training: closed-form checks on made-up results, files and figures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xarray
from records import made_up_run

from landscape.errors import ResultFileError, UsageError
from landscape.log_density import counts_per_decade, log_grid
from landscape.plotting import plot_results
from landscape.results import Density, Estimate, HessianResult, Moments, Spectrum
from landscape.series import collect, subspace_overlap
from landscape.series_plot import series_figure
from landscape.series_store import collect_files, content, kind_of, load_series, save_series
from landscape.step_axis import step_edges
from landscape.store import load, save

N = 6
VALUES = np.array([4.0, 2.0, 0.5, 0.01, 0.0, -0.1])


def rotation(angle: float) -> np.ndarray:
    """The identity but for a rotation of the axes 1 and 3."""
    matrix = np.eye(N)
    matrix[1, 1] = matrix[3, 3] = np.cos(angle)
    matrix[1, 3], matrix[3, 1] = np.sin(angle), -np.sin(angle)
    return matrix


def exactly(value: float) -> Estimate:
    return Estimate(value=value, stderr=0.0, lower=value, upper=value)


def made_up(
    step: int | None,
    *,
    values: np.ndarray = VALUES,
    top: int = 2,
    bottom: int = 0,
    vectors: np.ndarray | None = None,
    exact: bool = True,
    density: bool = True,
    name: str = "hessian",
    config: dict | None = None,
    indices: np.ndarray | None = None,
    **info: object,
) -> HessianResult:
    """The result of an operator with known eigenvalues."""
    n = len(values)
    kept = values if exact else np.concatenate([values[:top], values[n - bottom :]])
    spectrum = Spectrum(
        operator=name,
        method="dense" if exact else "lanczos",
        eigenvalues=kept,
        residuals=np.full(len(kept), 1e-12),
        converged=np.full(len(kept), True),
        tol=1e-8,
        top=top,
        bottom=bottom,
        orthogonality=0.0,
        symmetry=0.0,
        n_restarts=0,
        n_matvecs=n,
        eigenvectors=vectors,
    )
    nodes = values[None, :]
    found = Density(
        operator=name,
        nodes=nodes,
        weights=np.full(nodes.shape, 1 / n),
        grid=np.linspace(-1, 5, 5),
        density=np.zeros(5),
        stderr=np.zeros(5),
        bandwidth=0.1,
        n_deflated=n,
        n_matvecs=3,
    )
    moments = Moments(
        operator=name,
        trace=exactly(values.sum()),
        trace_square=exactly((values**2).sum()),
        negative_mass=exactly((values < -1e-6).mean()),
        near_zero_mass=exactly((np.abs(values) <= 1e-6).mean()),
        resolution=1e-6,
        n=n,
        n_probes=0,
    )
    return HessianResult(
        info=made_up_run(step, config=config, **{"n_parameters": n, **info}),
        spectra={name: spectrum},
        densities={name: found} if density else {},
        moments={name: moments} if density else {},
        indices=indices,
    )


def steps_of(*steps: int, **options: object) -> list[HessianResult]:
    return [made_up(step, **options) for step in steps]


class TestOverlap:
    @pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, np.pi / 2])
    def test_of_rotated_spaces(self, angle):
        """One of two directions turned by an angle: (1 + cos^2) / 2."""
        results = [
            made_up(0, vectors=np.eye(N)[:2]),
            made_up(1, vectors=rotation(angle)[:2]),
        ]
        overlap = collect(results).operators["hessian"].overlap
        assert np.isnan(overlap[0])
        assert overlap[1] == pytest.approx((1 + np.cos(angle) ** 2) / 2, abs=1e-14)

    def test_does_not_depend_on_the_basis_of_the_space(self):
        generator = np.random.default_rng(0)
        rows = np.linalg.qr(generator.normal(size=(20, 4)))[0].T
        turned = np.linalg.qr(generator.normal(size=(4, 4)))[0] @ rows
        assert subspace_overlap(rows, turned) == pytest.approx(1, abs=1e-14)
        assert subspace_overlap(rows, turned.astype(np.float32)) <= 1

    def test_of_random_spaces_is_k_over_n(self):
        generator = np.random.default_rng(0)
        found = []
        for _ in range(400):
            one, two = (np.linalg.qr(generator.normal(size=(30, 3)))[0].T for _ in range(2))
            found.append(subspace_overlap(one, two))
        assert np.mean(found) == pytest.approx(3 / 30, rel=0.1)

    def test_missing_vectors_are_nan_with_a_warning(self):
        space = np.eye(N)[:2]
        results = [made_up(s, vectors=v) for s, v in enumerate([space, None, space, space])]
        series = collect(results)
        np.testing.assert_array_equal(
            series.operators["hessian"].overlap, [np.nan, np.nan, np.nan, 1.0]
        )
        (warning,) = series.warnings
        assert "1 of 4 results hold no eigenvectors" in warning
        assert "--save-vectors" in warning

    def test_says_where_the_spaces_are_not_converged(self):
        results = [made_up(s, vectors=np.eye(N)[:2]) for s in range(4)]
        results[1].spectra["hessian"].converged[1] = False
        series = collect(results)
        operator = series.operators["hessian"]
        assert operator.overlap_converged.tolist() == [False, False, False, True]
        assert operator.converged[:, 1].tolist() == [True, False, True, True]
        assert "1 of 8 largest eigenvalues are not converged" in series.warnings[0]

    def test_uses_the_rows_of_the_largest(self):
        """Vectors of the smallest eigenvalues come after them."""
        one = np.eye(N)[[0, 1, 5]]
        two = np.eye(N)[[0, 1, 4]]
        results = [made_up(s, vectors=v, bottom=1, exact=False) for s, v in enumerate([one, two])]
        assert collect(results).operators["hessian"].overlap[1] == 1


class TestDensity:
    def test_counts_integrate_to_the_numbers_of_eigenvalues(self):
        operator = collect(steps_of(0, 5)).operators["hessian"]
        for row in range(2):
            assert np.trapezoid(operator.positive[row], operator.log_lambda) == pytest.approx(4)
            assert np.trapezoid(operator.negative[row], operator.log_lambda) == pytest.approx(1)
        both = np.trapezoid(operator.positive + operator.negative, operator.log_lambda, axis=1)
        np.testing.assert_allclose(both, N * (1 - operator.near_zero_mass.value), rtol=1e-6)

    def test_peaks_are_where_the_eigenvalues_are(self):
        operator = collect(steps_of(0)).operators["hessian"]
        at = 10 ** operator.log_lambda[operator.negative[0].argmax()]
        assert at == pytest.approx(0.1, rel=0.03)
        # One eigenvalue, smoothed by 0.1 decades.
        assert operator.negative[0].max() == pytest.approx(1 / (0.1 * np.sqrt(2 * np.pi)), rel=0.02)

    def test_probes_share_the_mean(self):
        density = dataclasses.replace(
            made_up(0).densities["hessian"],
            nodes=np.array([[1.0, 10.0], [1.0, -10.0]]),
            weights=np.array([[0.25, 0.75], [0.5, 0.5]]),
        )
        grid = log_grid([(density, 0.0)])
        positive, negative = counts_per_decade(density, grid, n=8, resolution=0.0)
        assert np.trapezoid(positive, grid) == pytest.approx(8 * (0.25 + 0.75 + 0.5) / 2)
        assert np.trapezoid(negative, grid) == pytest.approx(8 * 0.5 / 2)

    def test_of_the_zero_operator_is_empty(self):
        series = collect(steps_of(0, 1, values=np.zeros(N)))
        assert series.operators["hessian"].positive.shape == (2, 0)

    def test_is_nan_with_a_warning_where_some_have_none(self):
        series = collect([made_up(0), made_up(1, density=False)])
        operator = series.operators["hessian"]
        assert np.isnan(operator.positive[1]).all()
        assert np.isfinite(operator.positive[0]).all()
        assert np.isnan(operator.trace.value[1])
        assert operator.n_probes.tolist() == [0, -1]
        assert any("--no-density" in warning for warning in series.warnings)


class TestTable:
    def test_is_in_the_order_of_the_steps(self):
        series = collect(steps_of(100, 0, 7))
        assert series.step.tolist() == [0, 7, 100]
        assert series.checkpoint == ("step_0.pt", "step_7.pt", "step_100.pt")
        np.testing.assert_array_equal(series.loss, [1, 1 / 8, 1 / 101])
        operator = series.operators["hessian"]
        np.testing.assert_array_equal(operator.eigenvalues, np.tile(VALUES[:2], (3, 1)))
        np.testing.assert_array_equal(operator.smallest, np.full((3, 1), -0.1))
        np.testing.assert_array_equal(operator.trace.value, np.full(3, VALUES.sum()))
        np.testing.assert_array_equal(operator.n_matvecs, np.full(3, N + 3))

    def test_without_steps_is_in_the_natural_order_of_names(self):
        names = ("m10.pt", "m9.pt", "m1.pt")
        series = collect([made_up(None, checkpoint=name) for name in names])
        assert series.checkpoint == ("m1.pt", "m9.pt", "m10.pt")
        assert series.step.tolist() == [0, 1, 2]
        assert not series.numbered

    def test_keeps_as_many_eigenvalues_as_all_have(self):
        results = [made_up(0, top=3, exact=False), made_up(1, top=2, exact=False), made_up(2)]
        series = collect(results)
        assert series.operators["hessian"].eigenvalues.shape == (3, 2)
        assert "2 to 6 of the largest" in series.warnings[1]

    def test_smallest_only_where_all_have_them(self):
        some = [made_up(0, bottom=2, exact=False), made_up(1, bottom=2, exact=False)]
        np.testing.assert_array_equal(
            collect(some).operators["hessian"].smallest, [[-0.1, 0.0]] * 2
        )
        some[1] = made_up(1, exact=False)
        assert collect(some).operators["hessian"].smallest.shape == (2, 0)

    def test_drops_duplicates_with_a_notice(self):
        poor, rich = made_up(5, exact=False), made_up(5)
        for order in ([poor, rich], [rich, poor]):
            series = collect([made_up(0), *order], sources=["0", "a", "b"])
            assert series.step.tolist() == [0, 5]
            (notice,) = series.notices
            assert "is of the same checkpoint" in notice
            assert series.operators["hessian"].smallest.shape == (2, 1)


class TestRefusal:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"config": {"loss": "behaviour"}}, "--loss"),
            ({"config": {"params": ["a.*"]}}, "--params"),
            ({"config": {"examples": 5}}, "--examples"),
            ({"config": {"set": {"width": 2}}}, "--set"),
            ({"config": {"criterion": "mse"}}, "criterion"),
            ({"name": "ggn"}, "--operator"),
            ({"n_parameters": 7}, "parameters"),
            ({"n_examples": 7}, "examples"),
            ({"indices": np.arange(3)}, "--seed"),
        ],
        ids=str,
    )
    def test_of_mixed_configurations_names_what_differs(self, change, named):
        with pytest.raises(UsageError, match=named) as caught:
            collect([made_up(0), made_up(1, **change)], sources=["a.h5", "b.h5"])
        assert "a.h5" in str(caught.value)
        assert "b.h5" in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"task_sha256": "u"}, "task's source"),
            ({"dtype": "float32"}, "--dtype"),
            ({"exact": False}, "--method"),
            ({"status": "budget"}, "--budget"),
        ],
        ids=str,
    )
    def test_of_precision_is_only_a_warning(self, change, named):
        space = np.eye(N)[:2]
        series = collect([made_up(0, vectors=space), made_up(1, vectors=space, **change)])
        assert any(named in warning for warning in series.warnings)

    def test_of_two_checkpoints_of_one_step(self):
        two = [made_up(3, checkpoint="a.pt"), made_up(3, checkpoint="b.pt")]
        with pytest.raises(UsageError, match=r"step 3 has two different checkpoints: a\.pt"):
            collect(two)

    def test_of_results_with_and_without_a_step(self):
        with pytest.raises(UsageError, match="has no training step"):
            collect([made_up(3), made_up(None)])

    def test_of_nothing(self):
        with pytest.raises(UsageError, match="no result"):
            collect([])


class TestFile:
    @pytest.fixture
    def series(self):
        generator = np.random.default_rng(1)
        results = []
        for step in (0, 1, 10, 100):
            vectors = np.linalg.qr(generator.normal(size=(N, N)))[0].T[:2]
            results.append(made_up(step, vectors=vectors, checkpoint=f"ü\udcff{step}.pt"))
        return collect(results)

    def test_round_trip(self, series, tmp_path):
        path = tmp_path / "new" / "series.h5"
        save_series(path, series)
        loaded = load_series(path)
        assert kind_of(path) == "series"
        assert loaded.checkpoint[0] == "ü\\udcff0.pt"
        assert content(loaded) == content(series)
        loaded = dataclasses.replace(loaded, checkpoint=series.checkpoint, source=series.source)
        for field in dataclasses.fields(series):
            if field.name != "operators":
                np.testing.assert_array_equal(
                    getattr(loaded, field.name), getattr(series, field.name), err_msg=field.name
                )
        one, two = loaded.operators["hessian"], series.operators["hessian"]
        for field in dataclasses.fields(one):
            left, right = (getattr(o, field.name) for o in (one, two))
            if dataclasses.is_dataclass(left):
                left, right = (np.stack(dataclasses.astuple(band)) for band in (left, right))
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert np.asarray(left).dtype == np.asarray(right).dtype

    def test_content_depends_on_every_number_but_not_on_the_files(self, series):
        assert content(dataclasses.replace(series, source=("x",) * 4)) == content(series)
        changed = np.array(series.loss)
        changed[2] += 1e-15
        assert content(dataclasses.replace(series, loss=changed)) != content(series)

    def test_xarray_reads_it(self, series, tmp_path):
        blocks = {**series.operators}
        blocks["hessian/modules/layers.0"] = dataclasses.replace(
            blocks["hessian"], operator="hessian/modules/layers.0"
        )
        series = dataclasses.replace(series, operators=blocks)
        path = tmp_path / "series.h5"
        save_series(path, series)
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            node = tree["operator/hessian"]
            assert node["positive"].dims == ("step", "log_lambda")
            assert node["eigenvalues"].sel(step=10, k=1).item() == 4
            assert node["converged"].dtype == bool
            assert tree["run"]["step"].values.tolist() == [0, 1, 10, 100]
            assert tree["operator/hessian/modules/layers.0"]["trace"].sizes == {"module_step": 4}
        assert set(load_series(path).operators) == set(blocks)

    def test_many_long_names(self, tmp_path):
        results = [made_up(step, checkpoint="x" * 200 + str(step)) for step in range(600)]
        save_series(tmp_path / "s.h5", collect(results))
        assert len(load_series(tmp_path / "s.h5").checkpoint) == 600

    @pytest.mark.parametrize(
        "damage",
        [
            lambda f: f["run"].__delitem__("loss"),
            lambda f: f["operator/hessian"].__delitem__("overlap"),
            lambda f: f.attrs.__delitem__("numbered"),
            lambda f: f.attrs.__setitem__("config", "{"),
            lambda f: (f["run"].__delitem__("loss"), f["run"].create_dataset("loss", data=[1.0])),
            lambda f: (f["run"].__delitem__("key"), f["run"].create_dataset("key", data=[1.0] * 4)),
            lambda f: f["run"].__setitem__("outside", h5py.ExternalLink("x.h5", "/")),
        ],
    )
    def test_damage_is_an_error_that_names_the_file(self, series, tmp_path, damage):
        path = tmp_path / "series.h5"
        save_series(path, series)
        with h5py.File(path, "r+") as file:
            damage(file)
        with pytest.raises(ResultFileError, match=r"series\.h5"):
            load_series(path)

    def test_a_result_is_no_series(self, tmp_path):
        save(tmp_path / "a.h5", made_up(0))
        with pytest.raises(ResultFileError, match="not a series"):
            load_series(tmp_path / "a.h5")

    def test_vectors_are_read_from_the_files(self, tmp_path):
        results = [made_up(s, vectors=rotation(a)[:2]) for s, a in ((1, 0.0), (0, 0.4))]
        paths = [tmp_path / f"{index}.h5" for index in range(2)]
        for path, result in zip(paths, results, strict=True):
            save(path, result)
        series = collect_files(paths)
        assert series.source == (str(paths[1]), str(paths[0]))
        assert content(series) == content(collect([load(path) for path in paths]))
        assert series.operators["hessian"].overlap[1] == pytest.approx((1 + np.cos(0.4) ** 2) / 2)


class TestFigure:
    def drawn(self, results):
        return series_figure(collect(results))

    @pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
    def test_formats_and_determinism(self, tmp_path, ending):
        path = tmp_path / "s.h5"
        save_series(path, collect(steps_of(0, 1, 10, 100, 1000)))
        contents = []
        for name in ("one", "two"):
            plot_results([path], tmp_path / f"{name}{ending}")
            contents.append((tmp_path / f"{name}{ending}").read_bytes())
        assert contents[0] == contents[1]
        assert len(contents[0]) > 5000

    def test_panels(self):
        space = np.eye(N)[:2]
        figure = self.drawn([made_up(s, vectors=space) for s in (0, 1, 10, 100, 1000)])
        labels = " | ".join(axes.get_ylabel() for axes in figure.axes)
        for word in ("eigenvalue [nats", "trace [nats", "fraction", "overlap of top-2", "loss"):
            assert word in labels
        assert {axes.get_xscale() for axes in figure.axes[:6]} == {"symlog"}
        without = self.drawn(steps_of(1, 10, 100))
        assert not any("overlap" in axes.get_ylabel() for axes in without.axes)
        assert without.axes[0].get_xscale() == "log"

    def test_hollow_where_not_converged(self):
        results = steps_of(0, 1, 2)
        results[1].spectra["hessian"].converged[0] = False
        axes = self.drawn(results).axes[0]
        hollow = [line for line in axes.lines if str(line.get_markerfacecolor()) == "white"]
        (point,) = [line for line in hollow if len(line.get_xdata())]
        assert point.get_xydata().tolist() == [[1, 4]]
        assert axes.get_legend().get_title().get_text() == "open: not converged"

    @pytest.mark.parametrize(
        "results",
        [
            [made_up(5)],
            [made_up(None)],
            [made_up(None, checkpoint=f"$a_{{{i}.pt") for i in range(3)],
            steps_of(0, 1, density=False),
            steps_of(0, 1, values=np.zeros(N)),
            steps_of(0, 1, values=-VALUES[::-1]),
            steps_of(0, 100, 200, 300),
            [made_up(0), made_up(1, density=False)],
            steps_of(0, 1, top=0, exact=False, density=False),
        ],
    )
    def test_whatever_is_known(self, results, tmp_path):
        save_series(tmp_path / "s.h5", collect(results))
        plot_results([tmp_path / "s.h5"], tmp_path / "s.png")
        assert (tmp_path / "s.png").stat().st_size > 5000

    @pytest.mark.parametrize(
        ("steps", "edges"),
        [
            ((0, 10, 20), [-5, 5, 15, 25]),
            ((1, 10, 100, 1000), [10**-0.5, 10**0.5, 10**1.5, 10**2.5, 10**3.5]),
            ((0, 1, 10, 100), [-0.5, 0.5, 10**0.5, 10**1.5, 10**2.5]),
            ((7,), [6.5, 7.5]),
        ],
        ids=str,
    )
    def test_cells_end_halfway_between_steps(self, steps, edges):
        np.testing.assert_allclose(step_edges(collect(steps_of(*steps))), edges)

    def test_a_series_is_drawn_alone(self, tmp_path):
        save_series(tmp_path / "s.h5", collect(steps_of(0, 1)))
        save(tmp_path / "a.h5", made_up(0))
        with pytest.raises(UsageError, match="expected it alone"):
            plot_results([tmp_path / "a.h5", tmp_path / "s.h5"], tmp_path / "f.png")


def test_nothing_of_it_imports_torch():
    code = (
        "import sys, json, landscape.series, landscape.series_store, landscape.series_plot; "
        "print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_a_series_is_not_loaded_as_a_result(tmp_path):
    save_series(tmp_path / "s.h5", collect([made_up(0), made_up(1)]))
    with pytest.raises(ResultFileError, match="load_series"):
        load(tmp_path / "s.h5")
