"""``landscape volume`` from the command line: results, resuming, shards, series, wrong use."""

from __future__ import annotations

import json
import math

import h5py
import numpy as np
import pytest
import torch
from scipy import stats
from task_files import SHIFT

import landscape

QUICK = ("--samples", "40")


@pytest.fixture
def volume(cli, tiny):
    """``landscape volume`` on the tiny network with --json, without the slower ``anneal``."""

    def command(*arguments, checkpoint=None, task=None, json=True):
        if "--method" not in arguments and "uniform" not in arguments:
            arguments = ("--method", "quadratic", "--method", "radial", *arguments)
        return cli(
            "volume",
            tiny.checkpoint if checkpoint is None else checkpoint,
            "--task",
            tiny.task if task is None else task,
            "-o",
            tiny.folder / "out",
            *(("--json",) if json else ()),
            *arguments,
        )

    return command


def files(tiny):
    return sorted((tiny.folder / "out").iterdir())


def test_a_result_and_nothing_to_do_the_second_time(volume, tiny):
    first = volume(*QUICK, "--cutoff", "0.01,0.1")
    assert first.code == 0, first.err
    values = first.values
    assert set(values) >= {"quadratic", "radial", "directions"}
    assert values["quadratic"]["cutoff"] == [0.01, 0.1]
    assert values["quadratic"]["log_volume"][0] < values["quadratic"]["log_volume"][1] < 0
    again = volume(*QUICK, "--cutoff", "0.01,0.1")
    assert "nothing to do" in again.err
    assert again.values["quadratic"] == values["quadratic"]
    assert again.values["radial"] == values["radial"]
    (file,) = files(tiny)
    assert file.name.startswith("step_7.volume.")
    result = landscape.load(file)
    found = result.estimates["quadratic"]
    parts = found.width + found.location + found.remainder
    assert parts == pytest.approx(found.log_volume, abs=1e-9)
    table = result.directions
    total = table.nats.sum(1) + table.remainder
    assert total == pytest.approx(-found.log_volume, abs=1e-9)
    assert table.multiplicity.sum() == 26
    assert result.prior.names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_a_closed_form(volume, tiny):
    """V = P(chi^2_2 noncentral <= 2 cutoff / sigma^2) for |b - b*|^2 / 2 and b ~ N(0, sigma^2)."""
    task = tiny.write_task("two.py", **SHIFT)
    state = {"shift": torch.tensor([0.25, -0.5]), "unused": torch.tensor([1.0])}
    checkpoint = tiny.write_checkpoint("step_1.safetensors", state)
    options = ("--sigma", "0.5", "--cutoff", "0.02,0.3", "--samples", "400")
    values = volume(*options, task=task, checkpoint=checkpoint).values
    for place, cutoff in enumerate((0.02, 0.3)):
        truth = stats.ncx2.logcdf(2 * cutoff / 0.25, 2, 0.3125 / 0.25)
        assert values["quadratic"]["log_volume"][place] == pytest.approx(truth, abs=1e-8)
        radial = values["radial"]
        assert radial["lower"][place] <= truth <= radial["upper"][place]
        assert radial["ess"][place] > 80
        assert not radial["lower_bound"][place]


def test_more_rays_continue_the_file(volume, tiny):
    volume("--samples", "20")
    (file,) = files(tiny)
    before = landscape.load(file).rays
    more = volume("--samples", "50")
    assert "nothing to do" not in more.err
    assert files(tiny) == [file]
    after = landscape.load(file).rays
    assert list(after.index) == list(range(50))
    assert (after.log_weight[:, :20] == before.log_weight).all()
    whole = volume("--samples", "50", "--overwrite")
    assert (landscape.load(file).rays.log_weight == after.log_weight).all()
    assert whole.values["radial"]["log_volume"] == more.values["radial"]["log_volume"]


def test_cutoffs_do_not_depend_on_each_other(volume, tiny):
    together = volume(*QUICK, "--cutoff", "1e-3:1:4").values
    alone = volume(*QUICK, "--cutoff", "0.1").values
    assert together["radial"]["cutoff"] == [0.001, 0.01, 0.1, 1.0]
    for method in ("quadratic", "radial"):
        assert together[method]["log_volume"][2] == pytest.approx(
            alone[method]["log_volume"][0], abs=1e-9
        )


