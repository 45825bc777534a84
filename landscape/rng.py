"""Random streams: one generator per unit of work, derived from a seed and a label.

Resumed, sharded and reordered runs give the same numbers because no unit's stream depends on what
ran before it. Streams live on the CPU, so that they do not depend on the device either.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Generator, Tensor

__all__ = ["normal", "stream"]


def stream(seed: int, *label: str | int) -> Generator:
    """A CPU generator for one unit of work.

    Args:
        seed: the run's seed.
        label: what the stream is for, for example ``("probe", "hessian", 3)``.
    """
    digest = hashlib.sha256(repr((int(seed), *label)).encode()).digest()
    generator = Generator(device="cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def normal(size: int, generator: Generator, *, like: Tensor) -> Tensor:
    """Standard normal vector of shape (size,), drawn in float64, in the dtype and device of like.

    Drawing in float64 makes a float32 run use the rounded float64 vector rather than another one.
    """
    draw = torch.randn(size, generator=generator, dtype=torch.float64)
    return draw.to(dtype=like.dtype, device=like.device)
