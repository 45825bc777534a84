"""Where the units of a site lie after a reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from landscape.flat.recorder import Axis, Label, Unsupported

__all__ = ["reshaped"]


def reshaped(label: Label, old: Sequence[int], new: Sequence[int]) -> Label:
    """The label after a reshape: dimensions are merged or split where their products agree.

    Raises:
        Unsupported: the units of a site would lie in several dimensions.
    """
    if math.prod(old) == 0:
        raise Unsupported("an empty tensor")
    result: list[Axis | None] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a <= b and i < len(old) and (a < b or not left):
                a *= old[i]
                left.append(i)
                i += 1
            elif j < len(new) and (b < a or not right):
                b *= new[j]
                right.append(j)
                j += 1
            else:
                break
        if a != b:
            raise Unsupported("a reshape")
        result += _block(label, old, new, left, right)
    return tuple(result)


def _block(
    label: Label,
    old: Sequence[int],
    new: Sequence[int],
    left: list[int],
    right: list[int],
) -> list[Axis | None]:
    """Labels of new dimensions that hold the same numbers as some old ones."""
    held = [i for i in left if label[i] is not None]
    if not held:
        return [None] * len(right)
    axis = label[held[0]]
    if len(held) > 1 or axis is None:
        raise Unsupported("units of two sites in one dimension")
    place = left.index(held[0])
    outer = axis.outer * math.prod(old[i] for i in left[:place])
    inner = axis.inner * math.prod(old[i] for i in left[place + 1 :])
    units = math.prod(old[i] for i in left) // (outer * inner)
    found: list[Axis | None] = []
    before = 1
    whole = math.prod(new[j] for j in right)
    for j in right:
        after = whole // (before * new[j])
        # The dimension that holds all units, and perhaps some of what lies around them.
        holds = before <= outer and after <= inner and outer % before == 0 and inner % after == 0
        if holds and new[j] == units * (outer // before) * (inner // after):
            found.append(Axis(axis.site, outer // before, inner // after))
        else:
            found.append(None)
        before *= new[j]
    if sum(axis is not None for axis in found) != 1:
        # A dimension of size 1 beside a site of one unit may look like it: take the first.
        first = next((k for k, axis in enumerate(found) if axis is not None), None)
        if first is None:
            raise Unsupported("units split over several dimensions")
        found = [axis if k == first else None for k, axis in enumerate(found)]
    return found
