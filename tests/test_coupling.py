"""Coupling between blocks, against closed forms and independent dense formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator

from landscape.coupling import block_coupling, canonical_correlations, schur_complement
from landscape.errors import NotFiniteError, UsageError

SIZES = (7, 5, 9)
N = sum(SIZES)


def groups() -> list[torch.Tensor]:
    """Interleaved, so that no group is a range."""
    order = torch.randperm(N, generator=Generator().manual_seed(3))
    return list(order.split(SIZES))


def positive(n: int, seed: int) -> torch.Tensor:
    root = torch.randn(n, n, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / n


def block_diagonal() -> torch.Tensor:
    matrix = torch.zeros(N, N, dtype=torch.float64)
    for seed, group in enumerate(groups()):
        matrix[group[:, None], group] = positive(len(group), seed)
    return matrix


def test_block_diagonal_matrices_are_not_coupled():
    found = block_coupling(block_diagonal(), groups(), tilt=50.0)
    assert abs(found.total) < 1e-8
    assert np.abs(found.coupling).max() < 1e-8
    assert not found.rank.any()
    assert found.extremes == pytest.approx(found.extremes_diagonal, abs=1e-12)


def test_total_is_that_of_dense_determinants_and_at_least_that_of_every_pair():
    matrix, tilt = positive(N, 5), 20.0
    found = block_coupling(matrix, groups(), tilt=tilt)
    m = np.eye(N) + tilt * matrix.numpy()
    parts = sum(np.linalg.slogdet(m[np.ix_(g, g)])[1] for g in groups())
    assert found.total == pytest.approx(0.5 * (parts - np.linalg.slogdet(m)[1]), rel=1e-12)
    assert found.total >= found.coupling.max() > 0
    low, high = found.extremes
    assert low <= found.extremes_diagonal[0] <= found.extremes_diagonal[1] <= high


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_planted_coupling_has_its_rank_and_the_closed_form(rank):
    tilt, strength = 4.0, torch.tensor([0.9, 0.5, 0.2, 0.05], dtype=torch.float64)[:rank]
    first, second, _ = groups()
    # A = I + cross terms c_i u_i v_i^T: rho_i = s c_i / (1 + s).
    u, _ = torch.linalg.qr(positive(len(first), 1))
    v, _ = torch.linalg.qr(positive(len(second), 2))
    cross = u[:, :rank] @ torch.diag(strength) @ v[:, :rank].T
    matrix = torch.eye(N, dtype=torch.float64)
    matrix[first[:, None], second] = cross
    matrix[second[:, None], first] = cross.T
    found = block_coupling(matrix, groups(), tilt=tilt)
    rho = tilt * strength / (1 + tilt)
    nats = float(-0.5 * torch.log1p(-(rho**2)).sum())
    assert found.rank.tolist() == [[0, rank, 0], [rank, 0, 0], [0, 0, 0]]
    assert found.coupling[0, 1] == pytest.approx(nats, rel=1e-10)
    assert found.total == pytest.approx(nats, rel=1e-10)
    assert found.norm[0, 1] == pytest.approx(float(strength.norm()), rel=1e-12)
    m = torch.eye(N, dtype=torch.float64) + tilt * matrix
    seen = canonical_correlations(m, first, second)[:rank]
    assert torch.allclose(seen, rho, atol=1e-12)
    assert found.extremes[1] == pytest.approx(1 + float(strength[0]), rel=1e-12)


def test_schur_identity():
    m = torch.eye(N, dtype=torch.float64) + 10 * positive(N, 8)
    first, *others = groups()
    rest = torch.cat(others)
    complement = schur_complement(m, first, rest)
    parts = torch.logdet(complement) + torch.logdet(m[rest][:, rest])
    assert float(parts - torch.logdet(m)) == pytest.approx(0, abs=1e-10)
    # The precision of a group is the inverse of its covariance.
    covariance = torch.linalg.inv(m)[first][:, first]
    assert torch.allclose(torch.linalg.inv(covariance), complement, atol=1e-10)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda g: g[:2], "coordinates of 21"),
        (lambda g: [*g, g[0]], "coordinates of 21"),
        (lambda g: [*g, torch.empty(0, dtype=torch.int64)], "empty"),
        (lambda g: [], "0 groups"),
    ],
)
def test_groups_that_do_not_partition(wrong, words):
    with pytest.raises(UsageError, match=words):
        block_coupling(positive(N, 1), wrong(groups()), tilt=1.0)


@pytest.mark.parametrize("numbers", [{"tilt": -1.0}, {"tilt": 1.0, "tol": 0.0}])
def test_bad_numbers(numbers):
    with pytest.raises(UsageError, match="expected a number"):
        block_coupling(positive(N, 1), groups(), **numbers)


def test_negative_and_not_finite_curvature_is_refused():
    with pytest.raises(NotFiniteError, match="not positive definite"):
        block_coupling(-positive(N, 1), groups(), tilt=100.0)
    matrix = positive(N, 1)
    matrix[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="not finite"):
        block_coupling(matrix, groups(), tilt=1.0)
