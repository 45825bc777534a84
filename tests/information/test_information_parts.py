"""Ranks of activations, and H as GGN plus residual, against dense float64 matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from labelled_points import LABELS, X, dense_parts, mean, risk_of, task_of
from scipy import stats
from torch import nn

from landscape.errors import NotFiniteError
from landscape.information.activations import activation_ranks
from landscape.information.effective import entropy_rank
from landscape.information.split import exact_split, norms_of, probed_split
from landscape.information_runs import information_of_data
from landscape.operators import curvature
from landscape.settings import Settings
from landscape.units import MemoryUnits, silent


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
        found = split_of(risk_of(task_of(nn.Linear(5, 3).double(), criterion=mean)))
        assert found.norms[0].hessian == 0
        assert math.isnan(found.norms[0].ratio)
        assert found.norms[0].negative == 0
