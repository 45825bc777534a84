"""Train the network of network.py and save a checkpoint every so often, optimiser included.

python examples/own_mlp/train.py
"""

import argparse
from pathlib import Path

import torch
from network import Network, tumours
from torch.nn import functional


def main() -> None:
    """Write ``own_mlp/step_000010.pt`` and so on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("own_mlp"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    inputs, labels = tumours("train")
    model = Network(options.width)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, 301):
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(inputs), labels)
        loss.backward()
        optimiser.step()
        if step in (10, 100, 300):
            path = options.out / f"step_{step:06d}.pt"
            state = {"model": model.state_dict(), "optimizer": optimiser.state_dict(), "step": step}
            torch.save(state, path)
            print(f"{path}: training loss {loss.item():.4f} nats")


if __name__ == "__main__":
    main()
