"""The task: the module itself is the network, and its forward pass the outputs."""

from module import Classifier, digits

from landscape import Task


def build(width: int = 8) -> Task:
    """Cross-entropy of the digits."""
    return Task(model=Classifier(width), data=digits(), criterion="cross_entropy")
