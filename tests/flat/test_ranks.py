"""Numerical ranks, their gaps, and numbers that are made of a spectrum."""

from __future__ import annotations

import dataclasses
import math

import networks
import numpy as np
import pytest
import torch
from flat_cases import Case, draws, generic, mlp
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from volumes import CUTOFFS, directions, estimate

from landscape.data import materialise
from landscape.errors import UsageError
from landscape.flat.exact import exact_counts, prior_counts
from landscape.flat.ranks import (
    behaviour_jacobian,
    mackay,
    null_space,
    outputs_in_frame,
    participation_ratio,
    rank_count,
    singular_values,
    triangle,
)
from landscape.gram import factor
from landscape.risk import Risk
from landscape.units import MemoryUnits


def test_gap_and_neighbouring_tolerances():
    found = rank_count([4.0, 4e-9, 2e-10, 1e-15], n=6, tol=1e-10)
    assert (found.rank, found.null, found.looser, found.tighter) == (2, 4, 3, 1)
    assert found.last_kept == pytest.approx(1e-9)
    assert found.first_dropped == pytest.approx(5e-11)
    assert found.gap == pytest.approx(20)
    assert found.largest == 4
    assert found.n_rows == 6


def test_signs_are_counted_and_do_not_matter_to_the_rank():
    found = rank_count([3.0, -2.0, 1e-16, -1e-14, 0.5], n=5)
    assert (found.rank, found.negative) == (3, 1)


def test_of_nothing():
    found = rank_count(np.zeros(3), n=3)
    assert (found.rank, found.null, found.largest, found.first_dropped) == (0, 3, 0, 0)
    assert math.isnan(found.last_kept)
    full = rank_count([2.0, 1.0], n=2)
    assert (full.rank, full.first_dropped, full.gap) == (2, 0.0, math.inf)


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ([1.0, 2.0], {"n": 1}, "2 values of 1"),
        ([math.nan], {"n": 1}, "finite"),
        ([1.0], {"n": 1, "tol": 0.0}, "--tol"),
        ([1.0], {"n": 1, "tol": 2.0}, "--tol"),
    ],
)
def test_wrong_values_are_refused(values, options, text):
    with pytest.raises(UsageError, match=text):
        rank_count(values, **options)


def test_the_jacobian_sees_differences_of_logits_only():
    risk = networks.risk("digits-mlp")
    rows, none = behaviour_jacobian(risk)
    assert rows.shape == (137 * 9, risk.n)
    assert len(none) == 0
    full = torch.func.jacrev(networks.outputs_of(risk))(risk.space.vector())
    centred = full - full.mean(1, keepdim=True)
    flat = centred.reshape(-1, risk.n)
    assert (rows.T @ rows - flat.T @ flat).abs().max() < 1e-10 * (flat.T @ flat).abs().max()
    outputs = outputs_in_frame(risk)
    logits = networks.outputs_of(risk)(risk.space.vector()).detach()
    spread = (logits - logits.mean(1, keepdim=True)).square().sum()
    assert outputs.square().sum() == pytest.approx(float(spread), rel=1e-12)


def test_rows_know_their_examples():
    case = Case(
        build=lambda: generic(nn.Sequential(nn.Flatten(), nn.Linear(6, 3))),
        inputs=lambda: draws(7, 2, 3),
        null=0,
        softmax=3,
    )
    rows, owner = behaviour_jacobian(case.risk(batch=4), examples=True)
    assert owner.tolist() == [i for i in range(7) for _ in range(2)]
    assert len(rows) == 14


