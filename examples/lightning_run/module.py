"""A Lightning module: the network and how it is trained."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional


def digits() -> tuple[Tensor, Tensor]:
    """Images (N, 64) in [0, 1] and classes (N,)."""
    raw = load_digits()
    return torch.as_tensor(raw.data / 16, dtype=torch.float32), torch.as_tensor(raw.target)


class Classifier(lightning.LightningModule):
    """A perceptron on the digits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Cross-entropy of a batch."""
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)
