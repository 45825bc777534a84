"""One learning coefficient by devinterp, in its own environment: a JSON request in, JSON out."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from importlib import metadata

import torch
from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class HalfSquares(nn.Module):
    """``x^2 y^2 / 2`` at the origin, where one example is a mere placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))
        self.y = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Tensor) -> Tensor:
        """The loss."""
        return (self.x * self.y).square().sum() / 2 + 0 * batch.sum()


class DeepLinear(nn.Module):
    """Half the squared distance of a product of two matrices from its first value."""

    def __init__(self, B: Tensor, C: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(B.clone()), nn.Parameter(C.clone())
        self.product = B @ C

    def forward(self, batch: Tensor) -> Tensor:
        """The loss."""
        return (self.first @ self.second - self.product).square().sum() / 2 + 0 * batch.sum()


def main() -> None:
    """Answer the request on the command line."""
    warnings.simplefilter("ignore")
    request = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    matrices = request["weights"]
    model = DeepLinear(*map(torch.tensor, matrices)) if matrices else HalfSquares()
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)), batch_size=1)
    began = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        found = estimate_learning_coeff_with_summary(
            model,
            loader=loader,
            evaluate=lambda model, data: model(data[0]),
            sampling_method=SGLD,
            optimizer_kwargs={
                "lr": request["rate"],
                "nbeta": request["beta"],
                "localization": 1.0,
            },
            num_draws=request["draws"],
            num_chains=request["chains"],
            num_burnin_steps=request["burn"],
            seed=0,
            verbose=False,
        )
    chains = request["chains"]
    answer = {
        "value": float(found["llc/mean"]),
        "spread": float(found["llc/std"]),
        "gradients": chains * (request["draws"] + request["burn"]),
        "chains": chains,
        "sampling_seconds": time.process_time() - began,
        "version": metadata.version("devinterp"),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