def test_shards_hold_the_rays_of_the_whole(volume, tiny):
    whole = volume(*QUICK)
    (file,) = files(tiny)
    rays = landscape.load(file).rays
    for shard in ("1/3", "2/3", "3/3"):
        assert volume(*QUICK, "--shard", shard).code == 0
    shards = [f for f in files(tiny) if "-of-3" in f.name]
    assert [f.name.split(".")[-2] for f in shards] == ["1-of-3", "2-of-3", "3-of-3"]
    index = np.concatenate([landscape.load(f).rays.index for f in shards])
    weights = np.concatenate([landscape.load(f).rays.log_weight[0] for f in shards])
    assert sorted(index) == list(range(40))
    assert (weights[np.argsort(index)] == rays.log_weight[0]).all()
    assert whole.code == 0


def test_micro_batches_and_hidden_units_in_another_order_change_nothing(volume, tiny):
    options = ("--method", "quadratic", "--cutoff", "0.01")
    first = volume(*options).values["quadratic"]
    batched = volume(*options, "--batch-size", "5", "--overwrite").values["quadratic"]
    order = torch.tensor([2, 0, 3, 1])
    state = landscape.read_checkpoint(tiny.checkpoint).tensors
    state = {
        "0.weight": state["0.weight"][order].contiguous(),
        "0.bias": state["0.bias"][order].contiguous(),
        "2.weight": state["2.weight"][:, order].contiguous(),
        "2.bias": state["2.bias"],
    }
    other = tiny.write_checkpoint("step_8.safetensors", state)
    permuted = volume(*options, checkpoint=other).values["quadratic"]
    for found in (batched, permuted):
        assert found["log_volume"] == pytest.approx(first["log_volume"], abs=1e-7)


@pytest.mark.parametrize("exact", ["exact", "lanczos"])
def test_an_interrupted_run_continues(volume, tiny, exact):
    options = ("--exact", exact, "--samples", "64", "--top", "3", "--steps", "10")
    whole = volume(*options).values
    for file in files(tiny):
        file.unlink()
    cut = volume(*options, "--budget", "1mv")
    assert cut.document["results"][0]["status"] in ("budget", "complete")
    again = volume(*options)
    assert again.code == 0
    for method in ("quadratic", "radial"):
        assert again.values[method]["log_volume"] == whole[method]["log_volume"]
        assert again.values[method]["stderr"] == whole[method]["stderr"]
    assert [f.suffix for f in files(tiny)] == [".h5"]


@pytest.mark.parametrize("budget", ["30mv", "50mv", "70mv", "110mv"])
def test_rays_do_not_depend_on_where_a_budget_cut_the_probes(volume, tiny, budget):
    options = ("--exact", "lanczos", "--samples", "40", "--top", "3", "--steps", "8")
    options += ("--error", "0.3")
    whole = volume(*options).values
    for file in files(tiny):
        file.unlink()
    volume(*options, "--budget", budget)
    again = volume(*options)
    for method in ("quadratic", "radial"):
        assert again.values[method]["log_volume"] == whole[method]["log_volume"]


def test_a_budget_too_small_for_rays_leaves_the_quadratic_value(volume, tiny):
    options = ("--exact", "lanczos", "--samples", "40", "--top", "3", "--method", "radial")
    cut = volume(*options, "--budget", "1mv")
    assert cut.code == 0, cut.err
    (result,) = cut.document["results"]
    assert result["status"] == "budget"
    assert "radial" not in result["values"]
    assert result["values"]["quadratic"]["n_samples"] == [1]
    again = volume(*options)
    assert again.document["results"][0]["status"] == "complete"
    assert set(again.values) & {"quadratic", "radial"} == {"radial"}


def test_more_probes_keep_the_rays(volume, tiny):
    options = ("--exact", "lanczos", "--samples", "40", "--top", "3", "--steps", "8")
    volume(*options, "--error", "99", "--probes", "3")
    (file,) = files(tiny)
    before = landscape.load(file)
    volume(*options, "--error", "99", "--probes", "9")
    after = landscape.load(file)
    assert after.estimates["quadratic"].n_samples[0] == 9
    fresh = volume(*options, "--error", "99", "--probes", "9", "--overwrite")
    assert fresh.code == 0
    for result in (after, landscape.load(file)):
        assert (result.rays.log_weight == before.rays.log_weight).all()


