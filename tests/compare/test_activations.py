"""Matching of hidden units by what they do on the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks_compared import X, network, permuted, risk_of

from landscape.compare.activations import correlations
from landscape.compare.matching import match_units
from landscape.compare.options import CompareOptions
from landscape.compare.path import state_of
from landscape.compare_runs import compare_networks
from landscape.flat.subject import Subject
from landscape.training import train


class TestActivationMatching:
    @pytest.mark.parametrize("by", ["weights", "activations"])
    def test_a_permuted_copy_is_aligned_exactly(self, by):
        model = network()
        risk = risk_of(permuted(model))
        start = state_of(model)
        matched = match_units(risk, start, by=by)
        assert [entry.units for entry in matched.matching] == [6, 6]
        assert all(torch.equal(matched.parameters[n], start[n]) for n in matched.parameters)

    def test_correlations_are_those_of_numpy(self):
        """Over the pre-activations and the activations of a layer, with another batch size."""
        models = [network(seed) for seed in (1, 2)]
        subject = Subject.of(risk_of(models[1], batch_size=7))
        classes = [sites for sites in subject.graph.coupled() if len(sites) > 1]
        passes = [run for run, _ in subject.passes]
        assert len(passes) == 3
        found = correlations(*models, passes, classes)
        expected = []
        for depth in (1, 2), (3, 4):
            both = [[m[:d](X).detach().numpy().T for d in depth] for m in models]
            pairs = zip(*both, strict=True)
            expected.append(sum(np.corrcoef(x, y)[:6, 6:] for x, y in pairs))
        for values, of in zip(found.values(), expected, strict=True):
            assert values.numpy() == pytest.approx(of, abs=1e-12)

    def test_constant_units_are_like_nobody(self):
        models = [network(seed) for seed in (1, 2)]
        with torch.no_grad():
            for model in models:
                model[0].weight[3] = 0
        subject = Subject.of(risk_of(models[1]))
        classes = [sites for sites in subject.graph.coupled() if len(sites) > 1]
        found = correlations(*models, [run for run, _ in subject.passes], classes)
        values = found[classes[0]]
        assert values[3].eq(0).all()
        assert values[:, 3].eq(0).all()
        assert values.isfinite().all()

    @pytest.mark.parametrize("by", ["weights", "activations"])
    def test_two_trained_networks_are_no_farther_apart(self, by, tmp_path):
        """A fixed case: the barrier between two networks trained from other seeds falls."""
        recipe = {"steps": 60, "checkpoints": 1}
        for seed in (0, 1):
            train("digits-mlp", {"width": 8}, seed=seed, out=tmp_path / str(seed), **recipe)
        ends = [next((tmp_path / str(seed)).glob("step_000060*")) for seed in (0, 1)]
        options = CompareOptions(align=by, points=7, bootstrap=2)
        settings = {"task_settings": {"width": 8}, "options": options}
        found = compare_networks("digits-mlp", *ends, **settings)
        assert found.aligned.barrier < found.path.barrier
        assert found.aligned.distance < found.path.distance
