"""Fisher matrices, the residual, diagonal blocks, and the algebra of operators."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional

from landscape.criteria import Criterion
from landscape.data import materialise
from landscape.errors import UsageError
from landscape.jacobian_products import FisherProduct
from landscape.operators import (
    Combination,
    CurvatureOperator,
    DenseOperator,
    Restricted,
    Shifted,
    Whitened,
    curvature,
)
from landscape.risk import Risk
from landscape.task import Task


def symmetric(n, seed=0):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def draws(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_empirical_fisher_is_the_mean_outer_product(name):
    risk = networks.risk(name)
    inputs, targets = networks.whole_batch(risk)
    f = networks.outputs_of(risk)

    def losses(vector):
        return functional.cross_entropy(f(vector), targets, reduction="none")

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = jacrev(losses)(risk.space.vector())
    expected = gradients.T @ gradients / len(inputs)
    found = curvature("empirical-fisher", risk).dense()
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_residual_is_the_difference_and_vanishes_for_behaviour(name):
    risk = networks.risk(name)
    expected = networks.dense_hessian(risk) - networks.dense_ggn(risk)
    vector = draws(risk.n)
    found = curvature("residual", risk) @ vector
    assert (found - expected @ vector).abs().max() < 1e-11
    behaviour = networks.risk(name, loss="behaviour")
    assert (curvature("residual", behaviour) @ vector).abs().max() < 1e-12


def test_fisher_is_the_ggn_for_exponential_families():
    risk = networks.risk("digits-mlp")
    vector = draws(risk.n)
    assert torch.equal(curvature("fisher", risk) @ vector, curvature("ggn", risk) @ vector)


class Categorical(Criterion):
    """Cross-entropy written by a user, with a law to draw labels from."""

    name = "mine"

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch[1])

    def sample(self, outputs, batch, generator):
        drawn = torch.multinomial(outputs.softmax(-1).cpu(), 1, generator=generator)[:, 0]
        return (batch[0], drawn)


def test_monte_carlo_fisher_converges_to_the_ggn():
    data = (draws(40, 4), torch.arange(40) % 3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(draws(*parameter.shape, seed=index))
    risk = Risk(Task(model=model, data=data, criterion=Categorical()), materialise(data))
    exact = curvature("ggn", risk).dense()
    errors = []
    for samples in (25, 400):
        found = CurvatureOperator(FisherProduct(risk, samples=samples, seed=1), "fisher").dense()
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.05
    # The error falls as the root of the number of draws.
    assert 2 < errors[0] / errors[1] < 8
    once, again = (curvature("fisher", risk, seed=4).dense() for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, curvature("fisher", risk, seed=5).dense())


def test_fisher_needs_a_law():
    data = (draws(6, 4), draws(6, 2))
    task = Task(model=nn.Linear(4, 2), data=data, criterion=lambda f, b: (f - b[1]).square().mean())
    with pytest.raises(UsageError, match="sample"):
        curvature("fisher", Risk(task, materialise(data)))


def test_empirical_fisher_of_the_behaviour_is_refused():
    with pytest.raises(UsageError, match="zero"):
        curvature("empirical-fisher", networks.risk("digits-mlp", loss="behaviour"))


def test_tokens_are_terms_of_the_empirical_fisher():
    inputs = draws(5, 3, 4)
    targets = torch.arange(15).reshape(5, 3) % 2
    targets[1, 2] = -100
    model = nn.Linear(4, 2).double()
    task = Task(model=model, data=(inputs, targets), criterion="cross_entropy")
    risk = Risk(task, materialise(task.data), batch_size=2)

    def losses(vector):
        named = dict(zip(risk.space.names, risk.space.split(vector), strict=True))
        rows = functional_call(model, named, (inputs,)).reshape(-1, 2)
        return functional.cross_entropy(rows, targets.reshape(-1), reduction="none")

    gradients = jacrev(losses)(risk.space.vector())
    expected = gradients.T @ gradients / 14
    found = curvature("empirical-fisher", risk).dense()
    assert (found - expected).abs().max() < 1e-14


class Scaled(nn.Module):
    """Logits times one number, a parameter of no axes, as temperatures are."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.scale * self.linear(x)


