"""What an annealed result says about itself, in words; needs only numpy."""

from __future__ import annotations

import math

from landscape.volume.anneal_records import Annealing

__all__ = ["at_radius", "judgement"]


def at_radius(radius: float) -> str:
    """``R = 0.5``, or ``R = ∞`` without a limit."""
    return "R = ∞" if math.isinf(radius) else f"R = {radius:.3g}"


def judgement(annealing: Annealing) -> str:
    """Whether the value is to be believed, and if not, how far both starts agree."""
    asked, agreed = at_radius(annealing.radius), annealing.agreed_radius
    if annealing.converged:
        return f"converged: both starts agree at {asked}"
    if annealing.outward is None:
        why = f"one start only, nothing to compare it with at {asked}"
    elif math.isnan(agreed):
        why = f"both starts agree at no radius up to {asked}"
    elif agreed < annealing.radius:
        why = f"both starts agree up to {at_radius(agreed)}, not at {asked}"
    else:
        why = f"both starts agree at {asked}, but a check failed"
    return f"NOT converged: {why}"
