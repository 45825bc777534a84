"""Figures of log-volumes: what they show, and from whatever is known."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from volumes import CUTOFFS, MULTIPLICITY, volume_result

from landscape.errors import UsageError
from landscape.plotting import plot_results
from landscape.results import HessianResult
from landscape.series import collect
from landscape.series_store import save_series
from landscape.store import save
from landscape.volume_plot import directions_panel, middle, volume_figure
from landscape.volume_series_plot import volume_series_figure


def steps_of(*steps: int | None, **options: object):
    return [volume_result(step, shift=-(step or 0), **options) for step in steps]


def drawn_of(result):
    return volume_figure(result, collect([result]))


def changed(result, method: str, **arrays: object):
    estimate = dataclasses.replace(result.estimates[method], **arrays)
    return dataclasses.replace(result, estimates={**result.estimates, method: estimate})


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


class TestOneResult:
    def test_panels(self):
        directions, volumes, dimension = drawn_of(volume_result()).axes
        assert directions.get_yscale() == "log"
        assert "cutoff 0.1 nats" in directions.get_title()
        assert texts(directions)[0] == "steep (< 0.1): 1 direction, 6.908 nats"
        assert texts(directions)[1].startswith("intermediate: 2.5 directions")
        assert "remainder −4 nats" in directions.get_legend().get_title().get_text()
        assert volumes.get_xscale() == dimension.get_xscale() == "log"
        assert texts(volumes) == ["quadratic", "radial"]
        assert dimension.get_ylabel() == "effective dimension"

    def test_steps_are_as_wide_as_the_multiplicity(self, axes):
        directions_panel(axes, volume_result().directions, "nats")
        steep, intermediate, flat = axes.patches
        edges = steep.get_data().edges
        np.testing.assert_allclose(np.diff(edges), MULTIPLICITY)
        np.testing.assert_allclose(steep.get_data().values[0], 1e-3)
        assert np.isnan(steep.get_data().values[1:]).all()
        known = np.isfinite(intermediate.get_data().values)
        assert known.tolist() == [False, True, True, False, False]
        assert np.isfinite(flat.get_data().values).sum() == 1  # The null ones are no step.

    def test_null_directions_are_a_strip(self, axes):
        directions_panel(axes, volume_result().directions, "nats")
        (strip,) = axes.collections
        corners = strip.get_paths()[0].vertices
        assert corners[:, 0].min() == 5
        assert corners[:, 0].max() == 8
        assert "3 directions that the loss does not limit" in [t.get_text() for t in axes.texts]

    def test_all_directions_without_limit(self, axes):
        """Above the mean of the prior's own excess loss nothing is narrower than the prior."""
        table = volume_result().directions
        all_flat = {
            "ratio": np.full_like(table.ratio, np.inf),
            "kind": np.full_like(table.kind, 2),
            "nats": np.full_like(table.nats, np.nan),
        }
        directions_panel(axes, dataclasses.replace(table, **all_flat), "nats")
        assert "8 directions that the loss does not limit" in [t.get_text() for t in axes.texts]
        assert "nats unknown" in texts(axes)[2]

    def test_the_order_of_the_cutoffs_does_not_matter(self):
        turned = (0.1, 1.0, 0.01)
        assert middle(np.array(turned)) == 0
        axes = drawn_of(volume_result(cutoffs=turned)).axes[1]
        assert axes.lines[0].get_xdata().tolist() == sorted(CUTOFFS)

    def test_lower_bounds_have_no_upper_end(self):
        result = volume_result()
        bound = {
            "lower_bound": np.array([True, True, False]),
            "upper": np.array([np.inf, np.inf, -19.0]),
        }
        axes = drawn_of(changed(result, "radial", **bound)).axes[1]
        assert texts(axes)[-1] == "lower bound"
        triangles = [line for line in axes.lines if line.get_marker() == "^"]
        (points,) = [line for line in triangles if len(line.get_xdata())]
        assert points.get_xdata().tolist() == [0.01, 0.1]
        assert points.get_ydata().tolist() == result.estimates["radial"].lower[:2].tolist()
        ends = [path.vertices[:, 1].min() for c in axes.collections for path in c.get_paths()]
        assert max(points.get_ydata()) in ends
        assert np.isfinite(axes.get_ylim()).all()

    def test_cutoffs_within_a_decade_are_named_themselves(self):
        axes = drawn_of(volume_result(cutoffs=(0.02, 0.05, 0.1))).axes[1]
        axes.figure.canvas.draw()
        names = [text.get_text() for text in axes.get_xticklabels() if text.get_text()]
        assert set(names) <= {"0.02", "0.05", "0.1"}
        assert not axes.get_xticks(minor=True).size

    def test_what_is_no_difference_is_not_magnified(self):
        nothing = {name: np.array([-1e-120]) for name in ("log_volume", "lower", "upper")}
        result = changed(volume_result(cutoffs=(0.01,)), "radial", **nothing)
        result = changed(result, "quadratic", **nothing)
        low, high = drawn_of(result).axes[1].get_ylim()
        assert high - low >= 0.01

    def test_a_single_cutoff_has_its_numbers_written(self):
        figure = drawn_of(volume_result(cutoffs=(0.01,)))
        assert len(figure.axes) == 2
        quadratic, radial = (text.get_text() for text in figure.axes[1].get_xticklabels())
        assert quadratic == "quadratic\n−29.2103 nats\neff. dim. 4"
        assert radial == "radial\n−29.2103 nats\n−30.21 to −28.21"
        bound = {"lower_bound": np.array([True]), "upper": np.array([np.inf])}
        figure = drawn_of(changed(volume_result(cutoffs=(0.01,)), "radial", **bound))
        assert figure.axes[1].get_xticklabels()[1].get_text() == "radial\n≥ −30.2103 nats"

    def test_without_directions(self):
        figure = drawn_of(volume_result(methods=("radial",), table=False, cutoffs=(0.01, 0.1)))
        (axes,) = figure.axes
        assert texts(axes) == ["radial"]

    def test_many_directions_are_on_a_logarithmic_axis(self, axes):
        table = volume_result().directions
        table = dataclasses.replace(table, multiplicity=table.multiplicity * 100)
        directions_panel(axes, table, "nats")
        assert axes.get_xscale() == "log"
        assert axes.get_xlim() == (0.5, 800)


