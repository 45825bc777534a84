"""Oracle networks: small trained-like problems with explicitly built curvature in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.data import materialise
from landscape.risk import Risk
from landscape.task import Task, resolve_task

NETWORKS: dict[str, dict[str, Any]] = {
    "digits-mlp": {"width": 8, "depth": 2},
    "digits-cnn": {"channels": 4},
    "modular-addition": {"p": 11, "d_model": 8, "heads": 2, "d_mlp": 8},
}
# Size of the first micro-batch and number of examples.
UNEQUAL = {"digits-mlp": (100, 137), "digits-cnn": (50, 81), "modular-addition": (40, 57)}


def build(name: str, *, seed: int = 0) -> Task:
    """A built-in task, a few optimiser steps away from its initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # Layers draw their weights from the global generator.
        task = resolve_task(name, NETWORKS[name]).task
    model = task.model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = task.data[0][:256], task.data[1][:256]
    for _ in range(30):
        optimiser.zero_grad()
        outputs = task.forward(model, (inputs, targets))
        task.resolved_criterion.loss(outputs, (inputs, targets)).backward()
        optimiser.step()
    return task


def risk(
    name: str,
    *,
    dtype: torch.dtype = torch.float64,
    batch: int | None = None,
    loss: Any = "task",
) -> Risk:
    """The risk of an oracle network on the first examples, in unequal micro-batches by default."""
    task = build(name)
    first, total = UNEQUAL[name]
    inputs, targets = (tensor[:total] for tensor in task.data)
    parts = [(inputs[:first], targets[:first]), (inputs[first:], targets[first:])]
    data = materialise(parts if batch is None else (inputs, targets))
    return Risk(task, data, dtype=dtype, batch_size=batch, loss=loss)


def whole_batch(risk: Risk) -> tuple[Tensor, Tensor]:
    """All examples of a risk as one batch."""
    parts = [risk.batch(i) for i in range(risk.n_batches)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def outputs_of(risk: Risk) -> Callable[[Tensor], Tensor]:
    """The network's outputs on all examples as a function of the flat parameter vector."""
    inputs, targets = whole_batch(risk)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = risk.model

        def forward(self, x: Tensor) -> Tensor:
            return risk.task.forward(self.inner, (x, targets))

    wrapped = Wrapped()

    def f(vector: Tensor) -> Tensor:
        named = {
            f"inner.{n}": p for n, p in zip(risk.space.names, risk.space.split(vector), strict=True)
        }
        return functional_call(wrapped, named, (inputs,))

    return f


def dense_hessian(risk: Risk) -> Tensor:
    """Hessian of the mean cross-entropy by reverse over reverse through torch.func."""
    f, (_, targets) = outputs_of(risk), whole_batch(risk)

    def loss(vector: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(f(vector), targets)

    with sdpa_kernel(SDPBackend.MATH):
        return jacrev(grad(loss), chunk_size=64)(risk.space.vector())


def dense_ggn(risk: Risk) -> Tensor:
    """GGN of the mean cross-entropy from the explicit Jacobian and ``diag(p) - p p^T``."""
    f = outputs_of(risk)
    vector = risk.space.vector()
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = jacrev(f, chunk_size=256)(vector)
    p = torch.softmax(f(vector), -1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    n = jacobian.shape[-1]
    left = torch.einsum("nip,nij->njp", jacobian, curvature)
    return left.reshape(-1, n).T @ jacobian.reshape(-1, n) / len(p)
