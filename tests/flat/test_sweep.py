"""Counts against the number of examples."""

from __future__ import annotations

import pytest
from flat_cases import Case, draws, generic, mlp
from torch import nn

from landscape.errors import UsageError
from landscape.flat.sweep import example_sweep

CASE = Case(
    build=lambda: generic(mlp(5, 6, 4, 3, activation=nn.Tanh)), inputs=lambda: draws(60, 5), null=5
)


def risk(inputs=CASE.inputs, **options):
    return Case(build=CASE.build, inputs=inputs, null=5, softmax=3).risk(**options)


def test_the_count_falls_to_the_symmetries():
    n = risk().n
    found = example_sweep(risk(), [60, 1, 5, 20, 40, 37, 38])
    assert found.examples.tolist() == [1, 5, 20, 37, 38, 40, 60]
    assert found.null.tolist()[:3] == [n - 2, n - 10, n - 40]
    assert found.null.tolist()[-3:] == [5, 5, 5]  # The softmax shift.
    assert (found.null[1:] <= found.null[:-1]).all()
    assert (found.rank + found.null == n).all()
    assert (found.first_dropped < 1e-14).all()
    assert (found.last_kept > 1e-10).all()


@pytest.mark.parametrize("seed", range(4))
def test_new_examples_never_raise_it(seed):
    found = example_sweep(risk(), range(1, 61, 3), seed=seed)
    assert (found.null[1:] <= found.null[:-1]).all()


def test_duplicated_examples_change_nothing():
    once = example_sweep(risk(lambda: draws(12, 5)), [12])
    twice = example_sweep(risk(lambda: draws(12, 5).repeat(2, 1)), [24])
    assert once.null.tolist() == twice.null.tolist()


def test_the_order_is_the_seeds_alone():
    first = example_sweep(risk(), [7, 30])
    again = example_sweep(risk(batch=13), [30])
    assert first.rank[1] == again.rank[0]
    assert first.last_kept[1] == pytest.approx(again.last_kept[0], rel=1e-6)
    other = example_sweep(risk(), [30], seed=1)
    assert other.last_kept[0] != pytest.approx(again.last_kept[0], rel=1e-6)


@pytest.mark.parametrize("sizes", [[], [0], [61], [3, 100]])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(UsageError, match="from 1 to 60"):
        example_sweep(risk(), sizes)
