"""The behaviour of a network in whitened coordinates, for walks along its null directions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from landscape.flat.ranks import behaviour_jacobian, outputs_in_frame
from landscape.priors import Prior
from landscape.risk import Risk

__all__ = ["RiskBehaviour"]


class RiskBehaviour:
    """Changes of the outputs from the anchor's, and their derivatives in whitened coordinates.

    Args:
        risk: the loss at the anchor; its parameters are moved during a call and put back.
        prior: its scales are the units.
    """

    def __init__(self, risk: Risk, prior: Prior) -> None:
        self._risk, self._prior = risk, prior
        self._anchor = outputs_in_frame(risk)

    @property
    def start(self) -> Tensor:
        """The anchor in whitened coordinates, (n,)."""
        return self._prior.whiten(self._risk.space.vector())

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the divergence sees of the outputs, less the anchor's, (r,), and (r, n).

        Cost: r vector-Jacobian products.
        """
        space = self._risk.space
        before = space.vector()
        try:
            space.assign(self._prior.unwhiten(z).to(before))
            rows, _ = behaviour_jacobian(self._risk)
            residual = outputs_in_frame(self._risk) - self._anchor
        finally:
            space.assign(before)
        return residual, rows * self._prior.scale

    def excess(self, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Excess losses at whitened rows (k, n), from those at rows of parameters."""
        return lambda rows: loss(self._prior.unwhiten(rows))
