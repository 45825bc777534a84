"""Annealed importance sampling by islands: unbiased, resumable, and right about log Z and log V."""

from __future__ import annotations

import dataclasses
import math

import anneal
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from landscape.volume.anneal import annealed, backwards
from landscape.volume.hmc import Chains, Evaluated
from landscape.volume.islands import Islands, integrated, joined, local_learning, parted, volumes
from landscape.volume.particles import Particles, log_reference
from landscape.volume.path import Metric, Path
from landscape.volume.weights import mean_of_estimates

F64 = torch.float64


def path_of(betas, metric, *, tethers=0.0, step=0.5, marks=()):
    """A path by hand; the last level is a mark unless others are given."""
    betas = np.asarray(betas, dtype=float)
    levels = len(betas)
    return Path(
        beta=betas,
        tether=np.broadcast_to(np.asarray(tethers, dtype=float), levels).copy(),
        step=np.full(levels, step),
        metric=np.zeros(levels, dtype=np.int64),
        metrics=(metric,),
        marks=np.array(marks or [levels - 1], dtype=np.int64),
    )


def upwards(first, last, levels):
    return np.r_[0.0, np.geomspace(first, last, levels)]


def run(path, problem, *, islands=8, size=8, draws=4, seed=0, **options):
    found, _ = annealed(
        path,
        problem.energy,
        problem.anchor,
        islands=islands,
        size=size,
        draws=draws,
        seed=seed,
        label=("test", 0),
        **options,
    )
    return found


def check_unbiased(logs, truth, *, error=0.12):
    """The mean of the estimates is the truth, which is known well enough for that to say much."""
    ratio = np.exp(logs - truth)
    spread = ratio.std(ddof=1) / math.sqrt(len(ratio))
    assert spread < error
    assert abs(ratio.mean() - 1) < 4 * spread + 1e-12


# Unbiased ---------------------------------------------------------------------------------------

SIZES = {"without resampling": (12_000, 1), "with resampling": (2500, 8)}


@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("name", list(SIZES))
def test_partition_functions_and_volumes_are_unbiased(n, name):
    """On a path so coarse that its particles lag behind: only the weights make up for it."""
    islands, size = SIZES[name]
    problem = anneal.Quadratic(n, scale=2.0)
    path = path_of(upwards(0.1, 8.0, 10), problem.metric, step=0.9, marks=[7, 10])
    found = run(path, problem, islands=islands, size=size, draws=2)
    assert (found.n_resampled >= 2 * islands) == (size > 1)
    for level in (1, 7, 10):
        truth = problem.log_partition(path.beta[level])
        check_unbiased(found.log_partition[level], truth)
    # The mean of logs, which is not unbiased.
    gap = float(found.log_partition[-1].mean()) - problem.log_partition(path.beta[-1])
    assert gap < -0.02
    for mark, level in enumerate(path.marks):
        cutoff = n / 2 / path.beta[level]
        check_unbiased(volumes(found, mark, cutoff), problem.log_volume(cutoff), error=0.15)


@pytest.mark.parametrize("name", list(SIZES))
def test_paths_in_beta_and_the_tether_are_unbiased(name):
    islands, size = SIZES[name]
    problem = anneal.Quadratic(3, 0.7)
    betas = [0.0, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 6.0]
    tethers = [6.0, 6.0, 6.0, 6.0, 6.0, 4.0, 2.0, 1.0, 0.5, 0.0]
    path = path_of(betas, problem.metric, tethers=tethers, step=0.9, marks=[4, 7, 9])
    found = run(path, problem, islands=islands, size=size, draws=2)
    for level in range(len(path)):
        truth = problem.log_partition(betas[level], tethers[level])
        check_unbiased(found.log_partition[level], truth)
    for mark in (1, 2):
        check_unbiased(volumes(found, mark, 0.3), problem.log_volume(0.3), error=0.15)


