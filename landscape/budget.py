"""A budget of seconds, matrix-vector products or gradients, after which a run stops and reports."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from landscape.errors import UsageError

__all__ = ["Budget"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one run; None is no limit.

    Attributes:
        seconds: wall-clock seconds of the analysis.
        products: matrix-vector products with the whole data set.
        gradients: gradients of the whole data set, those of earlier runs of a file included.
    """

    seconds: float | None = None
    products: int | None = None
    gradients: int | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """``60`` or ``60s`` is seconds, ``2000mv`` matrix-vector products, ``1e6grad`` gradients.

        Raises:
            UsageError: anything else.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(mv|grad|s)?\s*", text)
        if match is None or not float(match[1]) > 0:
            raise UsageError(
                f"--budget {text!r}: expected seconds such as 60, matrix-vector products such as "
                "2000mv, or gradients such as 1e6grad"
            )
        if match[2] == "mv":
            return Budget(products=int(float(match[1])))
        if match[2] == "grad":
            return Budget(gradients=int(float(match[1])))
        return Budget(seconds=float(match[1]))

    def meter(self) -> Meter:
        """Start the clock."""
        return Meter(self, time.monotonic())


@dataclass(frozen=True)
class Meter:
    """A running budget."""

    budget: Budget
    started: float

    def spent(self, products: int) -> bool:
        """Whether the budget is used up after so many products."""
        limits = self.budget
        if limits.products is not None and products >= limits.products:
            return True
        return limits.seconds is not None and time.monotonic() - self.started >= limits.seconds
