"""Walks along null directions on level sets that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flat_cases import Case, draws, generic, mlp
from scipy import integrate, optimize
from torch import nn

from landscape.errors import NotFiniteError, UsageError
from landscape.flat.walk import null_walk
from landscape.flat.walk_risk import RiskBehaviour
from landscape.priors import GaussianPrior
from landscape.volume.excess import ExcessLoss


def hyperbola(z):
    x, y = z
    return torch.stack([x * y - 1]), torch.stack([y, x])[None]


def hyperbola_excess(rows):
    return (rows[:, 0] * rows[:, 1] - 1).square() / 2


def arc_at(distance):
    """Arc of xy = 1 from (1, 1) to where the straight distance is so large."""

    def gap(x):
        return (x - 1) ** 2 + (1 / x - 1) ** 2 - distance**2

    end = optimize.brentq(gap, 1, 100)
    return integrate.quad(lambda x: np.sqrt(1 + x**-4), 1, end)[0]


@pytest.mark.parametrize("limit", [0.5, 2.0, 5.0])
def test_arc_of_the_hyperbola(limit):
    start = torch.ones(2, dtype=torch.float64)
    found = null_walk(hyperbola_excess, hyperbola, start, cutoff=1e-6, limit=limit, walks=3, seed=1)
    assert len(found.arc) == 3
    assert not found.left.any()
    assert found.largest_excess.max() < 1e-12
    assert (found.distance >= limit).all()
    assert found.start_null == 1
    assert found.null.tolist() == [1, 1, 1]
    expected = [arc_at(d) for d in found.distance]
    assert found.arc == pytest.approx(expected, rel=1e-3)


def test_a_circle_is_walked_around_and_its_diameter_is_not_exceeded():
    def circle(z):
        return torch.stack([(z @ z - 1) / 2]), z[None]

    start = torch.tensor([1.0, 0.0])
    found = null_walk(
        lambda rows: ((rows * rows).sum(1) - 1).square(), circle, start, cutoff=1e-6, walks=1
    )
    assert not found.left.any()
    # It never gets further than the diameter and ends after its share of steps.
    assert found.distance[0] <= 2 + 1e-9
    assert found.arc[0] > 2 * np.pi


def quadratic(eigenvalues):
    roots = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    centre = draws(len(roots))

    def behaviour(z):
        return roots * (z - centre), torch.diag(roots)

    def excess(rows):
        return (roots * (rows - centre)).square().sum(1) / 2

    return centre, behaviour, excess


def test_a_quadratic_with_null_directions_is_flat_throughout():
    centre, behaviour, excess = quadratic([4.0, 1e-3, 0.0, 0.0, 2.0, 0.0])
    found = null_walk(excess, behaviour, centre, cutoff=1e-8, limit=5.0, walks=6)
    assert found.start_null == 3
    assert not found.left.any()
    assert (found.distance >= 5).all()
    assert found.arc == pytest.approx(found.distance, rel=1e-12)
    assert found.null.tolist() == [3] * 6
    assert found.largest_excess.max() < 1e-20


def test_nothing_null_is_nothing_to_walk():
    centre, behaviour, excess = quadratic([4.0, 1.0])
    found = null_walk(excess, behaviour, centre, cutoff=1e-2)
    assert found.start_null == 0
    assert len(found.arc) == len(found.left) == 0


def test_a_direction_that_is_flat_to_second_order_only_leaves_the_basin():
    # x^4 has no slope at 0 and so no constraint there: the walk goes straight on.
    def behaviour(z):
        return torch.stack([z[0] ** 2]), torch.stack([2 * z[0], 0 * z[1]])[None]

    def excess(rows):
        return rows[:, 0] ** 4 / 2

    directions = torch.tensor([[1.0, 0.0]])
    found = null_walk(
        excess,
        behaviour,
        torch.zeros(2),
        cutoff=1e-2,
        step=0.01,
        directions=directions,
    )
    assert found.start_null == 2
    # Where it comes back to 0 or runs out of the basin, it has not come far.
    assert found.distance[0] < 0.02**0.25 + 0.011


def test_the_basin_ends_where_the_excess_says():
    # The behaviour does not see what the excess loss does.
    centre, behaviour, _ = quadratic([1.0, 0.0])

    def excess(rows):
        return (rows[:, 1] - centre[1]).square() / 2

    found = null_walk(excess, behaviour, centre, cutoff=0.5, step=0.01, walks=2)
    assert found.left.all()
    assert found.distance == pytest.approx([1.0, 1.0], abs=0.011)
    assert (found.excess <= 0.5).all()
    assert (found.largest_excess > 0.5).all()


def test_nan_is_outside():
    centre, behaviour, _ = quadratic([1.0, 0.0])
    found = null_walk(
        lambda rows: torch.full((1,), torch.nan), behaviour, centre, cutoff=0.5, walks=1
    )
    assert found.left.all()
    assert found.distance.tolist() == [0.0]


def test_the_same_seed_walks_the_same_way():
    centre, behaviour, excess = quadratic([1.0, 0.0, 0.0, 0.0])
    steps = []
    options = {"cutoff": 1e-6, "walks": 2, "limit": 0.2}
    first = null_walk(
        excess, behaviour, centre, on_step=lambda w, d: steps.append((w, d)), **options
    )
    again = null_walk(excess, behaviour, centre, **options)
    assert first.arc.tolist() == again.arc.tolist()
    assert len(steps) == first.n_steps.sum()
    assert steps[-1][0] == 1


@pytest.mark.parametrize(
    ("behaviour", "options", "error", "text"),
    [
        (hyperbola, {"step": 0.0}, UsageError, "positive"),
        (hyperbola, {"limit": -1.0}, UsageError, "positive"),
        (hyperbola, {"directions": torch.zeros(2, 3)}, UsageError, "coordinates"),
        (lambda z: (z[:1], torch.ones(2, 2)), {}, UsageError, "one row"),
        (lambda z: (z[:1] + 5, torch.ones(1, 2)), {}, UsageError, "anchor"),
        (lambda z: (0 * z[:1], torch.full((1, 2), torch.nan)), {}, NotFiniteError, "finite"),
    ],
)
def test_wrong_use(behaviour, options, error, text):
    with pytest.raises(error, match=text):
        null_walk(hyperbola_excess, behaviour, torch.ones(2), cutoff=1e-3, **options)


def test_a_network_is_walked_along_its_symmetries():
    case = Case(
        build=lambda: generic(mlp(4, 2, 3, activation=nn.Identity, bias=False)),
        inputs=lambda: draws(30, 4),
        null=4,
    )
    risk = case.risk(batch=11)
    anchor = risk.space.vector()
    prior = GaussianPrior(mean=torch.zeros(risk.n), scale=torch.full((risk.n,), 0.5))
    behaviour = RiskBehaviour(risk, prior)
    found = null_walk(
        behaviour.excess(ExcessLoss(risk)), behaviour, behaviour.start, cutoff=1e-6, limit=2.0
    )
    assert found.start_null == 4
    assert not found.left.any()
    assert (found.distance >= 2).all()
    assert (found.arc >= found.distance).all()
    assert found.largest_excess.max() < 1e-12
    assert found.null.tolist() == [4] * 4
    assert torch.equal(risk.space.vector(), anchor)