def disc(problem, cutoff, reach):
    """Log V of a quadratic in two coordinates within a distance of its anchor, by quadrature."""
    (a, b), (p, q) = problem.a.tolist(), problem.anchor.tolist()

    def inner(x):
        room = min((2 * cutoff - a * x * x) / b, reach**2 - x * x)
        half = math.sqrt(max(room, 0.0))
        mass = special.ndtr(q + half) - special.ndtr(q - half)
        return mass * math.exp(-((p + x) ** 2) / 2) / math.sqrt(2 * math.pi)

    end = min(reach, math.sqrt(2 * cutoff / a))
    return math.log(integrate.quad(inner, -end, end, limit=200)[0])


def test_volumes_within_a_radius():
    problem = anneal.Quadratic(2, scale=2.0)
    path = path_of([0.0, 0.5, 2.0, 2.0], problem.metric, tethers=[1.0, 1.0, 1.0, 0.3], marks=[2, 3])
    found = run(path, problem, islands=4000, draws=4)
    assert disc(problem, 0.4, 9.0) == pytest.approx(problem.log_volume(0.4), abs=1e-6)
    for reach in (0.3, 0.6, 9.0, math.inf):
        truth = disc(problem, 0.4, min(reach, 9.0))
        for mark in (0, 1):
            check_unbiased(volumes(found, mark, 0.4, reach), truth)
    assert (volumes(found, 0, 0.4, 0.0) == -np.inf).all()


def test_a_loss_of_zero_gives_the_prior_s_mass():
    n, reach = 3, 1.9
    anchor = anneal.normal_rows(n, seed=1)
    problem = anneal.Problem(anchor=anchor, residual=lambda z: 0 * z[0])
    path = path_of([0.0, 1.0, 50.0], anneal.no_metric(n), marks=[0, 2])
    found = run(path, problem, islands=500, draws=4)
    assert not found.log_partition.any()
    for mark in (0, 1):
        assert not volumes(found, mark, 0.0).any()
        truth = stats.ncx2.logcdf(reach**2, n, float(anchor @ anchor))
        check_unbiased(volumes(found, mark, 0.0, reach), truth)
    tethered = run(
        path_of([0.0, 1.0], anneal.no_metric(n), tethers=2.0), problem, islands=2000, draws=4
    )
    assert (tethered.log_partition == log_reference(anchor, 2.0)).all()
    check_unbiased(volumes(tethered, 0, 0.0, reach), truth)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("slope", [0.0, math.nan])
def test_a_loss_that_is_not_finite_on_part_of_the_prior(value, slope):
    """Islands may lose all of their particles; the mean over all is right."""
    edge, a, cutoff = -0.5, 3.0, 0.1

    def energy(z):
        bad = z[:, 0] > edge
        gradient = torch.stack([torch.zeros_like(z[:, 1]), a * z[:, 1]], 1)
        gradient = torch.where(bad[:, None], slope, gradient)
        return torch.where(bad, value, a * z[:, 1].square() / 2), gradient

    path = path_of(upwards(0.5, 5.0, 4), anneal.no_metric(2), marks=[3, 4])
    found, _ = annealed(
        path,
        energy,
        torch.tensor([-1.0, 0.0], dtype=F64),
        islands=3000,
        size=8,
        draws=2,
        seed=0,
        label=("test",),
    )
    dead = np.isneginf(found.log_partition[1])
    chance = special.ndtr(0.5) ** 8
    assert abs(dead.mean() - chance) < 4 * math.sqrt(chance / 3000)
    for level in range(1, 5):
        truth = math.log(special.ndtr(edge)) - math.log1p(a * path.beta[level]) / 2
        check_unbiased(found.log_partition[level], truth)
    truth = math.log(special.ndtr(edge) * math.erf(math.sqrt(cutoff / a)))
    for mark in (0, 1):
        check_unbiased(volumes(found, mark, cutoff), truth)