def test_symmetric_rays_are_symmetric_whatever_else_is_measured(volume):
    options = ("--samples", "40", "--cutoff", "0.1", "--directions", "symmetric")
    both = volume(*options).values
    alone = volume(*options, "--method", "radial").values
    assert both["radial"]["path"] == alone["radial"]["path"] == "symmetric"
    assert both["radial"]["log_volume"] == alone["radial"]["log_volume"]
    tilted = volume(*options[:-1], "tilted").values
    assert tilted["radial"]["log_volume"] != both["radial"]["log_volume"]


def test_the_matrix_free_route_agrees_with_the_exact_one(volume):
    exact = volume("--method", "quadratic").values["quadratic"]
    options = ("--exact", "lanczos", "--top", "4", "--steps", "22", "--error", "0.05")
    found = volume("--method", "quadratic", *options).values["quadratic"]
    assert found["path"] == "lanczos"
    gap = abs(found["log_volume"][0] - exact["log_volume"][0])
    assert gap < 3 * found["stderr"][0] + 1e-9
    assert found["stderr"][0] <= 0.05


def test_several_checkpoints_share_the_first_ones_prior(cli, tiny):
    state = landscape.read_checkpoint(tiny.checkpoint).tensors
    tiny.write_checkpoint("step_9.safetensors", {k: 2 * v for k, v in state.items()})
    out = cli(
        "volume",
        tiny.folder / "step_*.safetensors",
        "--task",
        tiny.task,
        "-o",
        tiny.folder / "out",
        "--json",
        "--method",
        "quadratic",
    )
    one, two = out.document["results"]
    assert one["config"]["sigma"] == two["config"]["sigma"]
    assert one["step"] == 7
    assert two["step"] == 9


def test_a_uniform_prior(volume):
    found = volume("--prior", "uniform", "--half-width", "4", *QUICK)
    assert found.code == 0
    assert set(found.values) & {"quadratic", "radial", "directions"} == {"radial"}
    assert found.values["radial"]["path"] == "symmetric"


def test_a_dry_run_shows_the_prior_and_writes_nothing(volume, tiny):
    shown = volume("--dry-run", json=False)
    assert shown.code == 0
    for word in ("0.weight", "2.bias", "sigma", "exact", "rays"):
        assert word in shown.out
    assert not (tiny.folder / "out").exists() or not files(tiny)
    for options, words in (
        (("auto",), ("64 particles", "at most 80000")),
        (("anneal",), ("at most 1000000",)),
        (("anneal", "--budget", "5000grad"), ("at most 5000",)),
        (("anneal", "--budget", "90"), ("at most 90 s", "no limit")),
        (("anneal", "--tether", "0.3"), ("within 0.3 prior", "0.01")),
    ):
        found = " ".join(volume("--dry-run", "--method", *options, json=False).out.split())
        for word in words:
            assert word in found
    values = volume("--dry-run").values
    assert values["n_parameters"] == 26
    assert values["anneal"] is None
    assert volume("--dry-run", "--method", "auto").values["anneal"]["gradients"] == 80000
    assert values["prior"]["sizes"] == {"0.weight": 12, "0.bias": 4, "2.weight": 8, "2.bias": 2}


def test_a_lower_bound_is_strictly_not_converged(volume):
    found = volume("--directions", "symmetric", "--samples", "30", "--cutoff", "1e-4", "--strict")
    (result,) = found.document["results"]
    assert result["values"]["radial"]["lower_bound"] == [True]
    assert result["values"]["radial"]["upper"] == [None]
    assert any("lower bound" in warning for warning in result["warnings"])
    assert found.code == 4
    assert "within --error" in found.err


def test_a_figure_is_drawn_of_what_strict_refuses(volume, tiny):
    figure = tiny.folder / "bound.png"
    bound = ("--method", "radial", "--directions", "symmetric", "--samples", "30")
    assert volume(*bound, "--cutoff", "1e-4", "--strict", "--plot", figure).code == 4
    assert figure.stat().st_size > 1000


def test_negative_curvature_is_reported(volume):
    found = volume("--loss", "task", "--method", "quadratic")
    (result,) = found.document["results"]
    assert result["config"]["curvature"] == "hessian"
    assert any("negative eigenvalues" in warning for warning in result["warnings"])


def test_show_and_a_file_that_was_tampered_with(cli, volume, tiny):
    volume(*QUICK, "--cutoff", "0.01,0.1")
    (file,) = files(tiny)
    shown = cli("show", file)
    assert shown.code == 0
    for word in ("quadratic", "radial", "steep", "nats", "location"):
        assert word in shown.out
    assert cli("show", file, "--log-det", "1").code == 2
    with h5py.File(file, "r+") as opened:
        del opened["volume/radial/log_weight"]
    refused = cli("show", file)
    assert refused.code == 2
    assert len(refused.errors) == 1
    assert "Traceback" not in refused.err


