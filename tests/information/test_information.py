"""What the data distinguish, against dense float64 matrices and closed forms."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call, hessian, jacrev

import landscape
from landscape import Task
from landscape.criteria import CrossEntropy
from landscape.data import materialise
from landscape.errors import NotFiniteError, ResultFileError, UsageError
from landscape.information.activations import activation_ranks
from landscape.information.data import distinct_examples, integer_labels
from landscape.information.effective import distinct_rows, effective_rank, entropy_rank, row_values
from landscape.information.gradients import gradient_gram, gradient_rows, require_memory
from landscape.information.options import InformationOptions
from landscape.information.records import InformationResult
from landscape.information.split import exact_split, norms_of, probed_split
from landscape.information_plot import information_figure
from landscape.information_runs import InformationRun, information_of_data
from landscape.information_series import information_columns, rank_correlations
from landscape.measurement import prepared
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.settings import Settings
from landscape.store import load, save
from landscape.units import MemoryUnits, silent

N = 14
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(N) % 3


def network(seed=1, hidden=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    return model.double()


def task_of(model=None, inputs=X, targets=LABELS, criterion="cross_entropy"):
    return Task(
        model=network() if model is None else model, data=(inputs, targets), criterion=criterion
    )


def risk_of(task=None, *, loss="task", batch_size=5):
    task = task_of() if task is None else task
    return Risk(task, materialise(task.data), batch_size=batch_size, loss=loss)


def gram_of(risk, tol=1e-10):
    return gradient_gram(risk, tol=tol, seed=0, units=MemoryUnits(), progress=silent)


def dense_parts(risk, inputs=X, targets=LABELS):
    """Gradients of single examples, H and the GGN by torch.func, for cross-entropy."""
    names = risk.space.names
    start = risk.space.vector()

    def outputs(vector):
        parts = dict(zip(names, risk.space.split(vector), strict=True))
        return functional_call(risk.model, parts, (inputs,))

    def losses(vector):
        return nn.functional.cross_entropy(outputs(vector), targets, reduction="none")

    gradients = jacrev(losses)(start)
    h = hessian(lambda vector: losses(vector).mean())(start)
    jacobian = jacrev(outputs)(start)
    p = outputs(start).softmax(1).detach()
    c = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    ggn = torch.einsum("nki,nkl,nlj->ij", jacobian, c, jacobian) / len(inputs)
    return gradients.detach(), h.detach(), ggn.detach()


class TestGradients:
    def test_gram_matrix_is_that_of_the_dense_gradients(self):
        risk = risk_of()
        gradients, _, _ = dense_parts(risk)
        rows = gradient_rows(risk)
        assert torch.allclose(rows.rows, gradients / N**0.5, rtol=1e-12, atol=1e-14)
        assert rows.example.tolist() == list(range(N))
        gram = gram_of(risk)
        expected = torch.linalg.eigvalsh(gradients @ gradients.T / N).flip(0)
        assert gram.eigenvalues == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-14)
        assert gram.ranks[0].rank == N == gram.distinct_gradients
        fisher = curvature("empirical-fisher", risk).dense()
        values = torch.linalg.eigvalsh(fisher).flip(0)[:N]
        assert gram.eigenvalues == pytest.approx(values.numpy(), rel=1e-9, abs=1e-14)
        # The kernel is sorted by label.
        order = LABELS.argsort(stable=True)
        assert gram.kernel_example.tolist() == order.tolist()
        assert gram.kernel_label.tolist() == LABELS[order].tolist()
        kernel = (gradients @ gradients.T / N)[order][:, order]
        assert gram.kernel == pytest.approx(kernel.numpy(), rel=1e-10, abs=1e-14)

    def test_by_layer(self):
        risk = risk_of()
        gradients, _, _ = dense_parts(risk)
        gram = gram_of(risk)
        assert [row.layer for row in gram.ranks] == ["", "0", "2"]
        assert [row.size for row in gram.ranks] == [57, 36, 21]
        for row, part in zip(gram.ranks[1:], (gradients[:, :36], gradients[:, 36:]), strict=True):
            values = torch.linalg.svdvals(part / N**0.5).numpy()
            assert row.rank == np.linalg.matrix_rank(part.numpy())
            assert row.trace == pytest.approx((values**2).sum())
            p = values**2 / (values**2).sum()
            assert row.entropy == pytest.approx(math.exp(stats.entropy(p)))
            assert row.participation == pytest.approx(1 / (p**2).sum())
        assert sum(row.trace for row in gram.ranks[1:]) == pytest.approx(gram.ranks[0].trace)

    def test_linear_model_in_closed_form(self):
        """Of ``1/2 |W x - y|^2`` it is ``r x^T``: ``K_ij = <r_i, r_j> <x_i, x_j> / N``."""
        model = nn.Linear(5, 2, bias=False).double()
        targets = torch.randn(N, 2, generator=torch.Generator().manual_seed(3)).double()
        gram = gram_of(risk_of(task_of(model, targets=targets, criterion="mse")))
        residual = (X @ model.weight.T - targets).detach()
        expected = (residual @ residual.T) * (X @ X.T) / N
        assert gram.kernel == pytest.approx(expected.numpy(), rel=1e-12, abs=1e-14)
        assert gram.kernel_example.tolist() == list(range(N))
        assert set(gram.kernel_label.tolist()) == {-1}
        assert gram.ranks[0].rank == 10 == len(gram.eigenvalues)

    def test_tokens_that_are_ignored(self):
        class Tokens(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

            def forward(self, tokens):
                return self.head(self.embedding(tokens).cumsum(1).tanh())

        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(7, (9, 4), generator=generator)
        targets = torch.randint(7, (9, 4), generator=generator)
        targets[0, 1:], targets[4] = -100, -100  # One example has no term at all.
        risk = risk_of(task_of(Tokens(), tokens, targets, CrossEntropy()), batch_size=4)
        found = gradient_rows(risk)
        assert found.example.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
        assert found.n_examples == 9
        kept = (targets != -100).sum(1).double()
        rows = []
        for i in found.example.tolist():
            outputs = risk.model(tokens[i : i + 1])
            loss = nn.functional.cross_entropy(outputs[0], targets[i], ignore_index=-100)
            gradient = torch.autograd.grad(loss, risk.space.parameters)
            rows.append(risk.space.flatten(gradient) * (kept[i] / kept.sum()).sqrt())
        assert torch.allclose(found.rows, torch.stack(rows), rtol=1e-10, atol=1e-13)
        # Weighted again, they add up to the gradient of the loss.
        weights = (kept[found.example] / kept.sum()).sqrt()
        assert torch.allclose(weights @ found.rows, risk.gradient(), rtol=1e-10, atol=1e-13)

    def test_behaviour_has_the_spectrum_of_the_ggn(self):
        risk = risk_of(loss="behaviour")
        _, _, ggn = dense_parts(risk)
        gram = gram_of(risk)
        expected = torch.linalg.eigvalsh(ggn).flip(0)[: len(gram.eigenvalues)]
        assert gram.eigenvalues == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-14)
        assert gram.n_rows == 2 * N
        # A block's norm does not depend on the factor: |F_i F_j^T|^2 = <F_i^T F_i, F_j^T F_j>.
        found = gradient_rows(risk)
        parts = [found.rows[found.example == i] for i in range(N)]
        parts = torch.stack([(part.T @ part).reshape(-1) for part in parts])
        order = gram.kernel_example
        expected = (parts @ parts.T).sqrt()[order][:, order]
        assert gram.kernel == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-12)

    @pytest.mark.parametrize("loss", ["task", "behaviour"])
    def test_continued_with_other_micro_batches(self, loss):
        whole = gradient_rows(risk_of(loss=loss))
        for count in (1, 4, 9):
            found = gradient_rows(risk_of(loss=loss, batch_size=3), rows=whole.rows[:count])
            assert torch.allclose(found.rows, whole.rows, atol=1e-14)
            assert found.example.equal(whole.example)

    @pytest.mark.parametrize("loss", ["task", "behaviour"])
    def test_large_outputs_are_pulled_back_one_by_one(self, loss, monkeypatch):
        whole, seen = gradient_rows(risk_of(loss=loss)), []
        monkeypatch.setattr("landscape.information.gradients._BYTES", 1)
        found = gradient_rows(risk_of(loss=loss), on_rows=lambda done, rows: seen.append(done))
        assert torch.allclose(found.rows, whole.rows, atol=1e-15)
        assert seen == list(range(1, len(whole.rows) + 1))

    @pytest.mark.parametrize("loss", ["task", "behaviour"])
    def test_the_kernel_of_some_examples_is_a_part_of_that_of_all(self, loss, monkeypatch):
        whole = gram_of(risk_of(loss=loss))
        monkeypatch.setattr("landscape.information.gradients._SHOWN", 6)
        some = gram_of(risk_of(loss=loss))
        place = [whole.kernel_example.tolist().index(i) for i in some.kernel_example]
        assert some.kernel == pytest.approx(whole.kernel[place][:, place], abs=1e-15)
        assert some.kernel_label.tolist() == [0, 0, 1, 1, 2, 2]
        assert (some.eigenvalues == whole.eigenvalues).all()

    def test_outputs_of_other_examples(self):
        task = dataclasses.replace(task_of(), forward=lambda model, batch: model(batch[0])[:4])
        risk = risk_of(dataclasses.replace(task, criterion=_mean))
        with pytest.raises(UsageError, match="do not belong to them one by one"):
            gradient_rows(risk)

    def test_a_gradient_that_is_not_finite(self):
        task = dataclasses.replace(task_of(), criterion=_root)
        with pytest.raises(NotFiniteError, match="gradient of an example"):
            gradient_rows(risk_of(task))

    def test_too_many(self, monkeypatch):
        with pytest.raises(UsageError, match=r"--examples 4096"):
            require_memory(5000, 6000)
        require_memory(5000, 4000)
        where = "landscape.information.gradients.total_memory"
        monkeypatch.setattr(where, lambda device: 4 << 20)
        with pytest.raises(UsageError, match=r"fewer --examples .* --params"):
            information_of_data(task_of(network(hidden=2000)), options=_probes(2, steps=0))


def _mean(outputs, batch):
    return outputs.mean()


def _nothing(outputs, batch):
    return 0 * outputs.sum()


def _root(outputs, batch):
    return (outputs - outputs.detach()).abs().sqrt().mean()


def _probes(count, **options):
    return InformationOptions(method="probes", probes=count, **options)


class TestDuplicates:
    @pytest.mark.parametrize("loss", ["task", "behaviour"])
    def test_of_every_example_change_nothing(self, loss):
        once = gram_of(risk_of(loss=loss))
        doubled = task_of(inputs=torch.cat([X, X]), targets=torch.cat([LABELS, LABELS]))
        twice = gram_of(risk_of(doubled, loss=loss))
        assert (once.distinct_examples, once.distinct_gradients) == (N, N)
        assert (twice.distinct_examples, twice.distinct_gradients) == (N, N)
        assert twice.n_rows == 2 * once.n_rows
        for a, b in zip(once.ranks, twice.ranks, strict=True):
            assert a.rank == b.rank
            assert b.clear
            assert b.entropy == pytest.approx(a.entropy, rel=1e-10)
            assert b.participation == pytest.approx(a.participation, rel=1e-10)
        if loss == "task":
            assert once.ranks[0].rank == N
        size = len(once.eigenvalues)
        assert twice.eigenvalues[:size] == pytest.approx(once.eigenvalues, rel=1e-9, abs=1e-15)

    def test_of_some_leave_the_rank_at_the_distinct_count(self):
        copies = torch.tensor([0] * 20 + list(range(N)))
        found = gram_of(risk_of(task_of(inputs=X[copies], targets=LABELS[copies]), batch_size=7))
        assert found.ranks[0].rank == N == found.distinct_examples == found.distinct_gradients
        # One example is most of the data: entropy and participation say so.
        assert found.ranks[0].participation < gram_of(risk_of()).ranks[0].participation

    def test_other_targets_are_other_examples(self):
        inputs, targets = X[[0, 0, 1]], torch.tensor([0, 1, 0])
        risk = risk_of(task_of(inputs=inputs, targets=targets))
        assert distinct_examples(risk) == 3
        assert integer_labels(risk).tolist() == [0, 1, 0]

    def test_distinct_rows(self):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(30, 6, generator=generator, dtype=torch.float64)
        some = torch.cat([rows, rows[:7] + 1e-13, rows[3:5] + 1e-3, 0 * rows[:2]])
        count = functools.partial(distinct_rows, generator=generator)
        assert count(some, tol=1e-10) == 30 + 2 + 1
        assert count(some, tol=1e-1) == 30 + 1
        assert count(some[:0], tol=1e-10) == 0
        # Different rows that are near along any one direction: all pairs are compared.
        near = rows[:1] + 1e-9 * torch.eye(6, dtype=torch.float64)
        assert count(near, tol=1e-12) == 6


class TestEffectiveRanks:
    @pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
    def test_planted(self, shape):
        generator = torch.Generator().manual_seed(0)
        rows, columns = (
            torch.linalg.qr(torch.randn(size, 5, generator=generator, dtype=torch.float64)).Q
            for size in shape
        )
        matrix = 3 * rows @ columns.T
        found = effective_rank(row_values(matrix), layer="a", size=shape[1], tol=1e-10)
        assert (found.rank, found.looser, found.tighter) == (5, 5, 5)
        assert found.entropy == pytest.approx(5)
        assert found.participation == pytest.approx(5)
        assert found.trace == pytest.approx(45)
        assert found.first_dropped < 1e-14 < found.last_kept

    def test_uneven(self):
        assert entropy_rank([3, 1]) == pytest.approx(4 / 3 ** (3 / 4))
        assert entropy_rank([2, 0, 0]) == 1
        assert math.isnan(entropy_rank([0, 0]))
        assert math.isnan(entropy_rank([]))

    def test_the_tolerance_decides(self):
        values = torch.tensor([1, 1e-3, 2e-10, 5e-11], dtype=torch.float64)
        found = effective_rank(values, layer="", size=4, tol=1e-10)
        assert (found.rank, found.looser, found.tighter) == (3, 4, 2)
        assert not found.clear


class TestActivations:
    def test_against_a_forward_pass(self):
        risk = risk_of()
        found, notes = activation_ranks(risk, tol=1e-10, progress=silent)
        assert not notes
        with torch.no_grad():
            hidden = risk.model[0](X)
            outputs = risk.model(X)
        for row, values in zip(found, (hidden, outputs), strict=True):
            assert row.size == values.shape[1]
            covariance = torch.cov(values.T, correction=0)
            eigenvalues = torch.linalg.eigvalsh(covariance)
            assert row.rank == np.linalg.matrix_rank(covariance.numpy())
            assert row.trace == pytest.approx(float(eigenvalues.sum()))
            assert row.entropy == pytest.approx(entropy_rank(eigenvalues.numpy()))

    def test_a_table_of_positions_is_no_activation(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.unused = nn.Embedding(5, 5), nn.Linear(2, 2)
                self.cell = nn.LSTM(5, 4, batch_first=True)
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                x = x[:, :, None] + self.table(torch.arange(5))
                return self.head(self.cell(x)[0][:, -1])

        model = Positions().double()
        # Five examples in a micro-batch: as many as there are positions.
        found, notes = activation_ranks(
            risk_of(task_of(model, X[:10], LABELS[:10])), tol=1e-10, progress=silent
        )
        assert [row.layer for row in found] == ["cell", "head"]
        assert [row.size for row in found] == [20, 3]
        assert [note.split()[2] for note in notes] == ["table", "unused"]

    def test_not_finite(self):
        class Bad(nn.Linear):
            def forward(self, x):
                return super().forward(x) / (x[:, :1] - X[:1, :1])

        risk = risk_of(task_of(nn.Sequential(Bad(5, 3), nn.Hardtanh()).double()))
        with pytest.raises(NotFiniteError, match=r"activation of 0"):
            activation_ranks(risk, tol=1e-10, progress=silent)


def split_of(risk, **options):
    operators = [curvature(name, risk) for name in ("hessian", "ggn")]
    shared = {"tol": 1e-10, "units": MemoryUnits(), "progress": silent}
    blocks = risk.space.modules()
    if options:
        return probed_split(*operators, blocks, **{"seed": 0, "steps": 57, **shared, **options})[0]
    return exact_split(*operators, blocks, **shared)[0]


class TestSplit:
    def test_against_dense_matrices(self):
        risk = risk_of()
        _, h, ggn = dense_parts(risk)
        found = split_of(risk)
        places = (slice(0, 57), slice(0, 36), slice(36, 57))
        assert [row.layer for row in found.norms] == ["", "0", "2"]
        for row, place in zip(found.norms, places, strict=True):
            parts = [m[place, place] for m in (h, ggn, h - ggn)]
            norms = [float(torch.linalg.matrix_norm(part)) for part in parts]
            assert [row.hessian, row.ggn, row.residual] == pytest.approx(norms, abs=1e-12)
            assert row.ratio == pytest.approx(norms[2] / norms[0], abs=1e-12)
            values = torch.linalg.eigvalsh(parts[0])
            assert row.negative == int((values < -1e-10 * values.abs().max()).sum())
        assert found.norms[0].negative > 0
        # The last layer enters linearly: its block has no residual.
        assert found.norms[2].residual == pytest.approx(0, abs=1e-14)
        assert found.exact
        assert not found.at_least

    def test_behaviour_has_no_residual(self):
        result = information_of_data(task_of(), settings=Settings(loss="behaviour"))
        assert 0 <= result.self_test < 1e-14
        assert result.info.gradient_norm < 1e-14
        assert result.split.norms[0].negative == 0
        assert math.isnan(information_of_data(task_of()).self_test)

    def test_probes_agree_with_the_matrices(self):
        risk = risk_of()
        exact, found = split_of(risk), split_of(risk, probes=60)
        for a, b in zip(exact.norms, found.norms, strict=True):
            for name in ("hessian", "ggn", "residual", "ratio"):
                value, stderr = getattr(b, name), getattr(b, f"{name}_stderr")
                assert abs(value - getattr(a, name)) <= 4 * stderr + 1e-13
        # The whole Krylov space shows every negative eigenvalue.
        assert found.norms[0].negative == exact.norms[0].negative
        assert not found.at_least
        assert found.smallest == pytest.approx(exact.smallest, rel=1e-8)
        assert found.largest == pytest.approx(exact.largest, rel=1e-8)
        few = split_of(risk, probes=2, steps=8)
        assert 0 < few.norms[0].negative <= exact.norms[0].negative
        assert few.at_least
        none = split_of(risk, probes=2, steps=0)
        assert math.isnan(none.norms[0].negative)
        # Fewer probes are the first of more.
        assert (few.squares == found.squares[:2]).all()

    def test_errors_of_probes_cover(self):
        generator = np.random.default_rng(0)
        h, g = (generator.normal(size=(20, 20)) * np.linspace(0, 3, 20) for _ in "hg")
        h, g = h + h.T, g @ g.T / 20
        matrices = (h, g, h - g)
        truth = [np.linalg.norm(matrix) for matrix in matrices]
        truth.append(truth[2] / truth[0])
        t, inside, runs = stats.t.ppf(0.975, 15), np.zeros(4), 400
        for _ in range(runs):
            signs = generator.choice([-1.0, 1.0], size=(16, 20))
            squares = np.stack([((signs @ m) ** 2).sum(1) for m in matrices], axis=1)
            [row] = norms_of(squares[:, None, :], {"": 20})
            for k, name in enumerate(("hessian", "ggn", "residual", "ratio")):
                value, stderr = getattr(row, name), getattr(row, f"{name}_stderr")
                inside[k] += abs(value - truth[k]) <= t * stderr
        assert (inside / runs > 0.88).all(), inside / runs
        assert (inside / runs < 0.995).all(), inside / runs

    @pytest.mark.parametrize("steps", [0, 9, 40])
    def test_planted_negative_eigenvalues(self, steps):
        curvatures = torch.cat([-torch.linspace(0.5, 2, 7), torch.zeros(3), torch.ones(10)])

        class Bowl(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.linspace(-1, 1, 20))

            def forward(self, x):
                return self.w.expand(len(x), -1) + 0 * x[:, :1]

        def loss(outputs, batch):
            return 0.5 * (curvatures.to(outputs) * outputs**2).sum(1).mean()

        risk = risk_of(task_of(Bowl(), criterion=loss))
        exact = split_of(risk)
        assert exact.norms[0].negative == 7
        assert (exact.smallest, exact.largest) == pytest.approx((-2, 1))
        if steps:
            found = split_of(risk, probes=2, steps=steps)
            assert 0 < found.norms[0].negative <= 7
            assert found.at_least == (steps < 20)

    def test_no_curvature(self):
        found = split_of(risk_of(task_of(nn.Linear(5, 3).double(), criterion=_mean)))
        assert found.norms[0].hessian == 0
        assert math.isnan(found.norms[0].ratio)
        assert found.norms[0].negative == 0


class Interrupted(MemoryUnits):
    """Stores at once, and ends after some units."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def due(self):
        return True

    def put(self, name, unit):
        super().put(name, unit)
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def run_of(loss="task", **options):
    settings = Settings(loss=loss, seed=3)
    return InformationRun(
        **prepared(task_of(), None, settings, None), options=InformationOptions(**options)
    )


