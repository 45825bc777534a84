"""Criteria: the loss of one batch, its divergence from the anchor's outputs, and its weight.

A criterion maps the outputs of a model on one batch to a *mean over examples* (over tokens for
sequence models). Means of unequal batches are combined with :meth:`Criterion.weight`, so that the
whole data set's loss is ``sum_b weight_b * loss_b / sum_b weight_b``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from landscape.errors import TaskError, UsageError

__all__ = [
    "BinaryCrossEntropy",
    "Criterion",
    "CrossEntropy",
    "FunctionCriterion",
    "SquaredError",
    "as_criterion",
]

Batch = Any
"""What a task's data yield: usually ``(inputs, targets)``; any pytree of tensors is allowed."""


def _targets(batch: Batch) -> Tensor:
    """The second entry of a sequence batch, or ``"labels"``/``"targets"`` of a mapping batch."""
    if isinstance(batch, Mapping):
        for name in ("labels", "targets", "target", "label"):
            if isinstance(batch.get(name), Tensor):
                return batch[name]  # type: ignore[no-any-return]
        raise TaskError(
            f"a batch has the keys {sorted(map(str, batch))}; the built-in criteria expect the "
            "targets under 'labels' or 'targets'. Rename the key or write a Criterion."
        )
    if isinstance(batch, Sequence) and len(batch) >= 2 and isinstance(batch[1], Tensor):
        return batch[1]
    raise TaskError(
        f"a batch is a {type(batch).__name__} without a second tensor; the built-in criteria "
        "expect (inputs, targets, ...). Give the task such batches or write a Criterion."
    )


def _with_targets(batch: Batch, targets: Tensor) -> Batch:
    """A copy of the batch with other targets."""
    if isinstance(batch, Mapping):
        old = _targets(batch)
        return {key: targets if value is old else value for key, value in batch.items()}
    return (batch[0], targets, *batch[2:])


def batch_length(batch: Batch) -> int:
    """Number of examples: the size of the first dimension of the batch's first tensor."""
    if isinstance(batch, Tensor):
        if batch.dim() == 0:
            raise TaskError(
                "a batch holds a 0-dimensional tensor; expected examples along dimension 0"
            )
        return batch.shape[0]
    values = batch.values() if isinstance(batch, Mapping) else batch
    for value in values:
        if isinstance(value, Tensor | Mapping | list | tuple):
            return batch_length(value)
    raise TaskError(f"a batch of type {type(batch).__name__} holds no tensor")


