"""Log-volumes of two networks by the quadratic model, on the same data and under one prior."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from landscape.compare.records import Volumes
from landscape.risk import Risk
from landscape.units import NamedUnits, Progress, Units
from landscape.volume_runs import VolumeRun

__all__ = ["FoundVolumes", "compare_volumes"]

# What ``landscape volume`` advises, in the words of ``landscape compare``.
_REMEDIES = {
    "--loss behaviour or --curvature ggn": "--volume behaviour",
    "use --method radial": "use landscape volume --method radial",
}


@dataclass(frozen=True, kw_only=True)
class FoundVolumes:
    """Log-volumes, and what they took.

    Attributes:
        found: the log-volumes.
        notes: warnings of both measurements.
        n_matvecs: matrix-vector products.
        n_forward: forward passes over the whole data set.
        n_gradient: gradients over the whole data set.
    """

    found: Volumes
    notes: tuple[str, ...]
    n_matvecs: int
    n_forward: int
    n_gradient: int


def compare_volumes(a: VolumeRun, b: Risk, *, units: Units, progress: Progress) -> FoundVolumes:
    """Log V of A, and of B as its model is now, ablations included.

    Args:
        a: the measurement of A; B gets its prior and its options.
        b: the task loss of B. Hooks on its model are a part of the function that is measured, and
            must not depend on the micro-batch.
        units: of this process; finished work of both is kept there.
        progress: told of the products.

    Raises:
        LandscapeError: see :class:`landscape.volume_runs.VolumeRun`.

    Cost: two measurements of ``landscape volume --method quadratic`` and a gradient.
    """
    task = dataclasses.replace(a.resolved.task, model=b.model)
    other = VolumeRun(
        resolved=dataclasses.replace(a.resolved, task=task),
        data=a.data,
        checkpoint=None,
        settings=a.settings,
        ranks=a.ranks,
        options=a.options,
        sigma=a.sigma,
        prior_access=a.prior_access,
    )
    slope = float(torch.linalg.vector_norm(b.gradient().double()))
    results = []
    for name, run in (("A", a), ("B", other)):

        def told(phase: str, done: int, total: int | None, name: str = name) -> None:
            progress(f"log V of {name}: {phase}", done, total)

        results.append(run.measure(units=NamedUnits(units, f"volume {name}"), progress=told))
    infos = [result.info for result in results]
    notes = []
    for name, info in zip("AB", infos, strict=True):
        for text in info.warnings:
            for words, here in _REMEDIES.items():
                text = text.replace(words, here)
            notes.append(f"log V of {name}: {text}")
    loss = a.settings.loss
    if loss != "behaviour":
        notes.append(
            f"log V is of the {loss} loss, whose gradient is {infos[0].gradient_norm:.3g} at A and "
            f"{infos[1].gradient_norm:.3g} at B: where it does not vanish the network is at no "
            "minimum, and its volume counts what lies below it, too"
        )
    return FoundVolumes(
        found=Volumes(
            loss=loss,
            gradient_norm=slope,
            a=results[0].estimates["quadratic"],
            b=results[1].estimates["quadratic"],
        ),
        notes=tuple(notes),
        n_matvecs=sum(info.n_matvecs for info in infos),
        n_forward=sum(info.n_forward for info in infos),
        n_gradient=1 + sum(info.n_gradient for info in infos),
    )