def test_the_way_back_estimates_the_inverse():
    """From exact draws of the end: unbiased for Z at the start over Z at the end."""
    problem = anneal.Quadratic(4)
    path = backwards(path_of(upwards(0.3, 6.0, 6), problem.metric, marks=[6]))
    assert not len(path.marks)
    assert (path.beta[0], path.beta[-1]) == (6.0, 0.0)
    precision = 1 + 6 * problem.a
    z = anneal.normal_rows(16_000, 4, seed=2) / precision.sqrt()
    z = z + problem.anchor * 6 * problem.a / precision
    loss, slope = problem.energy(z)
    start = Particles(
        chains=Chains(
            position=z, at=Evaluated(torch.zeros_like(loss), torch.zeros_like(z), (loss, slope))
        ),
        log_weight=np.zeros((2000, 8)),
        log_scale=np.zeros(2000),
    )
    found = run(path, problem, islands=2000, draws=0, start=start)
    check_unbiased(found.log_partition[-1], -problem.log_partition(6.0))


# Exactness of the bookkeeping -------------------------------------------------------------------


class StoppedError(Exception):
    pass


def test_a_run_resumed_after_any_level_is_the_same_bit_for_bit():
    problem = anneal.Quadratic(4)
    path = path_of(
        [0.0, 1.0, 3.0, 9.0, 9.0, 9.0],
        problem.metric,
        tethers=[3.0, 3.0, 3.0, 3.0, 1.0, 0.0],
        marks=[2, 5],
    )
    snapshots, whole = [], anneal.Counted(problem.energy)

    def keep(level, snapshot, count):
        assert count == whole.rows
        snapshots.append(snapshot())

    def of(energy, **options):
        return annealed(
            path,
            energy,
            problem.anchor,
            islands=4,
            size=8,
            draws=3,
            seed=5,
            label=("ladder", 6, 1),
            **options,
        )

    expected, last = of(whole, on_level=keep)
    assert expected.n_resampled > 4
    assert expected.n_gradients == whole.rows
    for level, snapshot in enumerate(snapshots):
        counted = anneal.Counted(problem.energy)
        found, end = of(counted, state=snapshot)
        for field in dataclasses.fields(Islands):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert np.array_equal(ours, theirs), (level, field.name)
        assert torch.equal(end.chains.position, last.chains.position)
        assert counted.rows == whole.rows - int(snapshot["n_gradients"])
    assert counted.rows == 0

    # The snapshot of a level does not change while the run goes on.
    def stop(level, snapshot, count):
        if level == 3:
            again = snapshot()
            assert all(np.array_equal(again[k], v) for k, v in snapshots[3].items())
            raise StoppedError

    with pytest.raises(StoppedError):
        of(problem.energy, on_level=stop)


def test_runs_of_another_label_or_seed_are_independent():
    problem = anneal.Quadratic(3)
    path = path_of([0.0, 1.0, 3.0], problem.metric)

    def last(**options):
        settings = {"islands": 4, "size": 8, "draws": 1, "seed": 0, "label": ("a", 0)} | options
        found, _ = annealed(path, problem.energy, problem.anchor, **settings)
        return found.log_partition[-1]

    assert np.array_equal(last(), last())
    for other in ({"seed": 1}, {"label": ("a", 1)}, {"label": ("b", 0)}):
        assert not np.isin(last(**other), last()).any()


def test_islands_are_joined_and_parted():
    problem = anneal.Quadratic(3)
    path = path_of([0.0, 1.0, 3.0], problem.metric, marks=[1, 2])
    runs = [run(path, problem, islands=4, seed=seed) for seed in range(3)]
    whole = joined(runs)
    assert whole.log_partition.shape == (3, 12)
    assert whole.draw_loss.shape == (2, 4, 12, 8)
    assert whole.n_gradients == sum(r.n_gradients for r in runs)
    expected = np.concatenate([volumes(r, 1, 0.3) for r in runs])
    assert np.array_equal(volumes(whole, 1, 0.3), expected)
    for one, part in zip(runs, parted(whole, 4), strict=True):
        for field in dataclasses.fields(Islands):
            if field.name not in ("n_gradients", "n_resampled"):
                assert np.array_equal(getattr(one, field.name), getattr(part, field.name))
        again = Islands.of_unit(part.as_unit())
        assert np.array_equal(again.draw_loss, one.draw_loss)


