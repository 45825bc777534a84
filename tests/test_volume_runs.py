"""The whole ``volume`` measurement from Python, and the eigenpairs it rests on."""

from __future__ import annotations

import math

import networks
import numpy as np
import pytest
import torch
import xarray
from torch import nn

import landscape
from landscape import Settings, Task, VolumeOptions, log_volume
from landscape.errors import CheckpointError, TaskError, UsageError
from landscape.operators import Whitened, curvature
from landscape.units import MemoryUnits
from landscape.volume.curvature import curved, factored
from landscape.volume.options import parse_cutoffs, parse_shard


def quadratic(task, **options):
    settings = {"loss": options.pop("loss", "behaviour"), "examples": options.pop("examples", None)}
    chosen = VolumeOptions(methods=("quadratic",), **options)
    return log_volume(task, settings=Settings(**settings), options=chosen).estimates["quadratic"]


class Linear(nn.Module):
    """Outputs are linear in the parameters, so that the quadratic model is the loss."""

    def __init__(self, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(n, generator=generator))

    def forward(self, x):
        return x @ self.weight[:, None]


def linear_task(n=6, examples=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, n, generator=generator)
    return Task(model=Linear(n), data=(inputs, torch.zeros(examples, 1)), criterion="mse")


@pytest.mark.parametrize("examples", [3, 9])
def test_a_linear_model_by_both_methods(examples):
    """dL is exactly |X (w - w*)|^2 / 2N: rays see all of it, also the flat directions."""
    task = linear_task(examples=examples)
    options = VolumeOptions(cutoffs=(0.01, 0.3, 2.0), samples=300, sigma=0.7)
    result = log_volume(task, options=options)
    exact, rays = result.estimates["quadratic"], result.estimates["radial"]
    assert (exact.stderr == 0).all()
    assert (rays.ess > 60).all()
    for c in range(3):
        assert rays.lower[c] <= exact.log_volume[c] <= rays.upper[c]
    flat = result.directions.eigenvalue <= 1e-12
    assert result.directions.multiplicity[flat].sum() == pytest.approx(max(6 - examples, 0))
    # An independent truth: draws from the prior.
    draws = torch.randn(400_000, 6, generator=torch.Generator().manual_seed(5)) * 0.7
    losses = ((draws - task.model.weight.detach()) @ task.data[0].T).square().mean(1) / 2
    for c in (1, 2):
        share = float((losses <= options.cutoffs[c]).double().mean())
        error = math.sqrt((1 - share) / share / len(draws))
        assert abs(exact.log_volume[c] - math.log(share)) < 4 * error


def test_dense_factored_and_matrix_free_routes_agree():
    task = networks.build("digits-mlp")
    exact = quadratic(task, exact="exact", cutoffs=(1e-3, 1e-1))
    assert exact.path == "dense"
    few = quadratic(task, exact="exact", examples=40, cutoffs=(1e-3, 1e-1))
    assert few.path == "gram"
    free = quadratic(
        task, exact="lanczos", examples=40, cutoffs=(1e-3, 1e-1), top=60, steps=40, error=0.5
    )
    assert free.path == "lanczos"
    assert (free.stderr <= 0.5).all()
    assert (abs(free.log_volume - few.log_volume) < 4 * free.stderr + 0.02).all()
    # The dense matrix of the same examples.
    risk = networks.risk("digits-mlp", loss="behaviour")
    scale = torch.full((risk.n,), 0.3, dtype=torch.float64)
    operator = Whitened(curvature("ggn", risk), scale)
    found = {}
    for route in ("dense", "gram"):
        found[route] = curved(
            operator,
            route,
            risk=risk,
            scale=scale,
            anchor=torch.zeros(risk.n, dtype=torch.float64),
            gradient=None,
            top=0,
            seed=0,
            units=MemoryUnits(),
            stop=lambda: False,
            progress=lambda phase, done, total: None,
        )
    rank = len(found["gram"].values)
    dense = found["dense"].values[:rank]
    assert (found["gram"].values - dense).abs().max() < 1e-12 * dense[0]


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 7), (7, 7)])
def test_factored_is_the_eigendecomposition(shape):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if shape[0] > 2:
        rows[2] = rows[0] - 2 * rows[1]  # Rank deficient.
    values, vectors = factored(rows)
    assert len(values) == max(shape[0] - (shape[0] > 2), 0)
    gap = vectors.T @ (values[:, None] * vectors) - rows.T @ rows
    assert gap.abs().max().item() < 1e-12 if gap.numel() else True
    identity = torch.eye(len(values), dtype=torch.float64)
    assert (vectors @ vectors.T - identity).abs().sum() < 1e-12


