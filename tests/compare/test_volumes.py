"""Log-volumes of two networks, ablated ones too, against those of each alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks_compared import LABELS, X, digest, network, risk_of
from safetensors.torch import save_file
from torch import nn

from landscape import Task
from landscape.compare.options import CompareOptions
from landscape.compare_runs import compare_networks
from landscape.errors import UsageError
from landscape.settings import Settings
from landscape.volume.options import VolumeOptions
from landscape.volume_runs import log_volume


class TestVolumes:
    """Of the network of ``network(hidden=4)``, whose every eigenpair is found."""

    OPTIONS = VolumeOptions(methods=("quadratic",), sigma=0.8, cutoffs=(0.01, 0.1))

    def found(self, *, ablate=(), other=None, model=None, loss="behaviour", **volume):
        task = Task(model=model or network(hidden=4), data=(X, LABELS), criterion="cross_entropy")
        options = CompareOptions(
            ablate=ablate,
            points=0,
            bootstrap=2,
            volume=dataclasses.replace(self.OPTIONS, **volume),
            volume_loss=loss,
        )
        return compare_networks(task, None, other, options=options)

    def alone(self, model, loss="behaviour"):
        """What ``landscape volume`` says of a network."""
        task = Task(model=model, data=(X, LABELS), criterion="cross_entropy")
        settings = Settings(loss=loss)
        return log_volume(task, settings=settings, options=self.OPTIONS).estimates["quadratic"]

    @pytest.mark.parametrize("loss", ["behaviour", "task"])
    def test_are_those_of_each_network(self, tmp_path, loss):
        save_file(network(2, hidden=4).state_dict(), tmp_path / "b.safetensors")
        found = self.found(other=tmp_path / "b.safetensors", loss=loss).volume
        ends = [self.alone(network(seed, hidden=4), loss).log_volume for seed in (1, 2)]
        assert found.difference == pytest.approx(ends[1] - ends[0], rel=1e-12)
        assert abs(found.difference).min() > 0.1
        assert (found.stderr == 0).all()
        assert found.gradient_norm == pytest.approx(
            float(risk_of(network(2, hidden=4)).gradient().norm()), rel=1e-10
        )

    @pytest.mark.parametrize("exact", ["auto", "lanczos"])
    def test_hooks_are_a_part_of_what_is_measured(self, exact):
        """Silenced units are those of a network that multiplies them by 0; the mean is a bias."""
        found = self.found(ablate=("1:0,2=zero",), exact=exact, probes=20).volume
        model = network(hidden=4)
        mask = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)

        class Masked(nn.Module):
            def forward(self, x):
                return torch.tanh(x) * mask

        model[1] = Masked()
        expected = self.alone(model)
        if exact == "auto":
            assert found.a.path in ("dense", "gram")
            assert found.b.log_volume == pytest.approx(expected.log_volume, rel=1e-10)
            assert found.difference[0] > 0.1
        else:
            assert found.b.path == "lanczos"
            error = np.abs(found.b.log_volume - expected.log_volume)
            assert (error <= 5 * found.b.stderr + 1e-6).all()

    def test_of_a_mean(self):
        model = network(hidden=4)
        found = self.found(ablate=("1:1=mean",), model=model).volume
        mean = model[:2](X)[:, 1].mean().detach()

        class Fixed(nn.Module):
            def forward(self, x):
                return torch.tanh(x).index_fill(1, torch.tensor([1]), 0.0) + mean * torch.tensor(
                    [0.0, 1.0, 0.0, 0.0], dtype=x.dtype
                )

        model[1] = Fixed()
        assert found.b.log_volume == pytest.approx(self.alone(model).log_volume, rel=1e-10)

    def test_of_ablated_weights(self):
        model = network(hidden=4)
        found = self.found(ablate=("weights:2.weight:1=zero",), model=model, loss="task")
        with torch.no_grad():
            model[2].weight[1] = 0
        expected = self.alone(model, "task")
        assert found.volume.b.log_volume == pytest.approx(expected.log_volume, rel=1e-10)
        slope = float(risk_of(model).gradient().norm())
        assert found.volume.gradient_norm == pytest.approx(slope, rel=1e-10)
        assert any(f"{slope:.3g} at B" in note for note in found.info.warnings)

    def test_of_a_network_and_itself(self, tmp_path):
        save_file(network(hidden=4).state_dict(), tmp_path / "b.safetensors")
        found = self.found(other=tmp_path / "b.safetensors", exact="lanczos", top=3, probes=2)
        assert (found.volume.difference == 0).all()
        assert (found.volume.stderr > 0).all()

    def test_the_model_stays_as_it_was(self):
        model = network(hidden=4)
        before = digest(model)
        self.found(ablate=("1:0=zero", "weights:0.weight=mean"), model=model)
        assert digest(model) == before
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize(
        ("volume", "ablate", "words"),
        [
            ({"mean": "anchor"}, (), "a prior of its own"),
            ({"methods": ("radial",)}, (), "expected methods"),
            ({}, ("1=resample",), "expected zero or mean"),
        ],
    )
    def test_refused(self, volume, ablate, words):
        with pytest.raises(UsageError, match=words):
            self.found(ablate=ablate or ("1=zero",), **volume)