def same(a, b):
    for kind in ("gradients", "split"):
        one, two = (dataclasses.asdict(getattr(r, kind)) for r in (a, b))
        np.testing.assert_equal(one, two)
    np.testing.assert_equal(a.activations, b.activations)


class TestRuns:
    @pytest.mark.parametrize("loss", ["task", "behaviour"])
    @pytest.mark.parametrize("method", ["exact", "probes"])
    def test_interrupted_and_continued(self, loss, method):
        options = {"method": method, "probes": 3, "steps": 5}
        whole = run_of(loss, **options).measure()
        ends = 0
        units = Interrupted(0)
        while True:
            try:
                found = run_of(loss, **options).measure(units=units)
                break
            except KeyboardInterrupt:
                ends, units.left = ends + 1, ends % 3
        assert ends >= 2
        same(found, whole)

    def test_more_probes_continue(self):
        from landscape_cli.information_job import InformationJob

        few, many = (run_of(method="probes", probes=n, steps=5) for n in (2, 5))
        assert few.key == many.key != run_of(method="probes", steps=6).key
        earlier = few.measure()
        assert many.missing(earlier)
        assert not few.missing(earlier)
        units = MemoryUnits()
        InformationJob(many.options).extend(earlier, many, units)
        same(many.measure(units=units), run_of(method="probes", probes=5, steps=5).measure())

    def test_seeds_and_data_are_in_the_key(self):
        task, settings = task_of(), Settings(examples=6)
        keys = {
            InformationRun(**prepared(task, None, s, None), options=InformationOptions()).key
            for s in (settings, dataclasses.replace(settings, data_seed=1), Settings())
        }
        assert len(keys) == 3
        result = information_of_data(task, settings=settings)
        assert len(result.indices) == 6 == result.info.n_examples

    def test_refused(self):
        with pytest.raises(UsageError, match="bfloat16: expected float64 or float32"):
            information_of_data(task_of(), settings=Settings(dtype="bfloat16"))
        with pytest.raises(UsageError, match=r"--method exact: .* up to 4096"):
            information_of_data(
                task_of(network(hidden=600)), options=InformationOptions(method="exact")
            )

    def test_float32(self):
        result = information_of_data(task_of(), settings=Settings(dtype="float32"))
        double = information_of_data(task_of())
        assert result.gradients.ranks[0].entropy == pytest.approx(
            double.gradients.ranks[0].entropy, rel=1e-4
        )
        assert result.gradients.tolerance == 1e-5


