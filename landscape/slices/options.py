"""What ``landscape slice`` is to measure: directions, spans and points."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from landscape.errors import UsageError
from landscape.results import FloatArray

__all__ = ["Along", "SliceOptions", "Span", "coordinates", "parse_along", "parse_span"]

Span = tuple[float, float]

_EXPECTED = "eigen:K, random, to:CHECKPOINT or pca:K"
_LINE, _PLANE, _MOST = 41, 21, 1001


@dataclass(frozen=True, kw_only=True)
class Along:
    """One direction, as it was asked for.

    Attributes:
        kind: ``eigen``, ``random``, ``to`` or ``pca``.
        number: of the eigenvector (negative from the smallest) or the component, else 0.
        path: the checkpoint of ``to``, else empty.
    """

    kind: Literal["eigen", "random", "to", "pca"]
    number: int = 0
    path: str = ""


def parse_along(text: str) -> Along:
    """The direction that a text names.

    Raises:
        UsageError: it names none.
    """
    kind, colon, rest = text.partition(":")
    if text == "random":
        return Along(kind="random")
    if kind == "to" and rest:
        return Along(kind="to", path=rest)
    if kind in ("eigen", "pca") and colon and re.fullmatch(r"[+-]?[0-9]{1,9}", rest):
        number = int(rest)
        if kind == "eigen":
            if number == 0:
                raise UsageError(
                    f"--along {text}: eigenvectors are counted from 1 (the largest eigenvalue), or "
                    "from -1 (the smallest)"
                )
            return Along(kind="eigen", number=number)
        if number < 1:
            raise UsageError(f"--along {text}: components are counted from 1")
        return Along(kind="pca", number=number)
    raise UsageError(f"--along {text}: expected {_EXPECTED}")


def parse_span(text: str) -> Span:
    """The ends of an axis, from ``LO,HI``.

    Raises:
        UsageError: these are not two numbers.
    """
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--span {text}: expected two numbers LO,HI, such as -1,1") from None
    return low, high


@dataclass(frozen=True, kw_only=True)
class SliceOptions:
    """Where to evaluate the loss.

    Args:
        along: one direction for a line, two for a plane; see :func:`parse_along`.
        points: on each axis, ends included; where None 41 on a line and 21 in a plane.
        spans: ends of each axis in the direction's own unit, one for all axes or one for each;
            where there is none, see :func:`landscape.slices.directions.default_span`.

    Raises:
        UsageError: a direction, span or number that makes no slice.
    """

    along: tuple[str, ...] = ("eigen:1",)
    points: int | None = None
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.along) <= 2:
            raise UsageError(
                f"{len(self.along)} directions (--along); expected one for a line or two for a "
                "plane"
            )
        counted = Counter(text for text in self.along if text != "random")
        if counted and max(counted.values()) > 1:
            raise UsageError(
                f"--along {self.along[0]} twice: a plane needs two different directions"
            )
        for text in self.along:
            parse_along(text)
        if self.points is not None and not 2 <= self.points <= _MOST:
            raise UsageError(f"--points {self.points}: expected a number from 2 to {_MOST}")
        if len(self.spans) > len(self.along):
            raise UsageError(
                f"{len(self.spans)} spans (--span) for {len(self.along)} directions; expected at "
                "most one for each"
            )
        for low, high in self.spans:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(
                    f"--span {low:g},{high:g}: expected two finite numbers, the smaller one first"
                )

    @property
    def directions(self) -> tuple[Along, ...]:
        """The directions, parsed."""
        return tuple(parse_along(text) for text in self.along)

    @property
    def count(self) -> int:
        """Points on each axis."""
        if self.points is not None:
            return self.points
        return _LINE if len(self.along) == 1 else _PLANE

    def span(self, axis: int) -> Span | None:
        """The ends of an axis, where they were given."""
        return None if not self.spans else self.spans[min(axis, len(self.spans) - 1)]


def coordinates(low: float, high: float, points: int) -> FloatArray:
    """Equidistant numbers, ends included, each the nearest one to its exact value.

    Finer or wider grids therefore have the very numbers of coarser ones in common.
    """
    ends = [Fraction(repr(float(end))) for end in (low, high)]
    step = (ends[1] - ends[0]) / (points - 1)
    return np.array([float(ends[0] + k * step) for k in range(points)])
