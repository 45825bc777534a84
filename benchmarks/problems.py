"""The benchmark's problems: three small networks after a little training, and a growing MLP.

Needs torch alone, so that every environment can load the same file: weights, inputs and targets
are prepared once, saved, and read by all workers.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

PROBLEMS = ("mlp", "convnet", "transformer")

# Examples such that one product takes milliseconds on one CPU thread; few enough training steps
# that the rounding of a float32 product stays below the residual asked for.
_FULL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 128, "examples": 1024, "steps": 40},
    "convnet": {"width": 32, "side": 8, "examples": 16, "steps": 4},
    "transformer": {"width": 96, "layers": 4, "length": 24, "examples": 16, "steps": 10},
}
_QUICK: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "examples": 128, "steps": 60},
    "convnet": {"width": 4, "side": 8, "examples": 12, "steps": 30},
    "transformer": {"width": 16, "layers": 2, "length": 12, "examples": 6, "steps": 60},
}
_VOCABULARY = 64


class MLP(nn.Sequential):
    """Two hidden tanh layers, 64 inputs, 10 classes."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(64, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, 10),
        )


class _Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm around a skip connection."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, out)
        self.skip = nn.Conv2d(channels, out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.skip(x) + self.norm2(self.conv2(h)))


class ConvNet(nn.Module):
    """A small residual convolution net with GroupNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            _Residual(width, width, 1),
            _Residual(width, 2 * width, 2),
            _Residual(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (examples, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _Block(nn.Module):
    """Pre-norm causal attention and a GELU MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 4
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        # The fused kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A causal language model; logits (examples, vocabulary, length), as cross-entropy wants."""

    def __init__(self, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(_VOCABULARY, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*[_Block(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next token."""
        h = self.blocks(self.token(x) + self.place[: x.shape[1]])
        return self.head(self.norm(h)).transpose(1, 2)


class WrittenNorm(nn.Module):
    """GroupNorm or LayerNorm in elementary operations, with the weights of the fused module."""

    def __init__(self, fused: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = fused.weight, fused.bias, fused.eps
        self.groups = fused.num_groups if isinstance(fused, nn.GroupNorm) else None

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input."""
        if self.groups is None:
            centred = x - x.mean(-1, keepdim=True)
            scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
            return centred * scale * self.weight + self.bias
        groups = x.reshape(len(x), self.groups, -1)
        centred = groups - groups.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        shape = (1, -1, *[1] * (x.dim() - 2))
        return (centred * scale).view_as(x) * self.weight.view(shape) + self.bias.view(shape)


def _write_out(model: nn.Module) -> None:
    for name, child in model.named_children():
        if isinstance(child, nn.GroupNorm | nn.LayerNorm):
            setattr(model, name, WrittenNorm(child))
        else:
            _write_out(child)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network and its one batch of data; the loss is the mean cross-entropy.

    Attributes:
        name: one of :data:`PROBLEMS`, or ``growth``.
        model: the trained network, in eval mode.
        inputs: the examples.
        targets: their classes.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters in order."""
        return list(self.model.parameters())

    @property
    def n(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters)

    def written_out(self) -> Problem:
        """The same function with its normalisation layers in elementary operations."""
        model = copy.deepcopy(self.model)
        _write_out(model)
        return dataclasses.replace(self, model=model)

    def loss(self) -> Tensor:
        """The mean loss with its graph."""
        return functional.cross_entropy(self.model(self.inputs), self.targets)

    def gradient(self) -> tuple[Tensor, ...]:
        """One plain gradient."""
        return torch.autograd.grad(self.loss(), self.parameters)

    def product(self, vector: Tensor) -> Tensor:
        """H v by plain double backward, nothing kept: the neutral reference operator."""
        parameters = self.parameters
        sizes = [p.numel() for p in parameters]
        parts = [v.view_as(p) for v, p in zip(vector.split(sizes), parameters, strict=True)]
        gradient = torch.autograd.grad(self.loss(), parameters, create_graph=True)
        product = torch.autograd.grad(gradient, parameters, grad_outputs=parts)
        return torch.cat([t.reshape(-1) for t in product])


def _model(name: str, sizes: dict[str, Any]) -> nn.Module:
    if name == "convnet":
        return ConvNet(sizes["width"])
    if name == "transformer":
        return Transformer(sizes["width"], sizes["layers"], sizes["length"])
    return MLP(sizes["width"])


def _data(name: str, sizes: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count = sizes["examples"]
    if name == "transformer":
        # A noisy walk over the vocabulary: partly predictable, as text is.
        jumps = torch.randint(0, 4, (count, sizes["length"] + 1), generator=generator)
        walk = (5 * jumps.cumsum(1)) % _VOCABULARY
        return walk[:, :-1].contiguous(), walk[:, 1:].contiguous()
    shape = (64,) if name != "convnet" else (3, sizes["side"], sizes["side"])
    centres = torch.rand(10, *shape, generator=generator)
    targets = torch.randint(0, 10, (count,), generator=generator)
    noise = 0.4 * torch.randn(count, *shape, generator=generator)
    return (centres[targets] + noise).clamp(0, 1), targets


def prepare(name: str, path: Path, *, sizes: dict[str, Any] | None = None, quick: bool) -> None:
    """Build a problem from seed 0, train it in float32 and save it.

    Args:
        name: one of :data:`PROBLEMS`, or ``growth`` with its ``sizes``.
        path: where to save.
        sizes: width, examples, training steps.
        quick: the tiny version.
    """
    sizes = (_QUICK if quick else _FULL)[name] if sizes is None else sizes
    torch.manual_seed(0)
    model = _model(name, sizes)
    inputs, targets = _data(name, sizes, torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(sizes["steps"]):
        # At most 256 examples a step, in turn: a large data set need not cost a long training.
        start = 256 * step % len(inputs)
        piece = slice(start, start + 256)
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs[piece]), targets[piece]).backward()
        optimiser.step()
    state = {"name": name, "sizes": sizes, "weights": model.state_dict()}
    torch.save({**state, "inputs": inputs, "targets": targets}, path)


def load(path: Path, *, dtype: str, device: str) -> Problem:
    """Read a saved problem; a float64 one has the float32 weights and data, exactly."""
    state = torch.load(path, weights_only=True)
    model = _model(state["name"], state["sizes"])
    model.load_state_dict(state["weights"])
    kind = getattr(torch, dtype)
    inputs = state["inputs"].to(device)
    return Problem(
        name=state["name"],
        model=model.to(device=device, dtype=kind).eval(),
        inputs=inputs.to(kind) if inputs.is_floating_point() else inputs,
        targets=state["targets"].to(device),
    )
