"""Train the network of my_task.py and save its weights: ``python examples/train_my_model.py``.

Stands for your own training script. All that a measurement needs from it is a file of weights.
"""

import argparse

import torch
from my_task import MyModel, my_data
from torch.nn import functional


def main() -> None:
    """Train by full-batch Adam, in about a second."""
    parser = argparse.ArgumentParser(description="Train the network of my_task.py.")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="my_model.pt")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = MyModel(options.width)
    x, y = my_data().tensors
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(options.steps):
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    # The bare state dict. {"model": model.state_dict(), "step": 300, ...} is understood as well.
    torch.save(model.state_dict(), options.out)
    print(f"{options.out}: training loss {loss.item():.4f} after {options.steps} steps")


if __name__ == "__main__":
    main()