class Criterion:
    """Loss of one batch of outputs against its targets; subclass it to write your own.

    Only :meth:`loss` is required. :meth:`divergence` enables ``--loss behaviour`` and
    :meth:`relabel` enables ``--loss relabelled``. All three must be differentiable functions of
    ``outputs`` and means over the batch's examples.
    """

    name: str = "custom"
    units: str = "loss units"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch, a scalar tensor."""
        raise NotImplementedError

    def divergence(self, outputs: Tensor, anchor_outputs: Tensor, batch: Batch) -> Tensor:
        """Mean distance of the outputs from the anchor's outputs: 0 with zero gradient at them.

        The batch is passed so that masked positions can be left out, as :meth:`weight` does.
        """
        raise UsageError(
            f"the criterion {self.name!r} defines no divergence, which --loss behaviour needs. "
            "Use --loss task, or subclass landscape.Criterion and define divergence()."
        )

    def relabel(self, outputs: Tensor, batch: Batch) -> Batch:
        """The batch with the anchor's own (hard) predictions in place of its targets."""
        raise UsageError(
            f"the criterion {self.name!r} defines no relabel(), which --loss relabelled needs. "
            "Use --loss task, or subclass landscape.Criterion and define relabel()."
        )

    def weight(self, batch: Batch) -> float:
        """Weight of the batch in the mean over the data set: its number of examples (tokens)."""
        return float(batch_length(batch))

    def sample(self, outputs: Tensor, batch: Batch, generator: Generator) -> Batch:
        """The batch with targets drawn from the model's own law, for a Monte-Carlo Fisher matrix.

        The generator is on the CPU. Not needed where the Fisher matrix equals the GGN.
        """
        raise NotImplementedError

    fisher_is_ggn: bool = False
    """Whether the Fisher matrix equals the GGN, as for exponential families in their natural
    parameters."""

    shift_invariant: bool = False
    """Whether adding a constant to a term's outputs changes nothing, as for softmax."""

    def term_places(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Flat indices of the outputs that belong to each term of the mean, (terms, outputs)."""
        places = torch.arange(outputs.numel(), device=outputs.device)
        return places.reshape(outputs.shape[0] if outputs.dim() else 1, -1)

    def term_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of every term of the mean, (terms,), in the order of :meth:`term_places`."""
        raise UsageError(f"the criterion {self.name!r} does not tell the losses of single terms")

    def sum_over_outputs(self, values: Tensor, batch: Batch, *, leading: int = 0) -> Tensor:
        """Sum over the outputs of one term of the mean (an example), keeping dimensions.

        Args:
            values: the outputs' shape behind ``leading`` further dimensions.
            batch: the batch.
            leading: number of leading dimensions.
        """
        dims = tuple(range(leading + 1, values.dim()))
        return values.sum(dims, keepdim=True) if dims else values


class CrossEntropy(Criterion):
    """Softmax cross-entropy in nats, ``-mean log softmax(f)[y]``.

    Outputs ``(..., C)`` with integer targets ``(...)``; for images ``(N, C, ...)`` with targets
    ``(N, ...)`` is recognised too. Targets equal to ``ignore_index`` count neither in the mean nor
    in the weight. The divergence is ``KL(softmax(f_anchor) || softmax(f))``.
    """

    name = "cross_entropy"
    units = "nats"
    fisher_is_ggn = True
    shift_invariant = True

    def __init__(self, *, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def _rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs as (rows, C) and targets as (rows,)."""
        if outputs.dim() >= 1 and outputs.shape[:-1] == targets.shape:
            rows = outputs.reshape(-1, outputs.shape[-1])
        elif outputs.dim() >= 3 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            rows = outputs.movedim(1, -1).reshape(-1, outputs.shape[1])
        else:
            raise TaskError(
                f"cross_entropy: outputs of shape {tuple(outputs.shape)} do not fit targets of "
                f"shape {tuple(targets.shape)}; expected outputs (..., classes) and integer "
                "targets (...). Check the task's forward function and data."
            )
        if targets.is_floating_point():
            raise TaskError(
                "cross_entropy: the targets are floating point; expected integer class indices"
            )
        return rows, targets.reshape(-1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        rows, targets = self._rows(outputs, _targets(batch))
        return functional.cross_entropy(rows, targets, ignore_index=self.ignore_index)

    def divergence(self, outputs: Tensor, anchor_outputs: Tensor, batch: Batch) -> Tensor:
        """Mean divergence from the anchor's outputs."""
        targets = _targets(batch)
        rows, flat = self._rows(outputs, targets)
        anchor, _ = self._rows(anchor_outputs, targets)
        log_p = functional.log_softmax(anchor, dim=-1)
        kl = (log_p.exp() * (log_p - functional.log_softmax(rows, dim=-1))).sum(-1)
        kept = (flat != self.ignore_index).to(kl.dtype)
        return (kl * kept).sum() / kept.sum()

    def relabel(self, outputs: Tensor, batch: Batch) -> Batch:
        """The batch with the anchor's predictions as targets."""
        targets = _targets(batch)
        predicted = outputs.argmax(self._class_dim(outputs, targets))
        return _with_targets(batch, torch.where(targets == self.ignore_index, targets, predicted))

    def term_places(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Flat indices of the logits of every target that is not ignored, (targets, classes)."""
        places = torch.arange(outputs.numel(), device=outputs.device).reshape(outputs.shape)
        rows, targets = self._rows(places, _targets(batch))
        return rows[targets != self.ignore_index]

    def term_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of every target that is not ignored."""
        rows, targets = self._rows(outputs, _targets(batch))
        kept = targets != self.ignore_index
        return functional.cross_entropy(rows[kept], targets[kept], reduction="none")

    @staticmethod
    def _class_dim(outputs: Tensor, targets: Tensor) -> int:
        return -1 if outputs.shape[:-1] == targets.shape else 1

    def sum_over_outputs(self, values: Tensor, batch: Batch, *, leading: int = 0) -> Tensor:
        """Sum over the classes: every target (a token, a pixel) is a term of its own."""
        classes = self._class_dim(values[(0,) * leading], _targets(batch))
        return values.sum(classes if classes < 0 else leading + classes, keepdim=True)

    def weight(self, batch: Batch) -> float:
        """Number of targets that are not ignored."""
        return float((_targets(batch) != self.ignore_index).sum())


class SquaredError(Criterion):
    """Half squared error, ``mean over examples of 1/2 sum over outputs of (f - y)^2``.

    PyTorch's ``mse_loss`` averages over outputs too and has no 1/2: ours is the negative log
    likelihood of a unit-variance Gaussian, whose GGN is ``J^T J / N``.
    """

    name = "mse"
    units = "squared units"
    fisher_is_ggn = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        targets = _targets(batch)
        if outputs.shape != targets.shape:
            if outputs.squeeze(-1).shape == targets.squeeze(-1).shape:
                targets = targets.reshape(outputs.shape)
            else:
                raise TaskError(
                    f"mse: outputs of shape {tuple(outputs.shape)} do not fit targets of shape "
                    f"{tuple(targets.shape)}; expected equal shapes"
                )
        return self._half_square(outputs - targets)

    def divergence(self, outputs: Tensor, anchor_outputs: Tensor, batch: Batch) -> Tensor:
        """Mean divergence from the anchor's outputs."""
        return self._half_square(outputs - anchor_outputs)

    def relabel(self, outputs: Tensor, batch: Batch) -> Batch:
        """The batch with the anchor's predictions as targets."""
        return _with_targets(batch, outputs.detach().reshape(_targets(batch).shape))

    def term_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Half squared error of every example."""
        difference = outputs - _targets(batch).reshape(outputs.shape)
        return 0.5 * difference.square().reshape(len(outputs), -1).sum(1)

    @staticmethod
    def _half_square(difference: Tensor) -> Tensor:
        # Not functional.mse_loss: its forward derivative fails in torch (ZeroTensors).
        return 0.5 * difference.square().sum() / max(difference.shape[0], 1)


class BinaryCrossEntropy(Criterion):
    """Bernoulli cross-entropy of logits in nats, summed over outputs, averaged over examples.

    ``mean over examples of sum over outputs of softplus(f) - y f`` for targets in [0, 1]; the
    divergence is the KL between the Bernoulli laws of the anchor's and the given logits.
    """

    name = "binary_cross_entropy"
    units = "nats"
    fisher_is_ggn = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        targets = _targets(batch).to(outputs.dtype)
        if outputs.numel() != targets.numel():
            raise TaskError(
                f"binary_cross_entropy: {outputs.numel()} outputs of shape {tuple(outputs.shape)} "
                f"do not fit {targets.numel()} targets of shape {tuple(targets.shape)}"
            )
        targets = targets.reshape(outputs.shape)
        losses = functional.softplus(outputs) - targets * outputs
        return losses.sum() / max(outputs.shape[0], 1)

    def term_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of every example, summed over its outputs."""
        targets = _targets(batch).to(outputs.dtype).reshape(outputs.shape)
        losses = functional.softplus(outputs) - targets * outputs
        return losses.reshape(len(outputs), -1).sum(1)

    def divergence(self, outputs: Tensor, anchor_outputs: Tensor, batch: Batch) -> Tensor:
        """Mean divergence from the anchor's outputs."""
        p = torch.sigmoid(anchor_outputs)
        kl = (
            functional.softplus(outputs)
            - functional.softplus(anchor_outputs)
            - p * (outputs - anchor_outputs)
        )
        return kl.sum() / max(outputs.shape[0], 1)

    def relabel(self, outputs: Tensor, batch: Batch) -> Batch:
        """The batch with the anchor's predictions as targets."""
        targets = _targets(batch)
        return _with_targets(batch, (outputs > 0).to(targets.dtype).reshape(targets.shape))


class FunctionCriterion(Criterion):
    """A plain function ``(outputs, batch) -> scalar mean`` used as a criterion (task loss only)."""

    def __init__(self, function: Callable[[Any, Batch], Tensor]) -> None:
        self._function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the batch."""
        value = self._function(outputs, batch)
        if not isinstance(value, Tensor) or value.dim() != 0:
            seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TaskError(
                f"the criterion {self.name!r} returned {seen}; expected a scalar tensor, the mean "
                "over the batch's examples"
            )
        return value


_BUILTIN: dict[str, type[Criterion]] = {
    kind.name: kind for kind in (CrossEntropy, SquaredError, BinaryCrossEntropy)
}


def as_criterion(criterion: object) -> Criterion:
    """Turn a built-in name, a :class:`Criterion` or a function into a criterion.

    Raises:
        TaskError: an unknown name, or an object that cannot be called with (outputs, batch).
    """
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, str):
        if criterion not in _BUILTIN:
            raise TaskError(
                f"unknown criterion {criterion!r}; expected one of {', '.join(sorted(_BUILTIN))}, "
                "a landscape.Criterion, or a function of (outputs, batch)"
            )
        return _BUILTIN[criterion]()
    if isinstance(criterion, nn.modules.loss._Loss):
        raise TaskError(
            f"the criterion is a torch.nn.{type(criterion).__name__}, which takes targets rather "
            "than a batch. Name a built-in criterion such as 'cross_entropy', or pass "
            "lambda outputs, batch: loss(outputs, batch[1])."
        )
    if callable(criterion):
        return FunctionCriterion(criterion)
    raise TaskError(
        f"the criterion is a {type(criterion).__name__}; expected a built-in name, a "
        "landscape.Criterion, or a function of (outputs, batch)"
    )