@pytest.fixture(scope="module")
def result():
    return information_of_data(task_of(), options=_probes(3, steps=5))


class TestFiles:
    def test_round_trip(self, file, result):
        stored = landscape.load(file)
        assert isinstance(stored, InformationResult)
        same(stored, result)

    def test_xarray(self, file):
        import xarray

        tree = xarray.open_datatree(file, engine="h5netcdf")
        assert tree["gradients"]["kernel"].shape == (N, N)
        assert tree["split"]["squares"].dims == ("probe", "block", "part")
        tree.close()

    @pytest.mark.parametrize(
        "name",
        [
            *("gradients", "gradients/kernel", "gradients/eigenvalues", "gradient_ranks/rank"),
            *("activation_ranks/layer", "split", "split/squares", "split_norms/ratio"),
        ],
    )
    def test_damaged(self, file, name):
        import h5py

        with h5py.File(file, "a") as opened:
            del opened[name]
        with pytest.raises(ResultFileError, match="damaged"):
            load(file)

    def test_figures(self, result, tmp_path):
        from landscape.plotting import plot_results

        exact = information_of_data(task_of(), settings=Settings(loss="behaviour"))
        assert len(information_figure([exact]).axes) == 4  # With the colour bar.
        assert len(information_figure([result, exact]).axes) == 3
        save(tmp_path / "a.h5", result)
        plot_results([tmp_path / "a.h5"], tmp_path / "a.svg")
        assert (tmp_path / "a.svg").stat().st_size > 1000

    def test_figures_of_nothing(self):
        flat = information_of_data(task_of(criterion=_nothing))
        assert flat.gradients.ranks[0].rank == 0
        assert math.isnan(flat.gradients.ranks[0].entropy)
        assert math.isnan(flat.split.norms[0].ratio)
        single = information_of_data(task_of(inputs=X[:1], targets=LABELS[:1]))
        assert single.gradients.ranks[0].rank == 1 == len(single.gradients.kernel)
        assert [row.rank for row in single.activations] == [0, 0]  # Nothing differs.
        for results in ([flat], [single], [flat, flat]):
            information_figure(results).draw_without_rendering()


