from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from landscape.errors import UsageError
from landscape.task import resolve_task
from landscape.tasks import BUILTIN_TASKS

# name -> (training examples, test examples, parameters, output shape of 5 examples)
EXPECTED = {
    "digits-mlp": (1438, 359, 1210, (5, 10)),
    "digits-cnn": (1438, 359, 1898, (5, 10)),
    "modular-addition": (673, 288, 3152, (5, 31)),
    "char-lm": (512, 305, 30336, (5, 32, 64)),
    "regression-mlp": (354, 88, 193, (5, 1)),
    "two-tasks": (1438, 359, 868, (5, 20)),
    "sparse-mlp": (1438, 359, 9610, (5, 10)),
}


def parameters(name: str, settings: dict | None = None) -> int:
    return sum(p.numel() for p in resolve_task(name, settings).task.model.parameters())


def test_listing_the_tasks_imports_neither_torch_nor_sklearn():
    code = (
        "import sys, landscape.tasks; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_expected_covers_every_task():
    assert set(EXPECTED) == set(BUILTIN_TASKS)
    assert all(entry.name == name and entry.summary for name, entry in BUILTIN_TASKS.items())


@pytest.mark.parametrize("name", EXPECTED)
class TestEveryTask:
    def test_shapes_and_loss(self, name):
        train, test, count, shape = EXPECTED[name]
        task = resolve_task(name).task
        assert parameters(name) == count
        assert len(task.data[0]) == len(task.data[1]) == train
        assert len(resolve_task(name, {"split": "test"}).task.data[0]) == test
        assert len(resolve_task(name, {"split": "all"}).task.data[0]) == train + test
        batch = tuple(tensor[:5] for tensor in task.data)
        outputs = task.forward(task.model, batch)
        assert outputs.shape == shape
        assert task.resolved_criterion.loss(outputs, batch).isfinite()

    def test_dtypes(self, name):
        inputs, targets = resolve_task(name).task.data
        expected = torch.int64 if name in ("modular-addition", "char-lm") else torch.float32
        assert inputs.dtype == expected
        assert targets.dtype == (
            torch.float32 if name in ("regression-mlp", "two-tasks") else torch.int64
        )

    def test_data_do_not_depend_on_the_global_seed(self, name):
        torch.manual_seed(1)
        first = resolve_task(name).task.data
        torch.manual_seed(2)
        second = resolve_task(name).task.data
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_global_random_state_is_untouched(self, name):
        before = torch.get_rng_state()
        resolve_task(name)
        assert torch.equal(before, torch.get_rng_state())

    def test_unknown_split(self, name):
        with pytest.raises(UsageError, match=r"split='validation'.*train, test, all"):
            resolve_task(name, {"split": "validation"})

    def test_unknown_setting(self, name):
        with pytest.raises(UsageError, match="colour"):
            resolve_task(name, {"colour": 1})

    def test_is_smooth_enough_for_a_hessian_vector_product(self, name):
        task = resolve_task(name).task
        batch = tuple(tensor[:4] for tensor in task.data)
        weights = list(task.model.parameters())
        # The fused attention kernels have no second derivative.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = task.resolved_criterion.loss(task.forward(task.model, batch), batch)
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
            square = sum(g.square().sum() for g in gradient)
            product = torch.autograd.grad(square, weights)
        assert all(p.isfinite().all() for p in product)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digits-mlp", {"width": 0}, "width=0.*at least 1"),
        ("digits-mlp", {"width": True}, "width=True.*integer"),
        ("digits-mlp", {"width": 8.0}, "width=8.0.*integer"),
        ("digits-mlp", {"depth": -1}, "depth=-1.*at least 0"),
        ("digits-mlp", {"activation": "swish"}, "activation='swish'.*tanh"),
        ("digits-mlp", {"bias": "yes"}, "bias='yes'.*true or false"),
        ("digits-cnn", {"channels": "many"}, "channels='many'.*integer"),
        ("digits-cnn", {"norm": "layer"}, "norm='layer'.*none, group, batch"),
        ("modular-addition", {"p": 1}, "p=1.*from 2"),
        ("modular-addition", {"d_model": 15}, "d_model=15, heads=2.*d_model=16"),
        ("modular-addition", {"train_fraction": 1.0}, "train_fraction=1.0.*between 0 and 1"),
        ("modular-addition", {"train_fraction": 1}, "train_fraction=1:.*between 0 and 1"),
        ("char-lm", {"context": 0}, "context=0.*from 1"),
        ("char-lm", {"sequences": 10**6}, "sequences=1000000.*from 1 to"),
        ("char-lm", {"tie": 1}, "tie=1.*true or false"),
        ("char-lm", {"layers": 0}, "layers=0.*at least 1"),
        ("regression-mlp", {"activation": ["tanh"]}, "activation=.*expected one of"),
    ],
)
def test_wrong_settings(name, settings, message):
    with pytest.raises(UsageError, match=message):
        resolve_task(name, settings)


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn", "regression-mlp"])
def test_train_and_test_are_disjoint_and_cover_the_data(name):
    rows = [
        torch.cat([t.flatten(1) if t.dim() > 1 else t[:, None] for t in task.data], dim=1)
        for task in (resolve_task(name, {"split": s}).task for s in ("train", "test", "all"))
    ]
    train, test, everything = (sorted(map(tuple, part.tolist())) for part in rows)
    assert sorted(train + test) == everything


