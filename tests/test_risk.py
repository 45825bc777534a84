"""The risk: weighting, precision, frozen state, and the pitfalls of second derivatives."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.checks import check_risk, non_smooth_functions
from landscape.criteria import CrossEntropy
from landscape.data import materialise
from landscape.errors import NotFiniteError, TaskError
from landscape.operators import curvature
from landscape.risk import Risk, differentiable_twice
from landscape.task import Task


def seeded(function, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(3, (24,), generator=torch.Generator().manual_seed(2))


def make(module, inputs, targets=LABELS, criterion="cross_entropy", batch=None, **options):
    task = Task(model=seeded(module), data=(inputs, targets), criterion=criterion, **options)
    return Risk(task, materialise(task.data), batch_size=batch)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.layer.activation = functional.gelu
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(3, 5), nn.Linear(5, 3, bias=False)
        self.mix = nn.Linear(5, 5)
        self.unembed.weight = self.embed.weight

    def forward(self, x):
        return self.unembed(torch.tanh(self.mix(self.embed(x))))


def image(*body):
    return lambda: nn.Sequential(*[layer() for layer in body], nn.Flatten(), nn.LazyLinear(3))


CASES = {
    "attention": (Attention, draw(24, 5, 6)),
    "encoder layer": (Encoder, draw(24, 5, 6)),
    "LayerNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        draw(24, 5),
    ),
    "RMSNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        draw(24, 5),
    ),
    "BatchNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
        draw(24, 5),
    ),
    "convolution and GroupNorm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        draw(24, 1, 6, 6),
    ),
    "InstanceNorm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
        ),
        draw(24, 1, 6, 6),
    ),
    "LSTM": (Recurrent, draw(24, 5, 4)),
    "tied weights": (Tied, torch.arange(24) % 3),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)),
        draw(24, 5),
    ),
    "ReLU": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), draw(24, 5)),
}


def dense(risk):
    """Hessian through functional_call and torch.autograd.functional.hessian: an independent way."""
    risk.model.eval()

    def loss(vector):
        named = dict(zip(risk.space.names, risk.space.split(vector), strict=True))
        outputs = functional_call(risk.model, named, (risk.batch(0)[0],))
        return functional.cross_entropy(outputs, risk.batch(0)[1])

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.functional.hessian(loss, risk.space.vector())
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("name", CASES)
def test_pitfalls_are_right(name):
    module, inputs = CASES[name]
    expected = dense(make(module, inputs))
    scale = expected.abs().max()
    for batch in (None, 7):
        risk = make(module, inputs, batch=batch)
        assert (curvature("hessian", risk).dense() - expected).abs().max() < 1e-11 * scale
        report = check_risk(risk)
        assert report.symmetric
        behaviour = Risk(risk.task, risk.data, loss="behaviour", batch_size=batch)
        ggn = curvature("ggn", risk).dense()
        assert (curvature("hessian", behaviour).dense() - ggn).abs().max() < 1e-11 * scale
        assert torch.linalg.eigvalsh(ggn).min() > -1e-12 * scale
    # Finite differences of the gradient: right for everything smooth, through another route.
    if name != "ReLU":
        vector = risk.space.vector()
        direction = draw(risk.n, seed=9).double()
        step = 1e-5
        gradients = []
        for sign in (1, -1):
            risk.space.assign(vector + sign * step * direction)
            gradients.append(risk.gradient())
        risk.space.assign(vector)
        slope = (gradients[0] - gradients[1]) / (2 * step)
        assert (slope - expected @ direction).abs().max() < 1e-6 * scale * risk.n**0.5


def test_tied_weights_count_once():
    risk = make(*CASES["tied weights"])
    assert risk.space.names == ("embed.weight", "mix.weight", "mix.bias")
    assert risk.n == 15 + 25 + 5


def test_mse_loss_of_torch_as_a_criterion():
    module = CASES["LayerNorm"][0]
    inputs, targets = draw(24, 5), draw(24, 3, seed=4)

    def criterion(outputs, batch):
        return functional.mse_loss(outputs, batch[1])

    theirs = make(module, inputs, targets, criterion)
    ours = make(module, inputs, targets, "mse")
    for operator in ("hessian", "ggn"):
        # PyTorch averages over the 3 outputs too and has no half.
        ratio = curvature(operator, theirs).dense() * 1.5 - curvature(operator, ours).dense()
        assert ratio.abs().max() < 1e-12


@pytest.mark.parametrize("criterion", ["mse", "binary_cross_entropy", "cross_entropy"])
def test_behaviour_hessian_is_the_ggn_for_every_criterion(criterion):
    module, inputs = CASES["LayerNorm"]
    targets = LABELS if criterion == "cross_entropy" else draw(24, 3, seed=4).sigmoid()
    risk = make(module, inputs, targets, criterion, batch=10)
    behaviour = Risk(risk.task, risk.data, loss="behaviour", batch_size=10)
    assert behaviour.loss() == pytest.approx(0, abs=1e-15)
    assert behaviour.gradient().abs().max() < 1e-15
    difference = curvature("hessian", behaviour).dense() - curvature("ggn", risk).dense()
    assert difference.abs().max() < 1e-13
    relabelled = Risk(risk.task, risk.data, loss="relabelled", batch_size=10)
    assert relabelled.loss() <= risk.loss() + 1e-12


def test_huber_and_custom_criteria_need_no_forward_mode():
    def criterion(outputs, batch):
        return functional.huber_loss(outputs, batch[1])

    risk = make(CASES["LayerNorm"][0], draw(24, 5), draw(24, 3, seed=4), criterion)
    report = check_risk(risk)
    assert report.symmetric
    assert "huber_loss" in report.non_smooth


def test_relu_has_zero_diagonal_blocks_but_not_zero_coupling():
    risk = make(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), draw(24, 5))
    mse = make(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)),
        draw(24, 5),
        draw(24, 3, seed=4),
        "mse",
    )
    residual = curvature("hessian", mse).dense() - curvature("ggn", mse).dense()
    first = risk.space.sizes[0]
    assert residual[:first, :first].abs().max() < 1e-14
    assert residual[:first, first + 6 :].abs().max() > 1e-3
    assert "relu" in non_smooth_functions(risk.batch_loss(0))


def test_batch_norm_buffers_stay_frozen():
    risk = make(*CASES["BatchNorm"])
    before = {k: v.clone() for k, v in risk.model.named_buffers()}
    curvature("hessian", risk).dense()
    assert all((v == before[k]).all() for k, v in risk.model.named_buffers())


def test_dropout_in_the_forward_function_is_refused():
    def forward(model, batch):
        return functional.dropout(model(batch[0]), 0.5, training=True)

    risk = make(CASES["LayerNorm"][0], draw(24, 5), forward=forward)
    with pytest.raises(TaskError, match="not deterministic"):
        risk.require_deterministic()


def test_shuffled_loader_is_refused():
    data = torch.utils.data.TensorDataset(draw(24, 5), LABELS)
    loader = torch.utils.data.DataLoader(data, batch_size=6, shuffle=True)
    with pytest.raises(TaskError, match="shuffle"):
        materialise(loader)


def test_no_second_derivative_is_refused_with_a_reason():
    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g.clone()

    risk = make(
        lambda: nn.Linear(5, 3), draw(24, 5), forward=lambda m, b: Flat.apply(m(b[0]).tanh())
    )
    with pytest.raises(TaskError, match="differentiated twice"):
        check_risk(risk)


def test_kernel_settings_are_restored_even_after_an_error():
    def settings():
        return (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        )

    before = settings()

    def fail():
        with differentiable_twice():
            assert settings() != before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert settings() == before


def test_unequal_batches_are_weighted_by_their_examples():
    inputs = draw(24, 5)
    parts = [(inputs[:20], LABELS[:20]), (inputs[20:23], LABELS[20:23]), (inputs[23:], LABELS[23:])]
    module = CASES["LayerNorm"][0]
    whole = make(module, inputs)
    task = Task(model=seeded(module), data=parts, criterion="cross_entropy")
    unequal = Risk(task, materialise(task.data))
    assert unequal.fractions == pytest.approx([20 / 24, 3 / 24, 1 / 24])
    assert unequal.loss() == pytest.approx(whole.loss(), rel=1e-13)
    assert (unequal.gradient() - whole.gradient()).abs().max() < 1e-15
    difference = curvature("hessian", unequal).dense() - curvature("hessian", whole).dense()
    assert difference.abs().max() < 1e-14


def test_tokens_are_the_weight_of_sequences():
    inputs = draw(6, 4, 5)
    targets = torch.randint(3, (6, 4), generator=torch.Generator().manual_seed(3))
    targets[0, 1:] = -100
    targets[3] = -100
    module = CASES["LayerNorm"][0]
    whole = make(module, inputs, targets)
    split = make(module, inputs, targets, batch=1)
    assert split.n_batches == 5  # The sequence without targets has no weight.
    assert split.loss() == pytest.approx(whole.loss(), rel=1e-13)
    rows = whole.model(inputs.double()).detach().reshape(-1, 3)
    expected = functional.cross_entropy(rows, targets.reshape(-1))
    assert whole.loss() == pytest.approx(float(expected), rel=1e-13)
    assert CrossEntropy().weight((inputs, targets)) == 17
    behaviour = Risk(split.task, split.data, loss="behaviour", batch_size=1)
    ggn = curvature("ggn", whole).dense()
    assert (curvature("ggn", behaviour).dense() - ggn).abs().max() < 1e-14


def test_batch_order_changes_only_the_rounding():
    inputs = draw(24, 5)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    module = CASES["LayerNorm"][0]
    one, two = make(module, inputs, batch=5), make(module, inputs[order], LABELS[order], batch=5)
    difference = curvature("hessian", one).dense() - curvature("hessian", two).dense()
    assert difference.abs().max() < 1e-14


def test_selection_is_a_block_of_the_whole():
    whole = curvature("hessian", make(*CASES["LayerNorm"])).dense()
    module, inputs = CASES["LayerNorm"]
    task = Task(model=seeded(module), data=(inputs, LABELS), criterion="cross_entropy")
    part = Risk(task, materialise(task.data), params=("0.*", "3.bias"))
    assert part.space.names == ("0.weight", "0.bias", "3.bias")
    index = torch.cat([torch.arange(36), torch.arange(len(whole) - 3, len(whole))])
    assert (curvature("hessian", part).dense() - whole[index][:, index]).abs().max() < 1e-14


def test_frozen_parameters_are_left_out():
    def module():
        net = CASES["LayerNorm"][0]()
        net[0].requires_grad_(False)
        return net

    risk = make(module, draw(24, 5))
    assert risk.space.names == ("1.weight", "1.bias", "3.weight", "3.bias")


def test_unused_parameters_have_zero_rows():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    risk = make(Unused, draw(24, 5))
    for operator in ("hessian", "ggn"):
        matrix = curvature(operator, risk).dense()
        assert (matrix[18:] == 0).all()
        assert (matrix[:, 18:] == 0).all()
        assert matrix.abs().max() > 0


def test_a_loss_linear_in_the_parameters_has_zero_curvature():
    risk = make(
        lambda: nn.Linear(5, 3),
        draw(24, 5),
        criterion=lambda outputs, batch: outputs.mean(),
    )
    for operator in ("hessian", "ggn"):
        assert (curvature(operator, risk).dense() == 0).all()


def test_detached_outputs_are_refused():
    risk = make(lambda: nn.Linear(5, 3), draw(24, 5), forward=lambda m, b: m(b[0]).detach())
    with pytest.raises(TaskError, match="does not depend"):
        risk.gradient()


def test_integers_are_never_cast():
    risk = make(*CASES["tied weights"])
    assert risk.batch(0)[0].dtype == torch.int64
    assert risk.batch(0)[1].dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_losses_are_refused(bad):
    inputs = draw(24, 5)
    inputs[11, 2] = bad
    risk = make(CASES["LayerNorm"][0], inputs, batch=6)
    with pytest.raises(NotFiniteError, match="micro-batch 2 of 4"):
        risk.loss()


def test_the_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    check_risk(networks.risk("digits-mlp"))
    assert (torch.random.get_rng_state() == before).all()


def test_rows_fall_back_where_vmap_has_no_rule():
    class Square(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            # A Python-side branch on a value is something that vmap cannot batch.
            return 2 * x * g if float(g.detach().sum()) > -1e300 else g

    def model():
        return nn.Linear(5, 3)

    plain = make(model, draw(24, 5), forward=lambda m, b: m(b[0]) ** 2)
    custom = make(model, draw(24, 5), forward=lambda m, b: Square.apply(m(b[0])))
    operator = curvature("ggn", custom)
    difference = operator.dense() - curvature("ggn", plain).dense()
    assert difference.abs().max() < 1e-13
    assert operator.product._vmap_works is False
