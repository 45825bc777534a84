"""Small networks to compare: others, permuted copies, and a digest of what they are."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn

from landscape import Task
from landscape.data import materialise
from landscape.risk import Risk

X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(20) % 3


def network(seed=1, hidden=6):
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, 3),
    )
    return model.double()


def risk_of(model, *, targets=LABELS, criterion="cross_entropy", batch_size=8):
    task = Task(model=model, data=(X, targets), criterion=criterion)
    return Risk(task, materialise(task.data), batch_size=batch_size)


def digest(model):
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def permuted(model, seed=3):
    """A copy whose hidden units are in another order."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for first, second in ((0, 2), (2, 4)):
            order = torch.randperm(6, generator=generator)
            found[first].weight.copy_(found[first].weight[order])
            found[first].bias.copy_(found[first].bias[order])
            found[second].weight.copy_(found[second].weight[:, order])
    return found
