"""Whether a task can be measured: deterministic, smooth, twice differentiable; and its cost."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.criteria import batch_length
from landscape.operators import CurvatureOperator
from landscape.products import HessianProduct, MemoryPlan, graph_nodes
from landscape.risk import Risk, batch_tensors
from landscape.rng import normal, stream

__all__ = ["CheckReport", "check_risk", "non_smooth_functions"]

# Nodes of the autograd graph whose first derivative jumps, by the start of their name.
_NON_SMOOTH = {
    "ReluBackward": "relu",
    "LeakyReluBackward": "leaky_relu",
    "PreluKernelBackward": "prelu",
    "RreluWithNoiseBackward": "rrelu",
    "HardtanhBackward": "hardtanh / relu6",
    "HardsigmoidBackward": "hardsigmoid",
    "HardswishBackward": "hardswish",
    "ThresholdBackward": "threshold",
    "SoftshrinkBackward": "softshrink",
    "HardshrinkBackward": "hardshrink",
    "EluBackward": "elu (second derivative jumps)",
    "MaxPool": "max pooling",
    "AdaptiveMaxPool": "max pooling",
    "AbsBackward": "abs",
    "ClampBackward": "clamp",
    "ClampMinBackward": "clamp",
    "ClampMaxBackward": "clamp",
    "MaximumBackward": "maximum",
    "MinimumBackward": "minimum",
    "AmaxBackward": "amax",
    "MaxBackward": "max",
    "SignBackward": "sign",
    "RoundBackward": "round",
    "SmoothL1LossBackward": "smooth_l1_loss",
    "HuberLossBackward": "huber_loss",
}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What ``landscape check`` found.

    Attributes:
        loss: the loss at the anchor; both evaluations agreed.
        gradient_norm: Euclidean norm of the gradient.
        asymmetry: largest ``|u^T A v - v^T A u| / (|u| |A v|)`` over random pairs.
        rounding: what that may be in this precision.
        non_smooth: functions whose derivative jumps, found in the graph of the loss.
        forward_seconds: one evaluation of the loss.
        gradient_seconds: one gradient.
        build_seconds: the first product: the graphs are built.
        product_seconds: one later product.
        plan: memory of the kept gradient graphs.
        rebuilt: micro-batches whose graph is rebuilt for every product.
        batch: examples of the first micro-batch.
        data_bytes: the examples.
    """

    n_parameters: int
    n_examples: int
    n_batches: int
    loss: float
    gradient_norm: float
    asymmetry: float
    rounding: float
    non_smooth: tuple[str, ...]
    forward_seconds: float
    gradient_seconds: float
    build_seconds: float
    product_seconds: float
    plan: MemoryPlan
    batch: int
    data_bytes: int

    @property
    def symmetric(self) -> bool:
        """Whether the products are symmetric up to rounding."""
        return self.asymmetry <= self.rounding

    @property
    def rebuilt(self) -> int:
        """Micro-batches beyond the memory budget."""
        return self.plan.n_batches - self.plan.n_kept


def non_smooth_functions(loss: Tensor) -> tuple[str, ...]:
    """Names of non-smooth functions in a loss's autograd graph, functional uses included."""
    found = {
        label
        for node in graph_nodes([loss])
        for prefix, label in _NON_SMOOTH.items()
        if type(node).__name__.startswith(prefix)
    }
    return tuple(sorted(found))


def check_risk(risk: Risk, *, seed: int = 0, graph_memory: int | None = None) -> CheckReport:
    """Run the checks at the anchor.

    Args:
        risk: the loss at the anchor.
        seed: seed of the random vectors.
        graph_memory: bytes for kept graphs.

    Raises:
        TaskError: the loss is not deterministic, or not differentiable twice.
        NotFiniteError: the loss, the gradient or a product is not finite.

    Cost: three forward passes, one gradient, six products.
    """
    started = time.perf_counter()
    loss = risk.require_deterministic()
    forward = (time.perf_counter() - started) / 2
    started = time.perf_counter()
    gradient = risk.gradient()
    gradient_seconds = time.perf_counter() - started
    operator = CurvatureOperator(HessianProduct(risk, graph_memory=graph_memory), "hessian")
    plan = operator.product.plan
    like = torch.empty(0, dtype=risk.dtype, device=risk.device)
    vectors = [normal(risk.n, stream(seed, "check", i), like=like) for i in range(4)]
    started = time.perf_counter()
    products = [operator.matvec(vectors[0])]
    build = time.perf_counter() - started
    started = time.perf_counter()
    products += [operator.matvec(v) for v in vectors[1:]]
    _ = float(products[-1][0])  # Wait for a device to finish.
    product = (time.perf_counter() - started) / 3
    asymmetry = max(
        _asymmetry(vectors[i], products[i], vectors[i + 1], products[i + 1]) for i in (0, 2)
    )
    operator.release()
    return CheckReport(
        n_parameters=risk.n,
        n_examples=risk.data.n_examples,
        n_batches=risk.n_batches,
        loss=loss,
        gradient_norm=float(torch.linalg.vector_norm(gradient.double())),
        asymmetry=asymmetry,
        rounding=_rounding(operator),
        non_smooth=non_smooth_functions(risk.batch_loss(0)),
        forward_seconds=forward,
        gradient_seconds=gradient_seconds,
        build_seconds=build,
        product_seconds=product,
        plan=plan,
        batch=batch_length(risk.batch(0)),
        data_bytes=sum(
            t.numel() * t.element_size()
            for i in range(risk.n_batches)
            for t in batch_tensors(risk.batch(i))
        ),
    )


def _asymmetry(u: Tensor, Au: Tensor, v: Tensor, Av: Tensor) -> float:
    u, v, Au, Av = u.double(), v.double(), Au.double(), Av.double()
    scale = float(torch.linalg.vector_norm(u) * torch.linalg.vector_norm(Av))
    return abs(float(u @ Av - v @ Au)) / scale if scale > 0 else 0.0


def _rounding(operator: CurvatureOperator) -> float:
    return 100 * torch.finfo(operator.dtype).eps
