"""Pilots of annealed paths: they end where they should and repeat themselves for nothing."""

from __future__ import annotations

import math

import anneal
import numpy as np
import pytest
import torch

from landscape.volume.anneal_plan import Shortfall, planned, predicted_gradients
from landscape.volume.path import Metric, Path, Trail, refined
from landscape.volume.pilot import Scout

F64 = torch.float64


class StoppedError(Exception):
    pass


def scout(problem, *, energy=None, chains=16, seed=0, **options):
    return Scout(
        energy=problem.energy if energy is None else energy,
        anchor=problem.anchor,
        metric_at=options.pop("metric_at", problem.metric_at),
        chains=chains,
        seed=seed,
        name="test",
        **options,
    )


def quartics(count):
    """Independent copies of x^4: no curvature at the anchor 0."""
    return anneal.Problem(anchor=torch.zeros(count, dtype=F64), residual=lambda z: z**2)


# Metrics and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [0, 2, 5])
def test_masses_are_the_curvature_of_the_law(d):
    vectors = torch.linalg.qr(anneal.normal_rows(5, 5, seed=1)).Q[:d]
    values = torch.linspace(-0.5, 30.0, d, dtype=F64) if d else torch.zeros(0, dtype=F64)
    metric = Metric(vectors=vectors, values=values, bulk=0.25)
    rows = anneal.normal_rows(3, 5, seed=2)
    outside = torch.eye(5, dtype=F64) - vectors.T @ vectors
    # A negative curvature, from rounding, is none.
    curvature = vectors.T @ torch.diag(values.clamp(min=0)) @ vectors + 0.25 * outside
    expected = 1.5 * torch.eye(5, dtype=F64) + 40.0 * curvature
    found = metric.mass(40.0, 0.5)
    assert torch.allclose(found.power(found.power(rows, 0.5), 0.5), rows @ expected, atol=1e-9)
    assert torch.allclose(found.inverse(rows), rows @ torch.linalg.inv(expected), atol=1e-12)


def test_stored_metrics_are_the_same_and_their_masses_exact():
    """Rounded vectors are not orthonormal: at a ratio of 1e9 the stiffest would lose its sign."""
    vectors = torch.linalg.qr(anneal.normal_rows(50, 50, seed=1)).Q[:20]
    metric = Metric(vectors=vectors, values=torch.logspace(0, 5, 20, dtype=F64), bulk=0.0)
    again = Metric.of_unit(metric.as_unit(), torch.zeros(1, dtype=F64))
    assert torch.equal(again.vectors, metric.vectors)
    assert torch.equal(again.values, metric.values)
    mass, rows = again.mass(1e4, 0.0), anneal.normal_rows(30, 50, seed=2)
    momenta = mass.power(rows, 0.5)
    energy = (momenta * mass.inverse(momenta)).sum(1)
    assert torch.allclose(energy, rows.square().sum(1), rtol=1e-5)