def test_compressed_rows_keep_values_and_null_space():
    rows = draws(50, 4) @ draws(4, 9)
    small = triangle(rows)
    assert small.shape == (9, 9)
    assert torch.allclose(singular_values(small), torch.linalg.svdvals(rows), atol=1e-12)
    null = null_space(rows, rank=4)
    assert null.shape == (5, 9)
    assert (rows @ null.T).abs().max() < 1e-12
    assert (null @ null.T - torch.eye(5)).abs().max() < 1e-12


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_exact_ranks_of_the_built_in_networks(name):
    risk = networks.risk(name)
    counts = exact_counts(risk, hessian=name == "digits-mlp")
    jacobian, ggn = counts.ranks["jacobian"], counts.ranks["ggn"]
    with sdpa_kernel(SDPBackend.MATH):
        full = torch.func.jacrev(networks.outputs_of(risk), chunk_size=64)(risk.space.vector())
    flat = (full - full.mean(1, keepdim=True)).reshape(-1, risk.n)
    values = torch.linalg.svdvals(flat)
    assert jacobian.rank == int((values > 1e-10 * values[0]).sum())
    assert jacobian.largest == pytest.approx(float(values[0]), rel=1e-10)
    assert ggn.largest**2 == pytest.approx(
        float(torch.linalg.matrix_norm(networks.dense_ggn(risk), 2)), rel=1e-10
    )
    whole = networks.dense_ggn(risk)
    assert counts.factor.T @ counts.factor == pytest.approx(whole, abs=1e-11 * ggn.largest**2)
    assert ggn.n_rows == len(factor(risk))
    assert counts.null.shape == (jacobian.null, risk.n)
    assert (flat @ counts.null.T).abs().max() < 1e-9 * values[0]
    if "hessian" in counts.ranks:
        assert counts.ranks["hessian"].n_rows == risk.n
        assert counts.ranks["hessian"].negative > 0


def test_finished_parts_are_kept():
    units = MemoryUnits()
    first = exact_counts(networks.risk("digits-mlp"), units=units)
    stored = {name: units.get(name) for name in ("jacobian", "factor", "matrix")}
    assert all(stored.values())
    risk = networks.risk("digits-mlp")
    again = exact_counts(risk, units=units)
    assert again.ranks == first.ranks
    assert torch.equal(again.null, first.null)
    # Nothing is differentiated again.
    assert risk.n_forward == 0


def test_a_criterion_that_is_not_convex_has_no_ggn():
    case = Case(build=lambda: generic(mlp(3, 2)), inputs=lambda: draws(9, 3), null=0)
    task = dataclasses.replace(case.risk().task, criterion=lambda f, _: (f**4 - f**2).mean())
    risk = Risk(task, materialise(task.data))
    counts = exact_counts(risk)
    assert counts.factor is None
    assert set(counts.ranks) == {"jacobian", "hessian"}


def test_float32_is_refused():
    risk = networks.risk("digits-mlp", dtype=torch.float32)
    with pytest.raises(UsageError, match="float64"):
        exact_counts(risk)


def test_participation_ratio():
    assert participation_ratio([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3)
    assert participation_ratio([1e6, 1.0, 1.0]) == pytest.approx(1, abs=1e-5)
    assert math.isnan(participation_ratio([0.0]))


def test_mackay():
    assert mackay([1.0, 3.0, 0.0, -1e-18], 1.0) == pytest.approx(0.5 + 0.75)
    assert mackay([1.0], 1.0, multiplicity=[4.0]) == pytest.approx(2)
    with pytest.raises(UsageError, match="positive"):
        mackay([1.0], 0.0)


def test_counts_by_prior():
    table, volume = directions(CUTOFFS), estimate("quadratic", CUTOFFS)
    found = prior_counts(table, volume)
    assert (found.steep + found.intermediate + found.flat).tolist() == [8.0] * 3
    assert found.steep.tolist() == [1.0] * 3
    a, m = table.eigenvalue, table.multiplicity
    for tilt, value in zip(volume.tilt, found.n_eff, strict=True):
        assert value == pytest.approx(float((m * tilt * a / (1 + tilt * a)).sum()))
    assert found.effective_dimension.tolist() == [4.0] * 3
    with pytest.raises(UsageError, match="cutoffs"):
        prior_counts(directions((0.1,)), volume)


def test_duplicates_of_examples_change_nothing():
    case = Case(build=lambda: generic(mlp(5, 6, 3)), inputs=lambda: draws(7, 5), null=0)
    twice = Case(build=case.build, inputs=lambda: draws(7, 5).repeat(3, 1), null=0)
    assert len(twice.inputs()) == 21
    one, two = (exact_counts(c.risk(), hessian=False) for c in (case, twice))
    for name, rank in one.ranks.items():
        assert two.ranks[name].rank == rank.rank
        assert two.ranks[name].n_rows == 3 * rank.n_rows
