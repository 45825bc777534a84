"""A small decoder-only transformer, shared by the sequence tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import UsageError


class Embedding(nn.Embedding):
    """An embedding with entries of variance 1/width.

    PyTorch's unit variance would drown what the block adds to a narrow residual stream.
    """

    def reset_parameters(self) -> None:
        """Draw the weights anew from the global generator."""
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and earlier ones."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sequence of ``x``, shaped ``(N, T, d_model)``."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (N, T, 3, heads, d_head)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return attended


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to the residual stream."""

    def __init__(
        self,
        d_model: int,
        heads: int,
        d_mlp: int,
        activation: Callable[[], nn.Module],
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.attention = CausalAttention(d_model, heads)
        self.mlp_norm = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(d_model, d_mlp), activation(), nn.Linear(d_mlp, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream ``(N, T, d_model)`` to its next state."""
        x = x + self.attention(self.attention_norm(x))
        updated: Tensor = x + self.mlp(self.mlp_norm(x))
        return updated


class Transformer(nn.Module):
    """Token and position embeddings, blocks, an unembedding without bias.

    Args:
        vocabulary: number of distinct input tokens.
        outputs: number of classes at every position.
        context: the longest sequence.
        d_model: width of the residual stream, a multiple of ``heads``.
        heads: attention heads per block.
        d_mlp: width of each block's hidden layer.
        layers: number of blocks.
        activation: activation function of the hidden layers.
        layer_norm: normalise before attention, before the perceptron and before the unembedding.
        tie: share the token embedding with the unembedding; needs ``outputs == vocabulary``.

    Raises:
        UsageError: ``d_model`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        outputs: int,
        context: int,
        d_model: int,
        heads: int,
        d_mlp: int,
        layers: int,
        activation: Callable[[], nn.Module],
        layer_norm: bool,
        tie: bool = False,
    ) -> None:
        super().__init__()
        if d_model % heads:
            raise UsageError(
                f"settings d_model={d_model}, heads={heads}: expected d_model to be a multiple of "
                f"heads, for example d_model={(d_model // heads + 1) * heads}"
            )
        self.tokens = Embedding(vocabulary, d_model)
        self.positions = Embedding(context, d_model)
        self.blocks = nn.Sequential(
            *(Block(d_model, heads, d_mlp, activation, layer_norm) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(d_model) if layer_norm else nn.Identity()
        self.unembedding = nn.Linear(d_model, outputs, bias=False)
        if tie:
            self.unembedding.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(N, T, outputs)`` for integer tokens ``(N, T)``."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        logits: Tensor = self.unembedding(self.norm(self.blocks(x)))
        return logits
