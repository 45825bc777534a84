"""The compiled Hessian product against the eager one, on every layer that is known for trouble.

Most cases run the recorded graph as it is, without the compiler, which takes seconds a network;
the slow ones compile it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape import compiled, recording
from landscape.compiled import CompiledHessianProduct
from landscape.data import materialise
from landscape.errors import NotFiniteError, TaskError
from landscape.operators import CurvatureOperator
from landscape.products import HessianProduct
from landscape.risk import Risk
from landscape.task import Task


class Block(nn.Module):
    """A pre-norm attention block on token embeddings; the output weights are tied to them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        query, key, value = (
            part.unflatten(-1, (2, 4)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(-2)
        return self.head(x + self.mlp(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def convolutions(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        norm,
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5))


def mean_square(outputs: Tensor, batch: Any) -> Tensor:
    return functional.mse_loss(outputs, functional.one_hot(batch[1], 5).to(outputs))


def classes(*shape: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda n: (torch.randn(n, *shape), torch.randint(0, 5, (n,)))


def tokens(n: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, 7, (n, 6))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], Any]] = {
    "mlp": (mlp, classes(3), "cross_entropy"),
    "mse_loss": (mlp, classes(3), mean_square),
    "attention, LayerNorm, embedding, tied": (Block, tokens, "cross_entropy"),
    "GroupNorm": (lambda: convolutions(nn.GroupNorm(2, 4)), classes(3, 8, 8), "cross_entropy"),
    "BatchNorm": (lambda: convolutions(nn.BatchNorm2d(4)), classes(3, 8, 8), "cross_entropy"),
    "LSTM": (Recurrent, classes(2, 3), "cross_entropy"),
}
DTYPES = [torch.float64, torch.float32]


def make(
    name: str = "mlp", sizes: tuple[int, ...] = (6, 6, 3), dtype: torch.dtype = torch.float64
) -> Risk:
    build, draw, criterion = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batches = [draw(size) for size in sizes]
        task = Task(model=build(), data=batches, criterion=criterion)
    return Risk(task, materialise(batches), dtype=dtype)


def vector_for(risk: Risk, *lead: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*lead, risk.n, generator=generator, dtype=torch.float64).to(risk.dtype)


def assert_equal(product: CompiledHessianProduct, risk: Risk) -> None:
    vector, rows = vector_for(risk), vector_for(risk, 3)
    eager = HessianProduct(risk)
    allowed = 100 * torch.finfo(risk.dtype).eps
    first = product.matvec(vector)
    assert product.fallback is None
    expected = eager.matvec(vector)
    assert (first - expected).norm() < allowed * expected.norm()
    assert torch.equal(first, product.matvec(vector))
    expected = eager.rows(rows)
    assert (product.rows(rows) - expected).norm() < allowed * expected.norm()
    assert product.n_products == 5


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch):
    monkeypatch.setattr(compiled, "_PROGRAMS", {})


