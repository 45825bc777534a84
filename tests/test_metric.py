"""Mean curvatures for mass matrices: the whole GGN where they see everything, near it elsewhere."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from landscape.data import materialise
from landscape.risk import Risk
from landscape.task import Task
from landscape.volume.metric import SampledMetric, metric_of_factor
from landscape.volume.path import Metric

F64 = torch.float64


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dense(metric):
    """The matrix that a metric stands for."""
    vectors = metric.vectors
    inside = vectors.T @ torch.diag(metric.values) @ vectors
    outside = torch.eye(vectors.shape[1], dtype=F64) - vectors.T @ vectors
    return inside + metric.bulk * outside


# Of a factor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "n"), [(1, 1), (5, 5), (30, 6), (6, 30), (1, 9)])
def test_the_metric_of_a_factor_is_its_square(r, n):
    rows = draw(r, n)
    found = metric_of_factor(rows)
    expected = rows.T @ rows
    assert found.vectors.shape == (min(r, n), n)
    gram = found.vectors @ found.vectors.T
    assert torch.allclose(gram, torch.eye(len(gram), dtype=F64), atol=1e-10)
    assert found.bulk == pytest.approx(0, abs=1e-10 * float(expected.trace()))
    assert torch.allclose(dense(found), expected, atol=1e-10)


def test_no_rows_are_no_curvature():
    found = metric_of_factor(torch.zeros(0, 4, dtype=F64))
    assert found.vectors.shape == (0, 4)
    assert (len(found.values), found.bulk) == (0, 0.0)
    mass = found.mass(100.0, 0.5)
    rows = draw(2, 4)
    assert torch.allclose(mass.inverse(rows), rows / 1.5)
    assert (
        not metric_of_factor(torch.zeros(3, 4, dtype=F64))
        .mass(1.0, 0.0)
        .inverse(rows)
        .isnan()
        .any()
    )


@pytest.mark.parametrize("wide", [True, False])
def test_small_eigenvalues_are_left_to_their_mean(wide):
    """Beyond a ratio of 1e5 only the trace is kept."""
    n = 8
    values = torch.tensor([100.0, 10.0, 1.0, 1e-4, 2e-4, 3e-4, 0.0, 0.0], dtype=F64)
    basis = torch.linalg.qr(draw(n, n, seed=2)).Q
    rows = values.sqrt()[:, None] * basis
    rows = rows if wide else rows[:6]
    found = metric_of_factor(rows)
    assert len(found.values) == 3
    assert found.bulk == pytest.approx(6e-4 / 5, rel=1e-6)
    assert torch.allclose(found.values.sort(descending=True).values, values[:3], rtol=1e-9)
    assert float(dense(found).trace()) == pytest.approx(float(values.sum()), rel=1e-9)


def test_of_many_vectors_the_stiffest_are_kept():
    rows = draw(700, 900, seed=3)
    found = metric_of_factor(rows)
    assert found.vectors.shape == (512, 900)
    expected = torch.linalg.eigvalsh(rows @ rows.T).flip(0)
    assert torch.allclose(found.values.sort(descending=True).values, expected[:512], rtol=1e-9)
    assert found.bulk == pytest.approx(float(expected[512:].sum()) / (900 - 512), rel=1e-9)


# Of a network -----------------------------------------------------------------------------------


def sampled(risk, *, scale=None, seed=0, label="ladder", fallback=None, shift=0.0):
    scale = torch.ones(risk.n, dtype=F64) if scale is None else scale
    fallback = metric_of_factor(torch.zeros(0, risk.n, dtype=F64)) if fallback is None else fallback
    return SampledMetric(
        risk,
        scale,
        lambda z: shift + scale * z,
        seed=seed,
        label=label,
        fallback=fallback,
    )


def tiny(*, loss="task", criterion="cross_entropy", examples=40, batch=16, dtype=F64):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    inputs = draw(examples, 4, seed=4)
    targets = torch.arange(examples) % 3
    if criterion == "mse":
        targets = draw(examples, 3, seed=5)
    task = Task(model=model, data=(inputs, targets), criterion=criterion)
    return Risk(task, materialise(task.data), loss=loss, batch_size=batch, dtype=dtype)


def mean_ggn(risk, points):
    anchor, total = risk.space.vector(), 0.0
    for point in points:
        risk.space.assign(point)
        total = total + networks.dense_ggn(risk) / len(points)
    risk.space.assign(anchor)
    return total


@pytest.mark.parametrize("batch", [16, 7])
def test_with_all_batches_it_is_the_mean_ggn(batch, monkeypatch):
    """Unequal micro-batches too; fewer positions than are looked at."""
    monkeypatch.setattr("landscape.volume.metric._FEWEST", 4096)
    risk = tiny(batch=batch)
    scale, mean = 0.5 + draw(risk.n, seed=6).abs(), draw(risk.n, seed=7)
    metric = sampled(risk, scale=scale, shift=mean)
    assert metric._batches == risk.n_batches
    positions = draw(5, risk.n, seed=8)
    before = risk.space.vector()
    found = metric(positions, 0)
    expected = scale[:, None] * mean_ggn(risk, mean + scale * positions) * scale
    assert torch.allclose(dense(found), expected, atol=2e-5 * float(expected.diagonal().max()))
    assert float(dense(found).trace()) == pytest.approx(float(expected.trace()), rel=1e-9)
    assert torch.equal(risk.space.vector(), before)


def test_of_many_chains_sixteen_are_looked_at(monkeypatch):
    monkeypatch.setattr("landscape.volume.metric._FEWEST", 16_384)  # All micro-batches.
    risk = tiny()
    metric = sampled(risk)
    positions = draw(30, risk.n, seed=8)
    found = dense(metric(positions, 3))
    again = dense(metric(positions, 3))
    assert torch.equal(found, again)
    assert not torch.allclose(found, dense(metric(positions, 4)))
    assert not torch.allclose(found, dense(sampled(risk, seed=1)(positions, 3)))
    assert not torch.allclose(found, dense(sampled(risk, label="outward")(positions, 3)))
    # They are sixteen of the chains, without repetition.
    single = [mean_ggn(risk, p[None]) for p in positions]
    tags = torch.stack([s.flatten() for s in single], 1)
    solution = torch.linalg.lstsq(tags, found.flatten()[:, None], driver="gelsd").solution[:, 0]
    assert torch.allclose(tags @ solution, found.flatten(), atol=1e-8 * float(found.abs().max()))
    counts = (solution * 16).round()
    assert set(counts.tolist()) == {0.0, 1.0}
    assert counts.sum() == 16


def test_a_part_of_the_batches_is_right_in_the_mean(monkeypatch):
    """Each chain sees 2 of 10 micro-batches, scaled up."""
    monkeypatch.setattr("landscape.volume.metric._FEWEST", 16 * 2 * 2 * 16)
    risk = tiny(examples=160)
    metric = sampled(risk)
    assert (metric._batches, risk.n_batches) == (2, 10)
    positions = 0.5 * draw(8, risk.n, seed=8)
    expected = mean_ggn(risk, positions)
    traces = torch.tensor([float(dense(metric(positions, k)).trace()) for k in range(60)])
    spread = float(traces.std()) / 60**0.5
    assert abs(float(traces.mean() - expected.trace())) < 4 * spread
    assert spread < 0.02 * float(expected.trace())
    # One of them is near enough for a mass matrix.
    values = torch.linalg.eigvals(
        torch.linalg.solve(
            torch.eye(risk.n, dtype=F64) + 50 * dense(metric(positions, 0)),
            torch.eye(risk.n, dtype=F64) + 50 * expected,
        )
    ).real
    assert float(values.min()) > 0.2
    assert float(values.max()) < 5


def test_unequal_batches_are_right_in_the_mean(monkeypatch):
    """The last micro-batch is smaller: its rows weigh by their examples."""
    monkeypatch.setattr("landscape.volume.metric._FEWEST", 16 * 2 * 16)
    risk = tiny(examples=36)
    metric = sampled(risk)
    assert (metric._batches, risk.n_batches) == (1, 3)
    positions = 0.5 * draw(8, risk.n, seed=8)
    expected = float(mean_ggn(risk, positions).trace())
    traces = torch.tensor([float(dense(metric(positions, k)).trace()) for k in range(100)])
    assert abs(float(traces.mean()) - expected) < 4 * float(traces.std()) / 10


def test_fewer_rows_than_coordinates(monkeypatch):
    monkeypatch.setattr("landscape.volume.metric._FEWEST", 1)
    monkeypatch.setattr("landscape.volume.metric._MOST", 1)
    risk = tiny(examples=32, batch=2)
    found = sampled(risk)(draw(3, risk.n, seed=8), 0)
    # Three chains, a micro-batch of two examples each, two rows of an example.
    assert found.vectors.shape == (12, risk.n)
    gram = found.vectors @ found.vectors.T
    assert torch.allclose(gram, torch.eye(12, dtype=F64), atol=1e-9)
    mass = found.mass(1e4, 0.0)
    rows = draw(4, risk.n)
    assert torch.allclose(mass.inverse(mass.power(mass.power(rows, 0.5), 0.5)), rows, atol=1e-6)


def test_a_criterion_that_is_not_convex_has_the_fallback():
    data = (draw(20, 3), draw(20, 2))
    task = Task(model=nn.Linear(3, 2).double(), data=data, criterion=lambda f, b: f.cos().mean())
    risk = Risk(task, materialise(data), batch_size=16)
    fallback = Metric(
        vectors=torch.eye(risk.n, dtype=F64)[:1], values=torch.ones(1, dtype=F64), bulk=0.0
    )
    before = risk.space.vector()
    assert sampled(risk, fallback=fallback)(draw(4, risk.n), 0) is fallback
    assert torch.equal(risk.space.vector(), before)


def test_rows_that_are_not_finite_are_left_out():
    risk = tiny(criterion="mse", dtype=torch.float32)
    positions = draw(3, risk.n, seed=8)
    positions[1] = 1e30
    positions[2] = float("nan")
    found = sampled(risk)(positions, 0)
    assert found.values.isfinite().all()
    assert found.vectors.isfinite().all()
    nothing = sampled(risk)(positions[2:], 0)
    assert (len(nothing.values), nothing.bulk) == (0, 0.0)


@pytest.mark.parametrize("loss", ["task", "behaviour"])
def test_single_precision_is_near_double(loss):
    """Rounding makes curvatures of the outputs a little negative: no reason to fall back."""
    single, double = tiny(dtype=torch.float32, loss=loss), tiny(loss=loss)
    positions = draw(5, double.n, seed=8)
    found, expected = (dense(sampled(risk)(positions, 0)) for risk in (single, double))
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    metric = sampled(single)(positions.float(), 0)
    assert metric.vectors.dtype == metric.values.dtype == torch.float32
