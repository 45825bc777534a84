"""First passage along rays: verified radii, and every way in which a ray can misbehave."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.errors import UsageError
from landscape.volume.rays import first_passage

F64 = torch.float64


def unit_rows(count, n, seed=0):
    rows = torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return rows / rows.norm(dim=1, keepdim=True)


def along(profile):
    """An excess loss that depends on the distance from the origin only."""
    return lambda z: profile(z.norm(dim=1))


def passage(excess, *, n=2, count=3, directions=None, **options):
    directions = unit_rows(count, n) if directions is None else directions
    defaults = {"cutoff": 0.01, "limit": 100.0, "tolerance": 1e-6, "guess": 1.0}
    return first_passage(
        excess, torch.zeros(directions.shape[1], dtype=F64), directions, **(defaults | options)
    )


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("power", [1, 2, 4, 8])
@pytest.mark.parametrize("guess", [None, 1e-3, 1.0, 40.0])
def test_powers(n, power, guess):
    scales = torch.arange(1, n + 1, dtype=F64) ** -1.5
    directions = unit_rows(40, n)
    found = passage(
        lambda z: (z.square() * scales).sum(1) ** (power / 2),
        directions=directions,
        guess=guess,
        tolerance=0.01 / n,
    )
    truth = (0.01 ** (2 / power) / (directions.square() @ scales).numpy()) ** 0.5
    assert found.converged.all()
    assert (found.inside <= truth * (1 + 1e-14)).all()
    assert (found.outside >= truth * (1 - 1e-14)).all()
    assert (found.outside <= found.inside * (1 + 0.01 / n)).all()
    assert not (found.infinite | found.not_finite | found.non_monotone).any()
    assert found.evaluations.max() <= 28


def test_radii_are_verified_points():
    seen = {}

    def excess(z):
        values = torch.cosh(z.norm(dim=1)) - 1 + 0.1 * z[:, 0] ** 4
        seen.update(zip(z.norm(dim=1).tolist(), values.tolist(), strict=True))
        return values

    found = passage(excess, count=20)
    radii = np.array(sorted(seen))
    values = np.array([seen[radius] for radius in radii])
    for inside, outside in zip(found.inside, found.outside, strict=True):
        assert values[np.abs(radii - inside).argmin()] <= 0.01
        assert values[np.abs(radii - outside).argmin()] > 0.01
        assert np.abs(radii - inside).min() < 1e-14
        assert outside / inside <= 1 + 1e-6


def test_a_good_guess_is_cheap_and_a_bad_one_is_not_dear():
    excess = along(lambda r: r**2)
    assert passage(excess, guess=0.1).evaluations.max() <= 9
    assert passage(excess, guess=1e-6).evaluations.max() <= 32
    assert passage(excess, guess=100.0).evaluations.max() <= 14


def test_converged_rays_leave_the_batch():
    sizes = []

    def excess(z):
        sizes.append(len(z))
        return (z.square() * torch.tensor([1.0, 1e-3], dtype=F64)).sum(1) ** torch.where(
            z[:, 0] > 0, 1.0, 3.0
        )

    found = passage(excess, count=50, batch=16)
    assert sum(sizes) == found.evaluations.sum()
    assert max(sizes) <= 16
    assert found.evaluations.min() < found.evaluations.max()


def test_a_ray_does_not_depend_on_its_batch():
    excess = along(lambda r: torch.expm1(r**2) + r**5)
    directions = unit_rows(23, 5)
    whole = passage(excess, directions=directions)
    for batch in (1, 4):
        parts = [
            passage(excess, directions=directions[i : i + 3], batch=batch) for i in range(0, 23, 3)
        ]
        for name in ("inside", "outside", "evaluations"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert (joined == getattr(whole, name)).all()


def test_a_null_ray_is_infinite():
    flat = passage(along(lambda r: 0.0099 * torch.tanh(r)))
    assert np.isinf(flat.inside).all()
    assert np.isinf(flat.outside).all()
    assert flat.converged.all()
    assert flat.infinite.all()
    # A crossing beyond the limit is none, one just before it is seen.
    quadratic = along(lambda r: r**2)
    assert passage(quadratic, limit=0.0999, guess=0.05).infinite.all()
    assert not passage(quadratic, limit=0.1001, guess=0.05).infinite.any()
    limits = np.array([0.05, 1.0, 0.08])
    assert (passage(quadratic, limit=limits).infinite == [True, False, True]).all()


def test_an_infinite_loss_is_a_wall_and_nan_is_flagged():
    def wall(value):
        return along(lambda r: torch.where(r > 0.03, value, r**2))

    infinite, nan = passage(wall(math.inf)), passage(wall(math.nan))
    assert not infinite.not_finite.any()
    assert nan.not_finite.all()
    for found in (infinite, nan):
        assert found.converged.all()
        assert found.inside == pytest.approx(0.03, rel=1e-6)
        assert (found.inside <= 0.03).all()
    # Bisection is the worst case.
    assert infinite.evaluations.max() <= 4 + 12 + math.log2(1 / 1e-6) + 2
    one = passage(lambda z: torch.where(z[:, 0] > 0.01, math.nan, z.square().sum(1)), count=20)
    assert 0 < one.not_finite.sum() < 20


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_a_ray_that_is_outside_everywhere_has_radius_zero(value):
    found = passage(along(lambda r: torch.full_like(r, value)))
    assert (found.inside == 0).all()
    assert not found.converged.any()
    assert not found.infinite.any()


def test_an_earlier_crossing_below_the_guess_is_found():
    def shell(r):
        return torch.where((r > 0.045) & (r < 0.055), 0.02, r**2)

    found = passage(along(shell), guess=0.1)
    assert found.inside == pytest.approx(0.045, rel=1e-6)
    assert found.non_monotone.all()
    assert found.converged.all()
    unseen = passage(along(shell), guess=0.1, scan=0)
    assert unseen.inside == pytest.approx(0.1, rel=1e-6)
    # The shell down to the smallest radius that is scanned: the search goes on below it.
    wide = passage(along(lambda r: torch.where((r > 0.001) & (r < 0.08), 0.02, r**2)), guess=0.1)
    assert wide.inside == pytest.approx(0.001, rel=1e-6)
    assert wide.non_monotone.all()


def test_the_first_of_several_crossings_on_the_way_out():
    # Outside on [0.1, 0.2] and beyond 0.8.
    def profile(r):
        return torch.where((r > 0.1) & (r < 0.2), 1.0, torch.where(r < 0.8, 0.001 * r, 1.0))

    found = passage(along(profile), guess=0.01)
    assert found.inside == pytest.approx(0.1, rel=1e-6)


def test_a_fall_is_flagged_but_no_convex_loss_and_no_rounding():
    wave = passage(along(lambda r: 0.003 * (1 - torch.cos(25 * r)) + 0.1 * r**2), guess=0.3)
    assert wave.non_monotone.all()
    # Downhill from an anchor that is no minimum, then up: convex, hence star-shaped.
    convex = passage(lambda z: z.square().sum(1) - 0.3 * z[:, 0], count=50)
    assert not convex.non_monotone.any()
    assert convex.converged.all()
    u = unit_rows(50, 2).numpy()[:, 0]
    truth = 0.15 * u + np.sqrt(0.0225 * u**2 + 0.01)
    assert convex.inside == pytest.approx(truth, rel=1e-6)
    single = passage(lambda z: z.float().square().sum(1), count=50, tolerance=1e-9)
    assert not single.non_monotone.any()


def test_tolerances_below_the_resolution_end():
    found = passage(along(lambda r: r**2), tolerance=0.0)
    assert found.converged.all()
    assert found.inside == pytest.approx(0.1, rel=1e-13)
    assert found.evaluations.max() <= 20


@pytest.mark.parametrize("options", [{"cutoff": 0.0}, {"limit": math.inf}, {"limit": 0.0}])
def test_impossible_searches_are_refused(options):
    with pytest.raises(UsageError, match="expected a positive, finite cutoff"):
        passage(along(lambda r: r**2), **options)