@pytest.fixture
def recorded(monkeypatch):
    """Run recorded graphs without the compiler; the list of the graphs."""
    graphs: list[torch.fx.Graph] = []

    def run_as_it_is(graph: torch.fx.Graph, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return torch.fx.GraphModule(nn.Module(), graph)

    monkeypatch.setattr(compiled, "compile_graph", run_as_it_is)
    return graphs


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_product_equals_the_eager_one(name, recorded):
    risk = make(name, (4, 3) if name == "mlp" else (3,), torch.float32)
    assert_equal(CompiledHessianProduct(risk), risk)


def test_equal_shapes_and_later_checkpoints_share_programs(recorded):
    risk = make()
    assert_equal(CompiledHessianProduct(risk), risk)
    assert len(recorded) == 2
    other = make()
    with torch.no_grad():
        for parameter in other.space.parameters:
            parameter.add_(0.1)
    assert_equal(CompiledHessianProduct(other), other)
    assert len(recorded) == 2


def test_the_compiled_product_equals_the_eager_one_and_leaves_no_trace(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    flags = (
        torch.get_num_threads(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
    )
    risk = make("mlp", (6,), torch.float32)
    product = CompiledHessianProduct(risk)
    product.prepare()
    assert product.seconds > 0
    assert_equal(product, risk)
    assert torch.equal(state, torch.get_rng_state())
    assert flags == (
        torch.get_num_threads(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_case_compiles(name, dtype):
    risk = make(name, dtype=dtype)
    assert_equal(CompiledHessianProduct(risk), risk)


def test_the_operator_equals_the_dense_matrix(recorded):
    risk = networks.risk("digits-mlp")
    op = CurvatureOperator(CompiledHessianProduct(risk), "hessian")
    expected = networks.dense_hessian(risk)
    assert (op.dense() - expected).norm() < 1e-12 * expected.norm()
    assert op.product.fallback is None
    vector = vector_for(risk)[: risk.space.sizes[0]]
    block = op.block([0])
    assert torch.allclose(block.matvec(vector), expected[: block.n, : block.n] @ vector)
    op.release()
    whole = vector_for(risk)
    assert torch.allclose(op.matvec(whole), expected @ whole)
    assert op.product.fallback is None
    assert len(recorded) == 2


def test_blocks_and_the_whole_matrix_share_the_budget(recorded):
    risk = make()
    product = CompiledHessianProduct(risk)
    product.prepare()
    assert not product._kept
    tight = CompiledHessianProduct(risk, graph_memory=product._bytes + product.plan.graph_bytes)
    tight.prepare()
    vector = vector_for(risk)
    part = vector[: risk.space.sizes[0]]
    expected = HessianProduct(risk).matvec(part, [0])
    assert torch.allclose(tight.matvec(part, [0]), expected)
    assert len(tight._kept) == 1
    assert tight.fallback is None


def test_a_linear_loss_has_a_zero_product(recorded):
    risk = make()
    task = Task(model=nn.Linear(3, 1), data=risk.data, criterion=lambda outputs, _: outputs.mean())
    risk = Risk(task, risk.data)
    product = CompiledHessianProduct(risk)
    assert product.matvec(vector_for(risk)).abs().max() == 0
    assert product.fallback is None
    assert not recorded


def fall_back(risk: Risk, reason: str, **options: Any) -> None:
    product = CompiledHessianProduct(risk, **options)
    product.prepare()
    assert product.fallback is not None
    assert reason in product.fallback
    assert "\n" not in product.fallback
    vector, rows = vector_for(risk), vector_for(risk, 2)
    eager = HessianProduct(risk, **options)
    assert torch.equal(product.matvec(vector), eager.matvec(vector))
    assert torch.equal(product.rows(rows), eager.rows(rows))


def test_a_wrong_program_is_caught(monkeypatch):
    def wrong(graph: torch.fx.Graph, inputs: Any) -> Callable[..., Any]:
        module = torch.fx.GraphModule(nn.Module(), graph)

        def program(*arguments: Tensor) -> tuple[Tensor]:
            result = module(*arguments)[0].clone()
            result[-1] *= 1.01  # One coordinate of the last bias.
            return (result,)

        return program

    monkeypatch.setattr(compiled, "compile_graph", wrong)
    for dtype in DTYPES:
        fall_back(make(dtype=dtype), "differs from the eager one by")
    assert not compiled._PROGRAMS


def test_a_program_without_numbers_is_caught(monkeypatch):
    nothing = torch.full((make().n,), torch.nan, dtype=torch.float64)
    monkeypatch.setattr(compiled, "compile_graph", lambda *_: lambda *_: (nothing,))
    fall_back(make(), "differs from the eager one by nan")


def test_a_missing_compiler_leads_to_the_eager_product(monkeypatch):
    # The compiler is looked up anew where nothing is in the cache.
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    with fresh_cache(), config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        fall_back(make(sizes=(4,)), "compiler")


def test_a_failing_compiler_leads_to_the_eager_product(monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("\nthe first line\nthe second")

    monkeypatch.setattr(compiled, "compile_graph", fail)
    fall_back(make(), "RuntimeError: the first line")


def test_ragged_micro_batches_lead_to_the_eager_product(recorded):
    fall_back(make(sizes=(1, 2, 3, 4, 5)), "the micro-batches have 5 different shapes")
    assert not recorded


def test_a_small_graph_memory_leads_to_the_eager_product(recorded):
    fall_back(make(), "more than the graph memory allows", graph_memory=1000)
    assert not recorded


def test_a_backward_pass_that_loses_the_vector_is_caught(recorded):
    class Hidden(torch.autograd.Function):
        """An identity whose backward pass leaves torch."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return Hidden.apply(grad) if grad.requires_grad else torch.tensor(grad.tolist())

    risk = make("mlp")
    risk.model.insert(1, type("Layer", (nn.Module,), {"forward": lambda _, x: Hidden.apply(x)})())
    product = CompiledHessianProduct(risk)
    product.prepare()
    assert product.fallback is not None


def test_changed_parameters_are_refused(recorded):
    risk = make()
    product = CompiledHessianProduct(risk)
    product.prepare()
    risk.space.assign(risk.space.vector() + 1)
    with pytest.raises(TaskError, match="the parameters changed"):
        product.matvec(vector_for(risk))


def test_products_that_are_not_finite_are_refused_as_ever(recorded):
    risk = make()
    with torch.no_grad():
        risk.space.parameters[0].fill_(torch.nan)
    op = CurvatureOperator(CompiledHessianProduct(risk), "hessian")
    with pytest.raises(NotFiniteError):
        op.matvec(vector_for(risk))


def test_random_operations_are_not_compiled():
    graph = torch.fx.Graph()
    v = graph.placeholder("v")
    graph.output(graph.call_function(torch.ops.aten.bernoulli.default, (v,)))
    with pytest.raises(recording.NotCompiledError, match="random"):
        recording._fold(torch.fx.GraphModule(nn.Module(), graph), [])
