"""Figures of counts of directions, and what a series of made-up results holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from records import made_up_run

import landscape
from landscape.flat.records import (
    ExampleSweep,
    FlatResult,
    LearningCoefficient,
    NullWalk,
    PriorCounts,
    RankCount,
    Symmetry,
    SymmetryTable,
)
from landscape.flat_plot import flat_figure
from landscape.plotting import plot_results
from landscape.series_store import load_series, save_series
from landscape.store import save

NAMES = ("relu rescaling", "softmax shift", "a $x$", "b", "c", "d")
OPTIONS = {"tol": 1e-10, "cutoffs": [0.1, 0.01], "mean": "zero", "sigma": [1.0]}


def rank(null: int) -> RankCount:
    return RankCount(
        n=40,
        rank=40 - null,
        tolerance=1e-10,
        largest=2.0,
        last_kept=1e-4,
        first_dropped=1e-16,
        looser=41 - null,
        tighter=39 - null,
        n_rows=100,
    )


def made_up(step: int | None = 3, *, null: int = 13, counts: bool = True) -> FlatResult:
    """A result of 40 parameters: six symmetries of 1, two by the data, the rest unexplained."""
    entries = [Symmetry(name=name, layer="0", count=1, added=1, change=1e-16) for name in NAMES]
    entries += [
        Symmetry(name="blank inputs", layer="0", count=2, added=2, change=0.0, by_data=True)
    ]
    pair = np.array([0.0, 1.0])
    return FlatResult(
        info=made_up_run(step, command="flat", config=OPTIONS, n_parameters=40),
        ranks={"jacobian": rank(null), "hessian": rank(null + 1)},
        participation={"hessian": 3.5},
        symmetries=SymmetryTable(
            entries=tuple(entries),
            null=null,
            symmetry_total=6,
            data_total=2,
            unexplained=null - 8,
            layers=("0", "2"),
            share=np.array([0.25, 0.75]),
        ),
        counts=PriorCounts(
            cutoff=np.array([0.1, 0.01]),
            steep=pair,
            intermediate=pair + 10,
            flat=30 - 2 * pair,
            n_eff=pair + 9,
            effective_dimension=pair + 12,
        )
        if counts
        else None,
        learning=LearningCoefficient(
            value=4.0,
            stderr=0.5,
            multiplicity=1,
            n_cutoffs=3,
            lowest=0.01,
            highest=0.1,
            misfit=0.1,
        ),
        walk=NullWalk(
            cutoff=0.01,
            distance=np.array([5.1, 2.0, 1.0]),
            arc=np.array([5.2, 2.5, 1.0]),
            left=np.array([False, True, False]),
            excess=np.array([0.0, 0.02, 0.0]),
            largest_excess=np.array([0.0, 0.02, 0.0]),
            null=np.array([13, 12, 13]),
            start_null=13,
            limit=5.0,
            n_steps=np.array([100, 40, 20]),
        ),
        sweep=ExampleSweep(
            examples=np.array([5, 10]),
            rank=np.array([20, 27]),
            null=np.array([20, 13]),
            last_kept=np.array([0.1, 0.2]),
            first_dropped=np.array([0.0, 0.0]),
        ),
    )


def bars(figure):
    """Heights of every bar by the label in the legend, and where the uppermost one ends."""
    axes = figure.axes[0]
    found = {c.get_label(): [patch.get_height() for patch in c] for c in axes.containers}
    top = [
        max(p.get_y() + p.get_height() for p in column)
        for column in zip(*axes.containers, strict=True)
    ]
    return found, top


def test_every_direction_is_in_the_bar():
    series = landscape.collect([made_up(1), made_up(20, null=15)])
    found, top = bars(flat_figure(series))
    assert top == pytest.approx([40, 40])
    assert found["null, unexplained"] == [5, 7]
    assert found["flat, but not null"] == [17, 15]
    assert found["intermediate"] == [10, 10]
    assert found[r"a \$x\$"] == [1, 1]
    assert found["blank inputs"] == [2, 2]
    # Nothing of a class is nowhere in the legend, but what is unexplained has its place.
    assert "steep" not in found


def test_one_checkpoint_names_its_counts():
    result = made_up()
    figure = flat_figure(landscape.collect([result]), walk=result.walk, sweep=result.sweep)
    assert len(figure.axes) == 4
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "null, unexplained: 5" in labels
    assert "relu rescaling: 1" in labels
    ends = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert {"at the limit", "left the basin", "could go no further"} <= set(ends)


def test_without_counts_by_prior():
    series = landscape.collect([made_up(counts=False)])
    assert series.flat.shape == (1, 0)
    found, top = bars(flat_figure(series))
    assert top == pytest.approx([40])
    assert found["not null: 27"] == [27]


def test_a_series():
    results = [made_up(20), made_up(1, null=15), made_up(400, counts=False)]
    series = landscape.collect(results)
    assert series.step.tolist() == [1, 20, 400]
    assert series.operators["jacobian"].null.tolist() == [15, 13, 13]
    assert series.symmetry == (*NAMES, "blank inputs")
    assert series.by_data.tolist() == [False] * 6 + [True]
    assert np.isnan(series.flat[2]).all()
    assert series.walked == pytest.approx([2.7] * 3)
    assert series.walks_left == pytest.approx([1 / 3] * 3)
    assert series.unexplained.tolist() == [7, 5, 5]
    labels = [axes.get_ylabel() for axes in flat_figure(series).axes]
    assert labels == ["directions", "directions", "walked [prior sd]"]


def test_symmetries_of_other_checkpoints_count_as_none(tmp_path):
    less = made_up(1)
    few = dataclasses.replace(
        less.symmetries,
        entries=less.symmetries.entries[1:],
        symmetry_total=5,
        unexplained=6,
    )
    series = landscape.collect([made_up(20), dataclasses.replace(less, symmetries=few)])
    place = series.symmetry.index("relu rescaling")
    assert series.explained[:, place].tolist() == [0, 1]
    save_series(tmp_path / "a.h5", series)
    assert repr(load_series(tmp_path / "a.h5")) == repr(series)


def test_checkpoints_without_a_step(tmp_path):
    results = []
    for name in ("one.pt", "two.pt"):
        result = made_up(None)
        info = dataclasses.replace(result.info, checkpoint=name, checkpoint_sha256=name)
        results.append(dataclasses.replace(result, info=info))
        save(tmp_path / f"{name}.h5", results[-1])
    plot_results(sorted(tmp_path.glob("*.h5")), tmp_path / "a.png")
    ticks = flat_figure(landscape.collect(results)).axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["one", "two"]
