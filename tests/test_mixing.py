"""R-hat and effective numbers of the draws at the end of an annealed path."""

from __future__ import annotations

import dataclasses
import math

import annealings
import numpy as np
import pytest

from landscape.volume.mixing import mixing, split_rhat


def drawn(memory, *, draws=400, chains=8, seed=0):
    """Autoregressive chains of variance 1, (draws, islands, particles)."""
    noise = np.random.default_rng(seed).normal(size=(draws, 2, chains // 2))
    found = [noise[0]]
    for step in noise[1:]:
        found.append(memory * found[-1] + math.sqrt(1 - memory**2) * step)
    return np.array(found)


def of(loss, distance):
    record = annealings.islands(np.array([1.0, 10.0]), count=2)
    earlier = np.zeros_like(loss)
    return mixing(
        dataclasses.replace(
            record,
            draw_loss=np.stack([earlier, loss]),
            draw_distance=np.stack([earlier, distance]),
        )
    )


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_what_chains_remember_lowers_their_number(memory):
    """``(1 - a) / (1 + a)`` of the draws of an autoregression count; the last mark is looked at."""
    found = of(drawn(memory), drawn(0.0, seed=1))
    total = 400 * 8
    expected = total * (1 - memory) / (1 + memory)
    assert found["excess loss"].draws == total
    assert found["excess loss"].ess == pytest.approx(expected, rel=0.3)
    assert found["distance"].ess == pytest.approx(total, rel=0.15)
    assert 0.99 < found["excess loss"].rhat < 1.05


def test_chains_that_stay_apart_are_seen():
    apart = drawn(0.0) + 3 * np.arange(8).reshape(2, 4)
    found = of(drawn(0.0), apart)
    assert found["distance"].rhat > 2
    assert found["distance"].ess < 30
    assert found["excess loss"].rhat < 1.02


def test_what_has_no_spread_or_is_not_finite_has_no_number():
    found = of(np.ones((16, 2, 4)), np.full((16, 2, 4), np.inf))
    assert found["excess loss"].rhat == 1
    assert math.isnan(found["excess loss"].ess)
    assert math.isnan(found["distance"].ess)
    assert math.isnan(found["distance"].rhat)
    still = np.arange(8.0).reshape(1, 2, 4) * np.ones((16, 1, 1))
    assert split_rhat(still) == math.inf


def test_few_draws_say_nothing():
    assert of(drawn(0.0, draws=7), drawn(0.0, draws=7)) == {}