def test_a_parameter_of_no_axes():
    inputs, targets = draws(6, 4), torch.arange(6) % 3
    model = Scaled().double()
    task = Task(model=model, data=(inputs, targets), criterion="cross_entropy")
    risk = Risk(task, materialise(task.data))

    def loss(vector):
        named = {"scale": vector[0], "linear.weight": vector[1:13].reshape(3, 4)}
        named["linear.bias"] = vector[13:]
        return functional.cross_entropy(functional_call(model, named, (inputs,)), targets)

    expected = hessian(loss)(risk.space.vector())
    operator = curvature("hessian", risk)
    assert (operator.dense() - expected).abs().max() < 1e-14
    vector = draws(16)
    assert (operator @ vector - expected @ vector).abs().max() < 1e-13
    scale, weight, bias = risk.space.split(vector)
    assert scale.item() == vector[0].item()
    assert [scale.shape, weight.shape, bias.shape] == [(), (3, 4), (3,)]


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher", "residual"])
@pytest.mark.parametrize("batch", [None, 30])
def test_blocks_are_the_diagonal_blocks(operator, batch):
    risk = networks.risk("digits-mlp", batch=batch)
    whole = curvature(operator, risk)
    matrix = whole.dense()
    offsets = torch.tensor([0, *risk.space.sizes]).cumsum(0)
    for positions in ([0], [1, 2], [0, 5], [3]):
        index = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i in positions])
        block = whole.block(positions)
        assert block.n == len(index)
        expected = matrix[index][:, index]
        assert (block.dense() - expected).abs().max() < 1e-12
        vector = draws(block.n)
        assert (block @ vector - expected @ vector).abs().max() < 1e-11


def test_relu_block_of_a_linear_output_is_zero():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    data = (draws(9, 4), draws(9, 2))
    risk = Risk(Task(model=model, data=data, criterion="mse"), materialise(data))
    block = curvature("residual", risk).block([0])
    assert block.dense().abs().max() < 1e-15


@pytest.mark.parametrize("n", [1, 2, 9])
def test_algebra(n):
    a, b, d = symmetric(n), symmetric(n, 1), draws(n).abs() + 0.1
    A, B = DenseOperator(a), DenseOperator(b)
    index = torch.arange(n)[:: 2 if n > 1 else 1]
    cases = {
        "sum": (Combination([(2.0, A), (-0.5, B)]), 2 * a - 0.5 * b),
        "shift": (Shifted(A, 0.3), a + 0.3 * torch.eye(n, dtype=a.dtype)),
        "whiten": (Whitened(A, d), d[:, None] * a * d),
        "restrict": (Restricted(A, index), a[index][:, index]),
        "composed": (
            Shifted(Whitened(Combination([(1.0, A), (1.0, B)]), d), 1.0),
            d[:, None] * (a + b) * d + torch.eye(n),
        ),
    }
    for operator, expected in cases.values():
        vector, rows = draws(operator.n), draws(4, operator.n)
        assert (operator @ vector - expected @ vector).abs().max() < 1e-12
        assert (operator.rows(rows) - rows @ expected).abs().max() < 1e-12
        assert (operator @ rows.T - expected @ rows.T).abs().max() < 1e-12
        assert (operator.dense() - expected).abs().max() < 1e-12
        assert operator.n_matvecs == 1 + 4 + 4 + operator.n


def test_sizes_that_do_not_fit():
    with pytest.raises(UsageError):
        Combination([(1.0, DenseOperator(symmetric(3))), (1.0, DenseOperator(symmetric(4)))])
    with pytest.raises(UsageError):
        Whitened(DenseOperator(symmetric(3)), torch.ones(4))
