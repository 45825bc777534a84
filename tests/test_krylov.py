"""Identities of the Lanczos factorisation, restarts, breakdowns and quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.eigensolver import extreme_eigenpairs
from landscape.errors import NotFiniteError, UsageError
from landscape.krylov import Lanczos, quadrature
from landscape.memory import Rows
from landscape.operators import DenseOperator, LinearOperator
from landscape.reductions import dot, gram, inner, norm
from landscape.restarts import is_long, restart_size, wanted_and_next

SPECTRA = {
    "one": [3.0],
    "pair": [2.0, -1.0],
    "zero": np.zeros(20),
    "identity": np.ones(17),
    "distinct": np.linspace(-1, 2, 40),
    "power law": np.arange(1, 200.0) ** -1.5,
    "low rank": np.r_[np.arange(1, 6.0), np.zeros(60)],
    "repeated": np.r_[[5.0, 5.0, 5.0], np.linspace(0, 1, 40)],
    "indefinite": np.r_[np.linspace(-4, -3, 5), np.zeros(50), np.linspace(1, 9, 8)],
    "tiny": 1e-12 * np.arange(1, 30.0),
    "huge": 1e12 * np.arange(1, 30.0),
}


def operator(values, dtype=torch.float64, seed=0):
    values = torch.as_tensor(np.array(values, dtype=float))
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    )
    matrix = (q * values) @ q.T
    return DenseOperator(((matrix + matrix.T) / 2).to(dtype))


def start(n, dtype=torch.float64, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("depth", [1, 2, 10, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factorisation(name, depth, dtype):
    op = operator(SPECTRA[name], dtype)
    lanczos = Lanczos(op, start(op.n, dtype), capacity=depth)
    while lanczos.size < lanczos.capacity:
        lanczos.step()
    eps = torch.finfo(dtype).eps
    Q, T = lanczos.basis.double(), torch.from_numpy(lanczos.projected)
    assert len(Q) == min(depth, op.n)
    assert lanczos.orthogonality() < 50 * eps
    scale = max(float(op.matrix.double().abs().max()) * op.n, 1e-300)
    residual = op.matrix.double() @ Q.T - Q.T @ T
    # All columns but the last vanish; the last is beta times the next basis vector.
    assert (residual[:, :-1].abs() < 20 * eps * scale).all()
    assert abs(float(residual[:, -1].norm()) - lanczos.beta) < 20 * eps * scale
    if lanczos.complete:
        assert lanczos.beta < 20 * eps * scale
        expected = np.sort(np.asarray(SPECTRA[name]))
        assert abs(np.linalg.eigvalsh(lanczos.projected) - expected).max() < 20 * eps * scale


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("top", "bottom"), [(1, 0), (0, 1), (1, 1), (10, 3), (5, 5)])
def test_extreme_eigenvalues(name, top, bottom):
    values = np.sort(np.asarray(SPECTRA[name], dtype=float))[::-1]
    n = len(values)
    top, bottom = min(top, n), min(bottom, n - min(top, n))
    pairs = extreme_eigenpairs(
        operator(values), top=top, bottom=bottom, tol=1e-9, multiplicity="always"
    )
    expected = np.r_[values[:top], values[n - bottom :]]
    assert abs(pairs.values - expected).max(initial=0) <= 1e-9 * abs(values).max()
    assert pairs.converged.all()
    assert (np.diff(pairs.values) <= 1e-9 * abs(values).max()).all()
    gram = pairs.vectors @ pairs.vectors.T
    assert (gram - torch.eye(top + bottom, dtype=gram.dtype)).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_are_true(dtype):
    op = operator(SPECTRA["power law"], dtype)
    pairs = extreme_eigenpairs(op, top=8, bottom=2, tol=1e-3)
    matrix, rows = op.matrix.double(), pairs.vectors.double()
    theta = torch.from_numpy(pairs.values)
    true = torch.linalg.vector_norm(rows @ matrix - theta[:, None] * rows, dim=1)
    rounding = 10 * torch.finfo(dtype).eps
    assert (true.numpy() <= 1.01 * pairs.residuals + rounding).all()
    together = float(torch.linalg.vector_norm(true))
    assert (pairs.residuals <= 1.5 * together + rounding).all()
    assert (pairs.converged == (pairs.residuals <= 1e-3 * abs(pairs.values).max())).all()


@pytest.mark.parametrize("basis", [15, 20, 60])
def test_thick_restart_gives_the_same_eigenvalues(basis):
    values = np.sort(np.r_[np.linspace(0, 1, 300), 2.0 ** np.arange(6)])[::-1]
    pairs = extreme_eigenpairs(operator(values), top=6, bottom=0, tol=1e-10, max_basis=basis)
    assert pairs.n_restarts >= (1 if basis < 25 else 0)
    assert abs(pairs.values - values[:6]).max() < 1e-10 * values[0]
    assert pairs.orthogonality < 1e-13


def test_an_unreachable_tolerance_is_reported():
    values = np.linspace(0, 1, 400)
    pairs = extreme_eigenpairs(operator(values), top=5, tol=1e-10, max_basis=20, max_matvecs=60)
    assert not pairs.converged.all()
    assert pairs.n_matvecs <= 60 + 5


def test_no_ghosts_at_500_steps_in_float32():
    values = np.r_[np.geomspace(1, 100, 10), np.linspace(-0.01, 0.01, 590)]
    op = operator(values, torch.float32)
    lanczos = Lanczos(op, start(op.n, torch.float32), capacity=500)
    for _ in range(500):
        lanczos.step()
    ritz = np.linalg.eigvalsh(lanczos.projected)
    assert lanczos.orthogonality() < 1e-5
    for value in np.geomspace(1, 100, 10):
        assert (abs(ritz - value) < 0.01 * value).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["outliers", "power law"])
def test_a_drifting_basis_leaves_residuals_of_rounding_size(name, dtype):
    op = operator(SPREAD[name], dtype)
    eps = torch.finfo(dtype).eps
    lanczos = Lanczos(op, start(op.n, dtype), capacity=150, drift=0.65)
    for _ in range(150):
        lanczos.step()
    assert 10 * eps < lanczos.orthogonality() < eps**0.6
    values, coefficients = lanczos.refined()
    estimates = abs(lanczos.beta * coefficients[-1])
    top = slice(-8, None)
    assert (estimates[top] < eps * values[-1]).all()
    rows = lanczos.vectors(coefficients[:, top]).double()
    gaps = rows @ op.matrix.double() - torch.from_numpy(values[top])[:, None] * rows
    worst = float(gaps.norm(dim=1).max())
    assert worst < 10 * eps * values[-1]
    plain, unrefined, _ = lanczos.ritz()
    rows = lanczos.vectors(unrefined[:, top]).double()
    gaps = rows @ op.matrix.double() - torch.from_numpy(plain[top])[:, None] * rows
    assert float(gaps.norm(dim=1).max()) > 2 * worst


class Coarse(DenseOperator):
    """Products in bfloat16 for vectors in float32."""

    precision = torch.bfloat16

    def _matvec(self, vector):
        return (self.matrix @ vector).bfloat16().to(self.dtype)


def test_coarse_products_are_reorthogonalised_at_every_step():
    """Their rounding is far above what the estimates of drift know of."""
    values = np.r_[np.geomspace(1, 100, 10), np.linspace(-0.01, 0.01, 590)]
    op = Coarse(operator(values, torch.float32).matrix)
    lanczos = Lanczos(op, start(op.n, torch.float32), capacity=200, drift=0.5)
    for _ in range(200):
        lanczos.step()
    assert lanczos.orthogonality() < 1e-5
    ritz = np.linalg.eigvalsh(lanczos.projected)
    assert (ritz > 50).sum() == (values > 50).sum()
    assert ritz[-1] == pytest.approx(100, rel=0.02)


class FloatInside(DenseOperator):
    """float64 outside, float32 within, as where a layer casts: it does not say so."""

    def _matvec(self, vector):
        return (self.matrix.float() @ vector.float()).double()


def test_products_coarser_than_they_say_leave_no_ghosts():
    """Copies of Ritz vectors in a basis would make every step amplify rounding, to overflow."""
    values = np.r_[np.linspace(1, 0.99, 50), np.zeros(550)]
    found = extreme_eigenpairs(FloatInside(operator(values).matrix), top=3, tol=1e-6)
    np.testing.assert_allclose(found.values, values[:3], rtol=1e-5)
    assert found.orthogonality < 1e-10
    assert found.converged.all()


class Shifting(DenseOperator):
    """A matrix that changes slightly after some products, as an unstable loss would."""

    def __init__(self, values, after):
        super().__init__(operator(values).matrix)
        self.after = after
        self.other = 1e-4 * operator(np.linspace(-1, 1, len(values)), seed=5).matrix

    def _matvec(self, vector):
        product = super()._matvec(vector)
        return product + self.other @ vector if self.n_matvecs > self.after else product


@pytest.mark.parametrize("seed", range(5))
def test_combined_residuals_show_products_that_do_not_repeat(seed):
    values = np.r_[np.arange(11.0, 0, -1), np.linspace(-0.1, 0.1, 300)]
    options = {"top": 10, "tol": 1e-7, "seed": seed}
    steady = extreme_eigenpairs(Shifting(values, 10**6), **options)
    assert steady.converged.all()
    shifting = Shifting(values, steady.n_matvecs - 2)
    found = extreme_eigenpairs(shifting, **options, max_matvecs=steady.n_matvecs)
    assert not found.converged.all()
    assert found.residuals.max() > 1e-5


@pytest.mark.parametrize("basis", [30, None])
def test_state_continues_bit_for_bit(basis):
    op = operator(SPECTRA["power law"])
    whole = extreme_eigenpairs(op, top=12, tol=1e-12, max_basis=basis)
    seen = []

    def keep(done, snapshot):
        seen.append(snapshot())

    extreme_eigenpairs(op, top=12, tol=1e-12, max_basis=basis, on_step=keep)
    for state in seen[3::17]:
        again = extreme_eigenpairs(op, top=12, tol=1e-12, max_basis=basis, state=state)
        assert (again.values == whole.values).all()
        assert (again.residuals == whole.residuals).all()
        assert again.n_matvecs == whole.n_matvecs


@pytest.mark.parametrize(("top", "bottom"), [(-1, 0), (0, -1), (41, 0), (30, 11)])
def test_impossible_requests(top, bottom):
    with pytest.raises(UsageError):
        extreme_eigenpairs(operator(SPECTRA["distinct"]), top=top, bottom=bottom, tol=1e-8)


def test_nothing_wanted():
    pairs = extreme_eigenpairs(operator(SPECTRA["distinct"]), top=0, tol=1e-8)
    assert len(pairs.values) == pairs.n_matvecs == 0


def test_non_finite_products_are_refused():
    op = operator(SPECTRA["distinct"])
    op.matrix[3, 4] = float("nan")
    with pytest.raises(NotFiniteError):
        extreme_eigenpairs(op, top=2, tol=1e-8)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_quadrature_is_exact_for_polynomials(name, steps):
    op = operator(SPECTRA[name])
    v = start(op.n)
    nodes, weights = quadrature(op, v, steps=steps)
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    scale = max(float(op.matrix.abs().max()), 1e-300)
    power = v / v.norm()
    for degree in range(2 * len(nodes)):
        exact = float(v @ power / v.norm())
        assert weights @ (nodes / scale) ** degree == pytest.approx(exact, rel=1e-9, abs=1e-9)
        power = op.matrix @ power / scale


def test_quadrature_on_the_complement_of_deflated_rows():
    values = np.r_[[9.0, 7.0], np.linspace(0, 1, 30)]
    op = operator(values)
    _, vectors = torch.linalg.eigh(op.matrix)
    deflate = vectors.T[-2:].contiguous()
    nodes, weights = quadrature(op, start(op.n), steps=100, deflate=deflate)
    assert len(nodes) == 30
    assert nodes.max() < 1 + 1e-12
    v = start(op.n)
    v = v - deflate.T @ (deflate @ v)
    assert weights @ nodes == pytest.approx(float(v @ op.matrix @ v / (v @ v)), rel=1e-12)


@pytest.mark.parametrize("copies", [2, 3, 7])
@pytest.mark.parametrize("value", [3.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplicities_are_found(copies, value, dtype):
    values = np.sort(np.r_[np.full(copies, value), 4.0, 2.5, np.linspace(0, 1, 200)])[::-1]
    tol = 1e-5 if dtype == torch.float32 else 1e-9
    pairs = extreme_eigenpairs(
        operator(values, dtype), top=copies + 3, tol=tol, multiplicity="always", max_basis=60
    )
    assert abs(pairs.values - values[: copies + 3]).max() < 10 * tol
    assert pairs.converged.all()


@pytest.mark.parametrize("top", [8, 12, 30])
def test_repeated_zeros_are_found_without_being_asked(top):
    values = np.sort(np.r_[np.linspace(-4, -3, 30), np.zeros(50), np.linspace(1, 9, 7)])[::-1]
    pairs = extreme_eigenpairs(operator(values), top=top, tol=1e-9)
    assert abs(pairs.values - values[:top]).max() < 1e-7


def test_a_resumed_search_for_copies_is_the_same():
    values = np.r_[np.full(4, 5.0), np.linspace(0, 1, 100)]
    options = {"top": 5, "tol": 1e-10, "multiplicity": "always"}
    whole = extreme_eigenpairs(operator(values), **options)
    seen = []
    extreme_eigenpairs(operator(values), **options, on_step=lambda n, s: seen.append(s()))
    assert seen[-1]["n_fresh"] >= 1
    for state in seen[5::11]:
        again = extreme_eigenpairs(operator(values), **options, state=state)
        assert (again.values == whole.values).all()
        assert again.n_matvecs == whole.n_matvecs


def test_a_basis_larger_than_memory_lives_on_disk(monkeypatch):
    op = operator(SPECTRA["power law"])
    expected = extreme_eigenpairs(op, top=6, tol=1e-10, max_basis=20)
    monkeypatch.setattr("landscape.memory.total_memory", lambda device: 10_000)
    found = extreme_eigenpairs(op, top=6, tol=1e-10, max_basis=20)
    assert found.n_restarts > 0
    assert (found.values == expected.values).all()
    assert Rows(3, torch.empty(0, dtype=torch.float64), 1000).cut(2).shape == (2, 1000)


class Diagonal(LinearOperator):
    """A diagonal matrix, for sizes at which a basis is long."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(values).to(dtype)
        self.n, self.dtype, self.device = len(values), dtype, torch.device("cpu")

    def _matvec(self, vector):
        return self.values * vector


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_a_basis_of_long_vectors_stays_small(power):
    values = np.arange(1, 20_001.0) ** -power
    op = Diagonal(values)
    sizes = {}

    def follow(done, snapshot):
        sizes[done] = len(snapshot()["rows"]) - 1

    whole = extreme_eigenpairs(op, top=10, tol=1e-8, max_basis=240)
    found = extreme_eigenpairs(op, top=10, tol=1e-8, on_step=follow)
    assert whole.n_restarts == 0
    assert found.n_restarts >= (power < 2)
    assert all(size <= restart_size(done, 10) == max(30, done // 2) for done, size in sizes.items())
    assert found.n_matvecs <= 1.1 * whole.n_matvecs
    assert abs(found.values - values[:10]).max() < 1e-14
    rows = found.vectors
    residuals = torch.linalg.vector_norm(
        op.values * rows - torch.as_tensor(found.values)[:, None] * rows, dim=1
    )
    assert (residuals.numpy() <= found.residuals + 1e-14).all()
    assert found.converged.all()
    assert found.orthogonality < 1e-13
    assert (rows.diagonal().abs() > 1 - 1e-9).all()
    # The basis is not held by what is returned.
    assert rows.untyped_storage().nbytes() == 10 * op.n * 8


@pytest.fixture
def always_long(monkeypatch):
    monkeypatch.setattr("landscape.restarts._LIGHT", 0)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("top", "bottom"), [(1, 0), (0, 1), (10, 3), (5, 5), (8, 0)])
def test_early_restarts_find_the_same_pairs(name, top, bottom, always_long):
    values = np.sort(np.asarray(SPECTRA[name], dtype=float))[::-1]
    n = len(values)
    top, bottom = min(top, n), min(bottom, n - min(top, n))
    op = operator(values)
    pairs = extreme_eigenpairs(op, top=top, bottom=bottom, tol=1e-9, multiplicity="always")
    expected = np.r_[values[:top], values[n - bottom :]]
    assert abs(pairs.values - expected).max(initial=0) <= 1e-9 * abs(values).max()
    assert pairs.converged.all()
    assert pairs.orthogonality < 1e-12
    gaps = pairs.vectors @ op.matrix - torch.as_tensor(pairs.values)[:, None] * pairs.vectors
    assert float(gaps.norm(dim=1).max()) <= 1e-9 * abs(values).max()


@pytest.mark.parametrize("copies", [2, 7])
def test_early_restarts_leave_no_ghosts_and_find_copies(copies, always_long):
    values = np.sort(np.r_[np.full(copies, 5.0), 4.0, 2.5, np.linspace(0, 1, 300)])[::-1]
    pairs = extreme_eigenpairs(operator(values), top=copies + 3, tol=1e-9, multiplicity="always")
    assert abs(pairs.values - values[: copies + 3]).max() < 1e-8
    assert pairs.n_restarts > 0
    assert pairs.orthogonality < 1e-12
    # The same from any of its snapshots.
    seen = []
    options = {"top": copies + 3, "tol": 1e-9, "multiplicity": "always"}
    extreme_eigenpairs(operator(values), **options, on_step=lambda n, s: seen.append(s()))
    for state in seen[5::19]:
        again = extreme_eigenpairs(operator(values), **options, state=state)
        assert (again.values == pairs.values).all()
        assert (again.vectors == pairs.vectors).all()
        assert again.n_matvecs == pairs.n_matvecs


def test_an_iteration_goes_on_after_a_failed_verification(always_long):
    values = np.r_[np.arange(11.0, 0, -1), np.linspace(-0.1, 0.1, 300)]
    steady = extreme_eigenpairs(operator(values), top=10, tol=1e-7)
    shifting = Shifting(values, steady.n_matvecs - 2)
    found = extreme_eigenpairs(shifting, top=10, tol=1e-7)
    exact, _ = torch.linalg.eigh(shifting.matrix + shifting.other)
    # Fresh products with every vector are those of the changed matrix.
    assert abs(found.values - exact.numpy()[::-1][:10]).max() < 1e-3
    assert found.n_matvecs > steady.n_matvecs + 2
    seen = []
    shifting = Shifting(values, steady.n_matvecs - 2)
    extreme_eigenpairs(shifting, top=10, tol=1e-7, on_step=lambda n, s: seen.append((n, s())))
    state = next(state for done, state in seen if state["round"] == 1)
    coupling, size = state["T"][-1, :-1], len(state["rows"]) - 1
    assert size <= 20
    # Arrow form after the restart that verified: q couples to all that was kept.
    assert (state["T"][:size, :size] == np.diag(np.diag(state["T"])[:size])).all()
    rows = torch.as_tensor(state["rows"])
    matrix = operator(values).matrix
    left = rows[:-1] @ matrix - torch.as_tensor(state["T"][:size, :size]) @ rows[:-1]
    assert (left - torch.outer(torch.as_tensor(coupling), rows[-1])).abs().max() < 1e-12


class Identity(Diagonal):
    def _matvec(self, vector):
        return vector


def test_an_operator_that_hands_its_argument_back_leaves_the_vectors_alone(always_long):
    pairs = extreme_eigenpairs(Identity(np.ones(50)), top=3, tol=1e-9)
    assert abs(pairs.values - 1).max() < 1e-14
    assert (gram(pairs.vectors) - torch.eye(3)).abs().max() < 1e-13


def test_no_early_restarts_near_the_rounding_unit():
    single, double = Diagonal(np.ones(50_000), torch.float32), Diagonal(np.ones(50_000))
    assert is_long(double, 240, 1e-8)
    assert not is_long(double, 240, 1e-15)
    assert not is_long(single, 240, 1e-6)
    assert is_long(single, 240, 1e-4)
    assert not is_long(double, 20, 1e-8)


@pytest.mark.parametrize(("size", "top", "bottom"), [(1, 1, 0), (3, 1, 2), (30, 10, 0), (30, 6, 3)])
def test_wanted_indices_come_first_and_none_twice(size, top, bottom):
    chosen = list(wanted_and_next(size, top, bottom))
    wanted = [*range(size - 1, size - 1 - top, -1), *range(bottom - 1, -1, -1)]
    assert chosen[: top + bottom] == wanted
    assert len(set(chosen)) == len(chosen) == min(size, top + bottom + 10)


@pytest.mark.parametrize("n", [1000, 3001, 300_000])
def test_rows_that_are_cut_keep_their_content(n):
    memory = Rows(12, torch.empty(0, dtype=torch.float32), n)
    memory.tensor[:] = start(12 * n, torch.float32).view(12, n)
    expected = memory.tensor[:5].clone()
    first = memory.cut(5)
    assert torch.equal(first, expected)
    assert first.untyped_storage().nbytes() == 5 * n * 4
    first += 1


SPREAD = {
    "power law": np.arange(1, 600.0) ** -1.5,
    "indefinite": np.linspace(-1, 2, 600),
    "outliers": np.r_[np.geomspace(1, 300, 20), np.linspace(-0.01, 0.1, 580)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(SPREAD))
def test_partial_reorthogonalisation_is_enough_for_quadrature(dtype, name):
    values = SPREAD[name]
    op = operator(values, dtype)
    v = start(op.n, dtype)
    full = Lanczos(op, v, capacity=100)
    partial = Lanczos(op, v, capacity=100, drift=0.5)
    passes = {"full": 0, "partial": 0}
    for label, lanczos in (("full", full), ("partial", partial)):
        project = lanczos._project_out

        def counted(vector, size, before=None, project=project, label=label):
            passes[label] += size
            return project(vector, size, before)

        lanczos._project_out = counted
        for _ in range(100):
            lanczos.step()
    eps = torch.finfo(dtype).eps
    assert full.orthogonality() < 30 * eps
    assert partial.orthogonality() < 10 * eps**0.5
    assert passes["partial"] < (0.75 if dtype == torch.float64 else 0.97) * passes["full"], passes
    scale = abs(values).max()
    for f in (lambda t: t / scale, lambda t: (t / scale) ** 3, lambda t: np.exp(t / scale)):
        sums = []
        for lanczos in (full, partial):
            nodes, vectors = np.linalg.eigh(lanczos.projected)
            sums.append(vectors[0] ** 2 @ f(nodes))
        assert sums[1] == pytest.approx(sums[0], rel=100 * eps)


def test_long_float32_reductions_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 700_000, generator=generator)
    exact = rows.double() @ rows.double().T
    assert norm(rows[0]) == pytest.approx(float(exact[0, 0]) ** 0.5, rel=1e-8)
    scale = exact.diagonal().max()
    assert (gram(rows) - exact).abs().max() < 3e-7 * scale
    assert (inner(rows, rows[0]) - exact[:, 0]).abs().max() < 3e-7 * scale
    assert dot(rows[1], rows[2]) == pytest.approx(float(exact[1, 2]), abs=3e-8 * float(scale))