def test_one_run_serves_all_cutoffs_and_hotter_marks_colder_cutoffs():
    problem = anneal.Quadratic(3)
    betas = np.r_[upwards(0.2, 5.0, 20), 7.0, 10.0, 12.0, 15.0]
    path = path_of(betas, problem.metric, marks=[20, 22, 24])
    found = run(path, problem, islands=32, draws=16)
    # E[dL] is 0.3, 0.15 and 0.1 there.
    for mark, cutoff in ((0, 0.3), (0, 0.1), (1, 0.15), (1, 0.1), (2, 0.1)):
        estimate = mean_of_estimates(volumes(found, mark, cutoff))
        assert estimate.label == "estimate"
        gap = estimate.value - problem.log_volume(cutoff)
        assert abs(gap) < 4 * estimate.stderr
        assert estimate.stderr < 0.2


# Integration ------------------------------------------------------------------------------------


def made_up(beta, tether, loss, distance):
    levels = len(beta)
    zero, one = np.zeros((levels, 1)), np.ones((levels, 1))
    return Islands(
        beta=np.array(beta),
        tether=np.array(tether),
        log_partition=zero - 2.0,
        loss=np.array(loss)[:, None],
        distance=np.array(distance)[:, None],
        acceptance=one,
        divergent=zero.astype(np.int64),
        stride=zero,
        marks=np.array([levels - 1]),
        log_scale=zero[:1],
        draw_loss=np.zeros((1, 1, 1, 1)),
        draw_distance=np.zeros((1, 1, 1, 1)),
        n_gradients=0,
        n_resampled=0,
    )


def test_integration_is_the_trapezoidal_rule_in_both_directions():
    islands = made_up([0, 1, 3, 3], [2, 2, 2, 0.5], [5.0, 3, 1, 2], [8.0, 6, 4, 10])
    expected = -2 - np.cumsum([0, 4, 2 * 2, -1.5 * 7 / 2])
    assert integrated(islands)[:, 0] == pytest.approx(expected)
    # The prior's mean loss may be infinite: no matter where the tether alone changes, and elsewhere
    # the weights say what the mean cannot.
    islands = made_up([0, 0, 1, 2], [2, 1, 1, 1], [np.inf, np.inf, 1, 3], [8.0, 6, 4, 4])
    islands.log_partition[:, 0] = [-2.0, -3.0, -3.7, -9.0]
    assert integrated(islands)[:, 0] == pytest.approx([-2, 1.5, 0.8, -1.2])


def test_integration_agrees_with_the_weights_and_the_truth():
    problem = anneal.Quadratic(5, scale=2.0)
    betas, tethers = upwards(0.05, 10.0, 60), np.full(61, 2.0)
    betas = np.r_[betas, np.full(20, 10.0)]
    tethers = np.r_[tethers, np.geomspace(3, 1, 21)[1:] - 1]
    path = path_of(betas, problem.metric, tethers=tethers)
    found = run(path, problem, islands=32, draws=1)
    total = integrated(found)
    for level in (10, 40, 60, 80):
        truth = problem.log_partition(betas[level], tethers[level])
        spread = total[level].std(ddof=1) / math.sqrt(32)
        weighed = mean_of_estimates(found.log_partition[level])
        assert 0 < spread < 0.15
        # The trapezoidal rule itself is off by a hundredth here.
        assert abs(total[level].mean() - truth) < 4 * spread + 0.02
        assert abs(weighed.value - truth) < 4 * weighed.stderr
        assert abs(total[level].mean() - weighed.value) < 4 * math.hypot(spread, weighed.stderr)


# Log Z of independent copies adds ---------------------------------------------------------------

COPIES = 20
FACTORS = {
    "x^4": (1, lambda z: z.pow(4).sum(1), lambda beta: anneal.quartic(beta)[0]),
    "x^2 y^2": (
        2,
        lambda z: (z[:, :COPIES] * z[:, COPIES:]).square().sum(1),
        lambda beta: anneal.product(beta)[0],
    ),
}