class TestSeries:
    def test_panels(self):
        figure = volume_series_figure(collect(steps_of(0, 1, 10, 100, 1000)))
        assert "cutoff 0.1 nats" in figure.get_suptitle()
        names = ("log V", "", "effective dimension", "", "terms", "number of dir", "training step")
        for axes, name in zip(figure.axes, names, strict=True):
            assert axes.get_ylabel().startswith(name)
        assert [axes.get_xscale() for axes in figure.axes[:6]] == ["symlog", "log"] * 2 + [
            *("symlog", "symlog")
        ]
        log_volume, over_cutoffs = figure.axes[:2]
        assert texts(log_volume) == ["quadratic", "radial", "other cutoffs"]
        assert log_volume.get_ylim() == over_cutoffs.get_ylim()
        assert texts(figure.axes[4]) == ["width", "location", "remainder"]
        assert texts(figure.axes[5]) == ["steep", "intermediate", "flat"]
        drawn = [line for line in over_cutoffs.lines if line.get_linestyle() != "None"]
        colours = [to_rgba(line.get_color()) for line in drawn if len(line.get_xdata())]
        assert len(set(colours)) == 5
        assert [t.get_text() for t in figure.axes[6].get_yticklabels()] == [
            *("0", "1", "10", "100", "1000")
        ]

    def test_a_single_cutoff_has_no_panels_over_it(self):
        figure = volume_series_figure(collect(steps_of(1, 10, 100, cutoffs=(0.01,))))
        assert len(figure.axes) == 4
        assert "other cutoffs" not in texts(figure.axes[0])

    @pytest.mark.parametrize(
        "results",
        [
            [volume_result(5)],
            [volume_result(None)],
            [volume_result(None, checkpoint=f"$a_{{{i}.pt") for i in range(3)],
            steps_of(*range(40)),
            steps_of(0, 1, methods=("radial",), table=False, cutoffs=(0.01,)),
            steps_of(0, 1, methods=("radial",), table=False),
            steps_of(0, 1, methods=("quadratic",), cutoffs=(0.01, 0.1)),
            [volume_result(0), volume_result(1, table=False)],
            [volume_result(0), changed(volume_result(1), "radial", log_volume=np.full(3, -np.inf))],
        ],
    )
    def test_whatever_is_known(self, results, tmp_path):
        save_series(tmp_path / "s.h5", collect(results))
        plot_results([tmp_path / "s.h5"], tmp_path / "s.png")
        assert (tmp_path / "s.png").stat().st_size > 5000


class TestFiles:
    @pytest.fixture
    def files(self, tmp_path):
        paths = []
        for result in steps_of(7, 0, 1):
            paths.append(tmp_path / f"{result.info.step}.h5")
            save(paths[-1], result)
        return paths

    @pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
    @pytest.mark.parametrize("count", [1, 3])
    def test_formats_and_determinism(self, files, tmp_path, ending, count):
        contents = []
        for name in ("one", "two"):
            plot_results(files[:count], tmp_path / f"{name}{ending}")
            contents.append((tmp_path / f"{name}{ending}").read_bytes())
        assert contents[0] == contents[1]
        assert len(contents[0]) > 5000

    def test_several_results_are_drawn_as_their_series(self, files, tmp_path):
        plot_results(files, tmp_path / "one.png")
        save_series(tmp_path / "s.h5", collect(steps_of(0, 1, 7)))
        plot_results([tmp_path / "s.h5"], tmp_path / "two.png")
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()

    def test_two_kinds_of_results(self, files, tmp_path):
        info = dataclasses.replace(volume_result(9).info, command="hessian")
        save(tmp_path / "h.h5", HessianResult(info=info, spectra={}))
        for order in ([*files, tmp_path / "h.h5"], [tmp_path / "h.h5", *files]):
            with pytest.raises(UsageError, match="Draw each kind by itself"):
                plot_results(order, tmp_path / "x.png")

    def test_two_results_of_one_checkpoint(self, tmp_path):
        for i in range(2):
            shard = {"shard": [i + 1, 2]}
            save(tmp_path / f"{i}.h5", volume_result(index=[i], config=shard))
        files = [tmp_path / f"{i}.h5" for i in range(2)]
        with pytest.raises(UsageError, match="merge shards with landscape collect --merge"):
            plot_results(files, tmp_path / "x.png")
        plot_results(files[:1], tmp_path / "x.png")
