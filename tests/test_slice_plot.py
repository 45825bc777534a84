"""Figures of slices show the numbers of their results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from landscape import SliceOptions, Task, loss_slice
from landscape.errors import UsageError
from landscape.slice_plot import slice_figure
from landscape.store import save

X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def task():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return Task(model=model, data=(X, torch.arange(20) % 3), criterion="cross_entropy")


@pytest.fixture(scope="module")
def line():
    return loss_slice(task(), options=SliceOptions(along=("eigen:1",), points=7))


@pytest.fixture(scope="module")
def plane():
    options = SliceOptions(along=("eigen:1", "random"), points=5)
    return loss_slice(task(), options=options)


def drawn(figure, label):
    [found] = [ln for axes in figure.axes for ln in axes.lines if ln.get_label() == label]
    return found


def test_a_line_shows_excess_and_prediction(line):
    figure = slice_figure([line])
    x, y = drawn(figure, "excess loss").get_data()
    assert np.array_equal(x, line.x)
    assert np.array_equal(y, line.excess_loss)
    x, y = drawn(figure, "quadratic prediction").get_data()
    assert np.allclose(np.interp(line.x, x, y), line.quadratic, atol=1e-3)
    assert "λ" in figure.axes[0].get_xlabel()
    assert "nats" in figure.axes[0].get_ylabel()


def test_points_that_are_not_finite_are_marked(line, plane):
    excess = line.excess_loss.copy()
    excess[[0, 5]] = np.nan, np.inf
    figure = slice_figure([dataclasses.replace(line, excess_loss=excess)])
    assert drawn(figure, "not finite").get_xdata().tolist() == line.x[[0, 5]].tolist()
    assert np.isnan(drawn(figure, "excess loss").get_ydata()[[0, 5]]).all()
    excess = plane.excess_loss.copy()
    excess[0, 1] = np.inf
    figure = slice_figure([dataclasses.replace(plane, excess_loss=excess)])
    assert drawn(figure, "not finite").get_xydata().tolist() == [[plane.x[0], plane.y[1]]]


def test_contours_are_of_the_excess_and_dashed_ones_of_the_prediction(plane):
    figure = slice_figure([plane])
    panel = figure.axes[0]
    filled, solid, dashed = panel.collections
    assert {style[1] for style in solid.get_linestyle()} == {None}
    assert all(style[1] for style in dashed.get_linestyle())
    assert filled.levels[0] == plane.excess_loss.min()
    assert filled.levels[-1] == plane.excess_loss.max()
    assert set(dashed.levels) <= set(filled.levels)
    assert (panel.get_xlim(), panel.get_ylim()) == (
        (plane.x[0], plane.x[-1]),
        (plane.y[0], plane.y[-1]),
    )


@pytest.mark.parametrize("value", [np.nan, 0.0, 3.0])
@pytest.mark.parametrize("surface", [False, True])
def test_planes_without_any_shape(plane, line, value, surface, tmp_path):
    empty = np.full_like(plane.excess_loss, value)
    result = dataclasses.replace(plane, excess_loss=empty, quadratic=np.zeros_like(empty))
    save(tmp_path / "a.h5", result)
    slice_figure([result], surface=surface).savefig(tmp_path / "a.png")
    flat = dataclasses.replace(line, excess_loss=np.full_like(line.excess_loss, value))
    slice_figure([flat]).savefig(tmp_path / "b.png")


def test_labels_of_a_surface_are_within_the_figure(plane):
    directions = tuple(
        dataclasses.replace(direction, name=f"pca:{number}", kind="pca", share=0.96)
        for number, direction in enumerate(plane.directions, 1)
    )
    figure = slice_figure([dataclasses.replace(plane, directions=directions)], surface=True)
    figure.draw_without_rendering()
    [axes] = figure.axes
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        box = axis.label.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_many_results(line, plane, tmp_path):
    other = dataclasses.replace(line, info=dataclasses.replace(line.info, checkpoint="b.pt"))
    figure = slice_figure([line, plane, other, plane])
    assert len([a for a in figure.axes if a.get_xlabel()]) == 3
    assert {"b, eigen:1"} <= {ln.get_label() for ln in figure.axes[0].lines}
    figure.savefig(tmp_path / "a.png")
    with pytest.raises(UsageError, match="a line has no surface"):
        slice_figure([line], surface=True)
