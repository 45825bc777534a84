"""Gradients of single examples and their ranks, against dense float64 matrices and closed forms."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from labelled_points import LABELS, N, X, dense_parts, mean, network, probes, risk_of, task_of
from scipy import stats
from torch import nn

from landscape.criteria import CrossEntropy
from landscape.errors import NotFiniteError, UsageError
from landscape.information.data import distinct_examples, integer_labels
from landscape.information.effective import distinct_rows, effective_rank, entropy_rank, row_values
from landscape.information.gradients import gradient_gram, gradient_rows, require_memory
from landscape.information_runs import information_of_data
from landscape.operators import curvature
from landscape.units import MemoryUnits, silent


def gram_of(risk, tol=1e-10):
    return gradient_gram(risk, tol=tol, seed=0, units=MemoryUnits(), progress=silent)


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
        risk = risk_of(dataclasses.replace(task, criterion=mean))
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
            information_of_data(task_of(network(hidden=2000)), options=probes(2, steps=0))


def _root(outputs, batch):
    return (outputs - outputs.detach()).abs().sqrt().mean()


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
