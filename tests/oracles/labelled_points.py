"""Few labelled points and a small classifier, with dense float64 matrices of its loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from landscape import Task
from landscape.data import materialise
from landscape.information.options import InformationOptions
from landscape.risk import Risk

N = 14
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(N) % 3


def network(seed=1, hidden=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    return model.double()


def task_of(model=None, inputs=X, targets=LABELS, criterion="cross_entropy"):
    return Task(
        model=network() if model is None else model, data=(inputs, targets), criterion=criterion
    )


def risk_of(task=None, *, loss="task", batch_size=5):
    task = task_of() if task is None else task
    return Risk(task, materialise(task.data), batch_size=batch_size, loss=loss)


def dense_parts(risk, inputs=X, targets=LABELS):
    """Gradients of single examples, H and the GGN by torch.func, for cross-entropy."""
    names = risk.space.names
    start = risk.space.vector()

    def outputs(vector):
        parts = dict(zip(names, risk.space.split(vector), strict=True))
        return functional_call(risk.model, parts, (inputs,))

    def losses(vector):
        return nn.functional.cross_entropy(outputs(vector), targets, reduction="none")

    gradients = jacrev(losses)(start)
    h = hessian(lambda vector: losses(vector).mean())(start)
    jacobian = jacrev(outputs)(start)
    p = outputs(start).softmax(1).detach()
    c = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    ggn = torch.einsum("nki,nkl,nlj->ij", jacobian, c, jacobian) / len(inputs)
    return gradients.detach(), h.detach(), ggn.detach()


def mean(outputs, batch):
    return outputs.mean()


def probes(count, **options):
    return InformationOptions(method="probes", probes=count, **options)
