"""Comparison of networks against closed forms, hand-written hooks and permuted copies."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from networks_compared import LABELS, X, digest, network, permuted, risk_of
from safetensors.torch import save_file
from scipy import integrate, stats
from torch import nn

from landscape import Task
from landscape.compare.ablation import ablated, parse_ablation
from landscape.compare.behaviour import bootstrap, compare_behaviour
from landscape.compare.laws import law_of
from landscape.compare.matching import match_units
from landscape.compare.options import CompareOptions
from landscape.compare.path import state_of, weight_path
from landscape.compare_runs import CompareRun, compare_networks
from landscape.criteria import as_criterion
from landscape.data import materialise
from landscape.errors import UsageError
from landscape.measurement import prepared
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.rng import stream
from landscape.settings import Settings
from landscape.units import MemoryUnits, silent


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestLaws:
    def test_categorical(self):
        a, b = logits(7, 4), logits(7, 4, seed=1)
        found = law_of(as_criterion("cross_entropy")).terms(a, b)
        p, q = a.softmax(1).numpy(), b.softmax(1).numpy()
        assert found.kl_ab.numpy() == pytest.approx(stats.entropy(p, q, axis=1), rel=1e-12)
        assert found.kl_ba.numpy() == pytest.approx(stats.entropy(q, p, axis=1), rel=1e-12)
        m = (p + q) / 2
        js = (stats.entropy(p, m, axis=1) + stats.entropy(q, m, axis=1)) / 2
        assert found.js.numpy() == pytest.approx(js, rel=1e-10)
        assert found.entropy.numpy() == pytest.approx(stats.entropy(p, axis=1), rel=1e-12)
        assert found.agreement.tolist() == (p.argmax(1) == q.argmax(1)).tolist()

    def test_bernoulli_is_categorical_with_two_outcomes(self):
        a, b = logits(7, 2), logits(7, 2, seed=1)
        found = law_of(as_criterion("binary_cross_entropy")).terms(a, b)
        pairs = [torch.stack([x, torch.zeros_like(x)], -1).reshape(14, 2) for x in (a, b)]
        other = law_of(as_criterion("cross_entropy")).terms(*pairs)
        for name in ("kl_ab", "kl_ba", "js", "entropy", "cross_entropy"):
            summed = getattr(other, name).reshape(7, 2).sum(1)
            assert torch.allclose(getattr(found, name), summed, rtol=1e-12)

    @pytest.mark.parametrize("distance", [0.1, 1.0, 4.0])
    def test_gaussian(self, distance):
        a = torch.zeros(1, 2, dtype=torch.float64)
        b = distance * torch.tensor([[0.6, 0.8]], dtype=torch.float64)
        found = law_of(as_criterion("mse")).terms(a, b)
        assert float(found.kl_ab) == pytest.approx(distance**2 / 2)
        p, q = stats.norm(0).pdf, stats.norm(distance).pdf

        def density(x):
            m = (p(x) + q(x)) / 2
            return (p(x) * np.log(p(x) / m) + q(x) * np.log(q(x) / m)) / 2

        js = integrate.quad(density, -12, 12 + distance, limit=200)[0]
        assert float(found.js) == pytest.approx(js, rel=1e-4)
        assert math.isnan(float(found.agreement))

    @pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse"])
    def test_equal_outputs_differ_by_exactly_nothing(self, name):
        rows = 30 * logits(50, 4)
        found = law_of(as_criterion(name)).terms(rows, rows.clone())
        for part in (found.kl_ab, found.kl_ba, found.js, found.cross_entropy - found.entropy):
            assert part.eq(0).all()

    def test_disjoint_laws(self):
        a = torch.tensor([[1000.0, 0.0]], dtype=torch.float64)
        found = law_of(as_criterion("cross_entropy")).terms(a, a.flip(1))
        assert float(found.js) == pytest.approx(math.log(2))
        assert float(found.kl_ab) == 1000

    def test_unknown_criterion(self):
        with pytest.raises(UsageError, match="names no law"):
            law_of(as_criterion(lambda outputs, batch: outputs.sum()))


class TestBehaviour:
    @pytest.mark.parametrize("criterion", ["cross_entropy", "mse", "binary_cross_entropy"])
    def test_means_are_those_of_the_criterion(self, criterion):
        targets = LABELS if criterion == "cross_entropy" else torch.rand(20, 3).double()
        a = risk_of(network(), targets=targets, criterion=criterion)
        b = risk_of(network(2), targets=targets, criterion=criterion)
        found = compare_behaviour(
            a, a.outputs, b.outputs, generator=torch.Generator().manual_seed(0)
        )
        assert found.excess_loss.value == pytest.approx(b.loss() - a.loss(), rel=1e-10)
        assert found.identity < 1e-12
        assert found.kl_ab.lower < found.kl_ab.value < found.kl_ab.upper

    def test_ignored_targets_do_not_count(self):
        targets = LABELS.clone()
        targets[[0, 9]] = -100
        a, b = (risk_of(network(seed), targets=targets) for seed in (1, 2))
        found = compare_behaviour(a, a.outputs, b.outputs, generator=torch.Generator())
        assert found.n_terms == len(found.example_js) == 18
        assert found.excess_loss.value == pytest.approx(b.loss() - a.loss(), rel=1e-10)

    def test_bootstrap_of_a_mean(self):
        values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weights = torch.ones(400, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        (found,) = bootstrap(values[None], weights, n=4000, generator=generator)
        assert found.value == pytest.approx(float(values.mean()))
        error = float(values.std()) / 20
        assert found.stderr == pytest.approx(error, rel=0.05)
        assert found.upper - found.lower == pytest.approx(2 * 1.96 * error, rel=0.06)


class TestAblation:
    @pytest.mark.parametrize("batch_size", [20, 8])
    @pytest.mark.parametrize("way", ["zero", "mean", "resample"])
    def test_equals_a_hand_written_hook(self, way, batch_size):
        risk = risk_of(network(), batch_size=batch_size)
        model, parts, seen = copy.deepcopy(risk.model), X.split(batch_size), []
        handle = model[1].register_forward_hook(lambda *call: seen.append(call[2].detach()))
        for part in parts:
            model(part)
        handle.remove()
        whole = torch.cat(seen)
        order = torch.randperm(20, generator=stream(5, "ablation", 0))
        others = {
            "zero": torch.zeros_like(whole),
            "mean": whole.mean(0).expand(20, 6),
            "resample": whole[order],
        }
        left = list(others[way].split(batch_size))
        units = [1, 3, 4]

        def hook(module, inputs, output):
            changed = output.clone()
            changed[:, units] = left.pop(0)[:, units]
            return changed

        model[1].register_forward_hook(hook)
        before = digest(risk.model)
        ablations = [parse_ablation(f"1:1,3-4={way}")]
        with (
            torch.no_grad(),
            ablated(risk.model, ablations, risk.outputs, risk.n_batches, seed=5) as run,
        ):
            found = [run(index) for index in range(risk.n_batches)]
            expected = [model(part) for part in parts]
        assert all(map(torch.equal, found, expected))
        assert digest(risk.model) == before
        assert not any(module._forward_hooks for module in risk.model.modules())

    @pytest.mark.parametrize("way", ["zero", "mean", "resample"])
    def test_of_weights(self, way):
        risk = risk_of(network())
        own = risk.model[2].weight.detach().clone()
        ablation = parse_ablation(f"weights:2.weight:1-2={way}")
        with ablated(risk.model, [ablation], risk.outputs, risk.n_batches, seed=0):
            now = risk.model[2].weight.detach().clone()
        assert torch.equal(risk.model[2].weight, own)
        assert torch.equal(now[[0, 3, 4, 5]], own[[0, 3, 4, 5]])
        if way == "zero":
            assert now[1:3].eq(0).all()
        elif way == "mean":
            assert torch.allclose(now[1:3], own[1:3].mean(1, keepdim=True).expand(2, 6))
        else:
            assert torch.equal(now[1:3].sort(1)[0], own[1:3].sort(1)[0])
            assert not torch.equal(now[1:3], own[1:3])

    def test_of_a_weight_of_no_axes(self):
        model = network()
        model.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        for way, value in (("zero", 0.0), ("mean", 1.5), ("resample", 1.5)):
            ablation = [parse_ablation(f"weights:scale={way}")]
            with ablated(model, ablation, model, 1, seed=0):
                assert model.scale.item() == value
            assert model.scale.item() == 1.5
            changed = ablated(model, [parse_ablation(f"weights:scale:0={way}")], model, 1, seed=0)
            with pytest.raises(UsageError, match="one number without rows"), changed:
                pass

    def test_one_example_has_no_other_to_be_resampled_from(self):
        model = network()
        changed = ablated(model, [parse_ablation("1=resample")], lambda _: model(X[:1]), 1, seed=0)
        with pytest.raises(UsageError, match="two or more"), changed:
            pass
        assert not any(module._forward_hooks for module in model.modules())

    def test_an_exception_leaves_the_model_as_it_was(self):
        risk = risk_of(network())
        before = digest(risk.model)
        ablations = [parse_ablation("1=resample"), parse_ablation("weights:0.weight=zero")]

        def fail():
            with ablated(risk.model, ablations, risk.outputs, risk.n_batches, seed=0):
                assert digest(risk.model) != before
                raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            fail()
        assert digest(risk.model) == before
        assert not any(module._forward_hooks for module in risk.model.modules())

    def test_a_unit_that_is_not_there_leaves_no_hook(self):
        risk = risk_of(network())
        changed = ablated(
            risk.model, [parse_ablation("1:6=zero")], risk.outputs, risk.n_batches, seed=0
        )
        with pytest.raises(UsageError, match="no unit 6; expected 0 to 5"), changed as run:
            run(0)
        assert not any(module._forward_hooks for module in risk.model.modules())

    @pytest.mark.parametrize("module", ["0", "1"])
    def test_units_of_images_are_channels(self, module):
        images = X.reshape(4, 1, 5, 5)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
        task = Task(model=model, data=(images, LABELS[:4] % 2), criterion="cross_entropy")
        risk = Risk(task, materialise(task.data))
        seen = []
        handle = risk.model[2].register_forward_pre_hook(lambda *call: seen.append(call[1][0]))
        changed = ablated(risk.model, [parse_ablation(f"{module}:1=zero")], risk.outputs, 1, seed=0)
        with torch.no_grad(), changed as run:
            run(0)
        handle.remove()
        assert seen[0][:, 1].eq(0).all()
        assert seen[0][:, [0, 2]].ne(0).any()

    def test_a_module_that_runs_twice_is_refused(self):
        layer = nn.Linear(5, 5).double()
        risk = risk_of(nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(5, 3)))
        changed = ablated(risk.model, [parse_ablation("0=zero")], risk.outputs, 3, seed=0)
        with pytest.raises(UsageError, match="ran 2 times"), changed as run:
            run(0)

    @pytest.mark.parametrize(
        "text", ["1", "1=none", "1:=zero", "1:a=zero", "1:3-1=zero", "=", "1:2=3=zero"]
    )
    def test_of_another_form(self, text):
        with pytest.raises(UsageError, match="--ablate"):
            parse_ablation(text)


class TestBarrier:
    def test_permuted_copies(self):
        model = network()
        with torch.no_grad():
            model[4].weight *= 30
        targets = model(X).argmax(1)
        a, b = risk_of(model, targets=targets), risk_of(permuted(model), targets=targets)
        found = compare_behaviour(a, a.outputs, b.outputs, generator=torch.Generator())
        assert found.kl_ab.value == pytest.approx(0, abs=1e-13)
        assert found.agreement.value == 1
        start, end = state_of(a.model), state_of(b.model)
        common = {"units": MemoryUnits(), "progress": silent}
        path = weight_path(a, start, end, 21, name="path", **common)
        assert path.barrier > 1e-3
        matched = match_units(b, start)
        assert [entry.units for entry in matched.matching] == [6, 6]
        assert matched.change < 1e-12
        assert all(torch.equal(matched.parameters[n], start[n]) for n in matched.parameters)
        after = weight_path(
            a, start, {**end, **matched.parameters}, 21, name="aligned path", **common
        )
        assert after.barrier == 0
        assert after.distance == 0
        assert torch.equal(a.model[0].weight, start["0.weight"])

    def test_of_a_quadratic_loss(self):
        """Of one linear layer with squared error the loss is convex: no barrier, known values."""
        models = [nn.Linear(5, 3).double() for _ in range(2)]
        targets = torch.rand(20, 3).double()
        risks = [risk_of(m, targets=targets, criterion="mse") for m in models]
        states = [state_of(m) for m in models]
        path = weight_path(risks[0], *states, 5, name="path", units=MemoryUnits(), progress=silent)
        ends = [risk.loss() for risk in risks]
        apart = 0.5 * (models[0](X) - models[1](X)).square().sum().item() / 20
        t = path.t
        assert path.loss == pytest.approx((1 - t) * ends[0] + t * ends[1] - t * (1 - t) * apart)
        assert path.barrier == 0


def test_finished_points_are_taken_from_an_earlier_run():
    risk = risk_of(network())
    units = MemoryUnits()
    state = state_of(risk.model)
    first = weight_path(risk, state, state, 5, name="path", units=units, progress=silent)
    passes = risk.n_forward
    again = weight_path(risk, state, state, 5, name="path", units=units, progress=silent)
    assert risk.n_forward == passes
    assert again.loss.tolist() == first.loss.tolist()


def test_a_network_and_itself_differ_by_exactly_nothing():
    task = Task(model=network(), data=(X, LABELS), criterion="cross_entropy")
    run = CompareRun(
        **prepared(task, None, Settings(), None),
        other=None,
        options=CompareOptions(ablate=("weights:0.weight:0=mean",)),
    )
    run.ablations = ()
    found = run.measure()
    for name in ("kl_ab", "kl_ba", "js", "excess_loss"):
        estimate = getattr(found.behaviour, name)
        assert (estimate.value, estimate.lower, estimate.upper, estimate.stderr) == (0, 0, 0, 0)
    assert found.behaviour.identity == 0
    assert found.path is not None
    assert found.aligned is not None
    assert (found.path.barrier, found.path.distance, found.aligned.barrier) == (0, 0, 0)


def test_eigenspaces_of_a_permuted_copy(tmp_path):
    """The overlap is that of dense eigenvectors, and 1 after matching."""
    model = network()
    save_file(permuted(model).state_dict(), tmp_path / "b.safetensors")
    task = Task(model=model, data=(X, LABELS), criterion="cross_entropy")
    options = CompareOptions(eigenspaces=3, points=0)
    found = compare_networks(task, None, tmp_path / "b.safetensors", options=options)
    spaces = found.eigenspaces
    vectors = []
    for copy_ in (model, permuted(model)):
        values, columns = torch.linalg.eigh(curvature("hessian", risk_of(copy_)).dense())
        vectors.append(columns[:, -3:])
        assert spaces.eigenvalues_b == pytest.approx(values.flip(0)[:3].numpy(), rel=1e-6)
    expected = float((vectors[0].T @ vectors[1]).square().sum() / 3)
    assert spaces.converged
    assert spaces.overlap == pytest.approx(expected, abs=1e-6)
    assert spaces.overlap < 0.9
    assert spaces.aligned == pytest.approx(1, abs=1e-8)
    assert found.path is None