def test_the_callers_model_and_the_random_state_stay_as_they_are():
    task = linear_task()
    before = task.model.weight.detach().clone()
    state = torch.random.get_rng_state()
    first = log_volume(task, options=VolumeOptions(samples=20, sigma="layer-rms"))
    assert task.model.weight.dtype == torch.float32
    assert (task.model.weight.detach() == before).all()
    assert (torch.random.get_rng_state() == state).all()
    assert first.info.command == "volume"


def test_sigma_init_needs_an_initialiser_that_draws_every_parameter():
    with pytest.raises(TaskError):
        log_volume(linear_task(), options=VolumeOptions(sigma="init"))


def test_seeds_change_rays_and_not_the_quadratic_model():
    task = linear_task()
    runs = [
        log_volume(
            task, settings=Settings(loss="behaviour", seed=s), options=VolumeOptions(samples=30)
        )
        for s in (0, 0, 1)
    ]
    rays = [r.rays.log_weight for r in runs]
    assert (rays[0] == rays[1]).all()
    assert not np.array_equal(rays[0], rays[2])
    values = [r.estimates["quadratic"].log_volume for r in runs]
    assert values[0] == values[1] == values[2]


def test_the_task_loss_has_a_gradient():
    """log V of the excess task loss of a linear model: a shifted quadratic, known exactly."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(8, 4, generator=generator)
    task = Task(
        model=Linear(4), data=(inputs, torch.randn(8, 1, generator=generator)), criterion="mse"
    )
    options = VolumeOptions(cutoffs=(0.05, 0.5), samples=400, sigma=0.8)
    result = log_volume(task, settings=Settings(loss="task"), options=options)
    exact, rays = result.estimates["quadratic"], result.estimates["radial"]
    draws = torch.randn(400_000, 4, generator=generator) * 0.8
    weight = task.model.weight.detach()

    def loss(w):
        return (w @ inputs.T - task.data[1].T).square().mean(-1) / 2

    excess = loss(draws) - loss(weight[None])
    for c, cutoff in enumerate(options.cutoffs):
        share = float((excess <= cutoff).double().mean())
        error = math.sqrt((1 - share) / share / len(draws))
        assert abs(exact.log_volume[c] - math.log(share)) < 4 * error
        # The anchor lies inside a convex region, so that rays from it see everything.
        assert rays.lower[c] <= exact.log_volume[c] <= rays.upper[c]


def test_the_error_asks_for_more_rays():
    options = {"methods": ("radial",), "cutoffs": (2.0,), "sigma": 0.7, "directions": "symmetric"}
    few = log_volume(linear_task(n=2), options=VolumeOptions(**options, samples=60, error=100.0))
    error = float(few.estimates["radial"].stderr[0])
    assert not few.estimates["radial"].lower_bound[0]
    more = log_volume(
        linear_task(n=2), options=VolumeOptions(**options, samples=60, error=error / 2)
    )
    assert few.estimates["radial"].n_samples[0] == 60
    assert 60 < more.estimates["radial"].n_samples[0] <= 600
    assert (more.rays.log_weight[:, :60] == few.rays.log_weight).all()


def test_cutoffs_and_shards_are_parsed():
    assert parse_cutoffs("0.01") == (0.01,)
    assert parse_cutoffs("1e-3,0.5") == (0.001, 0.5)
    assert parse_cutoffs("1e-4:1:5") == (0.0001, 0.001, 0.01, 0.1, 1.0)
    assert len(parse_cutoffs("1e-4:1:13")) == 13
    assert parse_shard("2/8") == (2, 8)
    for text in ("", "1:2", "1:2:3:4", "0:1:3", "1:2:1", "a:b:3"):
        with pytest.raises(UsageError):
            VolumeOptions(cutoffs=parse_cutoffs(text))


def test_a_mean_of_another_architecture(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(5)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        log_volume(linear_task(), options=VolumeOptions(mean=str(tmp_path / "other.safetensors")))


def test_results_come_back_from_a_file_as_they_were(tmp_path):
    from landscape.store import save

    result = log_volume(linear_task(), options=VolumeOptions(cutoffs=(0.01, 0.1), samples=25))
    save(tmp_path / "volume.h5", result)
    back = landscape.load(tmp_path / "volume.h5")
    for method, estimate in result.estimates.items():
        for field in ("log_volume", "lower", "upper", "width", "ess", "n_samples", "lower_bound"):
            ours, theirs = getattr(estimate, field), getattr(back.estimates[method], field)
            assert np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        assert back.estimates[method].path == estimate.path
    assert np.array_equal(back.rays.log_weight, result.rays.log_weight)
    assert np.array_equal(back.directions.kind, result.directions.kind)
    assert back.prior == result.prior
    assert back.info == result.info

    tree = xarray.open_datatree(tmp_path / "volume.h5", engine="h5netcdf")
    assert tree["volume/radial"]["radius"].dims == ("cutoff", "ray")
    assert tree["directions"]["nats"].dims == ("cutoff", "direction")
