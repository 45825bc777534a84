"""Hamiltonian Monte Carlo and its mass matrices: reversible, invariant, unmoved by bad numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from landscape.volume import hmc
from landscape.volume.hmc import Chains, Evaluated, adapted, evaluate, move
from landscape.volume.mass import Mass

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Mass matrices ----------------------------------------------------------------------------------


def mass_of(n, d, seed=0):
    vectors = torch.linalg.qr(draw(n, n, seed=seed)).Q[:d]
    values = torch.linspace(0.3, 40.0, d, dtype=F64)
    return Mass(vectors=vectors, values=values, rest=2.5)


def dense(mass, n):
    inside = mass.vectors.T @ torch.diag(mass.values) @ mass.vectors
    return inside + mass.rest * (torch.eye(n, dtype=F64) - mass.vectors.T @ mass.vectors)


@pytest.mark.parametrize(("n", "d"), [(1, 0), (1, 1), (7, 0), (7, 1), (7, 4), (7, 7), (60, 59)])
def test_masses_are_their_dense_matrices(n, d):
    mass, rows = mass_of(n, d), draw(5, n, seed=1)
    matrix = dense(mass, n)
    values, vectors = torch.linalg.eigh(matrix)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    assert torch.allclose(mass.inverse(rows), rows @ torch.linalg.inv(matrix), atol=1e-12)
    assert torch.allclose(mass.power(rows, 0.5), rows @ root, atol=1e-12)
    assert torch.allclose(mass.inverse_root(mass.power(rows, 0.5)), rows, atol=1e-12)
    square = torch.einsum("ci,ij,cj->c", rows, matrix, rows)
    assert torch.allclose(mass.square(rows), square, rtol=1e-13)
    single = Mass(vectors=mass.vectors.float(), values=mass.values.float(), rest=mass.rest)
    assert torch.allclose(single.square(rows.float()), square, rtol=1e-5)
    twice = mass.power(mass.power(rows, 0.5), 0.5)
    assert torch.allclose(twice, rows @ matrix, atol=1e-11)
    assert torch.allclose(mass.inverse(twice), rows, atol=1e-11)


def test_velocities_have_the_inverse_mass_as_covariance():
    mass = mass_of(4, 2)
    rows = mass.inverse_root(draw(40_000, 4, seed=2))
    found, expected = rows.T @ rows / 40_000, torch.linalg.inv(dense(mass, 4))
    variance = expected.diagonal()
    spread = ((variance[:, None] * variance + expected**2) / 40_000).sqrt()
    assert ((found - expected).abs() < 4 * spread).all()


def test_rows_are_not_written_to():
    mass, rows = mass_of(6, 3), draw(2, 6)
    before = rows.clone()
    mass.inverse(rows), mass.square(rows), mass.inverse_root(rows)
    assert torch.equal(rows, before)


# Targets ----------------------------------------------------------------------------------------


def gaussian(n):
    """A correlated Gaussian, its covariance's root, and exact draws of it."""
    root = torch.linalg.qr(draw(n, n, seed=3)).Q * torch.linspace(0.5, 2.0, n, dtype=F64)
    precision = torch.linalg.inv(root @ root.T)
    mean = torch.arange(n, dtype=F64) / n

    def target(z):
        pull = (z - mean) @ precision
        return Evaluated(-(pull * (z - mean)).sum(1) / 2, -pull)

    def whitened(z):
        return torch.linalg.solve(root, (z - mean).T).T

    def exact(count, seed):
        return mean + draw(count, n, seed=seed) @ root.T

    return target, whitened, exact


def quartic(z):
    """Independent coordinates with densities proportional to exp(-x^4)."""
    return Evaluated(-z.pow(4).sum(1), -4 * z.pow(3))


def bent(z):
    """Neither Gaussian nor independent; its curvature is bounded."""
    gradient = -2 * torch.tanh(2 * z) + z.sum(1, keepdim=True).sin()
    return Evaluated(-torch.cosh(2 * z).log().sum(1) - z.sum(1).cos(), gradient)


def identity(n):
    return Mass(vectors=torch.zeros(0, n, dtype=F64), values=torch.zeros(0, dtype=F64), rest=1.0)


def off_centre(n):
    """A centre that no target here has."""
    return torch.linspace(-0.3, 0.2, n, dtype=F64)