@pytest.mark.parametrize("p", [31, 6])
def test_modular_addition_targets(p):
    tokens, sums = resolve_task("modular-addition", {"p": p, "split": "all"}).task.data
    assert torch.equal((tokens[:, 0] + tokens[:, 1]) % p, sums)
    assert (tokens[:, 2] == p).all()
    assert len(tokens.unique(dim=0)) == p * p
    train = resolve_task("modular-addition", {"p": p, "train_fraction": 0.25}).task.data[0]
    assert len(train) == round(p * p / 4)


def test_regression_is_standardised_on_the_training_split():
    for tensor in resolve_task("regression-mlp").task.data:
        torch.testing.assert_close(tensor.mean(0), torch.zeros(tensor.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            tensor.std(0, correction=0), torch.ones(tensor.shape[1]), atol=1e-5, rtol=0
        )
    test_inputs = resolve_task("regression-mlp", {"split": "test"}).task.data[0]
    assert test_inputs.mean(0).abs().max() > 0.01


def test_digits_are_scaled_to_one():
    images = resolve_task("digits-mlp", {"split": "all"}).task.data[0]
    assert images.min() == 0
    assert images.max() == 1


def test_mlp_depth_width_and_bias():
    assert parameters("digits-mlp", {"depth": 0}) == 650
    assert parameters("digits-mlp", {"depth": 0, "bias": False}) == 640
    assert parameters("digits-mlp", {"depth": 3, "width": 8}) == 64 * 8 + 8 + 2 * 72 + 90


@pytest.mark.parametrize(("norm", "kind"), [("group", "GroupNorm"), ("batch", "BatchNorm2d")])
@pytest.mark.parametrize("channels", [3, 8])
def test_cnn_norms(norm, kind, channels):
    task = resolve_task("digits-cnn", {"norm": norm, "channels": channels}).task
    assert sum(type(module).__name__ == kind for module in task.model.modules()) == 2
    assert task.forward(task.model, (task.data[0][:3],)).shape == (3, 10)


class TestCharLm:
    def test_targets_are_the_next_characters(self):
        inputs, targets = resolve_task("char-lm", {"split": "all"}).task.data
        assert torch.equal(inputs[:, 1:], targets[:, :-1])

    def test_is_causal(self):
        task = resolve_task("char-lm").task
        inputs = task.data[0][:2].clone()
        before = task.model(inputs)
        inputs[:, 20] = (inputs[:, 20] + 1) % 64
        after = task.model(inputs)
        torch.testing.assert_close(before[:, :20], after[:, :20])
        assert not torch.allclose(before[:, 20:], after[:, 20:])

    def test_tied_weights_count_once(self):
        assert parameters("char-lm") - parameters("char-lm", {"tie": True}) == 64 * 32
        model = resolve_task("char-lm", {"tie": True}).task.model
        assert model.unembedding.weight is model.tokens.weight

    def test_small_enough_for_a_dense_hessian(self):
        assert parameters("char-lm", {"d_model": 8, "heads": 2}) <= 4096

    def test_sequences_are_spread_over_the_training_text(self):
        few = resolve_task("char-lm", {"sequences": 2}).task.data[0]
        many = resolve_task("char-lm", {"sequences": 2700}).task.data[0]
        assert torch.equal(few[0], many[0])
        # The second of two starts half-way.
        places = (many == few[1]).all(1).nonzero().flatten()
        assert any(abs(place / len(many) - 0.5) < 0.05 for place in places.tolist())


class TestTwoTasks:
    def test_a_modular_network_has_a_block_diagonal_hessian_and_a_dense_one_has_not(self):
        settings = {"width": 4}
        for network, coupled in (("modular", False), ("dense", True)):
            task = resolve_task("two-tasks", {**settings, "network": network}).task
            model, batch = task.model.double(), tuple(t[:20].double() for t in task.data)
            names = [name for name, _ in model.named_parameters()]
            values = [p.detach() for p in model.parameters()]

            def loss(*values, model=model, names=names, batch=batch, task=task):
                outputs = torch.func.functional_call(
                    model, dict(zip(names, values, strict=True)), (batch[0],)
                )
                return task.resolved_criterion.loss(outputs, batch)

            hessian = torch.autograd.functional.hessian(loss, tuple(values))
            # First half of the parameters: the left network, or the first layer.
            half = len(names) // 2
            across = [hessian[a][b] for a in range(half) for b in range(half, len(names))]
            assert any(block.abs().max() > 1e-6 for block in across) == coupled
            if not coupled:
                assert all(block.abs().max() == 0 for block in across)

    def test_both_halves_are_digits_of_the_same_split_and_rarely_the_same_one(self):
        pixels, targets = resolve_task("two-tasks").task.data
        for values in (pixels, targets):
            left, right = values.chunk(2, dim=1)
            assert torch.allclose(left.sum(0), right.sum(0), atol=1e-3)
            same = (left == right).all(1).float().mean()
            assert same < (0.2 if values is targets else 0.01)

    def test_wrong_settings(self):
        with pytest.raises(UsageError, match=r"width=5.*even"):
            resolve_task("two-tasks", {"network": "modular", "width": 5})
        with pytest.raises(UsageError, match=r"network='sparse'.*dense, modular"):
            resolve_task("two-tasks", {"network": "sparse"})
