"""Figures of annealed log-volumes: what they show, and from whatever is known."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import fields

import matplotlib.pyplot as plt
import numpy as np
import pytest
from annealings import CURVATURE, anneal_estimate, annealed_result, islands, log_partition
from volumes import CUTOFFS, N, volume_result

from landscape.anneal_plot import anneal_panels, curve_panel, islands_panel, loss_panel
from landscape.anneal_plot import partition_panels as draw_partition
from landscape.plotting import ORANGE, plot_results
from landscape.series import collect
from landscape.store import load, save
from landscape.volume.anneal_records import Curve
from landscape.volume.islands import integrated, volumes
from landscape.volume_plot import method_colour, volume_figure


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def titled(axes) -> str:
    return axes.get_legend().get_title().get_text()


def lines(axes, **style: object) -> list:
    """Lines with points, of a style."""
    found = [line for line in axes.lines if len(line.get_xdata())]
    return [ln for ln in found if all(getattr(ln, f"get_{k}")() == v for k, v in style.items())]


def with_record(result, **changes: object):
    return dataclasses.replace(result, annealing=dataclasses.replace(result.annealing, **changes))


def with_ladder(result, **changes: object):
    return with_record(result, ladder=dataclasses.replace(result.annealing.ladder, **changes))


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture
def pair():
    figure, axes = plt.subplots(2)
    yield axes
    plt.close(figure)


class TestWholeFigure:
    def test_panels_come_below_the_others(self):
        result = annealed_result()
        figure = volume_figure(result, collect([result]))
        labels = [axes.get_ylabel() for axes in figure.axes]
        assert sorted(labels) == sorted(
            [
                *("width at the tilt / prior's width", "log V [nats]", "effective dimension"),
                *("E[ΔL] [nats]", "log Z [nats]", "weights −\nintegral [nats]"),
                *("log V [nats]", "log V less the estimate [nats]"),
            ]
        )
        upper, lower = figure.subfigs
        assert lower.get_suptitle() == "anneal converged: both starts agree at R = ∞"
        assert upper.get_suptitle() == ""
        above = [axes for axes in upper.axes if axes.get_ylabel() == "log V [nats]"]
        assert texts(above[0]) == ["quadratic", "anneal"]

    def test_what_did_not_converge_stands_out(self):
        result = annealed_result(converged=False)
        lower = volume_figure(result, collect([result])).subfigs[1]
        assert lower.get_suptitle().startswith("anneal NOT converged: both starts agree up to R")
        assert lower._suptitle.get_color() == ORANGE

    def test_without_directions_the_others_stand_side_by_side(self):
        result = annealed_result(table=False, methods=())
        upper = volume_figure(result, collect([result])).subfigs[0]
        first, second = upper.axes
        grid = first.get_subplotspec().get_gridspec()
        assert (grid.nrows, grid.ncols) == (1, 2)
        assert first.get_xlabel() == second.get_xlabel() == "cutoff [nats]"

    def test_other_results_are_drawn_as_before(self):
        result = volume_result()
        figure = volume_figure(result, collect([result]))
        assert not figure.subfigs
        assert figure.get_size_inches().tolist() == [7.2, 5.2]

    def test_there_must_be_something_to_draw(self, axes):
        with pytest.raises(ValueError, match="no annealed estimate"):
            anneal_panels(axes.figure, volume_result())


class TestLoss:
    def test_mean_over_islands_on_logarithmic_axes(self, axes):
        annealing = annealed_result().annealing
        loss_panel(axes, annealing, "nats")
        assert axes.get_xscale() == axes.get_yscale() == "log"
        curve = lines(axes, linestyle="-", marker="None")[0]
        known = annealing.ladder.beta > 0
        np.testing.assert_allclose(
            curve.get_ydata()[known], annealing.ladder.loss.mean(1)[known], rtol=1e-12
        )
        assert math.isnan(curve.get_xdata()[0])  # The prior, at no temperature of the axis.
        (rings,) = lines(axes, markerfacecolor="none", marker="o")
        # The mean excess loss there is about the cutoff.
        np.testing.assert_allclose(sorted(rings.get_ydata()), CUTOFFS, rtol=0.1)
        assert texts(axes) == ["where volumes are taken"]
        assert "95%" in titled(axes)

    def test_bars_are_few_and_end_above_zero(self, axes):
        annealing = annealed_result().annealing
        loss = np.array(annealing.ladder.loss)
        loss[:, ::2] *= 1e-3
        ladder = dataclasses.replace(annealing.ladder, loss=loss)
        loss_panel(axes, dataclasses.replace(annealing, ladder=ladder), "nats")
        (bars,) = (c for c in axes.collections if len(c.get_segments()))
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        assert 15 <= len(ends) <= 26
        assert (ends > 0).all()
        assert (np.diff(ends) > 0).all()

    def test_one_island_has_no_error(self, axes):
        annealing = annealed_result().annealing
        ladder = islands(np.array([1.0]), count=1)
        marks = np.zeros(3, dtype=np.int64)
        loss_panel(axes, dataclasses.replace(annealing, ladder=ladder, marks=marks), "nats")
        (bars,) = (c for c in axes.collections if len(c.get_segments()))
        assert all(np.ptp(segment[:, 1]) == 0 for segment in bars.get_segments())


class TestPartition:
    def test_integral_and_weights(self, pair):
        ladder = annealed_result().annealing.ladder
        draw_partition(*pair, ladder)
        above, below = pair
        assert above.get_xscale() == below.get_xscale() == "log"
        assert texts(above) == ["−∫ E[ΔL] dβ", "weights"]
        (curve,) = lines(above, linestyle="-")
        np.testing.assert_allclose(curve.get_ydata(), integrated(ladder).mean(1))
        (points,) = lines(above, marker="o")
        x, y = points.get_data()
        assert x[-1] == ladder.beta[-1]
        np.testing.assert_allclose(y, log_partition(x), atol=0.5)
        (gap,) = lines(below, marker="o")
        at = np.searchsorted(ladder.beta, x)
        np.testing.assert_allclose(gap.get_ydata(), y - integrated(ladder).mean(1)[at])
        assert below.get_xlabel() == "inverse temperature β"

    def test_a_tether_that_moves_is_named(self, pair):
        draw_partition(*pair, islands(np.array([1.0]), tether=(20.0, 3.0)))
        assert "; tether k 20 → 3 where it stands still" in pair[1].get_xlabel()

    def test_where_only_the_tether_moves_levels_are_numbered(self, pair):
        """So near the checkpoint the prior alone is below the cutoff."""
        ladder = islands(np.array([1.0]), tether=(11.0, 10.0))
        ladder = dataclasses.replace(ladder, beta=np.zeros_like(ladder.beta))
        annealing = dataclasses.replace(annealed_result().annealing, ladder=ladder)
        marks = np.zeros(3, dtype=np.int64)
        above, below = pair
        loss_panel(above, dataclasses.replace(annealing, marks=marks), "nats")
        assert (above.get_xscale(), above.get_yscale()) == ("linear", "log")
        curve = lines(above, linestyle="-", marker="None")[0]
        assert curve.get_xdata().tolist() == list(range(len(ladder.beta)))
        assert np.isfinite(curve.get_ydata()).all()
        draw_partition(above, below, ladder)
        assert below.get_xlabel() == "level, at β = 0; tether k 11 → 10"
        assert len(lines(below, marker="o")[0].get_xdata()) == 25


class TestCurve:
    def test_both_starts(self, axes):
        annealing = annealed_result(converged=False).annealing
        curve_panel(axes, annealing, "0.01 nats")
        assert texts(axes) == ["both agree", "from the prior", "from the checkpoint"]
        assert "cutoff 0.01 nats" in titled(axes)
        assert axes.get_xscale() == "log"
        prior, checkpoint = lines(axes, linestyle="-", marker="None")
        (rings,) = lines(axes, markerfacecolor="none")  # Around points that lie on each other.
        assert rings.get_xydata().tolist() == prior.get_xydata().tolist()
        assert prior.get_color() == method_colour("anneal") != checkpoint.get_color()
        np.testing.assert_array_equal(prior.get_ydata(), annealing.curve.ladder)
        np.testing.assert_array_equal(checkpoint.get_ydata(), annealing.curve.outward)
        assert [text.get_text() for text in axes.get_xticklabels()] == [
            *("0.1", "0.2", "0.4", "0.8", "∞")
        ]
        x = prior.get_xdata()
        assert x[:4].tolist() == [0.1, 0.2, 0.4, 0.8]
        assert x[4] > 0.8
        # Shaded up to between 0.4, where they agree, and 0.8, where they do not.
        (span,) = axes.patches
        box = span.get_extents().transformed(axes.transData.inverted())
        assert box.x0 == pytest.approx(axes.get_xlim()[0])
        assert box.x1 == pytest.approx(math.sqrt(0.32))
        assert axes.get_ylim()[1] < -2.5  # The shade does not stretch the axis.

    @pytest.mark.parametrize(
        ("agrees", "spans"),
        [([1, 1, 1, 1, 1], 1), ([0] * 5, 0), ([1, 0, 1, 0, 1], 3), ([0, 0, 0, 0, 1], 1)],
    )
    def test_shades(self, axes, agrees, spans):
        annealing = annealed_result().annealing
        curve = dataclasses.replace(annealing.curve, agrees=np.array(agrees, dtype=bool))
        curve_panel(axes, dataclasses.replace(annealing, curve=curve), "1")
        assert len(axes.patches) == spans
        assert texts(axes).count("both agree") == min(spans, 1)

    def test_one_start(self, axes):
        curve_panel(axes, annealed_result(converged=False, outward=False).annealing, "1")
        assert texts(axes) == ["from the prior"]
        assert not axes.patches

    def test_radii_near_each_other_are_not_all_named(self, axes):
        annealing = annealed_result().annealing
        curve = dataclasses.replace(annealing.curve, radius=np.array([0.1, 0.2, 0.38, 0.4, np.inf]))
        curve_panel(axes, dataclasses.replace(annealing, curve=curve), "1")
        names = [text.get_text() for text in axes.get_xticklabels()]
        assert names == ["0.1", "0.2", "0.4", "∞"]

    @pytest.mark.parametrize("radius", [[np.inf], [0.5], [0.5, 0.5], [1e-3, 1e3], [0.5, np.inf]])
    def test_few_radii(self, axes, radius):
        annealing = annealed_result().annealing
        rows = {f.name: getattr(annealing.curve, f.name)[-len(radius) :] for f in fields(Curve)}
        curve = Curve(**{**rows, "radius": np.array(radius)})
        curve_panel(axes, dataclasses.replace(annealing, curve=curve), "1")
        axes.figure.canvas.draw()
        assert len(axes.get_xticklabels()) >= 1

    def test_bounds_are_triangles(self, axes):
        annealing = annealed_result().annealing
        upper = np.array([-8.0, -7.0, -6.0, np.inf, np.inf])
        curve = dataclasses.replace(annealing.curve, ladder_upper=upper)
        curve_panel(axes, dataclasses.replace(annealing, curve=curve), "1")
        (triangles,) = lines(axes, marker="^")
        assert triangles.get_ydata().tolist() == curve.ladder_lower[3:].tolist()


class TestIslands:
    def test_a_column_for_every_cutoff(self, axes):
        cutoffs = (0.1, 1.0, 0.01)
        result = annealed_result(cutoffs=cutoffs)
        annealing, estimate = result.annealing, result.estimates["anneal"]
        islands_panel(axes, annealing, estimate, math.inf, "nats")
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "1"]
        dots = lines(axes, marker="o", color=method_colour("anneal"))
        assert [len(dot.get_xdata()) for dot in dots] == [8, 8, 8]
        expected = volumes(annealing.ladder, int(annealing.marks[2]), 0.01)
        np.testing.assert_allclose(dots[0].get_ydata(), expected - estimate.log_volume[2])
        assert texts(axes) == ["island", "estimate, 95% interval"]
        assert "R = ∞" in titled(axes)

    def test_within_a_radius(self, axes):
        """Half of the draws of the smallest cutoff are as near."""
        result = annealed_result(radius=0.4)
        annealing, estimate = result.annealing, result.estimates["anneal"]
        reach = math.sqrt(2 * 0.005 / CURVATURE)
        islands_panel(axes, annealing, estimate, reach, "nats")
        near, far = (volumes(annealing.ladder, 2, 0.01, r) for r in (reach, math.inf))
        assert (near < far).all()
        first = lines(axes, marker="o", color=method_colour("anneal"))[0]
        np.testing.assert_allclose(first.get_ydata(), near - estimate.log_volume[0])
        assert "R = 0.4" in titled(axes)

    def test_islands_that_found_nothing_are_counted(self, axes):
        result = annealed_result()
        draws = np.array(result.annealing.ladder.draw_loss)
        draws[2, :, :3] = 10.0
        result = with_ladder(result, draw_loss=draws)
        islands_panel(axes, result.annealing, result.estimates["anneal"], math.inf, "nats")
        assert "3 found nothing inside" in texts(axes)
        assert len(lines(axes, color=method_colour("anneal"))[0].get_xdata()) == 5

    def test_lower_bounds(self, axes):
        result = annealed_result(converged=False)
        islands_panel(axes, result.annealing, result.estimates["anneal"], math.inf, "nats")
        assert texts(axes)[-1] == "lower bound"
        assert len(lines(axes, marker="^")) == 3

    def test_many_cutoffs_name_some(self, axes):
        result = annealed_result(cutoffs=tuple(np.geomspace(1e-4, 1, 13)))
        islands_panel(axes, result.annealing, result.estimates["anneal"], math.inf, "nats")
        names = [text.get_text() for text in axes.get_xticklabels()]
        assert len(names) == 5
        assert (names[0], names[-1]) == ("0.0001", "1")


WHOLE = annealed_result()
LADDER = WHOLE.annealing.ladder
NAN, NOTHING = np.full(5, np.nan), np.full(3, -np.inf)
VALUES = [f.name for f in fields(Curve) if f.type == "FloatArray" and f.name != "radius"]


def found_nothing(result):
    estimate = dataclasses.replace(anneal_estimate(CUTOFFS), log_volume=NOTHING, lower=NOTHING)
    return dataclasses.replace(result, estimates={"anneal": estimate})


@pytest.mark.parametrize(
    "result",
    [
        annealed_result(converged=False),
        annealed_result(converged=False, outward=False, methods=(), table=False),
        annealed_result(radius=0.4, methods=("radial",), table=False),
        annealed_result(cutoffs=(0.01,)),
        annealed_result(cutoffs=(0.01,), methods=(), table=False),
        annealed_result(None, config={"units": "$x_{"}),
        annealed_result(record={"marks": np.zeros(3, dtype=np.int64)}),
        with_ladder(WHOLE, loss=np.full_like(LADDER.loss, np.nan)),
        with_ladder(WHOLE, loss=np.full_like(LADDER.loss, np.inf)),
        with_ladder(WHOLE, loss=np.zeros_like(LADDER.loss)),
        with_ladder(WHOLE, log_partition=np.full_like(LADDER.loss, -np.inf)),
        with_ladder(WHOLE, beta=np.zeros_like(LADDER.beta)),
        with_ladder(WHOLE, draw_loss=LADDER.draw_loss + np.inf),
        annealed_result(record={"ladder": islands(N / 2 / np.array(CUTOFFS), levels=2, count=1)}),
        found_nothing(WHOLE),
        with_record(
            WHOLE, curve=dataclasses.replace(WHOLE.annealing.curve, **dict.fromkeys(VALUES, NAN))
        ),
    ],
    ids=[
        *("not converged", "one start", "tether", "one cutoff", "alone", "no step", "one mark"),
        *("no loss", "infinite loss", "zero loss", "no weight", "hot", "no draw", "one island"),
        *("nothing found", "no curve"),
    ],
)
def test_whatever_is_known(result, tmp_path):
    """Without a warning; see also the formats below."""
    save(tmp_path / "a.h5", result)
    loaded = load(tmp_path / "a.h5")
    volume_figure(loaded, collect([loaded])).draw_without_rendering()


@pytest.mark.parametrize("ending", [".pdf", ".svg"])
def test_formats_and_determinism(tmp_path, ending):
    save(tmp_path / "a.h5", annealed_result())
    contents = []
    for name in ("one", "two"):
        plot_results([tmp_path / "a.h5"], tmp_path / f"{name}{ending}")
        contents.append((tmp_path / f"{name}{ending}").read_bytes())
    assert contents[0] == contents[1]