def once(chains, target, mass, *, step, length=1.0, stream=None):
    """One move about a centre that is not the target's."""
    return move(
        chains,
        target,
        mass,
        centre=off_centre(chains.position.shape[1]).to(chains.position),
        step=step,
        length=length,
        generator=generator() if stream is None else stream,
    )


def run(chains, target, mass, *, moves, step, length=1.0, seed=0):
    stream = generator(seed)
    found = []
    for _ in range(moves):
        found.append(once(chains, target, mass, step=step, length=length, stream=stream))
        chains = found[-1].chains
    return chains, found


# Trajectories -----------------------------------------------------------------------------------


class Tracked:
    """A mass with given velocities, which sees velocities go by."""

    def __init__(self, mass, velocity):
        self.mass, self.velocity, self.seen = mass, velocity, []

    def inverse_root(self, rows):
        return self.velocity

    def square(self, rows):
        self.seen.append(rows.clone())
        return self.mass.square(rows)

    def inverse(self, rows):
        return self.mass.inverse(rows)


def trajectory(target, mass, position, velocity, *, step, length=1.0, seed=0, centre=None):
    """Where a trajectory ends, whatever becomes of it: position, velocity, steps."""
    tracked, places = Tracked(mass, velocity), []

    def watched(z):
        places.append(z.clone())
        return target(z)

    n = position.shape[1]
    moved = move(
        evaluate(target, position),
        watched,
        tracked,
        centre=off_centre(n) if centre is None else centre,
        step=step,
        length=length,
        generator=generator(seed),
    )
    assert moved.n_gradients == len(places) * len(position)
    return places[-1], tracked.seen[-1], len(places)


def energies(target, mass, position, velocity):
    return mass.power(velocity, 0.5).square().sum(1) / 2 - target(position).log_density


def velocities(mass, count, n):
    return mass.inverse_root(draw(count, n, seed=2))


@pytest.mark.parametrize("n", [1, 2, 6])
def test_trajectories_return_when_the_velocity_is_turned(n):
    mass, position = mass_of(n, n // 2), draw(20, n, seed=1)
    velocity = velocities(mass, 20, n)
    options = {"step": 0.2, "length": 3.0}
    far, last, steps = trajectory(bent, mass, position, velocity, **options)
    assert steps > 5
    assert (far - position).norm(dim=1).median() > 0.5
    back, first, _ = trajectory(bent, mass, far, -last, **options)
    assert torch.allclose(back, position, atol=1e-10)
    assert torch.allclose(-first, velocity, atol=1e-10)


def test_trajectories_keep_volumes():
    mass, start = mass_of(2, 1), draw(1, 4, seed=1)[0]

    def flow(state):
        z, v = state[None, :2], state[None, 2:]
        end = trajectory(bent, mass, z, v, step=0.3, length=2.0)
        return torch.cat([end[0][0], end[1][0]])

    shift = 1e-5 * torch.eye(4, dtype=F64)
    jacobian = torch.stack([(flow(start + s) - flow(start - s)) / 2e-5 for s in shift])
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-7)


def test_energy_errors_fall_as_the_square_of_the_step():
    mass, position = mass_of(3, 1), 0.5 * draw(300, 3, seed=1)
    velocity = velocities(mass, 300, 3)
    before = energies(bent, mass, position, velocity)
    errors = []
    for step in (0.1, 0.05, 0.025):
        far, last, _ = trajectory(bent, mass, position, velocity, step=step, length=2.0)
        error = energies(bent, mass, far, last) - before
        errors.append(float(error.square().mean().sqrt()))
    assert errors[0] < 0.2
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_a_gaussian_with_the_mass_and_the_centre_is_followed_exactly():
    """At the largest step, in a thousand dimensions: the solution is a rotation."""
    n = 1000
    values = torch.logspace(-2, 4, n, dtype=F64)
    mass = Mass(vectors=torch.eye(n, dtype=F64), values=values, rest=1.0)
    centre = draw(n, seed=4)

    def target(z):
        return Evaluated(-((z - centre).square() * values).sum(1) / 2, (centre - z) * values)

    position, velocity = centre + mass.inverse_root(draw(8, n, seed=1)), velocities(mass, 8, n)
    options = {"step": hmc.LONGEST, "length": 1.0, "centre": centre}
    far, last, steps = trajectory(target, mass, position, velocity, **options)
    assert steps == 1
    # One angle for all: from both components of the first coordinate.
    x, v = (position - centre)[0, 0], velocity[0, 0]
    angle = math.atan2(
        float((far - centre)[0, 0] * v - last[0, 0] * x),
        float((far - centre)[0, 0] * x + last[0, 0] * v),
    )
    assert 0.9 * hmc.LONGEST <= angle <= 1.1 * hmc.LONGEST
    turned = (position - centre) * math.cos(angle) + velocity * math.sin(angle)
    assert torch.allclose(far - centre, turned, rtol=1e-10, atol=1e-10)
    chains = evaluate(target, position)
    options["generator"] = generator()
    assert float(move(chains, target, mass, **options).acceptance.min()) > 1 - 1e-9


