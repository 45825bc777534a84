"""Laws of directions: the Gaussian is the one that is claimed, and so is its density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from landscape.errors import NotFiniteError, UsageError
from landscape.volume.tilted import GaussianLaw, symmetric_law, tilted_law

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def orthonormal(d, n, seed=1):
    return torch.linalg.qr(draw(n, d, seed=seed))[0].T.contiguous()


def matrix(rows, values, bulk):
    """``V^T diag(v) V + c (I - V^T V)``."""
    inside = rows.T @ rows
    return rows.T @ (values[:, None] * rows) + bulk * (torch.eye(len(inside), dtype=F64) - inside)


CASES = [(5, 5, 0.0), (6, 2, 0.0), (6, 2, 0.7), (4, 0, 1.3), (1, 1, 0.0), (1, 0, 2.0)]


@pytest.mark.parametrize(("n", "d", "bulk"), CASES)
def test_the_density_along_a_ray_is_the_prior_times_the_tilt(n, d, bulk):
    rows, values, s = orthonormal(d, n), torch.linspace(0.5, 40, d, dtype=F64), 3.0
    anchor, gradient = draw(n, seed=2), draw(n, seed=3)
    law = tilted_law(anchor, rows, values, scale=s, bulk=bulk, gradient=gradient)
    A = matrix(rows, values, bulk)
    M = torch.eye(n, dtype=F64) + s * A
    assert law.log_det == pytest.approx(float(torch.logdet(M)), rel=1e-12)
    mean = -torch.linalg.solve(M, anchor + s * gradient)
    gaussian = stats.multivariate_normal(mean.numpy(), torch.linalg.inv(M).numpy())
    directions = draw(3, n, seed=4)
    directions /= directions.norm(dim=1, keepdim=True)
    constant, quadratic, linear = law.log_terms(directions)
    for u, a, b in zip(directions, quadratic, linear, strict=True):
        tilt = []
        for r in (0.0, 0.3, 2.0):
            y = r * u
            z = anchor + y
            found = constant - a * r * r / 2 - b * r
            assert found == pytest.approx(gaussian.logpdf(y.numpy()), rel=1e-10)
            Q = float(y @ A @ y / 2 + gradient @ y)
            tilt.append(found + float(z @ z) / 2 + s * Q)
        # Proportional to the prior times exp(-s Q).
        assert tilt == pytest.approx([tilt[0]] * 3, rel=1e-10)


@pytest.mark.parametrize(("n", "d", "bulk"), CASES)
def test_directions_follow_the_gaussian(n, d, bulk):
    """Radii are lost, so the check is on second moments of u against brute-force sampling."""
    rows, values = orthonormal(d, n), torch.linspace(0.5, 9, d, dtype=F64)
    anchor = draw(n, seed=2)
    law = tilted_law(anchor, rows, values, scale=2.0, bulk=bulk)
    M = torch.eye(n, dtype=F64) + 2 * matrix(rows, values, bulk)
    covariance = torch.linalg.inv(M)
    y = draw(200_000, n, seed=5) @ torch.linalg.cholesky(covariance).T - covariance @ anchor
    expected = y / y.norm(dim=1, keepdim=True)
    found = torch.stack([law.sample(i) for i in range(4000)])
    assert found.norm(dim=1) == pytest.approx(np.ones(4000), rel=1e-14)
    for moment in (lambda u: u, lambda u: (u[:, :, None] * u[:, None, :]).flatten(1)):
        a, b = moment(found), moment(expected)
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 1e-12).all()


def test_the_density_integrates_to_one_over_the_sphere():
    rows, values = orthonormal(2, 2), torch.tensor([3.0, 40.0], dtype=F64)
    anchor = draw(2, seed=2)
    for law in (
        tilted_law(anchor, rows, values, scale=0.5),
        symmetric_law(anchor, rows, values),
        symmetric_law(anchor),
    ):

        def density(angle, law=law):
            u = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=F64)
            return math.exp(law.log_density(u)[0])

        total, _ = integrate.quad(density, 0, 2 * math.pi, limit=200, epsabs=1e-9)
        assert total == pytest.approx(1, abs=1e-7)
    line = tilted_law(torch.tensor([0.8], dtype=F64), torch.ones(1, 1), torch.ones(1), scale=2.0)
    ends = line.log_density(torch.tensor([[1.0], [-1.0]], dtype=F64))
    assert np.exp(ends).sum() == pytest.approx(1, rel=1e-12)
    assert math.exp(ends[0]) == pytest.approx(stats.norm.cdf(-0.8 / math.sqrt(3)), rel=1e-12)


@pytest.mark.parametrize("n", [3, 500])
def test_symmetric_directions_have_the_angular_gaussian_density(n):
    area = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)
    anchor = draw(n, seed=2)
    rows, values = orthonormal(n, n), torch.linspace(0, 5, n, dtype=F64)
    directions = draw(4, n, seed=4)
    directions /= directions.norm(dim=1, keepdim=True)
    assert symmetric_law(anchor).log_density(directions) == pytest.approx([-area] * 4, rel=1e-12)
    law = symmetric_law(anchor, rows, values, damping=0.5)
    M = matrix(rows, (values.sqrt() + 0.5) ** 2, 0.0)
    form = (directions @ M * directions).sum(1).log().numpy()
    expected = float(torch.logdet(M)) / 2 - n / 2 * form - area
    assert law.log_density(directions) == pytest.approx(expected, rel=1e-12)


def test_a_ray_depends_on_its_index_and_the_seed_only():
    anchor, rows, values = draw(6, seed=2), orthonormal(3, 6), torch.ones(3, dtype=F64)
    law = tilted_law(anchor, rows, values, scale=2.0, seed=7)
    first = law.sample(5)
    law.sample(1)
    assert torch.equal(law.sample(5), first)
    again = tilted_law(anchor, rows, values, scale=2.0, seed=7)
    assert torch.equal(again.sample(5), first)
    assert not torch.equal(law.sample(6), first)
    assert not torch.equal(tilted_law(anchor, rows, values, scale=2.0, seed=8).sample(5), first)
    # Two cutoffs share the normal vectors: isotropic and centred, they share the directions.
    centred = [
        tilted_law(0 * anchor, rows[:0], values[:0], scale=s, bulk=1.0).sample(3) for s in (1.0, 9)
    ]
    assert torch.allclose(*centred, rtol=1e-14)


def test_the_typical_radius_is_where_the_law_lies():
    n = 400
    anchor, values = draw(n, seed=2), torch.linspace(0.1, 9, n, dtype=F64)
    law = tilted_law(anchor, torch.eye(n, dtype=F64), values, scale=5.0)
    M = 1 + 5 * values
    y = draw(100, n, seed=3) / M.sqrt() - anchor / M
    radii = y.norm(dim=1)
    assert law.typical_radius(y / radii[:, None]) == pytest.approx(radii.numpy(), rel=0.2)


def test_negative_curvature_is_floored_and_a_negative_scale_is_the_prior():
    anchor, rows = draw(3, seed=2), orthonormal(3, 3)
    values = torch.tensor([-5.0, -0.2, 1.0], dtype=F64)
    law = tilted_law(anchor, rows, values, scale=1.0, floor=0.25)
    assert law.values.tolist() == [0.25, 0.8, 2.0]
    prior = tilted_law(anchor, rows, values, scale=-0.4)
    assert prior.values.tolist() == [1, 1, 1]
    assert torch.equal(prior.linear, anchor)


def test_single_precision_rows_are_made_orthonormal_and_others_refused():
    rows, values = orthonormal(4, 50), torch.ones(4)
    anchor = torch.zeros(50, dtype=F64)
    law = tilted_law(anchor, rows.float(), values, scale=1.0)
    assert (law.rows @ law.rows.T - torch.eye(4)).abs().max() < 1e-14
    assert (law.rows - rows).abs().max() < 1e-6
    with pytest.raises(UsageError, match="orthonormal; expected"):
        tilted_law(anchor, 2 * rows, values, scale=1.0)
    with pytest.raises(UsageError, match="expected \\(d, n\\)"):
        tilted_law(anchor, rows, values[:2], scale=1.0)
    with pytest.raises(UsageError, match="expected positive values"):
        GaussianLaw(rows, values, bulk=0.0, linear=anchor)
    for bad in ({"scale": math.nan}, {"scale": 1.0, "gradient": anchor + math.inf}):
        with pytest.raises(NotFiniteError, match="expected finite numbers"):
            tilted_law(anchor, rows, values, **bad)
