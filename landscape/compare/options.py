"""What ``landscape compare`` is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from landscape.errors import UsageError
from landscape.volume.options import VolumeOptions

__all__ = ["CompareOptions"]

_MOST_POINTS = 1001


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What to measure of two networks A and B.

    Args:
        ablate: changes of B; see :func:`landscape.compare.ablation.parse_ablation`.
        bootstrap: resamples behind the intervals.
        over: what is drawn anew: ``examples``, whose tokens stay together, or single ``terms`` of
            the mean (tokens, pixels).
        points: points of the straight path between the weights, its ends included; 0 for no path.
        align: by what units of B change places for a second path: their ``weights``, their
            ``activations`` on the data, or ``none``.
        eigenspaces: dimension of the top eigenspaces of both Hessians to compare; 0 for none.
        volume: the prior, the cutoffs and how log V of both networks is measured, by the quadratic
            model alone; not at all where None.
        volume_loss: whose rise that is.

    Raises:
        UsageError: a number out of range or an unknown word.
    """

    ablate: tuple[str, ...] = ()
    bootstrap: int = 1000
    over: Literal["examples", "terms"] = "examples"
    points: int = 11
    align: Literal["weights", "activations", "none"] = "weights"
    eigenspaces: int = 0
    volume: VolumeOptions | None = None
    volume_loss: Literal["task", "behaviour", "relabelled"] = "behaviour"

    def __post_init__(self) -> None:
        if self.bootstrap < 2:
            raise UsageError(f"--bootstrap {self.bootstrap}: expected at least 2 resamples")
        if self.eigenspaces < 0:
            raise UsageError(f"--eigenspaces {self.eigenspaces}: expected a number from 0")
        if self.eigenspaces and self.ablate:
            raise UsageError(
                "--eigenspaces: the Hessian of an ablated network is not measured; leave --ablate "
                "or --eigenspaces out"
            )
        if self.align not in ("weights", "activations", "none"):
            raise UsageError(f"--align {self.align}: expected weights, activations or none")
        if self.volume_loss not in ("task", "behaviour", "relabelled"):
            raise UsageError(
                f"--volume {self.volume_loss}: expected behaviour, task or relabelled, the loss "
                "whose rise is measured"
            )
        if self.volume is not None:
            self._check_volume(self.volume)
        if self.over not in ("examples", "terms"):
            raise UsageError(f"--over {self.over}: expected examples or terms")
        if self.points != 0 and not 3 <= self.points <= _MOST_POINTS:
            raise UsageError(
                f"--points {self.points}: expected 0 (no path) or a number from 3 to {_MOST_POINTS}"
            )

    def _check_volume(self, volume: VolumeOptions) -> None:
        """Refuse what gives the two networks other priors or other methods."""
        if volume.chosen != ("quadratic",):
            raise UsageError(
                f"log V by {', '.join(volume.chosen)}: the volumes of two networks are compared by "
                "the quadratic model; expected methods=('quadratic',). Use landscape volume for "
                "others"
            )
        if volume.mean == "anchor":
            raise UsageError(
                "--mean anchor: each network would have a prior of its own; expected zero, init or "
                "a checkpoint, such as that of A"
            )