def test_the_acceptance_is_that_of_the_energy_error():
    mass, position = mass_of(2, 1), draw(500, 2, seed=1)
    velocity = velocities(mass, 500, 2)
    far, last, _ = trajectory(bent, mass, position, velocity, step=0.5, length=2.0)
    error = energies(bent, mass, far, last) - energies(bent, mass, position, velocity)
    moved = move(
        evaluate(bent, position),
        bent,
        Tracked(mass, velocity),
        centre=off_centre(2),
        step=0.5,
        length=2.0,
        generator=generator(),
    )
    assert torch.allclose(moved.acceptance, (-error).exp().clamp(max=1.0), atol=1e-10)
    # Chains are at one of both ends, as often as their acceptance says.
    there = (moved.chains.position == far).all(1)
    assert ((moved.chains.position == position).all(1) | there).all()
    p = moved.acceptance
    assert 0.05 < float((p < 0.9).double().mean()) < 0.95
    gap = float(there.double().sum() - p.sum())
    assert abs(gap) < 4 * float((p * (1 - p)).sum().sqrt())


def test_lengths_are_random_and_shared():
    seen = set()
    target, _, exact = gaussian(3)
    chains = evaluate(target, exact(6, 0))
    for seed in range(40):
        moved = once(chains, target, identity(3), step=0.1, length=1.0, stream=generator(seed))
        assert moved.n_gradients % 6 == 0
        seen.add(moved.n_gradients // 6)
    assert min(seen) >= math.ceil(0.5 / 0.11)
    assert max(seen) <= math.ceil(1.5 / 0.09)
    assert max(seen) > 2 * min(seen)


# Invariance -------------------------------------------------------------------------------------

COUNT = 4000


def gaussian_scores(whitened):
    """Standard scores of all first and second moments of rows that should be N(0, I)."""
    count, n = whitened.shape
    first = whitened.mean(0) * math.sqrt(count)
    second = whitened.T @ whitened / count - torch.eye(n, dtype=F64)
    spread = torch.where(torch.eye(n, dtype=torch.bool), 2.0, 1.0).sqrt() / math.sqrt(count)
    return torch.cat([first, (second / spread)[torch.triu(torch.ones(n, n)) > 0]])


def quartic_scores(x):
    """Standard scores of moments of exp(-x^4), whose x^4 is a gamma variable of shape 1/4."""
    moments = {p: special.gamma((p + 1) / 4) / special.gamma(0.25) for p in (2, 4, 8)}
    scores = [
        (x.square().mean() - moments[2]) / math.sqrt(moments[4] - moments[2] ** 2),
        (x.pow(4).mean() - moments[4]) / math.sqrt(moments[8] - moments[4] ** 2),
        x.mean() / math.sqrt(moments[2]),
    ]
    return torch.stack(scores) * math.sqrt(len(x))


def worst_gaussian(n):
    target, whitened, exact = gaussian(n)
    chains = evaluate(target, exact(COUNT, 5))
    # The smallest deviation is a half: steps are coarse enough for errors that matter.
    step = 0.45 if n > 1 else 0.8
    chains, moves = run(chains, target, identity(n), moves=25 if n < 50 else 12, step=step, seed=n)
    acceptance = float(torch.stack([m.acceptance for m in moves]).mean())
    return float(gaussian_scores(whitened(chains.position)).abs().max()), acceptance


def worst_quartic():
    x = stats.gennorm.rvs(4, size=(COUNT, 1), random_state=1)
    chains = evaluate(quartic, torch.from_numpy(x))
    chains, moves = run(chains, quartic, identity(1), moves=25, step=0.6)
    acceptance = float(torch.stack([m.acceptance for m in moves]).mean())
    return float(quartic_scores(chains.position[:, 0]).abs().max()), acceptance


@pytest.mark.parametrize("n", [1, 5, 50])
def test_gaussians_are_invariant(n):
    worst, acceptance = worst_gaussian(n)
    assert worst < (3.5 if n < 50 else 4.5)  # Of 2, 20 and 1325 moments.
    assert 0.3 < acceptance < 0.99


def test_a_law_that_is_not_gaussian_is_invariant():
    worst, acceptance = worst_quartic()
    assert worst < 3.5
    assert 0.3 < acceptance < 0.95


WRONG = {
    "always accepted": ("_chosen", lambda accepted, new, old: new),
    "velocity forgotten": ("_kinetic", lambda v, mass: torch.zeros(len(v), dtype=F64)),
    "velocity doubled": ("_kinetic", lambda v, mass: mass.power(v, 0.5).square().sum(1)),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_the_moments_would_show_a_biased_acceptance(name, monkeypatch):
    monkeypatch.setattr(hmc, *WRONG[name])
    # NaN where chains have run away.
    assert not worst_gaussian(5)[0] < 6
    assert not worst_quartic()[0] < 6


def test_chains_forget_where_they_began():
    target, whitened, _ = gaussian(5)
    mass = metric_of_gaussian(5)
    chains = evaluate(target, torch.full((COUNT, 5), 3.0, dtype=F64))
    chains, _ = run(chains, target, mass, moves=12, step=0.5, length=math.pi / 2)
    assert float(gaussian_scores(whitened(chains.position)).abs().max()) < 3.5


def metric_of_gaussian(n):
    """The mass that makes all frequencies 1."""
    root = torch.linalg.qr(draw(n, n, seed=3)).Q * torch.linspace(0.5, 2.0, n, dtype=F64)
    values, vectors = torch.linalg.eigh(torch.linalg.inv(root @ root.T))
    return Mass(vectors=vectors.T.contiguous(), values=values, rest=1.0)


def test_float32_positions_with_float64_energies():
    target, whitened, exact = gaussian(5)

    def single(z):
        at = target(z.double())
        return Evaluated(at.log_density, at.gradient.float(), (z * 2,))

    mass = mass_of(5, 3)
    mass = Mass(vectors=mass.vectors.float(), values=mass.values.float(), rest=mass.rest)
    chains = evaluate(single, exact(COUNT, 5).float())
    chains, moves = run(chains, single, mass, moves=20, step=0.6)
    assert chains.position.dtype == chains.at.gradient.dtype == torch.float32
    assert chains.at.log_density.dtype == moves[-1].acceptance.dtype == F64
    scores = gaussian_scores(whitened(chains.position.double()))
    assert float(scores.abs().max()) < 3.5


# Bad numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("slope", [0.0, math.nan])
def test_densities_that_are_not_finite_reject(value, slope):
    """Beyond 1 there is nothing: the law is the truncated Gaussian."""

    def target(z):
        bad = z[:, 0] > 1
        gradient = torch.where(bad[:, None], slope, -z)
        return Evaluated(torch.where(bad, value, -z[:, 0].square() / 2), gradient)

    x = stats.truncnorm.rvs(-10, 1, size=(COUNT, 1), random_state=1)
    chains, moves = run(
        evaluate(target, torch.from_numpy(x)), target, identity(1), moves=20, step=0.5
    )
    x = chains.position[:, 0]
    assert float(x.max()) <= 1
    assert chains.at.log_density.isfinite().all()
    law = stats.truncnorm(-10, 1)
    for power in (1, 2):
        spread = math.sqrt((law.moment(2 * power) - law.moment(power) ** 2) / COUNT)
        assert abs(float(x.pow(power).mean()) - law.moment(power)) < 3.5 * spread
    divergent = torch.stack([m.divergent for m in moves])
    acceptance = torch.stack([m.acceptance for m in moves])
    assert 0.05 < float(divergent.double().mean()) < 0.5
    assert (acceptance[divergent] == 0).all()


def test_chains_leave_a_place_without_density():
    """Whatever has no density may be left: weights of such particles are 0 anyway."""

    def target(z):
        inside = z[:, 0] < 1
        return Evaluated(torch.where(inside, 0.0, -math.inf), torch.full_like(z, -5.0))

    chains = evaluate(target, torch.full((50, 1), 1.5, dtype=F64))
    moved = once(chains, target, identity(1), step=0.5, length=1.0)
    assert (moved.chains.position < 1).all()
    assert not moved.divergent.any()


def test_divergences_are_counted_and_rejected():
    """A frequency of 100 with a step of 1."""
    stiff = torch.tensor([1.0, 1e4], dtype=F64)

    def target(z):
        return Evaluated(-(z.square() * stiff).sum(1) / 2, -z * stiff)

    position = draw(30, 2) / stiff.sqrt()
    chains = evaluate(target, position)
    moved = once(chains, target, identity(2), step=1.0, length=5.0)
    assert moved.divergent.all()
    assert not moved.acceptance.any()
    assert torch.equal(moved.chains.position, position)
    good = Mass(vectors=torch.eye(2, dtype=F64), values=stiff, rest=1.0)
    moved = once(chains, target, good, step=0.5, length=5.0)
    assert not moved.divergent.any()
    assert float(moved.acceptance.mean()) > 0.8


# Bookkeeping ------------------------------------------------------------------------------------


def test_what_is_carried_follows_its_chain():
    def target(z):
        at = bent(z)
        number = z.sum(1)
        return Evaluated(at.log_density, at.gradient, (number, z[:, :, None] * torch.ones(1, 1, 2)))

    chains = evaluate(target, draw(200, 2))
    for _ in range(4):
        moved = once(chains, target, identity(2), step=0.6, length=2.0, stream=generator(1))
        stayed = (moved.chains.position == chains.position).all(1)
        assert 10 < int(stayed.sum()) < 190
        chains = moved.chains
        expected = target(chains.position)
        assert torch.equal(chains.at.log_density, expected.log_density)
        assert torch.equal(chains.at.gradient, expected.gradient)
        for found, wanted in zip(chains.at.carried, expected.carried, strict=True):
            assert torch.equal(found, wanted)


def test_equal_streams_give_equal_moves():
    target, _, exact = gaussian(4)
    chains = evaluate(target, exact(10, 0))

    def moved(seed):
        return run(chains, target, identity(4), moves=3, step=0.5, seed=seed)[0].position

    assert torch.equal(moved(1), moved(1))
    assert not torch.equal(moved(1), moved(2))


def test_moves_do_not_touch_where_they_began():
    target, _, exact = gaussian(4)
    chains = evaluate(target, exact(10, 0))
    before = (chains.position.clone(), chains.at.log_density.clone(), chains.at.gradient.clone())
    once(chains, target, identity(4), step=0.5, length=1.0)
    after = (chains.position, chains.at.log_density, chains.at.gradient)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_gradient_for_each_step_and_chain():
    calls = []

    def target(z):
        calls.append(len(z))
        return quartic(z)

    chains = evaluate(target, draw(7, 2))
    assert calls == [7]
    moved = once(chains, target, identity(2), step=0.1, length=1.0)
    assert sum(calls) == 7 + moved.n_gradients


def test_steps_adapt_towards_an_acceptance_of_nine_tenths():
    assert adapted(0.5, 0.9, rate=0.3) == 0.5
    assert adapted(0.5, 1.0, rate=0.3) == pytest.approx(0.5 * math.exp(0.03))
    assert adapted(0.5, 0.2, rate=0.3) < 0.5
    assert adapted(hmc.LONGEST, 1.0, rate=0.3) == hmc.LONGEST
    target, _, exact = gaussian(20)
    step, chains, accepted = 0.3, evaluate(target, exact(16, 0)), []
    for seed in range(150):
        moved = once(chains, target, identity(20), step=step, stream=generator(seed))
        accepted.append(float(moved.acceptance.mean()))
        step, chains = adapted(step, accepted[-1], rate=0.3), moved.chains
    assert np.mean(accepted[50:]) == pytest.approx(0.9, abs=0.03)


def test_chains_hold_what_a_continued_run_needs():
    target, _, exact = gaussian(3)
    chains, _ = run(evaluate(target, exact(5, 0)), target, identity(3), moves=2, step=0.5)
    again = Chains(position=chains.position.clone(), at=target(chains.position.clone()))
    for start in (chains, again):
        found, _ = run(start, target, identity(3), moves=2, step=0.5, seed=9)
        expected, _ = run(chains, target, identity(3), moves=2, step=0.5, seed=9)
        assert torch.equal(found.position, expected.position)
