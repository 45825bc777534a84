"""Discrete symmetries: their orders, and that each leaves the outputs alone."""

from __future__ import annotations

import math

import flat_cases as fc
import pytest
import torch
from flat_cases import draws, generic, mlp
from torch import nn
from torch.nn import functional

from landscape.data import materialise
from landscape.flat.discrete import discrete_of_risk, discrete_symmetries
from landscape.flat.tracing import read_graph
from landscape.risk import Risk
from landscape.task import Task, resolve_task


def log_factorial(n):
    return math.fsum(math.log(k) for k in range(1, n + 1))


def found(model, x, **options):
    return discrete_symmetries(generic(model), lambda m: m(x), **options)


def orders(report):
    return {(s.name, s.layer): s.log_order for s in report.symmetries}


LOG2 = math.log(2)


def test_tanh_mlp_of_the_digits():
    report = found(mlp(64, 12, 12, 10, activation=nn.Tanh), draws(30, 64))
    assert report.log_order == pytest.approx(2 * (log_factorial(12) + 12 * LOG2), rel=1e-12)
    assert report.log_order == pytest.approx(56.6, abs=0.05)
    assert report.isolated_log_order == report.log_order
    assert report.notes == ()
    assert [(c.name, c.units) for c in report.counts()] == [
        (s.name, s.units) for s in report.symmetries
    ]


@pytest.mark.parametrize(
    ("activation", "signs"),
    [
        (nn.ReLU, 0),
        (nn.GELU, 0),
        (nn.SiLU, 0),
        (nn.Sigmoid, 0),
        (nn.LeakyReLU, 0),
        (nn.Tanh, 6),
        (nn.Softsign, 6),
        (nn.Identity, 6),
        (nn.PReLU, 0),
        (lambda: nn.PReLU(6), 0),
    ],
)
def test_activations(activation, signs):
    report = found(mlp(5, 6, 3, activation=activation), draws(20, 5))
    expected = {("permutations of units", "0"): log_factorial(6)}
    if signs:
        expected[("sign flips", "0")] = signs * LOG2
    assert orders(report) == pytest.approx(expected)
    # Permutations of linear units lie on the sheet of the matrices that act on them.
    assert report.isolated_log_order == (0 if activation is nn.Identity else report.log_order)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_channels_through_normalisation(norm):
    task = resolve_task(
        "digits-cnn", {"norm": norm, "activation": "tanh" if norm == "none" else "relu"}
    ).task
    generator = torch.Generator().manual_seed(0)
    for module in task.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    generic(task.model)
    report = discrete_of_risk(Risk(task, materialise(task.data, examples=20)))
    if norm == "group":  # Groups of 2 and of 4 channels.
        channels = [
            log_factorial(4) + 4 * log_factorial(2),
            log_factorial(4) + 4 * log_factorial(4),
        ]
        # Flipping all channels of one group flips what is normalised, and each weight behind takes
        # any sign; ReLU stops them all.
        signs = [4 * LOG2, 4 * LOG2]
    else:
        channels = [log_factorial(8), log_factorial(16)]
        signs = [8 * LOG2, 16 * LOG2]  # Of tanh; of batch norm's input, whose weights follow.
    assert [s.log_order for s in report.symmetries if "channels" in s.name] == pytest.approx(
        channels
    )
    assert [s.log_order for s in report.symmetries if "sign" in s.name] == pytest.approx(signs)
    assert report.notes == ()


def test_heads_units_and_a_residual_stream():
    task = resolve_task("modular-addition", {"p": 7, "d_model": 8, "heads": 4, "d_mlp": 5}).task
    generic(task.model)
    report = discrete_of_risk(Risk(task, materialise(task.data)))
    expected = {
        ("permutations of units", "tokens"): log_factorial(8),
        ("sign flips", "tokens"): 8 * LOG2,
        ("permutations of units", "blocks.0.mlp.0"): log_factorial(5),
        ("permutations of heads", "blocks.0.attention"): log_factorial(4),
    }
    assert orders(report) == pytest.approx(expected)
    linear = [s.layer for s in report.symmetries if s.continuous]
    assert linear == ["tokens", "tokens"]


def test_layer_norms_leave_one_sign_to_the_stream_and_one_to_each_weight():
    task = resolve_task("char-lm", {"d_model": 8, "heads": 2, "layers": 1}).task
    generic(task.model)
    report = discrete_of_risk(Risk(task, materialise(task.data, examples=4)))
    signs = {s.layer: s.log_order for s in report.symmetries if s.name == "sign flips"}
    assert signs == pytest.approx({"tokens": (3 * 8 + 1) * LOG2})


def test_grouped_queries():
    report = found(fc.GroupedAttention(8, 6, 2, 2, bias=True), draws(9, 4, 8))
    expected = {("permutations of heads", ""): log_factorial(2) + 2 * log_factorial(3)}
    assert orders(report) == pytest.approx(expected)


@pytest.mark.parametrize("same", [True, False])
def test_multihead_attention(same):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            other = {} if same else {"kdim": 5, "vdim": 5}
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **other)
            self.last = nn.Linear(8, 2)

        def forward(self, x):
            other = x if same else x[..., :5]
            return self.last(torch.tanh(self.attention(x, other, other)[0]))

    report = found(Model(), draws(9, 4, 8))
    expected = {("permutations of heads", "attention"): log_factorial(4)}
    expected[("permutations of units", "attention.out_proj")] = log_factorial(8)
    expected[("sign flips", "attention.out_proj")] = 8 * LOG2
    assert orders(report) == pytest.approx(expected)