def made_up_trail():
    length = np.array([0.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    metrics = (anneal.no_metric(2), anneal.no_metric(2))
    return Trail(
        beta=np.array([0.0, 1.0, 3.0, 9.0, 9.0, 9.0]),
        tether=np.array([2.0, 2.0, 2.0, 2.0, 1.0, 0.0]),
        length=length,
        loss=np.array([8.0, 4.0, 2.0, 1.0, 1.0, 1.0]),
        distance=np.ones(6),
        step=np.array([0.1, 0.2, 0.2, 0.2, 0.2, 0.4]),
        metric=np.array([0, 0, 0, 1, 1, 1]),
        metrics=metrics,
    )


@pytest.mark.parametrize("levels", [1, 4, 17, 60])
def test_refined_paths_have_all_marks_and_corners(levels):
    trail = made_up_trail()
    path = refined(trail, levels, [3.3, 6.0, 6.0, 1.5])
    assert isinstance(path, Path)
    at = np.interp(path.beta, trail.beta[:4], trail.length[:4])
    at = np.where(path.tether < 2, 6 - path.tether, at)
    assert (np.diff(at) >= 0).all()
    assert np.diff(at).max() <= 6 / levels + 1e-9
    assert len(path) <= levels + 1 + 3
    assert (path.beta[0], path.tether[0], path.beta[-1], path.tether[-1]) == (0, 2, 9, 0)
    assert at[path.marks] == pytest.approx([1.5, 3.3, 6.0])
    # Where the tether begins to move there is a level.
    assert np.isclose(at, 4.0).any()
    assert ((path.beta == 9) | (path.tether == 2)).all()
    assert (path.metric == (at >= 4 - 1e-9)).all()
    assert path.step.min() >= 0.1
    assert path.step.max() <= 0.4
    level = path.level(len(path) - 1)
    assert (level.beta, level.tether, level.mass.rest) == (9.0, 0.0, 1.0)


def test_where_the_loss_falls_to_a_cutoff():
    trail = made_up_trail()
    assert trail.where_loss(9.0) == 0
    assert trail.where_loss(0.5) == 6
    # Halfway in the log, of the running median.
    assert 1 < trail.where_loss(math.sqrt(8)) < 2


# Ends -------------------------------------------------------------------------------------------


def ended(problem, goal, *, radius=None, tether=0.0, seed=0):
    pilot = scout(problem, seed=seed)
    pilot.start(tether)
    pilot.warm(goal)
    pilot.settle(goal)
    if radius is not None:
        far = pilot.trail.distance[-1] > radius**2
        pilot.relax(1e6 if far else 0.0, radius=radius)
        pilot.settle(goal, radius=radius)
    trail = pilot.trail
    assert (np.diff(trail.length) > 0).all()
    assert len(trail.beta) == len(trail.step) == len(trail.metric)
    assert trail.metric.max() == len(trail.metrics) - 1
    return trail


@pytest.mark.parametrize("goal", [1.0, 0.01, 1e-5])
def test_settling_needs_no_curvature(goal):
    """20 copies of x^4, so that 16 chains know the mean loss to a twentieth."""
    trail = ended(quartics(20), 20 * goal)
    found = anneal.quartic(trail.beta[-1])[1]
    assert found == pytest.approx(goal, rel=0.3)
    assert trail.loss[-1] == pytest.approx(20 * goal, rel=0.3)
    assert trail.tether[-1] == 0


def test_settling_on_one_coordinate():
    """16 chains know the mean loss to a half only: near it in most seeds, on it in their mean."""
    found = [anneal.quartic(ended(quartics(1), 0.01, seed=s).beta[-1])[1] for s in range(12)]
    assert np.median(np.abs(np.log(np.array(found) / 0.01))) < math.log(1.4)
    assert np.exp(np.mean(np.log(found))) == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("radius", [0.1, 0.2, 0.5])
def test_settling_at_a_radius(radius):
    """Distance and loss both, unless the loss or the distance is below its goal by itself."""
    goal, n = 0.02, 20
    trail = ended(quartics(n), n * goal, radius=radius)
    beta, tether = trail.beta[-1], trail.tether[-1]
    _, loss, square = anneal.quartic(beta, tether)
    if radius < 0.28:  # x^4 is below the goal there whatever beta is.
        assert loss < goal
    else:
        assert loss == pytest.approx(goal, rel=0.3)
    natural = anneal.quartic(ended(quartics(n), n * goal).beta[-1])[2]
    if radius**2 < natural:
        assert square == pytest.approx(radius**2, rel=0.3)
        assert tether > 0
    else:
        assert tether < 0.1


@pytest.mark.parametrize("radius", [0.3, 0.8, 1.2])
def test_settling_of_a_quadratic_at_a_radius(radius):
    problem, goal = anneal.Quadratic(50, 0.4), 0.1
    trail = ended(problem, goal, radius=radius, tether=0.5)
    a, c = problem.a.numpy(), problem.anchor.numpy()
    m = 1 + trail.tether[-1] + trail.beta[-1] * a
    square = 1 / m + (c / m) ** 2
    assert (a / 2 * square).sum() == pytest.approx(goal, rel=0.3)
    free = 1 / (1 + trail.beta[-1] * a)
    most = (free + (c * free) ** 2).mean()
    assert square.mean() == pytest.approx(min(radius**2, most), rel=0.3)


def test_nothing_to_do_is_one_level():
    flat = anneal.Problem(anchor=torch.ones(3, dtype=F64), residual=lambda z: 0 * z[0])
    trail = ended(flat, 0.1)
    assert (len(trail.beta), trail.beta[-1], trail.loss[-1]) == (1, 0.0, 0.0)
    path = refined(trail, 5, [0.0, 0.0])
    assert (len(path), path.marks.tolist()) == (1, [0])


def test_lengths_are_thermodynamic():
    """``int sd(dL) dbeta`` of the quadratic, to the noise of 16 chains."""
    problem = anneal.Quadratic(40)
    trail = ended(problem, 0.05)
    s = np.linspace(0, 1, 2001) ** 3 * trail.beta[-1]
    expected = np.trapezoid(np.sqrt(problem.form.tilted_variance(s)), s)
    assert trail.length[-1] == pytest.approx(expected, rel=0.25)
    steps = np.diff(trail.length)
    assert steps[:-1].max() <= 1 + 1e-9


def trapped(problem):
    """The problem with a second basin, of a tenth of the prior, whose bottom is at a loss of 2."""

    def energy(z):
        away = z.new_zeros(len(problem.anchor))
        away[0] = 2.5
        trap = z[:, 0] > 1.3
        loss, slope = problem.energy(torch.where(trap[:, None], z - away, z))
        return loss + 2.0 * trap, slope

    return energy


def test_a_chain_that_is_left_behind_changes_neither_length_nor_end(monkeypatch):
    problem, goal = quartics(20), 0.2
    free = ended(problem, goal, seed=12)
    pilot = scout(problem, energy=trapped(problem), seed=12)
    pilot.start(0.0)
    pilot.warm(goal)
    pilot.settle(goal)
    stuck = pilot._particles.loss.ravel() > 1.9
    assert 1 <= stuck.sum() <= 4
    assert pilot.trail.length[-1] == pytest.approx(free.length[-1], rel=0.35)
    assert pilot.trail.beta[-1] == pytest.approx(free.beta[-1], rel=0.4)
    # Its curvature, that of another place, is not the metric's.
    rows = []
    seen = scout(
        problem,
        energy=trapped(problem),
        seed=12,
        metric_at=lambda z, i: rows.append(len(z)) or problem.metric_at(z, i),
    )
    seen.start(0.0)
    seen.warm(goal)
    assert (rows[0], rows[-1]) == (11, 10)
    # So that this says something.
    monkeypatch.setattr("landscape.volume.pilot._FENCE", math.inf)
    monkeypatch.setattr("landscape.volume.pilot._MOST", 200)
    blind = scout(problem, energy=trapped(problem), seed=5)
    blind.start(0.0)
    blind.warm(goal)
    assert blind.n_levels == 200
    assert blind.trail.length[-1] > 5 * free.length[-1]


# Interruptions ----------------------------------------------------------------------------------


def journey(pilot, goal):
    """Legs of all kinds, as the outward start takes them."""
    pilot.start(8.0)
    pilot.warm(goal)
    pilot.settle(goal, iterations=6)
    for tether in (3.0, 1.0, 0.0):
        pilot.relax(tether)
        pilot.warm(goal)
        pilot.settle(goal, radius=0.9 if tether == 0 else None, iterations=6)
    return pilot.trail


def same(one, two):
    for name in ("beta", "tether", "length", "loss", "distance", "step", "metric"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert torch.equal(a.vectors, b.vectors)
        assert torch.equal(a.values, b.values)
        assert a.bulk == b.bulk


def test_an_interrupted_pilot_repeats_nothing_and_ends_the_same():
    problem, goal = quartics(20), 0.02
    whole, looks = anneal.Counted(problem.energy), []

    def metric_at(positions, number):
        looks.append(number)
        return problem.metric_at(positions, number)

    expected = journey(scout(problem, energy=whole, metric_at=metric_at), goal)
    assert looks == list(range(len(expected.metrics)))
    assert len(looks) > 1
    total = scout(problem)
    journey(total, goal)
    assert total.is_new
    for stop in (1, 2, 9, 20, total.n_levels - 1, total.n_levels):
        stored, metrics, first = {}, {}, anneal.Counted(problem.energy)
        looks.clear()

        def on_level(pilot, stop=stop, stored=stored):
            if pilot.n_levels == stop:
                stored.update(pilot.as_unit())
                raise StoppedError

        def on_metric(number, metric, metrics=metrics):
            metrics[number] = metric.as_unit()

        with pytest.raises(StoppedError):
            journey(
                scout(
                    problem,
                    energy=first,
                    metric_at=metric_at,
                    on_level=on_level,
                    on_metric=on_metric,
                ),
                goal,
            )
        assert first.rows == stored["n_gradients"]
        known = [Metric.of_unit(metrics[i], problem.anchor) for i in range(len(metrics))]
        second = anneal.Counted(problem.energy)
        assert looks == list(metrics)
        pilot = scout(problem, energy=second, metric_at=metric_at, state=stored, metrics=known)
        same(journey(pilot, goal), expected)
        assert first.rows + second.rows == whole.rows
        assert pilot.n_gradients == whole.rows
        assert looks == list(range(len(expected.metrics)))
        assert pilot.is_new == (stop < total.n_levels)


# Plans ------------------------------------------------------------------------------------------


def test_plans_are_finer_for_smaller_errors_and_keep_to_their_gradients():
    trail = ended(anneal.Quadratic(30), 0.05)
    length = float(trail.length[-1])

    def of(error=1.0, n_gradients=1e9, levels=0, chains=64, stays=False):
        return planned(
            trail,
            [length],
            chains=chains,
            draws=16,
            error=error,
            n_gradients=n_gradients,
            levels=levels,
            stays=stays,
        )

    coarse, fine = of(error=2.0), of(error=0.2)
    assert fine.levels > 4 * coarse.levels
    assert len(fine.path) == fine.levels + 1
    assert of(chains=256).levels < of().levels
    capped = of(error=0.2, n_gradients=fine.n_gradients / 3)
    assert capped.n_gradients == pytest.approx(fine.n_gradients / 3, rel=0.05)
    short = of(n_gradients=1000)
    assert isinstance(short, Shortfall)
    assert short.n_gradients > 1000
    assert isinstance(of(n_gradients=short.n_gradients - 700), Shortfall)
    assert of(n_gradients=short.n_gradients).n_gradients < 1.1 * short.n_gradients
    # An earlier plan stays unless it is much too coarse.
    assert of(error=0.2, levels=fine.levels - 7).levels == fine.levels - 7
    assert of(error=0.2, levels=coarse.levels).levels == fine.levels
    assert of(error=0.2, levels=coarse.levels, stays=True).levels == coarse.levels
    assert of(n_gradients=0, levels=coarse.levels).levels == coarse.levels


def test_predicted_gradients_are_near_those_of_a_plan():
    """With a metric that is not exact, as that of a network: else trajectories are one step."""
    problem = anneal.Quadratic(100, 0.5, kept=3)
    trail = ended(problem, 0.05)
    plan = planned(trail, [trail.length[-1]], chains=64, draws=16, error=1.0, n_gradients=1e9)
    found = predicted_gradients(problem.form, float(trail.beta[-1]), chains=64, draws=16, error=1.0)
    assert 1 < found / plan.n_gradients < 6
    assert predicted_gradients(problem.form, math.nan, chains=64, draws=16, error=1.0) == 0
    assert predicted_gradients(problem.form, 0.0, chains=64, draws=16, error=1.0) == 0


def test_an_end_that_stands_is_not_forgotten():
    """A last leg that turns back keeps the points before it: they are marks."""
    problem, goal = anneal.HYPERBOLA, 0.01
    pilot = scout(problem)
    pilot.start(99.0)
    pilot.warm(goal)
    pilot.settle(goal, iterations=6)
    ends = []
    for tether in (40.0, 20.0, 19.0):
        pilot.relax(tether)
        pilot.warm(goal)
        pilot.settle(goal, radius=0.08 if tether == 19 else None, iterations=6)
        ends.append(float(pilot.trail.length[-1]))
    assert ends == sorted(set(ends))
    # The tether went up again: the radius is nearer than all of them.
    assert pilot.trail.tether[-1] > 40
    path = refined(pilot.trail, 20, ends)
    assert len(path.marks) == 3
    assert path.tether[path.marks[:2]] == pytest.approx([40.0, 20.0])
