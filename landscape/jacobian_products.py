"""Products with ``J^T C J``: a curvature C of the outputs pulled back through the network.

The Jacobian product ``J v`` is the derivative of ``u -> J^T u``, which is linear in u, so three
backward passes through kept graphs suffice for any model, and no forward mode is needed.

Sources: Schraudolph, Neural Computation 14 (2002), for the GGN; Kunstner, Balles and Hennig,
NeurIPS 2019, for the difference between the Fisher and the empirical Fisher matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from landscape.criteria import Criterion
from landscape.errors import UsageError
from landscape.products import CurvatureProduct
from landscape.risk import Risk
from landscape.rng import stream

__all__ = ["EmpiricalFisherProduct", "FisherProduct", "GGNProduct"]


class JacobianProduct(CurvatureProduct):
    """``J^T C J v`` for a curvature C of the outputs that a subclass supplies."""

    @abstractmethod
    def _output_graph(self, index: int, outputs: Tensor) -> Any:
        """What :meth:`_curve` needs for micro-batch ``index``; None where C is zero."""

    @abstractmethod
    def _curve(self, graph: Any, tangent: Tensor, *, retain: bool, batched: bool) -> Tensor:
        """C applied to a tangent of the outputs' shape, with a leading dimension where batched."""

    def _build(self, index: int) -> Any:
        outputs = self.risk.outputs(index)
        if not outputs.requires_grad:
            return None
        curve = self._output_graph(index, outputs.detach())
        if curve is None:
            return None
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        pullback = torch.autograd.grad(
            outputs,
            self.risk.space.parameters,
            grad_outputs=cotangent,
            create_graph=True,
            allow_unused=True,
        )
        kept = {i: g for i, g in enumerate(pullback) if g is not None and g.requires_grad}
        return (curve, kept, cotangent, outputs) if kept else None

    def _apply(
        self, graph: Any, parts: dict[int, Tensor], *, retain: bool, batched: bool
    ) -> tuple[Tensor, ...]:
        curve, pullback, cotangent, outputs = graph
        places = [i for i in parts if i in pullback]
        if not places:
            return self._pull_back([], [], parts, retain=False, batched=batched)
        (tangent,) = torch.autograd.grad(
            [pullback[i] for i in places],
            cotangent,
            grad_outputs=[parts[i] for i in places],
            retain_graph=True,
            is_grads_batched=batched,
        )
        curved = self._curve(curve, tangent, retain=retain, batched=batched)
        return self._pull_back([outputs], [curved], parts, retain=retain, batched=batched)


class GGNProduct(JacobianProduct):
    """Products with the generalised Gauss-Newton matrix, ``J^T (d^2 loss / df^2) J v``.

    With ``behaviour`` loss this equals the Hessian, since the divergence's gradient is zero at the
    anchor.
    """

    def _output_graph(self, index: int, outputs: Tensor) -> Any:
        detached = outputs.requires_grad_()
        loss = self.risk.output_loss(detached, index) * self.risk.fractions[index]
        (slope,) = torch.autograd.grad(loss, detached, create_graph=True)
        return (slope, detached) if slope.requires_grad else None

    def _curve(self, graph: Any, tangent: Tensor, *, retain: bool, batched: bool) -> Tensor:
        slope, detached = graph
        curved: Tensor = torch.autograd.grad(
            slope, detached, grad_outputs=tangent, retain_graph=retain, is_grads_batched=batched
        )[0]
        return curved


class _GradientProduct(JacobianProduct):
    """``mean_n J_n^T g_n g_n^T J_n`` with g_n the gradient of term n's loss in its outputs."""

    def _gradients(self, index: int, outputs: Tensor) -> list[Tensor]:
        """Output gradients of the micro-batch's *mean* loss, one tensor per drawn label."""
        raise NotImplementedError

    def _output_graph(self, index: int, outputs: Tensor) -> Any:
        risk = self.risk
        gradients = self._gradients(index, outputs)
        # g_n = weight * (gradient of the mean), and the mean over terms divides by the weight.
        weight = risk.criterion.weight(risk.batch(index))
        scale = weight * risk.fractions[index] / len(gradients)
        return scale, gradients, risk.batch(index)

    def _curve(self, graph: Any, tangent: Tensor, *, retain: bool, batched: bool) -> Tensor:
        scale, gradients, batch = graph
        criterion = self.risk.criterion
        total = torch.zeros_like(tangent)
        for gradient in gradients:
            g = gradient.unsqueeze(0) if batched else gradient
            along = criterion.sum_over_outputs(g * tangent, batch, leading=int(batched))
            total += scale * along * g
        return total


class EmpiricalFisherProduct(_GradientProduct):
    """Products with the empirical Fisher matrix: the mean outer product of the gradients.

    A term is an example, or a token for ``cross_entropy`` on sequences. Not the Fisher matrix: the
    labels are the data's.
    """

    def __init__(self, risk: Risk, *, graph_memory: int | None = None) -> None:
        if risk.loss_kind == "behaviour":
            raise UsageError(
                "--operator empirical-fisher is zero with --loss behaviour, whose gradient is zero "
                "at the checkpoint; use --loss task, or --operator ggn"
            )
        super().__init__(risk, graph_memory=graph_memory)

    def _gradients(self, index: int, outputs: Tensor) -> list[Tensor]:
        detached = outputs.requires_grad_()
        return list(torch.autograd.grad(self.risk.output_loss(detached, index), detached))


class FisherProduct(_GradientProduct):
    """Products with a Monte-Carlo Fisher matrix: labels drawn from the model's own law.

    ``mean_n E_y [J_n^T g_n(y) g_n(y)^T J_n]`` with ``samples`` labels a term from fixed streams, so
    that the matrix is one deterministic function of the seed. For criteria whose Fisher matrix is
    their GGN (``cross_entropy``, ``mse``, ``binary_cross_entropy``) use that: it is exact.
    """

    def __init__(
        self, risk: Risk, *, graph_memory: int | None = None, samples: int = 16, seed: int = 0
    ) -> None:
        super().__init__(risk, graph_memory=graph_memory)
        self._samples, self._seed = samples, seed
        if type(risk.criterion).sample is Criterion.sample:
            raise UsageError(
                f"--operator fisher needs labels from the model's own law, but the criterion "
                f"{risk.criterion.name!r} defines no sample(outputs, batch, generator). Define it "
                "on your Criterion, or use --operator ggn"
            )

    def _gradients(self, index: int, outputs: Tensor) -> list[Tensor]:
        criterion, batch = self.risk.criterion, self.risk.batch(index)
        found: list[Tensor] = []
        for draw in range(self._samples):
            generator = stream(self._seed, "fisher", index, draw)
            drawn = criterion.sample(outputs.detach(), batch, generator)
            detached = outputs.detach().requires_grad_()
            found += torch.autograd.grad(criterion.loss(detached, drawn), detached)
        return found
