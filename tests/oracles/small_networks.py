"""Small networks for excess losses, some of which vmap does not get right or at all."""

from __future__ import annotations

import torch
from torch import nn

from landscape.data import materialise
from landscape.risk import Risk
from landscape.task import Task


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


LABELS = torch.randint(3, (24,), generator=torch.Generator().manual_seed(2))


def make(module, inputs, targets=LABELS, criterion="cross_entropy", loss="task", **options):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = module()
    forward = {"forward": options.pop("forward")} if "forward" in options else {}
    task = Task(model=model, data=(inputs, targets), criterion=criterion, **forward)
    return Risk(task, materialise(task.data), loss=loss, **{"batch_size": 10, **options})


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def points_about(risk, count=6, scale=0.1, seed=3):
    return risk.space.vector().double() + scale * draw(count, risk.n, seed=seed)


def batch_normed():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    net[1].running_mean.fill_(0.3)
    net[1].running_var.fill_(2.0)
    return net


class Branching(nn.Module):
    """Control flow that depends on the parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        outputs = self.linear(x)
        return outputs.tanh() if outputs.sum() > 0 else outputs


class InPlace(nn.Module):
    """Writes into a tensor that does not depend on the parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        outputs = torch.zeros(len(x), 3, dtype=x.dtype)
        outputs += self.linear(x)
        return outputs


class Captured:
    """A forward function that keeps the parameters' own tensors: vmap sees no change at all."""

    def __init__(self):
        self.weights = None

    def __call__(self, model, batch):
        if self.weights is None:
            self.weights = list(model.parameters())
        first, bias, second, shift = self.weights
        return torch.tanh(batch[0] @ first.T + bias) @ second.T + shift
