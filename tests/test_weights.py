"""Means of importance weights: exact sums, honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from landscape.volume.weights import log_mean, mean_of_estimates, tail_index


def brute(logs):
    """Value, jackknife error and ESS, from the definitions."""
    w = np.exp(logs)
    without = np.array([np.log(np.delete(w, i).mean()) for i in range(len(w))])
    stderr = np.sqrt((len(w) - 1) * without.var())
    return np.log(w.mean()), stderr, w.sum() ** 2 / (w**2).sum()


def test_definitions():
    logs = np.random.default_rng(0).normal(size=60)
    value, stderr, ess = brute(logs)
    for shift in (0.0, -1e4, 1e4):
        found = log_mean(logs + shift)
        assert found.value - shift == pytest.approx(value, abs=1e-11)
        assert found.stderr == pytest.approx(stderr, rel=1e-9)
        assert found.ess == pytest.approx(ess, rel=1e-9)
        assert found.largest_share == pytest.approx(np.exp(logs.max()) / np.exp(logs).sum())
        assert found.lower < found.value < found.upper
        assert found.label == "estimate"


def test_a_dominating_weight_is_a_lower_bound_not_a_number_with_an_error():
    found = log_mean(np.r_[0.0, np.full(199, -600.0)])
    assert found.value == pytest.approx(-math.log(200))
    assert found.label == "lower bound"
    assert found.upper == math.inf
    assert found.lower == pytest.approx(found.value - math.log(20))
    assert found.ess == pytest.approx(1)
    assert found.largest_share == pytest.approx(1)
    # Leaving it out changes the log by 600; a subtraction from the sum would see nothing there.
    assert found.stderr == pytest.approx(600 * 199 / 200, rel=0.02)


@pytest.mark.parametrize("logs", [[-3.0], [-math.inf] * 5, [0.0] + [-math.inf] * 40])
def test_too_few_weights(logs):
    found = log_mean(np.array(logs))
    assert found.label == "lower bound"
    assert found.upper == math.inf
    assert math.isnan(found.stderr)
    assert found.ess <= 1 + 1e-12
    assert found.value == pytest.approx(np.logaddexp.reduce(logs) - math.log(len(logs)))


def test_equal_weights_are_exact():
    found = log_mean(np.full(30, -5.0))
    assert (found.lower, found.value, found.upper) == pytest.approx((-5, -5, -5), abs=1e-12)
    assert found.stderr == pytest.approx(0, abs=1e-12)
    assert found.tail_index == -math.inf


LAWS = {
    "log-normal 0.3": lambda g, k: g.normal(size=k) * 0.3 - 0.045,
    "log-normal 1": lambda g, k: g.normal(size=k) - 0.5,
    "log-normal 1.5": lambda g, k: g.normal(size=k) * 1.5 - 1.125,
    "log-normal 3": lambda g, k: g.normal(size=k) * 3 - 4.5,
    "gamma": lambda g, k: np.log(g.gamma(0.3, size=k)) - math.log(0.3),
    "pareto": lambda g, k: np.log1p(g.pareto(2.5, size=k)) - math.log(2.5 / 1.5),
    "two values": lambda g, k: np.where(g.random(k) < 0.2, math.log(5 - 4e-9), -20.0),
}


@pytest.mark.parametrize("count", [60, 400])
@pytest.mark.parametrize("name", list(LAWS))
def test_intervals_hold_the_truth(name, count):
    generator = np.random.default_rng(1)
    truth = 0.0 if name != "two values" else math.log(0.2 * (5 - 4e-9) + 0.8 * math.exp(-20))
    found = [log_mean(LAWS[name](generator, count)) for _ in range(300)]
    held = np.mean([f.lower <= truth <= f.upper for f in found])
    assert held >= 0.91
    # No wider than needed: an error bar that is right, and few truths far inside.
    if name in ("log-normal 0.3", "log-normal 1", "two values"):
        values = np.array([f.value for f in found])
        assert np.median([f.stderr for f in found]) == pytest.approx(values.std(), rel=0.2)
        assert np.mean([f.label == "estimate" for f in found]) > 0.75
        widths = [f.upper - f.lower for f in found if f.label == "estimate"]
        assert np.median(widths) < 1.3 * 2 * 1.96 * values.std()
    if name == "log-normal 3":
        assert np.mean([f.label == "lower bound" for f in found]) > 0.8


def test_the_lower_bound_holds_for_any_weights():
    generator = np.random.default_rng(2)
    for spread in (2.0, 5.0, 20.0):
        logs = generator.normal(size=(400, 20)) * spread - spread**2 / 2
        found = [log_mean(row) for row in logs]
        bounds = [f for f in found if f.label == "lower bound"]
        assert len(bounds) > 200
        assert np.mean([f.lower <= 0 for f in found]) >= 0.95


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.3, 0.9])
def test_the_tail_index_of_generalised_pareto_weights(k):
    found = [
        tail_index(stats.genpareto.rvs(k, size=4000, random_state=seed) + 1) for seed in range(40)
    ]
    # Drawn to 1/2 by 10 of 200 observations.
    assert np.mean(found) == pytest.approx((k * 189 + 5) / 199, abs=0.06)
    assert math.isnan(tail_index(np.arange(24.0)))


def test_nearly_equal_weights_have_no_tail_that_matters():
    generator = np.random.default_rng(0)
    for seed in range(20):
        noise = 1e-4 * np.random.default_rng(seed).pareto(0.8, 200)
        found = log_mean(-5000 + np.minimum(noise, 0.02))
        assert found.label == "estimate"
    heavy = log_mean(np.log(generator.pareto(0.8, 200)))
    assert heavy.label == "lower bound"


# Means of few estimates ---------------------------------------------------------------------------


def log_normal(variance, count=8, runs=400, seed=3):
    """Logs of estimates whose mean is 1."""
    generator = np.random.default_rng(seed)
    return generator.normal(-variance / 2, math.sqrt(variance), size=(runs, count))


@pytest.mark.parametrize("variance", [0.1, 0.3, 1.0, 3.0, 6.0, 10.0])
@pytest.mark.parametrize("count", [4, 8, 16, 32, 64])
def test_intervals_of_few_log_normal_estimates_hold_the_truth(variance, count):
    found = [mean_of_estimates(logs) for logs in log_normal(variance, count)]
    held = np.mean([f.lower <= 0 <= f.upper for f in found])
    assert held >= 0.9
    known = [f for f in found if f.label == "estimate"]
    assert len(known) >= (0.65 if variance > 3 else 0.97) * len(found)
    # Of those with a finite interval too: the limit must not choose the lucky ones.
    assert np.mean([f.lower <= 0 <= f.upper for f in known]) >= 0.9
    values = np.array([f.value for f in known])
    if variance <= 3:
        assert abs(values.mean()) < 0.35
    if variance <= 1:
        error = math.sqrt(np.mean([f.stderr**2 for f in known]))
        assert error == pytest.approx(values.std(), rel=0.25)
        assert held <= 0.99


def test_half_the_error_would_not_hold_the_truth():
    """So that the test above says something."""
    for variance in (0.3, 1.0, 3.0):
        found = [mean_of_estimates(logs) for logs in log_normal(variance)]
        known = [f for f in found if f.label == "estimate"]
        halved = [(f.lower + f.value) / 2 <= 0 <= (f.upper + f.value) / 2 for f in known]
        assert np.mean(halved) < 0.8


def test_intervals_of_large_variances_are_wider_upwards():
    """A symmetric one of that width, or the t-interval, would miss on one side only."""
    found = [mean_of_estimates(logs) for logs in log_normal(8.0)]
    known = [f for f in found if f.label == "estimate"]
    assert all(f.upper - f.value > f.value - f.lower for f in known)
    above = np.mean([f.lower > 0 for f in known])
    below = np.mean([f.upper < 0 for f in known])
    assert max(above, below) < 0.05
    around = [f.value + stats.t.ppf(0.975, 7) * f.stderr < 0 for f in known]
    assert np.mean(around) > 0.08


def test_few_estimates_by_their_definition():
    logs = np.array([-3.0, -2.0, -4.5, -2.5, -3.5, -3.0])
    variance = logs.var(ddof=1)
    stderr = math.sqrt(variance / 6 + variance**2 / 10)
    for shift in (0.0, -5000.0):
        found = mean_of_estimates(logs + shift)
        assert found.label == "estimate"
        assert found.value - shift == pytest.approx(logs.mean() + variance / 2, abs=1e-9)
        assert found.stderr == pytest.approx(stderr, rel=1e-9)
        rng = np.random.default_rng(0)
        drawn = variance * 5 / rng.chisquare(5, size=1_000_000)
        drawn = logs.mean() + shift + rng.normal(size=len(drawn)) * np.sqrt(drawn / 6) + drawn / 2
        ends = np.quantile(drawn, [0.025, 0.975])
        assert (found.lower, found.upper) == pytest.approx(ends, abs=0.03)
        plain = log_mean(logs + shift)
        assert (found.ess, found.largest_share) == (plain.ess, plain.largest_share)


def test_intervals_of_small_variances_are_students():
    """The log is then as good as the mean."""
    logs = 1e-4 * np.array([-3.0, -2.0, -4.5, -2.5, -3.5, -3.0])
    found = mean_of_estimates(logs)
    half = stats.t.ppf(0.975, 5) * found.stderr
    assert (found.lower, found.upper) == pytest.approx(
        (found.value - half, found.value + half), abs=2e-3 * half
    )
    even = mean_of_estimates(np.full(6, -5.0))
    assert (even.lower, even.value, even.upper) == (-5.0, -5.0, -5.0)


def paths(variance, *, parts=16, count=8, memory=0.0, runs=400, seed=3):
    """Parts of logs of estimates whose mean is 1, (runs, parts, count), each sharing its end."""
    noise = np.random.default_rng(seed).normal(size=(runs, parts + 1, count))
    steps = noise[:, 1:] + memory * noise[:, :-1]
    scale = math.sqrt(variance / np.mean(steps.sum(1).var()))
    return steps * scale - variance / 2 / parts


@pytest.mark.parametrize("memory", [0.0, 0.8])
@pytest.mark.parametrize("variance", [0.3, 1.0, 3.0, 5.0])
def test_the_parts_of_a_path_show_the_variance(variance, memory):
    """Intervals hold as often as they say, and are shorter than those without parts."""
    steps = paths(variance, memory=memory)
    found = [mean_of_estimates(part.sum(0), part) for part in steps]
    without = [mean_of_estimates(part.sum(0)) for part in steps]
    held = np.mean([f.lower <= 0 <= f.upper for f in found])
    assert 0.92 <= held <= 0.98
    known = [f for f in found if f.label == "estimate"]
    values = np.array([f.value for f in known])
    assert len(known) >= 0.98 * len(found)
    if variance < 4:  # Else the widest are left out.
        assert abs(values.mean()) < 0.1 * math.sqrt(variance)
    error = math.sqrt(np.mean([f.stderr**2 for f in known]))
    assert error == pytest.approx(values.std(), rel=0.15)
    if variance >= 3:
        others = [f.stderr for f in without if f.label == "estimate"]
        assert error < 0.95 * math.sqrt(np.mean(np.square(others)))


@pytest.mark.parametrize(("lasting", "least"), [(0.5, 0.9), (2.0, 0.89)])
def test_what_lasts_as_long_as_the_path_is_not_explained_by_its_parts(lasting, least):
    """A part of the variance is spread thinly over all parts, where it hides among their noise."""
    rng = np.random.default_rng(0)
    held = []
    for part in paths(1.0):
        ever = rng.normal(-lasting / 2, math.sqrt(lasting), size=part.shape[1])
        found = mean_of_estimates(part.sum(0) + ever, part + ever / len(part))
        held.append(found.lower <= 0 <= found.upper)
    assert np.mean(held) >= least


def test_parts_of_nothing_and_parts_that_are_not_finite_change_nothing():
    logs = np.array([-3.0, -2.0, -4.5, -2.5, -3.5, -3.0])
    alone = mean_of_estimates(logs)
    assert alone.freedom == 5
    assert mean_of_estimates(logs, np.zeros((3, 6))) == alone
    endless = np.vstack([np.full(6, -math.inf), logs])
    assert mean_of_estimates(logs, endless) == alone
    # One part is the logs themselves.
    assert mean_of_estimates(logs, logs[None]) == alone


def test_the_variance_of_parts_by_its_definition():
    parts = paths(1.0, parts=5, runs=1)[0]
    found = mean_of_estimates(parts.sum(0), parts)
    covariance = np.cov(parts)
    own, shared = np.diagonal(covariance), np.diagonal(covariance, 1)
    explained = own.sum() + 2 * shared.sum()
    known = 7 * own.sum() ** 2 / ((own**2).sum() + 2 * (own[1:] * own[:-1]).sum())
    prior, seen = 1 / (0.4 + 2 / known), 7 / 2
    logs = math.log(explained), math.log(parts.sum(0).var(ddof=1))
    variance = math.exp((prior * logs[0] + seen * logs[1]) / (prior + seen))
    assert found.freedom == pytest.approx(2 * (prior + seen))
    assert found.value == pytest.approx(parts.sum(0).mean() + variance / 2)
    stderr = math.sqrt(variance / 8 + variance**2 / 2 / found.freedom)
    assert found.stderr == pytest.approx(stderr)
    # Parts that contradict the whole are no prior.
    for factor in (0.05, 20.0):
        alone = mean_of_estimates(parts.sum(0))
        assert mean_of_estimates(parts.sum(0), factor * parts) == alone


def test_many_even_estimates_are_weights_like_any():
    logs = log_normal(0.3, count=64, runs=1)[0]
    assert mean_of_estimates(logs) == log_mean(logs)


REFUSED = {
    "one": [-3.0],
    "three": [-3.0, -3.1, -2.9],
    "too far apart": [-3.0, -12.0, -2.0, -7.0, -10.0, -1.0, -4.0, -5.0],
    "one is 0": [-3.0, -math.inf, -2.9, -3.1, -3.0, -3.0, -2.9],
    "all are 0": [-math.inf] * 8,
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_estimates_that_say_too_little_give_a_lower_bound(name):
    logs = np.array(REFUSED[name])
    found = mean_of_estimates(logs)
    assert found.label == "lower bound"
    assert found.upper == math.inf
    assert found.value == log_mean(logs).value
    assert found.lower == pytest.approx(found.value - math.log(20))


def test_the_variance_that_is_too_wide_is_twelve():
    even = np.array([-1.0, 1.0] * 4)
    for scale, label in ((3.4, "estimate"), (3.5, "lower bound")):
        logs = even * scale / even.std(ddof=1)
        assert mean_of_estimates(logs).label == label
