"""The excess loss at many parameter vectors at once.

Rays and chains ask for the loss far more often than for its derivatives, at many points of a small
network: evaluated together they share the cost of starting each operation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape.errors import NotFiniteError, TaskError, TerminatedError, UsageError
from landscape.risk import Risk

__all__ = ["ExcessLoss", "one_line"]

# Bytes of the largest tensor of a chunk: beyond a processor's cache chunks lose.
_ALLOWANCE_CPU, _ALLOWANCE_DEVICE = 8 << 20, 1 << 30
_FEWEST, _MOST = 8, 64  # Points in a chunk; of fewer, each alone is quicker.


class ExcessLoss:
    """``dL(w) = L(w) - L(w*)`` at rows w, about a risk's current parameters w*.

    For ``behaviour`` dL is the divergence from the anchor's outputs itself, with nothing
    subtracted. L is the risk's: the weighted mean over all micro-batches, summed in float64.

    Points are evaluated in vmapped chunks. Where vmap fails or gives another value than the model
    itself at the first points, all points are evaluated one after the other from then on, by
    assigning them to the model, which gets its own parameters back.

    Values that overflow are inf or NaN, not errors. No gradient is recorded.

    Args:
        risk: the loss at the anchor. Only its selected parameters vary.
        chunk: points evaluated together, 1 for one after the other. Where None as many as keep the
            largest tensor of a forward pass within 8 MiB (1 GiB on an accelerator), at most 64, or
            1 where fewer than 8 do. It changes values by rounding at most.

    Attributes:
        base: L(w*), or 0 for ``behaviour``: what is subtracted.
        chunk: points evaluated together.
        fallback: None, or in one line why points are not evaluated together.
        n_forward: forward passes over the whole data set so far: one for each point, one for the
            anchor, one to check the first chunk. They are added to the risk's, too.

    Raises:
        UsageError: the chunk is not positive.
        TaskError: the forward pass or the criterion failed.

    Cost: a forward pass for each point and the memory of ``chunk`` of them. Milliseconds a point on
    one thread of a shared two-core x86-64 machine with torch 2.13, in float64 (float32):

    ==============================  ============  ============  ==========
    network, examples               one by one    in chunks     chunk
    ==============================  ============  ============  ==========
    digits-mlp, 100                 0.18 (0.17)   0.04 (0.04)   64 (64)
    digits-mlp, all 1438            0.96 (0.92)   0.57 (0.45)   64 (64)
    modular-addition, 100           0.62 (0.55)   0.35 (0.21)   64 (64)
    modular-addition, all 672       2.5 (1.5)     2.3 (1.4)     10 (21)
    digits-cnn, 100                 1.4 (0.73)    1.4 (0.47)    20 (40)
    digits-cnn, all 1438            17 (6.0)                    1 (1)
    ==============================  ============  ============  ==========
    """

    def __init__(self, risk: Risk, *, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise UsageError(f"a chunk of {chunk} points: expected a positive whole number")
        self.risk = risk
        self.anchor = risk.space.vector()
        self.fallback: str | None = None
        self.n_forward = 0
        self._shares = _Shares(risk)
        self._checked = False
        with torch.no_grad(), _LargestTensor() as largest:
            loss = self._here()
        self.base: float = 0.0 if risk.loss_kind == "behaviour" else loss
        if chunk is None:
            on_cpu = risk.device.type == "cpu"
            fit = (_ALLOWANCE_CPU if on_cpu else _ALLOWANCE_DEVICE) // max(largest.bytes, 1)
            chunk = min(fit, _MOST) if fit >= _FEWEST else 1
        self.chunk = chunk

    def __call__(self, points: Tensor) -> Tensor:
        """Excess losses at rows (k, n) of any float type and device: (k,), float64, on the CPU.

        Raises:
            UsageError: the points have another shape.
            TaskError: the forward pass or the criterion failed.
        """
        if points.dim() != 2 or points.shape[1] != self.risk.n:
            raise UsageError(
                f"points of shape {tuple(points.shape)}; expected rows of the {self.risk.n} "
                "selected parameters, (k, n)"
            )
        points = points.detach().to(self.anchor)
        with torch.no_grad():
            return self._losses(points) - self.base

    def anchor_excess(self) -> float:
        """The excess loss at w* itself, by the same code as at any point: 0 up to rounding."""
        return float(self(self.anchor[None])[0])

    def require_zero_at_anchor(self, tolerance: float | None = None) -> float:
        """Return the excess loss at w*, which must be 0.

        Args:
            tolerance: largest |dL(w*)|, best a small part of the cutoff; where None what rounding
                may come to, ``sqrt(eps) max(1, L(w*))`` (1.5e-8 in float64).

        Raises:
            NotFiniteError: it is NaN or infinite.
            TaskError: it is larger, as for a divergence that is not zero between equal outputs.
        """
        if tolerance is None:
            tolerance = math.sqrt(torch.finfo(self.risk.dtype).eps) * max(1.0, abs(self.base))
        value = self.anchor_excess()
        if not math.isfinite(value):
            raise NotFiniteError(
                f"the excess loss at the checkpoint itself is {value}; expected 0. Check the "
                "checkpoint and the data, or use --dtype float64"
            )
        if abs(value) > tolerance:
            raise TaskError(
                f"the excess loss at the checkpoint itself is {value:.3g} ({self.risk.loss_kind} "
                f"loss); expected 0 up to {tolerance:.1g}. Check that the criterion's divergence "
                "is 0 between equal outputs, and that the forward pass is deterministic and keeps "
                "no state"
            )
        return value

    def _losses(self, points: Tensor) -> Tensor:
        if self.chunk > 1 and self.fallback is None and len(points):
            try:
                losses = torch.cat(
                    [self._together(part) for part in torch.split(points, self.chunk)]
                )
                self._check(points, losses)
                return losses
            except TerminatedError:
                raise
            except Exception as error:  # Whatever vmap cannot do, one point at a time can.
                self.fallback = one_line(error)
        return self._one_by_one(points)

    def _together(self, points: Tensor) -> Tensor:
        """Losses at a chunk of points."""
        losses = torch.zeros(len(points), dtype=torch.float64)
        for index in range(self.risk.n_batches):
            losses += vmap(self.share, in_dims=(0, None))(points, index).cpu().double()
        self._count(len(points))
        return losses

    def share(self, point: Tensor, index: int) -> Tensor:
        """Micro-batch ``index``'s share of L at a point (n,), for functional transforms."""
        space = self.risk.space
        named = zip(space.names, space.split(point), strict=True)
        share: Tensor = functional_call(
            self._shares, {f"model.{name}": part for name, part in named}, (index,)
        )
        return share

    def _check(self, points: Tensor, losses: Tensor) -> None:
        """Compare the first chunk's value farthest from the anchor with the model's own."""
        if self._checked:
            return
        far = int(torch.linalg.vector_norm(points - self.anchor, dim=1).nan_to_num().argmax())
        alone = self._one_by_one(points[far : far + 1])
        allowed = math.sqrt(torch.finfo(self.risk.dtype).eps)
        if not torch.allclose(losses[far], alone[0], rtol=allowed, atol=allowed, equal_nan=True):
            raise TaskError(
                f"vmap gives the loss {float(losses[far]):.6g} where the model itself gives "
                f"{float(alone[0]):.6g}"
            )
        self._checked = True

    def _one_by_one(self, points: Tensor) -> Tensor:
        """Losses at points assigned to the model one after the other."""
        losses = torch.zeros(len(points), dtype=torch.float64)
        for position, point in enumerate(points):
            with self.risk.space.placed(point):
                losses[position] = self._here()
        return losses

    def _here(self) -> float:
        """The loss at the parameters that the model has now."""
        loss = sum(float(self.risk.batch_loss(index)) for index in range(self.risk.n_batches))
        self._count(1)
        return loss

    def _count(self, passes: int) -> None:
        self.n_forward += passes
        self.risk.n_forward += passes


class _Shares(nn.Module):
    """Micro-batches' shares of L as a module, for ``functional_call`` to vary its parameters."""

    def __init__(self, risk: Risk) -> None:
        super().__init__()
        self.model = risk.model
        self.batch_loss = risk.batch_loss

    def forward(self, index: int) -> Tensor:
        return self.batch_loss(index)


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return result


def one_line(error: Exception) -> str:
    """What an error says, for a notice."""
    cause = error.__cause__ or error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return f"{type(cause).__name__}: {text}"[:200]
