"""The risk: loss and gradient at the anchor over the whole data set, in micro-batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.criteria import Batch
from landscape.data import DataSet, map_tensors, micro_batches, shard
from landscape.distributed import ALONE, Alone
from landscape.errors import LandscapeError, NotFiniteError, TaskError
from landscape.params import ParameterSpace
from landscape.task import Task

__all__ = ["LossKind", "Risk", "differentiable_twice"]

LossKind = Literal["task", "behaviour", "relabelled"]

_CACHE_BYTES = 2 << 30  # Data and anchor outputs up to this size stay on the device.
DEFAULT_BATCH = 1024


@contextlib.contextmanager
def differentiable_twice(model: nn.Module | None = None) -> Iterator[None]:
    """Run a forward pass on kernels that have second derivatives; restored afterwards.

    The fused attention kernels and the fused transformer-encoder path have none (pytorch #116350),
    nor has cuDNN's recurrent backward.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    recurrent = model is not None and any(isinstance(m, nn.RNNBase) for m in model.modules())
    cudnn = (
        torch.backends.cudnn.flags(enabled=False)
        if recurrent and torch.cuda.is_available()
        else contextlib.nullcontext()
    )
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), cudnn:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class Risk:
    """Loss around the anchor, a weighted mean over all examples of all micro-batches.

    ``L(w) = sum_b weight_b * loss_b(w) / sum_b weight_b`` with the criterion's weights, so unequal
    batches are never averaged as equals. The model is put into eval mode (buffers stay frozen) and
    cast to ``dtype``; floating-point tensors of the batches are cast too, integers never.

    Args:
        task: its model already holds the anchor's weights.
        data: the materialised data set.
        loss: ``task``: the criterion; ``behaviour``: the divergence from the anchor's outputs;
            ``relabelled``: the criterion with the anchor's own predictions as targets.
        params: globs that select parameters.
        batch_size: largest micro-batch, in examples (default: the task's, else 1024).
        device: where to compute.
        dtype: floating-point type of parameters, buffers and data.
        ranks: processes that share out the examples; micro-batches are those of this process, and
            losses and gradients sums over all.

    Attributes:
        n_forward: forward passes over the whole data set so far.
        n_gradient: gradients over the whole data set so far.
    """

    def __init__(
        self,
        task: Task,
        data: DataSet,
        *,
        loss: LossKind = "task",
        params: Sequence[str] = (),
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        ranks: Alone = ALONE,
    ) -> None:
        self.task = task
        self.ranks = ranks
        self.data = data
        self.loss_kind: LossKind = loss
        self.device = torch.device(device)
        self.dtype = dtype
        self.model = task.model.to(device=self.device, dtype=dtype).eval()
        self.space = ParameterSpace(self.model, params)
        self.criterion = task.resolved_criterion
        mine = data if ranks.size == 1 else shard(data, ranks.rank, ranks.size)
        if batch_size is None:
            batch_size = task.batch_size or DEFAULT_BATCH
        pieces = micro_batches(mine, batch_size)
        with ranks.unanimous():
            weights = [self.criterion.weight(batch) for batch in pieces]
        total = sum(ranks.each(sum(weights)))
        if not total > 0:
            raise TaskError(
                "the data set's total weight is zero (every target is ignored); expected at least "
                "one example that counts"
            )
        # Pieces without weight (every target ignored) have a loss of 0/0.
        pieces = [b for b, w in zip(pieces, weights, strict=True) if w > 0]
        self.fractions: list[float] = [w / total for w in weights if w > 0]
        size = sum(_tensor_bytes(batch) for batch in pieces)
        self._resident = self.device.type == "cpu" or size <= _CACHE_BYTES
        self._batches: list[Batch] = [self._place(b) if self._resident else b for b in pieces]
        self._anchor: list[Tensor] | None = None
        self.n_forward = 0.0
        self.n_gradient = 0.0
        if loss != "task":
            self._remember_anchor()

    def _place(self, batch: Batch) -> Batch:
        return map_tensors(
            batch,
            lambda t: t.to(self.device, self.dtype if t.is_floating_point() else None),
        )

    @property
    def n_batches(self) -> int:
        """Number of micro-batches."""
        return len(self._batches)

    @property
    def n(self) -> int:
        """Number of coordinates of w."""
        return self.space.n

    def batch(self, index: int) -> Batch:
        """Micro-batch ``index`` on the device and in the dtype of the computation."""
        batch = self._batches[index]
        return batch if self._resident else self._place(batch)

    def _remember_anchor(self) -> None:
        with torch.no_grad(), self.ranks.unanimous():
            self._anchor = [self._forward(self.batch(i)).detach() for i in range(self.n_batches)]
        self.n_forward += 1

    def _forward(self, batch: Batch) -> Tensor:
        try:
            with differentiable_twice(self.model):
                outputs = self.task.forward(self.model, batch)
        except LandscapeError:
            raise
        except Exception as error:
            raise TaskError(
                f"the task's forward pass raised {type(error).__name__}: {error}. Check that the "
                "model, its forward function and the data fit each other"
            ) from error
        if not isinstance(outputs, Tensor):
            raise TaskError(
                f"the task's forward function returned a {type(outputs).__name__}; expected the "
                "tensor of outputs (for a Hugging Face model: model(**batch).logits)"
            )
        return outputs

    def outputs(self, index: int) -> Tensor:
        """Outputs of the current parameters on micro-batch ``index``, with graph where enabled."""
        return self._forward(self.batch(index))

    def output_loss(self, outputs: Tensor, index: int) -> Tensor:
        """Mean loss of micro-batch ``index`` as a function of its outputs, a scalar tensor."""
        batch = self.batch(index)
        try:
            if self.loss_kind == "task":
                return self.criterion.loss(outputs, batch)
            if self._anchor is None:
                raise TaskError("the anchor's outputs were not computed")
            anchor = self._anchor[index]
            if self.loss_kind == "behaviour":
                return self.criterion.divergence(outputs, anchor, batch)
            return self.criterion.loss(outputs, self.criterion.relabel(anchor, batch))
        except LandscapeError:
            raise
        except Exception as error:
            raise TaskError(
                f"the criterion {self.criterion.name!r} raised {type(error).__name__}: {error}"
            ) from error

    def batch_loss(self, index: int) -> Tensor:
        """This micro-batch's share of L: its fraction of the weight times its mean loss."""
        return self.output_loss(self.outputs(index), index) * self.fractions[index]

    def loss(self) -> float:
        """L(w) at the current parameters; one forward pass.

        Raises:
            NotFiniteError: the loss is NaN or infinite; says in which micro-batch.
        """
        total = 0.0
        with torch.no_grad(), self.ranks.unanimous():
            for index in range(self.n_batches):
                value = float(self.batch_loss(index))
                if not math.isfinite(value):
                    raise NotFiniteError(
                        f"the loss is {value} on micro-batch {index + 1} of {self.n_batches}; "
                        "expected a finite number. Check the checkpoint and the data, or use "
                        "--dtype float64"
                    )
                total += value
        self.n_forward += 1
        return math.fsum(self.ranks.each(total))

    def gradient(self) -> Tensor:
        """Gradient of L as a flat vector (n,); one gradient.

        Raises:
            NotFiniteError: a coordinate is NaN or infinite.
            TaskError: the loss does not depend on the parameters.
        """
        total = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        with self.ranks.unanimous():
            for index in range(self.n_batches):
                total += self._batch_gradient(index)
        total = self.ranks.sum(total)
        if not bool(torch.isfinite(total).all()):
            raise NotFiniteError(
                "the gradient has non-finite coordinates; expected finite numbers. Check the "
                "checkpoint and the data, or use --dtype float64"
            )
        self.n_gradient += 1
        return total

    def _batch_gradient(self, index: int) -> Tensor:
        loss = self.batch_loss(index)
        if not loss.requires_grad:
            raise TaskError(
                "the loss does not depend on the parameters (detached outputs or torch.no_grad in "
                "the forward function?)"
            )
        parts = torch.autograd.grad(
            loss, self.space.parameters, allow_unused=True, materialize_grads=True
        )
        return self.space.flatten(parts)

    def require_deterministic(self) -> float:
        """Evaluate the loss twice and return it.

        Raises:
            TaskError: the two values differ by more than rounding (dropout, random augmentation).
        """
        first, second = self.loss(), self.loss()
        allowed = 100 * torch.finfo(self.dtype).eps * max(abs(first), abs(second))
        if abs(first - second) > allowed:
            raise TaskError(
                f"the loss is not deterministic: two evaluations gave {first:.9g} and "
                f"{second:.9g}. Turn off dropout, random augmentation and state that changes "
                "in the forward pass (the model is already in eval mode)"
            )
        return first


def batch_tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def _tensor_bytes(batch: Batch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in batch_tensors(batch))