NOT_ZERO = """
class Shifted(Criterion):
    name = "shifted"
    units = "units"

    def loss(self, outputs, batch):
        return outputs.square().mean()

    def divergence(self, outputs, anchor, batch):
        return (outputs - anchor).square().mean() + 0.25

    def relabel(self, outputs, batch):
        return batch
"""

HOLE = """
def forward(model, batch):
    return model(batch[0]) + torch.where(model[2].bias.sum() > 3, float("nan"), 0.0)
"""


def test_an_excess_loss_that_is_not_zero_at_the_anchor(volume, tiny):
    task = tiny.write_task("shifted.py", extra=NOT_ZERO, criterion="Shifted()")
    found = volume(task=task)
    assert found.code in (3, 4)
    (error,) = found.errors
    assert "0.25" in error


def test_rays_that_are_not_finite_are_counted(volume, tiny):
    task = tiny.write_task("hole.py", extra=HOLE, more="forward=forward")
    found = volume("--cutoff", "5", "--samples", "60", task=task)
    assert found.code == 0
    (result,) = found.document["results"]
    assert any("not a number" in warning for warning in result["warnings"])


def test_an_operator_with_nan(volume, monkeypatch):
    from landscape.operators import CurvatureOperator

    monkeypatch.setattr(
        CurvatureOperator, "_rows", lambda self, rows: torch.full_like(rows, math.nan)
    )
    found = volume("--loss", "task")
    assert found.code == 4
    (error,) = found.errors
    assert "not finite" in error


def test_a_prior_centred_on_another_architecture(volume, tiny):
    other = tiny.write_checkpoint("wide/step_1.safetensors", {"0.weight": torch.ones(9, 3)})
    found = volume("--mean", other)
    assert found.code == 3
    (error,) = found.errors
    assert "does not fit" in error


WRONG = [
    (("--cutoff", "0"), "--cutoff 0"),
    (("--cutoff", "nan"), "--cutoff nan"),
    (("--cutoff", "0.1,0.1"), "different"),
    (("--cutoff", "x"), "--cutoff 'x'"),
    (("--cutoff", "1:2:x"), "LOW:HIGH:COUNT"),
    (("--cutoff", "1e-3:1:1"), "count of at least 2"),
    (("--sigma", "0"), "--sigma 0"),
    (("--sigma", "-2"), "--sigma -2"),
    (("--sigma", "inf"), "--sigma inf"),
    (("--sigma", "wide"), "layer-rms"),
    (("--mean", "nowhere.pt"), "no such file"),
    (("--prior", "cauchy"), "--prior 'cauchy'"),
    (("--prior", "uniform"), "--half-width"),
    (("--prior", "uniform", "--half-width", "1", "--sigma", "1"), "--sigma"),
    (("--prior", "uniform", "--half-width", "1e-6"), "outside"),
    (("--prior", "uniform", "--half-width", "9", "--method", "quadratic"), "--method radial"),
    (("--half-width", "1"), "--prior uniform"),
    (("--method", "magic"), "--method 'magic'"),
    (("--curvature", "fisher"), "--curvature 'fisher'"),
    (("--exact", "perhaps"), "--exact 'perhaps'"),
    (("--directions", "up"), "--directions 'up'"),
    (("--samples", "0"), "--samples 0"),
    (("--probes", "1"), "--probes 1"),
    (("--steps", "0"), "--steps 0"),
    (("--top", "-1"), "--top -1"),
    (("--error", "0"), "--error 0"),
    (("--tether", "0"), "--tether 0"),
    (("--tether", "1", "--method", "quadratic"), "--tether"),
    (("--shard", "3/2"), "--shard '3/2'"),
    (("--shard", "0/2"), "--shard '0/2'"),
    (("--plot", "figure.docx"), ".docx"),
    (("--loss", "mine"), "--loss 'mine'"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda v: " ".join(v)[:40])
def test_wrong_use(volume, tiny, arguments, words):
    found = volume(*arguments)
    assert found.code == 2
    (error,) = found.errors
    assert words in error
    assert "Traceback" not in found.err
    (entry,) = json.loads(found.out)["errors"]
    assert entry["exit_code"] == 2
    assert not (tiny.folder / "out").exists() or not files(tiny)
