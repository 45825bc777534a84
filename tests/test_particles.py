"""Particles between two laws: exact starts, weights, resampling without bias."""

from __future__ import annotations

import math
from dataclasses import replace

import anneal
import numpy as np
import pytest
import torch

from landscape.volume import particles as module
from landscape.volume.mass import Mass
from landscape.volume.particles import (
    Level,
    Particles,
    at_level,
    distances,
    drawn,
    level_stream,
    log_reference,
    reweighed,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def identity(n):
    return Mass(vectors=torch.zeros(0, n, dtype=F64), values=torch.zeros(0, dtype=F64), rest=1.0)


def start(problem, *, tether=0.0, islands=4, size=8, seed=0):
    return drawn(
        problem.energy,
        problem.anchor,
        tether=tether,
        islands=islands,
        size=size,
        generator=generator(seed),
    )


def weighed(particles, logs, **changes):
    return replace(particles, log_weight=np.asarray(logs, dtype=float), **changes)


def stay(particles, anchor, *, seed=0, always=False):
    """Reweighing without a change of law: resampling only."""
    return reweighed(
        particles,
        anchor,
        before=(0.0, 0.0),
        after=(0.0, 0.0),
        generator=generator(seed),
        always=always,
    )


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("tether", [0.0, 1e-3, 1.0, 1e4])
def test_the_reference_is_a_gaussian_integral(n, tether):
    anchor = anneal.normal_rows(n, seed=n)
    expected = anneal.log_gaussian_reference(anchor.numpy(), tether)
    assert log_reference(anchor, tether) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("tether", [0.0, 0.7, 25.0])
def test_the_start_is_drawn_exactly(tether):
    problem = anneal.Quadratic(4)
    found = start(problem, tether=tether, islands=5000, size=4)
    count, z = 20_000, found.chains.position
    mean = tether / (1 + tether) * problem.anchor
    scaled = (z - mean) * math.sqrt(1 + tether)
    assert float(scaled.mean(0).abs().max()) < 4 / math.sqrt(count)
    second = scaled.T @ scaled / count - torch.eye(4, dtype=F64)
    assert float(second.abs().max()) < 4 * math.sqrt(2 / count)
    assert (found.log_scale == log_reference(problem.anchor, tether)).all()
    assert not found.log_weight.any()
    assert found.n_gradients == count
    assert np.array_equal(found.log_partition(), found.log_scale)
    loss, slope = problem.energy(z)
    assert torch.equal(found.chains.at.carried[0], loss)
    assert torch.equal(found.chains.at.carried[1], slope)
    expected = (z - problem.anchor).square().sum(1).numpy().reshape(5000, 4)
    assert np.allclose(distances(found, problem.anchor), expected)


def test_weights_are_density_ratios_of_both_laws():
    problem = anneal.Quadratic(3, scale=0.1)
    particles = start(problem, tether=0.5)
    after = reweighed(
        particles,
        problem.anchor,
        before=(0.2, 0.5),
        after=(0.5, 0.1),
        generator=generator(),
    )
    change = 0.3 * particles.loss - 0.4 / 2 * distances(particles, problem.anchor)
    assert np.allclose(after.log_weight, -change)
    assert after.n_resampled == 0
    expected = particles.log_scale + np.log(np.exp(-change).mean(1))
    assert np.allclose(after.log_partition(), expected)
    assert np.allclose(after.share().sum(1), 1)
    assert np.allclose(np.log(after.share()), -change - np.log(np.exp(-change).sum(1))[:, None])


def test_the_law_of_a_level():
    """Density and gradient against the definition and autograd."""
    anchor, beta, tether = anneal.normal_rows(5, seed=1), 3.0, 0.4
    energy = anneal.of_loss(lambda z: z.pow(4).sum(1) + z.prod(1))
    z = anneal.normal_rows(7, 5, seed=2).requires_grad_()
    expected = -(z.square().sum(1) + tether * (z - anchor).square().sum(1)) / 2
    expected = expected - beta * (z.pow(4).sum(1) + z.prod(1))
    (slope,) = torch.autograd.grad(expected.sum(), z)
    found = module._Target(energy, anchor, beta, tether)(z.detach())
    assert torch.allclose(found.log_density, expected.detach(), atol=1e-12)
    assert torch.allclose(found.gradient, slope, atol=1e-12)


def test_moves_leave_weights_as_they_are_and_cost_their_gradients():
    problem = anneal.Quadratic(3)
    counted = anneal.Counted(problem.energy)
    particles = weighed(start(problem), anneal.normal_rows(4, 8, seed=1).numpy())
    level = Level(beta=2.0, tether=0.3, step=0.4, mass=identity(3))
    after, moved = at_level(
        particles, counted, problem.anchor, level, length=1.0, generator=generator()
    )
    assert np.array_equal(after.log_weight, particles.log_weight)
    assert np.array_equal(after.log_scale, particles.log_scale)
    assert counted.rows == moved.n_gradients == after.n_gradients - particles.n_gradients
    assert moved.acceptance.mean() > 0.5
    assert torch.equal(after.chains.at.carried[0], problem.energy(after.chains.position)[0])
    assert not torch.equal(after.chains.position, particles.chains.position)


# Resampling -------------------------------------------------------------------------------------


def copies(particles, after):
    """How often each particle is found after resampling, (I, P)."""
    islands, size = particles.log_weight.shape
    old = particles.chains.position.reshape(islands, size, -1)
    new = after.chains.position.reshape(islands, size, -1)
    return (new[:, :, None] == old[:, None]).all(-1).sum(1).numpy()


def test_resampling_is_systematic_and_stays_within_its_island():
    problem = anneal.Quadratic(2)
    logs = 2 * anneal.normal_rows(6, 8, seed=3).numpy()
    particles = weighed(start(problem, islands=6), logs)
    expected, total = 8 * particles.share(), np.zeros((6, 8))
    for seed in range(400):
        after = stay(particles, problem.anchor, seed=seed, always=True)
        found = copies(particles, after)
        assert (found.sum(1) == 8).all()
        assert (np.abs(found - expected) < 1).all()
        total += found
        assert not after.log_weight.any()
        assert np.allclose(after.log_partition(), particles.log_partition(), atol=1e-12)
        assert after.n_resampled == 6
        loss, slope = problem.energy(after.chains.position)
        assert torch.equal(after.chains.at.carried[0], loss)
        assert torch.equal(after.chains.at.carried[1], slope)
    # A number between two integers has a variance of a quarter at most.
    assert (np.abs(total / 400 - expected) < 4 * 0.5 / 20).all()


def test_only_islands_with_few_effective_particles_are_resampled():
    problem = anneal.Quadratic(2)
    even, uneven = np.zeros(8), np.r_[10.0, np.zeros(7)]
    # An effective number of exactly a half stays.
    half = np.r_[np.zeros(4), np.full(4, -60.0)]
    particles = weighed(start(problem, islands=3), np.stack([even, uneven, half]))
    after = stay(particles, problem.anchor)
    assert after.n_resampled == 1
    assert np.array_equal(after.log_weight, np.stack([even, even, half]))
    assert np.array_equal(copies(particles, after)[0], np.ones(8))
    assert copies(particles, after)[1, 0] == 8
    assert np.allclose(after.log_partition(), particles.log_partition())


def test_single_particles_are_never_resampled():
    problem = anneal.Quadratic(2)
    particles = weighed(start(problem, islands=5, size=1), np.arange(5.0)[:, None])
    after = stay(particles, problem.anchor, always=True)
    assert np.array_equal(after.log_weight, particles.log_weight)
    assert after.n_resampled == 0


@pytest.mark.parametrize("always", [False, True])
def test_an_island_without_weight_stays_alone(always):
    """Its estimate is 0; the others are resampled as ever."""
    problem = anneal.Quadratic(2)
    logs = np.stack([np.full(8, -np.inf), np.r_[10.0, np.zeros(7)], np.r_[-np.inf, np.zeros(7)]])
    particles = weighed(start(problem, islands=3), logs)
    after = stay(particles, problem.anchor, always=always)
    found = after.log_partition()
    assert found[0] == -np.inf
    assert np.allclose(found[1:], particles.log_partition()[1:])
    assert np.isfinite(after.share()).all()
    assert after.n_resampled == (2 if always else 1)
    assert copies(particles, after)[1, 0] == 8
    if always:
        assert not after.log_weight[1:].any()
        assert copies(particles, after)[2, 0] == 0


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("edge", [0.0, -9.0])
def test_losses_that_are_not_finite_lose_their_weight(value, edge):
    """On half of the prior, or on all of it."""

    def energy(z):
        bad = z[:, 0] > edge
        return torch.where(bad, value, 0.0).double(), torch.zeros_like(z)

    anchor = torch.zeros(2, dtype=F64)
    particles = drawn(energy, anchor, tether=0.0, islands=3, size=8, generator=generator())
    good = (particles.chains.position[:, 0] <= edge).reshape(3, 8).numpy()
    after = particles
    for level in (1.0, 2.0, 5.0):
        after = reweighed(
            after, anchor, before=(level - 1, 0.0), after=(level, 0.0), generator=generator()
        )
        assert np.allclose(np.exp(after.log_partition()), good.mean(1))
    assert (after.log_partition() == -np.inf).all() == (edge < 0)
    # Without a change of beta an infinite loss is no matter.
    same = reweighed(particles, anchor, before=(0.0, 0.0), after=(0.0, 1.0), generator=generator())
    assert np.isfinite(same.log_weight).all()


# Units of work ----------------------------------------------------------------------------------


def test_stored_particles_go_on_bit_for_bit():
    problem = anneal.Quadratic(3)
    particles = weighed(start(problem, islands=2), anneal.normal_rows(2, 8, seed=1).numpy())
    level = Level(beta=2.0, tether=0.3, step=0.4, mass=identity(3))
    again = Particles.of_unit(particles.as_unit(), problem.anchor)

    def moved(p):
        after, _ = at_level(
            p, problem.energy, problem.anchor, level, length=1.0, generator=generator()
        )
        return after.as_unit()

    expected, found = moved(particles), moved(again)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name


def test_levels_have_streams_of_their_own():
    labels = [
        (0, "ladder", 64, 0),
        (0, "ladder", 64, 1),
        (0, "outward", 64, 0),
        (1, "ladder", 64, 0),
    ]
    draws = {float(torch.rand(1, generator=level_stream(*label), dtype=F64)) for label in labels}
    assert len(draws) == 4
