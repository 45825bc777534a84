"""Shards joined to one result: the same numbers as without shards, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from annealings import annealed_result
from volumes import CUTOFFS, rays, volume_result

from landscape.errors import UsageError
from landscape.volume.radial_job import estimate_rays
from landscape.volume_merge import covers, merge_volumes, same_rays

COUNT = 50


def shards(m: int = 3, count: int = COUNT, **options: object):
    """The i-th of m shards holds the rays i-1, i-1+m, ..."""
    return [
        volume_result(
            index=np.arange(i, count, m),
            config={"shard": [i + 1, m], "samples": count},
            **options,
        )
        for i in range(m)
    ]


def equal(one, two):
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(two, field.name)
        np.testing.assert_array_equal(left, right, err_msg=field.name)
        assert np.asarray(left).dtype == np.asarray(right).dtype


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_is_what_one_run_finds(order):
    parts = shards()
    merged = merge_volumes([parts[i] for i in order])
    whole = rays(CUTOFFS, np.arange(COUNT))
    equal(merged.rays, whole)
    equal(merged.estimates["radial"], estimate_rays(whole, path="tilted, dense", error=1.0)[0])
    equal(merged.estimates["quadratic"], parts[0].estimates["quadratic"])
    assert list(merged.estimates) == ["quadratic", "radial"]
    assert merged.info.status == "complete"
    assert merged.info.config["samples"] == COUNT
    assert merged.info.config["shard"] is None
    assert merged.info.key == parts[0].info.key
    assert merged.info.warnings == ()


def test_costs_add_up():
    parts = shards(warnings=("radial: a lower bound only", "the weights are odd"), wall_seconds=1.5)
    parts[1] = dataclasses.replace(
        parts[1],
        info=dataclasses.replace(parts[1].info, device="gpu", started="2026-01-01T00:00:01"),
    )
    merged = merge_volumes(parts, argv=("landscape", "collect"))
    assert merged.info.wall_seconds == 4.5
    assert (merged.info.n_matvecs, merged.info.n_forward, merged.info.n_gradient) == (27, 120, 3)
    assert merged.info.started == "2026-01-01T00:00:01"
    assert merged.info.device == "cpu, gpu"
    assert merged.info.argv == ("landscape", "collect")
    # What is said of the rays is said anew, the rest once.
    assert merged.info.warnings == ("the weights are odd",)


def test_merged_results_merge_further():
    parts = shards(4)
    some = merge_volumes(parts[:2])
    equal(merge_volumes([some, *parts[2:]]).rays, merge_volumes(parts).rays)


def test_missing_shards_are_told():
    parts = shards()
    (warning,) = merge_volumes(parts[:2]).info.warnings
    assert "16 of 50 rays are missing (2, 5, 8, 11, 14, ...)" in warning
    # Shards of different numbers of samples leave holes too.
    (warning,) = merge_volumes([parts[0], *shards(count=8)[1:]]).info.warnings
    assert warning.startswith("radial: 28 of 50 rays are missing (8, 10, 11, 13, 14, ...)")


def test_a_shard_that_was_cut_leaves_the_result_open():
    parts = shards(status="budget")
    assert merge_volumes(parts).info.status == "budget"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (volume_result(8, index=[9]), "different runs"),
        (volume_result(index=[2]), "ray 2 is in a.h5 and in b.h5"),
        (volume_result(index=[9], methods=("quadratic",)), "without rays"),
        (volume_result(index=[9], methods=("radial",)), "quadratic .* is missing"),
        (volume_result(index=[9], cutoffs=(0.01, 0.1, 0.5)), "other cutoffs"),
        (volume_result(index=[9], shift=1.0), "quadratic differs"),
    ],
)
def test_what_is_not_of_one_run_is_refused(other, named):
    with pytest.raises(UsageError, match=named) as caught:
        merge_volumes([volume_result(), other], sources=["a.h5", "b.h5"])
    assert "b.h5" in str(caught.value)


def annealed_shards(*annealed: bool, shift: float = 0.0):
    """Shards of one run, some annealed, the last of them with another value."""
    found = []
    for i, anneals in enumerate(annealed):
        options = {"index": np.arange(i, COUNT, len(annealed)), "methods": ("quadratic", "radial")}
        options["config"] = {"shard": [i + 1, len(annealed)], "samples": COUNT}
        found.append(annealed_result(**options) if anneals else volume_result(**options))
    estimates = dict(found[-1].estimates)
    if "anneal" in estimates:
        value = estimates["anneal"].log_volume + shift
        estimates["anneal"] = dataclasses.replace(estimates["anneal"], log_volume=value)
    found[-1] = dataclasses.replace(found[-1], estimates=estimates)
    return found


@pytest.mark.parametrize(
    "annealed", [(True, True), (True, False), (False, True), (False, True, True)], ids=str
)
def test_what_was_annealed_is_kept(annealed):
    merged = merge_volumes(annealed_shards(*annealed, shift=1e-6))
    assert set(merged.estimates) == {"quadratic", "radial", "anneal"}
    assert merged.annealing.converged
    equal(merged.rays, rays(CUTOFFS, np.arange(COUNT)))


@pytest.mark.parametrize("annealed", [(True, True), (False, True, True)], ids=str)
def test_different_annealed_values_are_refused(annealed):
    parts = annealed_shards(*annealed, shift=0.5)
    for order in (parts, parts[::-1]):
        with pytest.raises(UsageError, match=r"anneal differs .* by itself, without --shard"):
            merge_volumes(order)


def test_annealed_results_alone_are_no_shards():
    with pytest.raises(UsageError, match="without rays"):
        merge_volumes([annealed_result(), annealed_result()])


def test_rounding_between_machines_is_no_difference():
    other = volume_result(index=[9], shift=1e-6)
    merged = merge_volumes([volume_result(), other])
    assert merged.rays.index.tolist() == [0, 1, 2, 3, 9]


def test_nothing_is_refused():
    with pytest.raises(UsageError, match="no result"):
        merge_volumes([])


def test_covered_rays():
    parts = shards()
    whole = merge_volumes(parts)
    assert covers(parts, whole)
    assert not covers(parts[1:], whole)
    assert covers([whole], parts[0])
    assert same_rays(whole, merge_volumes(parts[::-1]))
    assert not same_rays(whole, parts[0])
