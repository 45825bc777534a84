"""Annealing on losses that are no quadratics, whose volumes are known in closed form."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from anneal_methods import Record, measured
from anneal_residuals import Residuals, Squares, copies, hyperbola, inner, outer, x2, xy
from anneal_units import Units
from scipy import integrate, special

from landscape.volume.anneal_records import Annealing
from landscape.volume.islands import evaluated

SEEDS, COPIES_SEEDS = 20, 20
ERROR = 1.0  # Asked for, in nats.
COPIES = 20
QUICK = ("x^4", "(x y - 1)^2")
NEAR = 0.5  # R of the volume within a radius.

_ROOT_TWO_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One loss under the prior N(0, I).

    Attributes:
        residuals: whose squares add up to the loss.
        anchor: z*.
        cutoff: largest excess loss.
        volume: the exact V.
        partition: the exact Z at beta.
        tether: R.
    """

    residuals: Residuals
    anchor: tuple[float, ...]
    cutoff: float
    volume: Callable[[float], float]
    partition: Callable[[float], float]
    tether: float | None = None


def _normal(function: Callable[[float], float]) -> float:
    """The mean over a standard normal of an even function of x, by quadrature over log x."""

    def part(t: float) -> float:
        x = math.exp(t)
        return function(x) * math.exp(-x * x / 2) * x

    found = integrate.quad(part, -40, 4, limit=1000, epsabs=0, epsrel=1e-10, points=[-12, -6, 0])
    return 2 / _ROOT_TWO_PI * found[0]


def _bessel(low: float, high: float) -> float:
    """The mass of the product of two standard normals between two positive numbers."""
    return integrate.quad(special.k0, low, high, epsrel=1e-11)[0] / math.pi


def _quartic_partition(beta: float) -> float:
    """``E exp(-beta x^4)``."""
    return _normal(lambda x: math.exp(-beta * x**4))


def _inner_partition(beta: float) -> float:
    """``E (1 + 2 beta |a|^2)^(-1/2)``, |a|^2 exponential with mean 2."""
    return integrate.quad(
        lambda s: math.exp(-s / 2) / 2 / math.sqrt(1 + 2 * beta * s), 0, np.inf, epsrel=1e-10
    )[0]


def _outer_partition(beta: float) -> float:
    """``E 1 / (1 + 2 beta |a|^2)``."""
    c = 1 / (4 * beta)
    return c * math.exp(c) * float(special.exp1(c))


def _hyperbola_partition(beta: float) -> float:
    """``E exp(-beta / (1 + 2 beta x^2)) (1 + 2 beta x^2)^(-1/2)``."""
    return _normal(
        lambda x: math.exp(-beta / (1 + 2 * beta * x * x)) / math.sqrt(1 + 2 * beta * x * x)
    )


def _within(cutoff: float, radius: float) -> float:
    """(x y - 1)^2 <= e within ``radius sqrt(2)`` of (1, 1)."""
    reach, low, high = radius * math.sqrt(2), 1 - math.sqrt(cutoff), 1 + math.sqrt(cutoff)

    def part(x: float) -> float:
        half = math.sqrt(max(reach**2 - (x - 1) ** 2, 0.0))
        bottom, top = max(low / x, 1 - half), min(high / x, 1 + half)
        mass = float(special.ndtr(top) - special.ndtr(bottom)) if top > bottom else 0.0
        return mass * math.exp(-x * x / 2) / _ROOT_TWO_PI

    x = np.linspace(1 - reach, 1 + reach, 200_001)
    return float(np.trapezoid([part(value) for value in x], x))


FORMS: dict[str, Form] = {
    "x^4": Form(
        residuals=x2,
        anchor=(0.0,),
        cutoff=1e-4,
        volume=lambda e: math.erf(e**0.25 / math.sqrt(2)),
        partition=_quartic_partition,
    ),
    "x^2 y^2": Form(
        residuals=xy,
        anchor=(0.0, 0.0),
        cutoff=1e-4,
        volume=lambda e: 2 * _bessel(0, math.sqrt(e)),
        partition=lambda beta: _normal(lambda x: 1 / math.sqrt(1 + 2 * beta * x * x)),
    ),
    "(a1 b1 + a2 b2)^2": Form(
        residuals=inner,
        anchor=(0.0,) * 4,
        cutoff=1e-4,
        volume=lambda e: -math.expm1(-math.sqrt(e)),
        partition=_inner_partition,
    ),
    "|a|^2 |b|^2": Form(
        residuals=outer,
        anchor=(0.0,) * 4,
        cutoff=1e-4,
        volume=lambda e: 1 - math.sqrt(e) * float(special.k1(math.sqrt(e))),
        partition=_outer_partition,
    ),
    "(x y - 1)^2": Form(
        residuals=hyperbola,
        anchor=(1.0, 1.0),
        cutoff=1e-2,
        volume=lambda e: _bessel(1 - math.sqrt(e), 1 + math.sqrt(e)),
        partition=_hyperbola_partition,
    ),
    f"(x y - 1)^2 within R = {NEAR:g}": Form(
        residuals=hyperbola,
        anchor=(1.0, 1.0),
        cutoff=1e-2,
        volume=lambda e: _within(e, NEAR),
        partition=_hyperbola_partition,
        tether=NEAR,
    ),
}


def units(options: argparse.Namespace, kept: dict[str, Record]) -> Units:
    """Volumes and, of independent copies, partition functions: one for each form and seed."""
    del kept
    count = 1 if options.quick else SEEDS
    for seed in range(count if options.seeds is None else min(count, options.seeds)):
        for name, form in FORMS.items():
            if options.quick and name not in QUICK:
                continue
            yield f"{name}, seed {seed}", functools.partial(_volume, name, seed)
            if form.tether is None and seed < COPIES_SEEDS and not options.quick:
                key = f"{COPIES} copies of {name}, seed {seed}"
                yield key, functools.partial(_partition, name, seed)


def _volume(name: str, seed: int) -> Record:
    form = FORMS[name]
    energy = Squares(form.residuals)
    found = measured(
        energy,
        torch.tensor(form.anchor, dtype=torch.float64),
        energy.metric_at,
        cutoff=form.cutoff,
        error=ERROR,
        seed=seed,
        tether=form.tether,
    )
    return {
        "form": name,
        "what": "log V",
        "cutoff": form.cutoff,
        "truth": math.log(form.volume(form.cutoff)),
        **found,
    }


def _partition(name: str, seed: int) -> Record:
    """Log Z at the ladder's end of independent copies, with its t-interval over islands."""
    form = FORMS[name]
    energy = Squares(copies(form.residuals, COPIES))

    def beyond(annealing: Annealing) -> Record:
        level = int(annealing.ladder.marks[int(annealing.marks[0])])
        found = evaluated(annealing.ladder, level)
        return {
            "truth": COPIES * math.log(form.partition(float(annealing.ladder.beta[level]))),
            "value": found.value,
            "stderr": found.stderr,
            "lower": found.lower,
            "upper": found.upper,
            "label": found.label,
        }

    found = measured(
        energy,
        torch.tensor(form.anchor * COPIES, dtype=torch.float64),
        energy.metric_at,
        cutoff=COPIES * form.cutoff,
        error=ERROR,
        seed=seed,
        beyond=beyond,
    )
    return {"form": name, "what": "log Z", "cutoff": COPIES * form.cutoff, **found}