def test_a_transformer_encoder_is_read_through():
    layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 2))
    report = found(model, draws(9, 4, 3))
    layers = {(s.name, s.units) for s in report.symmetries}
    assert {("permutations of units", 8), ("permutations of units", 6)} <= layers
    assert ("permutations of heads", 2) in layers


class Shared(nn.Module):
    """One layer used twice, on the data and on its own output."""

    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Functional(nn.Module):
    """The same network as an MLP, written with functions and transposes."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 6))
        self.b = nn.Parameter(torch.zeros(6))
        self.v = nn.Parameter(torch.zeros(3, 6))

    def forward(self, x):
        return torch.tanh(x @ self.w + self.b) @ self.v.T


class Dependent(nn.Module):
    """Units that are told apart by a constant vector."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) * self.scale)


def test_shared_weights_bind_the_units_to_the_data():
    assert found(Shared(), draws(9, 5)).symmetries == ()


def test_functions_are_read_like_modules():
    report = found(Functional(), draws(9, 4))
    assert report.log_order == pytest.approx(log_factorial(6) + 6 * LOG2)


def test_units_that_a_constant_tells_apart_are_left_alone():
    report = found(Dependent(), draws(9, 4))
    assert report.symmetries == ()
    assert any("other origin" in note for note in report.notes)


class Disguised(nn.Module):
    """A function of the parameters' values that the graph cannot see."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.last(hidden) + self.first.bias.tolist()[0]


def test_what_is_claimed_wrongly_is_refuted():
    report = found(Disguised(), draws(9, 4))
    assert report.symmetries == ()
    assert sum("left out" in note for note in report.notes) == 2


def test_a_model_that_fails_gives_a_reason_and_nothing_else():
    def fails(_):
        raise RuntimeError("no data")

    graph = read_graph(nn.Linear(2, 2), fails)
    assert graph.maps == ()
    assert "RuntimeError: no data" in graph.notes[0]
    assert "tuple" in read_graph(nn.Linear(2, 2), lambda m: (1,)).notes[0]


def test_frozen_and_unselected_parameters_do_not_move():
    model = mlp(5, 6, 4, 3, activation=nn.Tanh)
    x = draws(20, 5)
    names = [name for name, _ in model.named_parameters() if not name.startswith("4")]
    report = found(model, x, names=names)
    assert {s.layer for s in report.symmetries} == {"0"}
    assert any("'4.weight', which is not selected" in note for note in report.notes)
    model[2].weight.requires_grad_(False)
    data = (x, draws(20, 3))
    report = discrete_of_risk(
        Risk(Task(model=model, data=data, criterion="mse"), materialise(data))
    )
    assert report.symmetries == ()


def test_elements_are_drawn_again_and_the_model_stays_as_it_was():
    model = generic(mlp(5, 6, 3, activation=nn.Tanh))
    x = draws(20, 5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, again = (discrete_symmetries(model, lambda m: m(x)) for _ in range(2))
    assert [s.change for s in first.symmetries] == [s.change for s in again.symmetries]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    generator = torch.Generator().manual_seed(0)
    moved = first.symmetries[0].apply(before, generator)
    assert set(moved) == {"0.weight", "0.bias", "2.weight"}
    assert not torch.equal(moved["0.weight"], before["0.weight"])
    with torch.no_grad():
        outputs = torch.func.functional_call(model, {**before, **moved}, (x,))
        assert (outputs - model(x)).abs().max() < 1e-13


def test_float32_models_are_checked_in_float64():
    model = mlp(5, 6, 3, activation=nn.Tanh).float()
    data = (draws(20, 5).float(), draws(20, 3).float())
    task = Task(model=model, data=data, criterion="mse")
    report = discrete_of_risk(Risk(task, materialise(data), dtype=torch.float32))
    assert report.log_order == pytest.approx(log_factorial(6) + 6 * LOG2)
    assert next(task.model.parameters()).dtype == torch.float32


class Reshaped(nn.Module):
    """Channels that are flattened, transposed and put back."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 4, 3), nn.Linear(4 * 6, 3)

    def forward(self, x):
        y = functional.relu(self.first(x)).transpose(1, 2).unsqueeze(0)[0].permute(0, 2, 1)
        return self.last(y.reshape(len(x), 2, 2, 6).view(len(x), 4, 6).flatten(1))


def test_units_split_over_two_dimensions_are_left_alone():
    report = found(Reshaped(), draws(7, 2, 8))
    assert report.symmetries == ()
    assert any("split over several dimensions" in note for note in report.notes)


class Tacit(fc.GroupedAttention):
    """Attention whose number of heads goes by another name."""

    def __init__(self, name):
        super().__init__(8, 2, 2, 4)
        setattr(self, name, self.num_heads)
        del self.num_heads

    def forward(self, x):
        self.num_heads = 2
        try:
            return super().forward(x)
        finally:
            del self.num_heads


@pytest.mark.parametrize(("name", "known"), [("h", False), ("n_heads", True)])
def test_attention_that_does_not_say_its_heads_is_named(name, known):
    x = draws(5, 3, 8)
    graph = read_graph(nn.Sequential(Tacit(name)).double(), lambda m: m(x))
    assert any("0 looks like attention" in note for note in graph.notes) == (not known)
    assert (len(graph.attentions) == 1) == known
