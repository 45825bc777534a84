"""A task with tokens, batches that are dicts, and padding that does not count.

Train and save some weights, then measure them:

    python examples/language_model_task.py
    landscape hessian language_model.pt --task examples/language_model_task.py
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from landscape import Task
from landscape.criteria import CrossEntropy

VOCABULARY = 12
CONTEXT = 10
PADDING = 0


class LanguageModel(nn.Module):
    """One causal attention layer between an embedding and an unembedding that share a matrix."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, d_model)
        self.places = nn.Parameter(torch.zeros(CONTEXT, d_model))
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.norm = nn.LayerNorm(d_model)
        self.unembed = nn.Linear(d_model, VOCABULARY, bias=False)
        self.unembed.weight = self.tokens.weight  # Tied: counted once in the parameter vector.

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (N, T, VOCABULARY) for tokens (N, T)."""
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits: Tensor = self.unembed(self.norm(x))
        return logits


def sequences(count: int = 96, seed: int = 0) -> dict[str, Tensor]:
    """Sequences of unequal lengths that count up in steps of 1 or 2, with some noise, padded."""
    generator = Generator().manual_seed(seed)

    def draw(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length = draw(CONTEXT + 1, count, low=4)
    path = draw(VOCABULARY, count, 1) + draw(3, count, 1, low=1) * torch.arange(CONTEXT + 1)
    noise = draw(VOCABULARY, count, CONTEXT + 1) * (draw(10, count, CONTEXT + 1) == 0)
    ids = 1 + (path + noise) % (VOCABULARY - 1)
    ids[torch.arange(CONTEXT + 1) > length[:, None]] = PADDING
    return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


def build(d_model: int = 8) -> Task:
    """Next-token cross-entropy, a mean over the tokens that are not padding."""
    return Task(
        model=LanguageModel(d_model),
        data=[sequences()],  # A list of batches; each is split by --batch-size where larger.
        forward=lambda model, batch: model(batch["input_ids"]),
        # Built-in criteria look for "labels" or "targets" in a dict. Ignored targets count neither
        # in the loss nor in a batch's weight, so that every token weighs the same.
        criterion=CrossEntropy(ignore_index=PADDING),
    )


def main() -> None:
    """Train for a few seconds and save ``language_model.pt``."""
    torch.manual_seed(0)
    task = build()
    [batch] = task.data
    optimiser = torch.optim.Adam(task.model.parameters(), lr=1e-2)
    for _ in range(400):
        optimiser.zero_grad()
        loss = task.criterion.loss(task.forward(task.model, batch), batch)
        loss.backward()
        optimiser.step()
    torch.save({"model": task.model.state_dict(), "step": 400}, "language_model.pt")
    print(f"language_model.pt: training loss {loss.item():.4f} nats per token")


if __name__ == "__main__":
    main()