def of_copies(name, *, levels, seed, last=1000.0):
    """A ladder for 20 copies with the mean curvature of one of its chains' laws."""
    size, loss, _ = FACTORS[name]
    n = size * COPIES
    # For x^4 the curvature 12 x^2 where x^2 is beta^(-1/2) / 3; for x^2 y^2 less than 2 x^2.
    betas = upwards(0.01, last, levels)
    metrics = tuple(
        Metric(
            vectors=torch.zeros(0, n, dtype=F64),
            values=torch.zeros(0, dtype=F64),
            bulk=4 / math.sqrt(1 + b) if size == 1 else 0.0,
        )
        for b in betas
    )
    path = dataclasses.replace(
        path_of(betas, metrics[0], step=0.4 if size == 1 else 0.1),
        metric=np.arange(len(betas)),
        metrics=metrics,
        step=np.full(len(betas), 0.4) if size == 1 else 0.6 / np.sqrt(1 + 4 * betas) + 0.01,
    )
    problem = anneal.Problem(anchor=torch.zeros(n, dtype=F64), residual=lambda z: z)
    found, _ = annealed(
        path,
        anneal.of_loss(loss),
        problem.anchor,
        islands=8,
        size=8,
        draws=1,
        seed=seed,
        label=("copies",),
    )
    return found


def covered(found, name, levels):
    truth = FACTORS[name][2]
    results = []
    for level in levels:
        estimate = mean_of_estimates(found.log_partition[level])
        exact = COPIES * truth(found.beta[level])
        results.append(estimate.lower <= exact <= estimate.upper)
        assert estimate.label == "estimate"
        assert estimate.stderr < 1.5
    return results


@pytest.mark.parametrize("name", list(FACTORS))
def test_log_z_of_independent_copies_adds(name):
    found = [of_copies(name, levels=80, seed=seed, last=100.0) for seed in range(3)]
    held = [covered(f, name, (30, 60, 80)) for f in found]
    assert sum(map(sum, held)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FACTORS))
def test_log_z_of_independent_copies_is_covered(name):
    found = [of_copies(name, levels=150, seed=seed) for seed in range(20)]
    held = np.array([covered(f, name, (50, 100, 150)) for f in found])
    assert (held.sum(0) >= 17).all()


# Learning coefficients --------------------------------------------------------------------------


def test_the_learning_coefficient_of_a_product_at_a_finite_temperature():
    """``beta E[dL]`` of x^2 y^2 at beta = 100 is 0.354 under this prior, on its way to 1/2."""
    problem, _ = anneal.FLAT_MINIMA["x^2 y^2"]
    betas = upwards(0.3, 100.0, 40)
    path = dataclasses.replace(
        path_of(betas, anneal.no_metric(2)), step=0.5 / np.sqrt(1 + betas / 2)
    )
    found = run(path, problem, islands=100, draws=0)
    value, stderr = local_learning(found)
    for level in (20, 30, 40):
        truth = betas[level] * anneal.product(betas[level])[1]
        assert stderr[level] < 0.05
        assert abs(value[level] - truth) < 4 * stderr[level]
    assert 100 * anneal.product(100.0)[1] == pytest.approx(0.3542, abs=1e-4)


def test_the_learning_coefficient_of_a_quadratic_is_half_its_rank():
    problem = anneal.Quadratic(8, 0.5)
    found = run(path_of(upwards(0.3, 1e4, 60), problem.metric), problem, islands=32, draws=0)
    value, stderr = local_learning(found)
    assert abs(value[-1] - 2) < 4 * stderr[-1] + 0.01
    assert stderr[-1] < 0.15


def test_one_island_has_no_error():
    value, stderr = local_learning(made_up([0, 1], [0, 0], [np.inf, 2], [1, 1]))
    assert value[1] == 2
    assert np.isnan(stderr).all()
