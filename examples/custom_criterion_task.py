"""A task with a criterion of one's own: Poisson regression of counts.

Train and save some weights, then measure them:

    python examples/custom_criterion_task.py
    landscape hessian poisson.pt --task examples/custom_criterion_task.py --loss behaviour
"""

import torch
from torch import Generator, Tensor, nn

from landscape import Criterion, Task


class Poisson(Criterion):
    """Negative log likelihood of counts y whose log rate is the output f, without log y!.

    Every method returns a mean over the batch's examples; micro-batches are then weighted by
    ``weight``, whose default is the number of examples.
    """

    name = "poisson"
    units = "nats"

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """``mean(exp(f) - y f)``: all that ``--loss task`` needs."""
        return (outputs.exp() - batch[1] * outputs).mean()

    def divergence(self, outputs: Tensor, anchor_outputs: Tensor, batch: object) -> Tensor:
        """Mean KL from the anchor's Poisson law to the output's: for ``--loss behaviour``.

        It must be 0 with zero gradient where the outputs equal the anchor's.
        """
        rate = anchor_outputs.exp()
        return (outputs.exp() - rate - rate * (outputs - anchor_outputs)).mean()

    def relabel(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The anchor's most likely counts in place of the targets: for ``--loss relabelled``."""
        return batch[0], outputs.exp().floor()


def counts(examples: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (N, 3) and counts (N, 1) of a known rate."""
    generator = Generator().manual_seed(seed)
    x = torch.randn(examples, 3, generator=generator)
    rate = (0.5 + x[:, :1] - 0.5 * x[:, 1:2] * x[:, 2:]).clamp(max=3).exp()
    return x, torch.poisson(rate, generator=generator)


def build(width: int = 8) -> Task:
    """Log rates from a small tanh network."""
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
    return Task(model=model, data=counts(), criterion=Poisson())


def main() -> None:
    """Train for a second and save ``poisson.pt``."""
    torch.manual_seed(0)
    task = build()
    optimiser = torch.optim.Adam(task.model.parameters(), lr=1e-2)
    for _ in range(500):
        optimiser.zero_grad()
        loss = task.criterion.loss(task.model(task.data[0]), task.data)
        loss.backward()
        optimiser.step()
    torch.save(task.model.state_dict(), "poisson.pt")
    print(f"poisson.pt: training loss {loss.item():.4f} nats per example")


if __name__ == "__main__":
    main()