class TestSeries:
    def test_columns(self, result):
        columns = information_columns([result, result])
        assert columns["gradients: rank"].tolist() == [N, N]
        assert "activations of 2: entropy" in columns

    def test_correlations(self):
        generator = np.random.default_rng(0)
        x, y = generator.normal(size=(2, 12))
        y[3] = np.nan
        found = rank_correlations({"x": x}, {"up": np.exp(x), "y": y, "flat": 0 * x})
        up, other, flat = found
        assert (up.rho, up.lower, up.upper, up.n) == pytest.approx((1, 1, 1, 12))
        known = np.isfinite(y)
        expected = stats.spearmanr(x[known], y[known]).statistic
        assert other.rho == pytest.approx(expected)
        assert other.lower < other.rho < other.upper
        assert other.n == 11
        assert math.isnan(flat.rho)
        assert math.isnan(flat.lower)

    def test_the_interval_covers(self):
        """Of independent pairs of a Gaussian with correlation r: rho is 6/pi asin(r/2)."""
        generator = np.random.default_rng(1)
        r, runs, inside = 0.6, 120, 0
        truth = 6 / math.pi * math.asin(r / 2)
        for seed in range(runs):
            x, z = generator.normal(size=(2, 40))
            y = r * x + math.sqrt(1 - r * r) * z
            [found] = rank_correlations({"x": x}, {"y": y}, resamples=200, seed=seed)
            inside += found.lower <= truth <= found.upper
        assert 0.86 <= inside / runs <= 1

    def test_too_few(self):
        with pytest.raises(UsageError, match="only 3 checkpoints"):
            rank_correlations({"x": np.arange(4.0)}, {"y": np.array([1, 2, np.nan, 3])})
