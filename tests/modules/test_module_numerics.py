"""Coupling of groups: exact against closed forms, matrix-free against exact and its own errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from landscape.coupling import block_coupling
from landscape.errors import NotFiniteError
from landscape.modules.exact import exact_coupling, reduced
from landscape.modules.low_rank import LowRank
from landscape.modules.regions import LogDets, regions
from landscape.modules.stochastic import Products, stochastic_coupling, stored_units
from landscape.operators import DenseOperator, Restricted
from landscape.units import MemoryUnits
from landscape.volume.curvature import Curved, factored

SIZES = (16, 12, 20)
N = sum(SIZES)
TILT = 300.0


def groups(sizes=SIZES) -> list[Tensor]:
    """Interleaved, so that no group is a range."""
    order = torch.randperm(sum(sizes), generator=Generator().manual_seed(3))
    return [part.sort().values for part in order.split(list(sizes))]


def decaying(n: int, seed: int, rank: int | None = None) -> Tensor:
    """A positive matrix whose eigenvalues fall over some decades."""
    generator = Generator().manual_seed(seed)
    rank = n if rank is None else rank
    rows = torch.randn(rank, n, generator=generator, dtype=torch.float64)
    rows *= torch.logspace(0, -2, rank, dtype=torch.float64)[:, None]
    return rows.T @ rows / n


def block_diagonal(parts: list[Tensor]) -> Tensor:
    n = sum(map(len, parts))
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for seed, part in enumerate(parts):
        matrix[part[:, None], part] = decaying(len(part), seed)
    return matrix


def model(matrix: Tensor) -> Curved:
    values, vectors = torch.linalg.eigh(matrix)
    n = len(matrix)
    return Curved(
        route="dense",
        operator=DenseOperator(matrix),
        values=values.flip(0),
        vectors=vectors.T.flip(0),
        anchor=torch.zeros(n, dtype=torch.float64),
        gradient=None,
        n_matvecs=n,
    )


def products(matrix: Tensor, parts: list[Tensor], top: int = 0) -> Products:
    operator = DenseOperator(matrix)
    values, vectors = torch.linalg.eigh(matrix)

    def block(region):
        return Restricted(operator, torch.cat([parts[a] for a in region]).sort().values)

    return Products(
        whole=operator,
        groups=parts,
        block=block,
        largest=lambda: (values.flip(0)[:top], vectors.T.flip(0)[:top], 0),
    )


def stochastic(matrix, parts, *, top=6, units=None, stop=lambda done: False, **options):
    chosen = {"sketch": 24, "steps": 40, "probes": 8, "pairs": True, "seed": 0, "tilt": TILT}
    return stochastic_coupling(
        products(matrix, parts, top),
        **{**chosen, **options},
        tol=1e-10,
        units=MemoryUnits() if units is None else units,
        stop=stop,
        progress=lambda *_: None,
    )[0]


# Exact -------------------------------------------------------------------------------------------


def test_the_factor_keeps_what_the_matrix_has():
    sizes = (40, 8, 30)
    parts, rows = groups(sizes), torch.randn(10, 78, generator=Generator().manual_seed(1)).double()
    values, vectors = factored(rows)
    n = len(rows.T)
    common = {"anchor": torch.zeros(n), "gradient": None, "n_matvecs": 10}
    matrix = rows.T @ rows
    lean = Curved(
        route="gram", operator=DenseOperator(matrix), values=values, vectors=vectors, **common
    )
    small, places = reduced(lean, parts)
    assert [len(place) for place in places] == [10, 8, 10]
    assert len(small) == 28
    found = exact_coupling(lean, parts, tilt=0.7, tol=1e-10)
    whole = block_coupling(matrix, parts, tilt=0.7)
    assert found.total.value == pytest.approx(whole.total, rel=1e-10)
    assert np.allclose(found.coupling, whole.coupling, rtol=1e-9)
    assert np.allclose(found.norm, whole.norm, rtol=1e-10)
    assert np.allclose(found.log_det_schur, whole.log_det_schur, rtol=1e-9)
    assert np.allclose(found.correlations, whole.correlations, atol=1e-9)
    assert np.array_equal(found.rank, whole.rank)
    assert found.lowest == pytest.approx(0, abs=1e-9)
    assert found.lowest_groups == pytest.approx(whole.extremes_groups[:, 0], abs=1e-9)
    assert found.highest_groups == pytest.approx(whole.extremes_groups[:, 1], rel=1e-10)


def test_a_curvature_of_zero_is_coupled_to_nothing():
    parts = groups()
    zero = torch.zeros(N, N, dtype=torch.float64)
    empty = Curved(
        route="gram",
        operator=DenseOperator(zero),
        values=zero[0, :0],
        vectors=zero[:0],
        anchor=zero[0],
        gradient=None,
        n_matvecs=0,
    )
    for found in (exact_coupling(empty, parts, tilt=9.0, tol=1e-10), stochastic(zero, parts)):
        assert (found.total.value, found.highest, found.lowest) == (0, 0, 0)
        assert not found.rank.any()
        assert not found.rank_bound.any()


def test_schur_complements_and_the_coupling_with_the_rest():
    parts, matrix = groups(), decaying(N, 4)
    found = exact_coupling(model(matrix), parts, tilt=TILT, tol=1e-10)
    m = np.eye(N) + TILT * matrix.numpy()
    for a, part in enumerate(parts):
        rest = np.setdiff1d(np.arange(N), part)
        own, other = (np.linalg.slogdet(m[np.ix_(p, p)])[1] for p in (part, rest))
        assert found.log_det_schur[a] + other == pytest.approx(found.log_det.value, abs=1e-10)
        nats = 0.5 * (own + other - found.log_det.value)
        assert found.rest[a] == pytest.approx(nats, rel=1e-10)
    assert (found.rest <= found.total.value + 1e-12).all()


# Matrix-free -------------------------------------------------------------------------------------


def test_block_diagonal_matrices_are_not_coupled():
    found = stochastic(block_diagonal(groups()), groups())
    assert abs(found.total.value) < 1e-8
    assert np.abs(found.coupling).max() < 1e-8
    assert np.abs(found.rest).max() < 1e-8
    assert not found.rank.any()
    assert not found.rank_bound.any()
    off = ~np.eye(3, dtype=bool)
    assert (found.norm[off] == 0).all()
    assert found.highest == pytest.approx(found.highest_diagonal, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_planted_coupling_has_its_rank_and_the_closed_form(rank):
    sizes = (40, 30)
    parts = groups(sizes)
    strength = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)[:rank]
    generator = Generator().manual_seed(1)
    u, v = (
        torch.linalg.qr(torch.randn(k, rank, generator=generator, dtype=torch.float64)).Q
        for k in sizes
    )
    matrix = torch.eye(70, dtype=torch.float64)
    cross = u @ torch.diag(strength) @ v.T
    matrix[parts[0][:, None], parts[1]] = cross
    matrix[parts[1][:, None], parts[0]] = cross.T
    rho = 4 * strength / 5
    nats = float(-0.5 * torch.log1p(-(rho**2)).sum())
    # The whole coupling lies in 2 r eigenvectors, which are known.
    found = stochastic(matrix, parts, tilt=4.0, top=70)
    assert (found.rank[0, 1], found.rank_bound[0, 1]) == (rank, False)
    assert found.norm[0, 1] == pytest.approx(float(strength.norm()), rel=1e-10)
    assert found.norm_stderr[0, 1] == 0
    assert found.coupling[0, 1] == pytest.approx(nats, rel=1e-6)
    assert found.total.lower <= nats + 1e-9
    assert found.total.upper >= nats - 1e-9
    assert found.highest == pytest.approx(1 + float(strength[0]), rel=1e-6)
    assert found.correlation_bound[0, 1] >= float(rho[0]) - 1e-6


def test_extremes_of_the_whole_reach_as_far_as_those_of_the_groups():
    """Lanczos finds the smallest of a decaying spectrum late, and that of a small block exactly."""
    parts = groups((300, 8))
    matrix = block_diagonal(parts)
    matrix[parts[1][0]] = matrix[:, parts[1][0]] = 0.0
    found = stochastic(matrix, parts, steps=10, probes=2)
    assert found.lowest <= found.lowest_diagonal < 1e-15
    assert found.highest >= found.highest_diagonal


def test_a_block_of_higher_rank_than_the_sketch_is_a_lower_bound():
    parts, matrix = groups((40, 36)), decaying(76, 2)
    found = stochastic(matrix, parts, sketch=12)
    truth = block_coupling(matrix, parts, tilt=TILT)
    assert found.rank_bound[0, 1]
    assert 8 <= found.rank[0, 1] <= truth.rank[0, 1]
    assert abs(found.norm[0, 1] - truth.norm[0, 1]) < 4 * found.norm_stderr[0, 1]
    assert found.norm_stderr[0, 1] > 0


def test_errors_cover_the_truth_over_seeds():
    """Of t-intervals at 95% the truth lies in about that many."""
    parts, matrix = groups((9, 7, 10)), decaying(26, 7)
    truth = block_coupling(matrix, parts, tilt=TILT)
    inside, score = [], []
    for seed in range(25):
        found = stochastic(matrix, parts, seed=seed, top=3, sketch=8, steps=26)
        inside.append(found.total.lower <= truth.total <= found.total.upper)
        score.append((found.total.value - truth.total) / found.total.stderr)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            low, high = found.coupling_lower[i, j], found.coupling_upper[i, j]
            inside.append(low <= truth.coupling[i, j] <= high)
            error = found.coupling[i, j] - truth.coupling[i, j]
            score.append(error / found.coupling_stderr[i, j])
            if found.norm_stderr[i, j] > 0:
                score.append((found.norm[i, j] - truth.norm[i, j]) / found.norm_stderr[i, j])
        inside += list((found.rest_lower <= found.rest_upper) & (found.rest_lower >= 0))
    assert np.mean(inside) >= 0.9
    # Student's t with 7 degrees of freedom has a standard deviation of 1.18.
    assert 0.6 < np.std(score) < 1.7
    assert abs(np.mean(score)) < 0.5


def test_few_steps_leave_a_gap_that_holds_the_truth():
    parts, matrix = groups(), decaying(N, 7)
    truth = block_coupling(matrix, parts, tilt=TILT)
    found = stochastic(matrix, parts, steps=4, probes=30, top=0)
    assert found.truncation > 0
    assert found.total.lower <= truth.total <= found.total.upper
    assert found.log_det.lower <= truth.log_det <= found.log_det.upper
    better = stochastic(matrix, parts, steps=12, probes=30, top=0)
    assert better.truncation < found.truncation


def test_eigenpairs_lower_the_noise_and_change_nothing_else():
    parts, matrix = groups(), decaying(N, 7)
    truth = block_coupling(matrix, parts, tilt=TILT)
    plain, aided = (stochastic(matrix, parts, top=top, probes=12) for top in (0, 20))
    assert aided.total.stderr < 0.3 * plain.total.stderr
    assert abs(aided.total.value - truth.total) < 5 * aided.total.stderr
    assert abs(plain.total.value - truth.total) < 5 * plain.total.stderr


def test_the_control_variate_is_the_dense_logarithm():
    parts, matrix = groups(), decaying(N, 7, rank=9)
    values, vectors = factored(matrix)
    control = LowRank(values, vectors, parts, tilt=2.0)
    low = vectors.T @ torch.diag(values) @ vectors
    region = (0, 2)
    index = torch.cat([parts[a] for a in region]).sort().values
    eigenvalues, basis = torch.linalg.eigh(torch.eye(len(index)) + 2 * low[index][:, index])
    vector = torch.randn(N, generator=Generator().manual_seed(0), dtype=torch.float64)
    along = basis.T @ vector[index]
    wanted = float((eigenvalues.log() * (along.square() - 1)).sum())
    assert control.excess(region, vector) == pytest.approx(wanted, rel=1e-9)


def test_negative_curvature_is_refused_with_the_tilt_that_would_do():
    matrix = decaying(N, 1)
    matrix[0, 0] -= 3.0
    with pytest.raises(NotFiniteError, match=r"not positive definite.*--curvature ggn"):
        stochastic(matrix, groups())
    least = float(torch.linalg.eigvalsh(matrix)[0])
    tilt = 0.5 / abs(least)
    found = stochastic(matrix, groups(), tilt=tilt, probes=40)
    truth = block_coupling(matrix, groups(), tilt=tilt)
    assert found.lowest == pytest.approx(least, rel=1e-5)
    assert found.total.lower <= truth.total <= found.total.upper


# Units -------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("when", [2, 5, 7, 11, 20])
def test_an_interrupted_run_gives_the_same_numbers(when):
    parts, matrix = groups(), decaying(N, 5)
    options = {"probes": 3, "steps": 10}
    wanted = stochastic(matrix, parts, **options)

    class Limited(MemoryUnits):
        count = 0

        def put(self, name, unit):
            super().put(name, unit)
            self.count += 1
            if self.count == when:
                raise StoppedError

    units = Limited()
    with pytest.raises(StoppedError):
        stochastic(matrix, parts, units=units, **options)
    found = stochastic(matrix, parts, units=units, **options)
    assert_same(found, wanted)


def test_more_probes_continue_a_result():
    parts, matrix = groups(), decaying(N, 5)
    few = stochastic(matrix, parts, probes=2)
    units = MemoryUnits()
    for name, unit in stored_units(few, 100).items():
        units.put(name, unit)
    found = stochastic(matrix, parts, probes=4, units=units)
    assert_same(found, stochastic(matrix, parts, probes=4))


def test_a_spent_budget_keeps_two_probes_of_the_total():
    parts, matrix = groups((12, 10, 14, 9)), decaying(45, 5)
    found = stochastic(matrix, parts, stop=lambda done: True)
    assert np.isfinite(found.total.value)
    assert np.isfinite(found.total.stderr)
    assert np.isnan(found.coupling[0, 1])
    assert np.isfinite(found.rest).all()


def assert_same(found, wanted):
    for name in ("coupling", "norm", "rank", "rest_upper", "log_det_high", "log_det_low"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name), equal_nan=True), name
    assert found.total == wanted.total
    assert (found.lowest, found.highest) == (wanted.lowest, wanted.highest)


# Regions -----------------------------------------------------------------------------------------


def test_regions_are_named_once():
    found, base = regions(2)
    assert found == [(0, 1), (0,), (1,)]
    assert base == 3
    found, base = regions(4)
    assert len(found) == len(set(found)) == 1 + 4 + 4 + 6
    assert found[:base] == [(0, 1, 2, 3), (0,), (1,), (2,), (3,), *found[5:9]]


def test_sums_over_probes():
    wanted, _ = regions(2)
    high = np.array([[3.0, 5.0, np.nan], [2.0, 4.0, 9.0], [2.0, 2.0, 2.0]])
    dets = LogDets(regions=wanted, high=high, low=high - 0.2)
    total = dets.coupling([(0,), (1,)], [(0, 1)])
    # Half of 1 in both probes; the bounds are 0.2 below and 0.1 above it.
    assert (total.value, total.stderr) == pytest.approx((0.45, 0))
    assert (total.lower, total.upper) == pytest.approx((0.3, 0.6))
    assert dets.truncation([(0,), (1,)], [(0, 1)]) == pytest.approx(0.3)
    one = LogDets(regions=wanted, high=high[:, :1], low=high[:, :1])
    assert np.isnan(one.combined([(0,)]).stderr)
    none = LogDets(regions=wanted, high=high[:, 2:], low=high[:, 2:])
    assert np.isnan(none.combined([(0, 1)]).value)
