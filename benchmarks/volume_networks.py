"""Log-volumes of trained networks, where no method knows the truth, and the tilt of their rays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from volume_methods import PRODUCTS, Record, matrix_free, quadratic_record, rays
from volume_problems import CUTOFF, DAMPING

from landscape.measurement import prepared
from landscape.operators import Whitened, curvature
from landscape.risk import Risk
from landscape.settings import Settings
from landscape.training import train
from landscape.units import MemoryUnits, silent
from landscape.volume.curvature import Curved, curved
from landscape.volume.excess import ExcessLoss
from landscape.volume.options import VolumeOptions
from landscape.volume.quadratic import QuadraticVolume, quadratic_exact
from landscape.volume.tilted import DirectionLaw, symmetric_law, tilted_law
from landscape.volume_runs import VolumeRun

FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0)
CUTOFFS = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network with its prior, in whitened coordinates.

    Attributes:
        record: its size, data, loss and prior.
        risk: the behaviour loss at the trained weights.
        anchor: z*, (n,).
        scale: the prior's standard deviations, (n,).
        model: every eigenpair of the whitened curvature.
        quadratic: the exact log-volumes of the quadratic model at the cutoffs.
        excess: excess losses at rows (k, n).
    """

    record: Record
    risk: Risk
    anchor: Tensor
    scale: Tensor
    model: Curved
    quadratic: QuadraticVolume
    excess: Callable[[Tensor], Tensor]


def trained(folder: Path, *, width: int, examples: int | None, steps: int) -> Network:
    """Train ``digits-mlp`` of that width and take its curvature apart.

    Args:
        folder: for the checkpoint.
        width: units of the hidden layer.
        examples: of the training split that the behaviour is compared on; all where None.
        steps: of training.
    """
    setting = {"width": width}
    (point,) = train("digits-mlp", setting, steps=steps, checkpoints=1, out=folder / f"w{width}")
    began = time.perf_counter()
    run = VolumeRun(
        **prepared(
            "digits-mlp", point.path, Settings(loss="behaviour", examples=examples), setting
        ),
        options=VolumeOptions(cutoffs=CUTOFFS),
    )
    risk = run.risk()
    weights = risk.space.vector().double()
    prior = run.prior(risk.space, weights)
    anchor = prior.whiten(weights)
    losses = ExcessLoss(risk)
    losses.require_zero_at_anchor()
    model = curved(
        Whitened(curvature("ggn", risk), prior.scale),
        run.route,
        risk=risk,
        scale=prior.scale,
        anchor=anchor,
        gradient=None,
        top=0,
        seed=0,
        units=MemoryUnits(),
        stop=lambda: False,
        progress=silent,
    )
    quadratic = quadratic_exact(model.values.numpy(), model.vectors, anchor, cutoffs=CUTOFFS)
    model.operator.release()
    record = {
        "name": f"64-{width}-10",
        "n": risk.n,
        "examples": run.data.n_examples,
        "steps": steps,
        "train_loss": point.train_loss,
        "test_accuracy": point.test_accuracy,
        "sigma": float(prior.scale[0]),
        "route": run.route,
        "products": model.n_matvecs,
        "cutoff": CUTOFF,
        "seconds": time.perf_counter() - began,
    }
    return Network(
        record=record,
        risk=risk,
        anchor=anchor,
        scale=prior.scale,
        model=model,
        quadratic=quadratic,
        excess=lambda z: losses(prior.unwhiten(z)),
    )


def network_tilts(
    network: Network, cutoffs: tuple[float, ...], factors: tuple[float, ...], count: int
) -> list[dict[str, Any]]:
    """Rays from laws with several times the tilt of the quadratic model, at every cutoff.

    And from the symmetric law with the exact Hessian as preconditioner, which depends on no cutoff.
    """
    model, found = network.model, []
    arguments = (network.anchor, model.vectors, model.values)
    for cutoff in cutoffs:
        place = CUTOFFS.index(cutoff)
        scale = float(network.quadratic.saddle[place])
        rows = [
            {
                "factor": factor,
                **_rays(network, tilted_law(*arguments, scale=factor * scale), cutoff, count),
            }
            for factor in factors
        ]
        found.append(
            {
                "cutoff": cutoff,
                "scale": scale,
                "quadratic": float(network.quadratic.log_volume[place]),
                "n_eff": float(network.quadratic.n_eff[place]),
                "rows": rows,
                "symmetric": _rays(
                    network, symmetric_law(*arguments, damping=DAMPING), cutoff, count
                ),
            }
        )
    return found


def network_methods(network: Network, tilts: list[dict[str, Any]], count: int) -> dict[str, Record]:
    """Every method at the cutoff of the quadratic problems; some are among the tilts."""
    place = CUTOFFS.index(CUTOFF)
    (tilt,) = (tilt for tilt in tilts if tilt["cutoff"] == CUTOFF)
    record = network.record
    began = time.perf_counter()
    operator = Whitened(curvature("ggn", network.risk), network.scale)
    stochastic = matrix_free(operator, network.anchor, seed=0)
    operator.release()
    return {
        "quadratic": quadratic_record(
            network.quadratic, place, products=record["products"], seconds=record["seconds"]
        ),
        f"quadratic, {PRODUCTS} products": quadratic_record(
            stochastic, products=operator.n_matvecs, seconds=time.perf_counter() - began
        ),
        "radial": tilt["rows"][0],
        "symmetric": _rays(network, symmetric_law(network.anchor), CUTOFF, count),
        "symmetric, exact Hessian": tilt["symmetric"],
    }


def _rays(network: Network, law: DirectionLaw, cutoff: float, count: int) -> Record:
    (found,) = rays(network.excess, law, network.anchor, cutoff=cutoff, counts=(count,))
    return found
