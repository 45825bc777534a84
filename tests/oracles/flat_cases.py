"""Small float64 networks whose null directions are known by counting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.data import materialise
from landscape.risk import Risk
from landscape.task import Task


def draws(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generic(model: nn.Module, seed: int = 5) -> nn.Module:
    """The model in float64 with generic weights, those that start at 0 or 1 too."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (0.0 if "bias" in name else 1.0))
    return model


def mlp(
    *widths: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def with_units(
    model: nn.Sequential, *, dead: int = 0, on: int = 0, every: bool = False, rare: bool = False
) -> nn.Sequential:
    """Set the biases of the first layer: units that switch, but for some off and some always on.

    With ``every`` the later layers' too: only their signs of weights are mixed already. With
    ``rare`` the last unit is on for the two examples that it likes best.
    """
    with torch.no_grad():
        for layer in model[:-1] if every else model[:1]:
            if isinstance(layer, nn.Linear):
                layer.bias.fill_(0.1)
        if every:
            model[2].weight.sub_(model[2].weight.mean(1, keepdim=True))
        model[0].bias[:dead] = -50.0
        model[0].bias[dead : dead + on] = 50.0
        if rare:
            best = (draws(120, 5) @ model[0].weight[-1]).sort(descending=True).values
            model[0].bias[-1] = -(best[1] + best[2]) / 2
    return model


class SelfAttention(nn.Module):
    """Multi-head attention on sequences of d-dimensional data, all positions returned."""

    def __init__(self, d: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


def turned(x: Tensor, *, halves: bool) -> Tensor:
    """Rotary positions on (N, heads, T, width)."""
    width = x.shape[-1]
    speed = 2.0 ** -torch.arange(width // 2, dtype=x.dtype)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * speed
    cos, sin = angle.cos(), angle.sin()
    a, b = x.chunk(2, -1) if halves else (x[..., ::2], x[..., 1::2])
    parts = (a * cos - b * sin, a * sin + b * cos)
    return torch.cat(parts, -1) if halves else torch.stack(parts, -1).flatten(-2)


class GroupedAttention(nn.Module):
    """Query heads that share key and value heads; rotary positions on request."""

    def __init__(
        self, d: int, heads: int, kv: int, width: int, *, bias: bool = False, rotary: str = ""
    ) -> None:
        super().__init__()
        self.num_heads, self.kv, self.rotary = heads, kv, rotary
        self.q_proj = nn.Linear(d, heads * width, bias=bias)
        self.k_proj = nn.Linear(d, kv * width, bias=bias)
        self.v_proj = nn.Linear(d, kv * width, bias=bias)
        self.o_proj = nn.Linear(heads * width, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q_proj(x).view(n, t, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(n, t, self.kv, -1).transpose(1, 2)
        v = self.v_proj(x).view(n, t, self.kv, -1).transpose(1, 2)
        if self.rotary:
            q, k = (turned(y, halves=self.rotary == "halves") for y in (q, k))
        k, v = (y.repeat_interleave(self.num_heads // self.kv, dim=1) for y in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Conv1D(nn.Module):
    """A linear map whose matrix lies the other way round, as some libraries keep it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class FusedAttention(nn.Module):
    """Attention with one transposed map for queries, keys and values."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.c_attn, self.c_proj = Conv1D(d, 3 * d), Conv1D(d, d)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.c_attn(x).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class PlainRMSNorm(nn.Module):
    """Root-mean-square normalisation as most people write it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Gated(nn.Module):
    """A gated hidden layer: ``down(silu(gate x) * up x)``."""

    def __init__(self, d: int, h: int, o: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, h, bias=False), nn.Linear(d, h, bias=False)
        self.down = nn.Linear(h, o, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """A residual stream: into it, one block on it, and out of it."""

    def __init__(self, norm: Callable[[], nn.Module], *, d: int = 5, bias: bool = True) -> None:
        super().__init__()
        self.into = nn.Linear(3, d)
        self.norm, self.last = norm(), norm()
        self.up, self.down = nn.Linear(d, 4, bias=bias), nn.Linear(4, d)
        self.out = nn.Linear(d, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.out(self.last(x))


class Embedded(nn.Module):
    """Tokens and positions, added and summed up through a tanh layer."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 3), nn.Embedding(4, 3)
        self.inner = nn.Linear(3, 5, bias=False)
        self.outer = nn.Linear(5, 2, bias=False)
        self.unembedding = nn.Linear(3, 7, bias=False) if tied else None
        if self.unembedding is not None:
            self.unembedding.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        stream = self.tokens(tokens) + self.positions(places)
        hidden = self.outer(torch.tanh(self.inner(stream)))
        if self.unembedding is None:
            return hidden.flatten(1)
        return torch.cat([hidden, self.unembedding(stream)], -1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its data, and what is known of its null directions.

    Attributes:
        null: all of them.
        parts: by the name of a symmetry, what the table must show.
        data: those that the data cause.
        left: those that nothing explains.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    null: int
    parts: dict[str, int] = field(default_factory=dict)
    data: int = 0
    left: int = 0
    softmax: int = 0
    params: tuple[str, ...] = ()

    def risk(self, *, examples: int | None = None, batch: int | None = None) -> Risk:
        model = self.build()
        x = self.inputs()[:examples]
        with torch.no_grad():
            outputs = model.double()(x)
        if self.softmax:
            targets = torch.arange(len(x)) % self.softmax
        else:
            targets = draws(*outputs.shape, seed=11)
        task = Task(
            model=model, data=(x, targets), criterion="cross_entropy" if self.softmax else "mse"
        )
        data = materialise(task.data)
        return Risk(task, data, loss="behaviour", params=self.params, batch_size=batch)
