"""The network and the data, for training and for the task alike."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn


def tumours(split: str) -> tuple[Tensor, Tensor]:
    """Measurements (N, 30), standardised on the training part, and benign or not (N, 1)."""
    raw = load_breast_cancer()
    inputs, labels = torch.as_tensor(raw.data), torch.as_tensor(raw.target, dtype=torch.float32)
    train = torch.arange(len(labels)) % 5 != 0
    std, mean = torch.std_mean(inputs[train], dim=0, correction=0)
    chosen = train if split == "train" else ~train
    return ((inputs - mean) / std)[chosen].float(), labels[chosen, None]


class Network(nn.Module):
    """Two hidden layers and a logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(30, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, 1)."""
        logits: Tensor = self.head(self.hidden(inputs))
        return logits
