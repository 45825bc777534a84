"""A task file: all that a measurement needs to know about a network besides its weights.

Copy this file, put your own architecture and data in, and name it on the command line:

    landscape check my_model.pt --task my_task.py

The file is ordinary Python and runs when it is named, never otherwise.
"""

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from landscape import Task


class MyModel(nn.Module):
    """The architecture. Its parameters' names and shapes must match the checkpoint's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(13, width)
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 3) for standardised measurements (N, 13)."""
        # A smooth activation: the Hessian of a ReLU network misses what happens at the kinks.
        hidden = torch.tanh(self.embed(x))
        hidden = hidden + torch.tanh(self.block(hidden))
        logits: Tensor = self.head(hidden)
        return logits


def my_data() -> TensorDataset:
    """The examples that the loss averages over, in a fixed order: here all 178 wines."""
    raw = load_wine()
    x = torch.as_tensor(raw.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    return TensorDataset(x, torch.as_tensor(raw.target, dtype=torch.int64))


def build(width: int = 32) -> Task:
    """Return the task. The arguments are what ``--set width=64`` sets on the command line."""
    return Task(
        model=MyModel(width),  # Any weights will do: the checkpoint's replace them.
        data=my_data(),  # Or a DataLoader without shuffling, a tuple of tensors, a list of batches.
        criterion="cross_entropy",  # Or "mse", "binary_cross_entropy", a landscape.Criterion.
        # forward=lambda model, batch: model(batch[0]) is the default.
    )
