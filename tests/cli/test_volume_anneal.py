"""``landscape volume --method anneal`` from the command line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from task_files import SHIFT

import landscape
from landscape.volume.islands import joined
from landscape.volume.options import VolumeOptions
from landscape_cli.volume_job import VolumeJob

TRUTH = math.log(-math.expm1(-0.02))


@pytest.fixture
def shifted(cli, tiny):
    task = tiny.write_task("shift.py", **SHIFT)
    state = {"shift": torch.zeros(2), "unused": torch.tensor([0.5])}
    checkpoint = tiny.write_checkpoint("shift.safetensors", state)

    def command(*arguments, json=True):
        options = ("--task", task, "--sigma", "1", "--cutoff", "0.02", "-o", tiny.folder / "out")
        if "--method" not in arguments:
            options += ("--method", "anneal")
        return cli("volume", checkpoint, *options, *(("--json",) if json else ()), *arguments)

    return command


def files(tiny):
    return sorted((tiny.folder / "out").iterdir())


def test_the_volume_of_two_directions_is_found_and_believed(shifted, tiny):
    found = shifted()
    assert found.code == 0, found.err
    value = found.values["anneal"]
    assert value["lower"][0] <= TRUTH <= value["upper"][0]
    assert value["stderr"][0] < 1
    assert value["lower_bound"] == [False]
    assert found.document["results"][0]["status"] == "complete"
    (file,) = files(tiny)
    result = landscape.load(file)
    assert result.annealing.converged
    assert result.annealing.agreed_radius == math.inf
    assert result.annealing.markov[0] < TRUTH
    assert result.info.n_gradient >= result.annealing.n_gradients
    again = shifted()
    assert "nothing to do" in again.err
    assert again.values["anneal"] == value


def test_a_radius_limits_the_volume(shifted):
    near = shifted("--tether", "0.1").values["anneal"]
    # A ball of radius r about (0, 0, 1/2) in three dimensions, well within the two directions' 0.2.
    r = 0.1 * math.sqrt(3)
    x = np.linspace(0.5 - r, 0.5 + r, 20001)
    disc = -np.expm1(-np.maximum(r**2 - (x - 0.5) ** 2, 0) / 2)
    truth = math.log(np.trapezoid(stats.norm.pdf(x) * disc, x))
    assert near["lower"][0] <= truth <= near["upper"][0]


def test_an_interrupted_run_ends_with_the_same_numbers(shifted, tiny):
    whole = shifted().values["anneal"]
    for file in files(tiny):
        file.unlink()
    statuses = set()
    for budget in ("300grad", "1500grad", "6000grad"):
        cut = shifted("--budget", budget)
        assert cut.code == 0, cut.err
        assert ("resuming from" in cut.err) == bool(statuses)
        statuses.add(cut.document["results"][0]["status"])
    assert "budget" in statuses
    again = shifted("--budget", "1000000grad")
    assert again.document["results"][0]["status"] == "complete"
    assert {f.suffix for f in files(tiny)} == {".h5"}
    # Budgets decide how fine the path is, not what it estimates.
    assert again.values["anneal"]["lower"][0] <= TRUTH <= again.values["anneal"]["upper"][0]
    assert again.values["anneal"]["log_volume"][0] == pytest.approx(
        whole["log_volume"][0], abs=5 * whole["stderr"][0]
    )


def test_a_complete_result_goes_on_with_its_islands(shifted, tiny):
    shifted("--error", "0.3")
    (file,) = files(tiny)
    before = landscape.load(file).annealing
    assert shifted("--error", "0.25").code == 0
    after = landscape.load(file).annealing
    assert after.ladder_levels == before.ladder_levels
    assert (after.ladder.log_scale == before.ladder.log_scale).all()
    assert after.reverse_partition == before.reverse_partition


@pytest.mark.parametrize("budget", ["100grad", "1000grad", "0.001s"])
def test_what_is_there_is_not_lost_to_a_small_budget(shifted, tiny, budget):
    """Pilots are repeated first, which a result does not hold."""
    before = shifted("--error", "0.3").values["anneal"]
    (file,) = files(tiny)
    content = file.read_bytes()
    cut = shifted("--error", "0.25", "--budget", budget)
    assert cut.code == 0, cut.err
    assert "stays as it was" in cut.err
    assert cut.values["anneal"] == before
    assert file.read_bytes() == content
    again = shifted("--error", "0.25")
    assert again.values["anneal"]["stderr"][0] <= 0.25


def test_what_was_cut_short_does_not_replace_what_says_more(shifted, tiny):
    shifted()
    earlier = landscape.load(files(tiny)[0])
    job = VolumeJob(VolumeOptions(), SimpleNamespace(weights_key=None, unsafe_pickle=False))

    def found(status, **changes):
        return replace(
            earlier,
            info=replace(earlier.info, status=status),
            annealing=replace(earlier.annealing, **changes),
        )

    more = {"ladder": joined([earlier.annealing.ladder, earlier.annealing.ladder])}
    assert job.lacks(found("budget"), earlier)
    assert not job.lacks(found("budget", **more), earlier)
    assert job.lacks(found("budget", agreed_radius=math.nan, **more), earlier)
    assert not job.lacks(found("complete", agreed_radius=math.nan, **more), earlier)
    assert job.lacks(found("budget", outward=None, **more), earlier)


def test_a_larger_budget_goes_on(shifted, tiny):
    options = ("--error", "0.02", "--budget")
    cut = shifted(*options, "60000grad")
    file = files(tiny)[0]
    before = landscape.load(file).annealing
    found = shifted(*options, "120000grad")
    after = landscape.load(file).annealing
    assert after.n_gradients > before.n_gradients
    assert after.ladder.loss.size > before.ladder.loss.size
    assert "nothing to do" in shifted(*options, "120000grad").err
    # Seconds, too, add to it: pilots, which a result does not hold, are repeated first.
    assert "stays as it was" in shifted(*options, "0.001s").err
    # What goes without saying reaches further.
    again = shifted(*options[:2])
    assert "resuming from" in again.err
    assert "nothing to do" not in again.err
    last = landscape.load(file).annealing
    assert last.ladder.loss.size > after.ladder.loss.size
    for value in (cut.values["anneal"], found.values["anneal"]):
        assert value["lower"][0] <= TRUTH <= (value["upper"][0] or 0)


def test_a_smaller_error_adds_runs_to_even_islands(shifted, tiny):
    """However many it takes: a finer path would leave those at hand behind."""
    shifted("--error", "2")
    (file,) = files(tiny)
    before = landscape.load(file).annealing
    count = before.ladder.loss.shape[1]
    found = shifted("--error", "0.06")
    after = landscape.load(file).annealing
    assert after.ladder_levels == before.ladder_levels
    assert after.ladder.loss.shape[1] >= 2 * count
    assert (after.ladder.log_scale[:, :count] == before.ladder.log_scale).all()
    assert found.values["anneal"]["stderr"][0] <= 0.06
    assert found.values["anneal"]["lower"][0] <= TRUTH <= found.values["anneal"]["upper"][0]


def test_too_small_a_budget_says_so_and_keeps_its_work(shifted, tiny):
    cut = shifted("--budget", "100grad")
    assert cut.code == 0, cut.err
    (result,) = cut.document["results"]
    assert result["status"] == "budget"
    assert result["values"]["anneal"]["log_volume"] == [None]
    assert result["values"]["anneal"]["lower_bound"] == [True]
    assert any("too few" in warning for warning in result["warnings"])
    assert {f.suffix for f in files(tiny)} == {".h5", ".partial"}
    assert shifted("--budget", "100grad", json=False).code == 0


def test_strict_refuses_what_is_not_converged(shifted):
    assert shifted("--strict").code == 0
    cut = shifted("--budget", "2500grad", "--strict", "--seed", "1")
    assert cut.code == 4
    assert "not converged" in json.loads(cut.out)["errors"][0]["message"]


def test_auto_adds_it_and_the_anharmonicity_where_it_is_cheap(shifted):
    found = shifted("--method", "auto").values
    assert {"quadratic", "radial", "anneal"} <= set(found)
    exact = found["quadratic"]["log_volume"][0]
    assert exact == pytest.approx(TRUTH, abs=1e-6)
    assert found["anneal"]["lower"][0] <= exact <= found["anneal"]["upper"][0]


def test_auto_leaves_it_out_where_it_is_dear_and_says_what_it_costs(shifted):
    found = shifted("--method", "auto", "--error", "0.001")
    assert found.code == 0, found.err
    assert "anneal" not in found.values
    (result,) = found.document["results"]
    assert any("left out" in warning and "gradients" in warning for warning in result["warnings"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--chains", "12"), ["--chains 12", "multiple of 8"]),
        (("--chains", "8"), ["--chains 8", "32"]),
        (("--chains", "-8"), ["--chains -8", "32"]),
        (("--shard", "1/2"), ["--shard", "anneal", "--budget"]),
        (("--prior", "uniform", "--half-width", "3"), ["anneal", "Gaussian"]),
        (("--budget", "10steps"), ["--budget", "10steps", "1e6grad"]),
        (("--budget", "0grad"), ["--budget"]),
        (("--budget", "100mv"), ["--budget 100mv", "1e6grad"]),
        (("--tether", "0"), ["--tether 0", "prior standard deviations"]),
        (("--method", "annealed"), ["annealed", "anneal"]),
    ],
)
def test_wrong_use_is_one_message(shifted, options, words):
    found = shifted(*options, "--method", "anneal", json=False)
    assert found.code == 2
    for word in words:
        assert word in found.err
    assert "Traceback" not in found.err
