"""The task: what a checkpoint of this network leaves out."""

from network import Network, tumours

from landscape import Task


def build(width: int = 8, split: str = "train") -> Task:
    """Cross-entropy of benign or malignant."""
    return Task(model=Network(width), data=tumours(split), criterion="binary_cross_entropy")
