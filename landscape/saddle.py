"""Tilted quadratic forms and their saddle points, in numbers that no scale overflows.

The names and formulas are those of :mod:`landscape.quadratic_form`; every cumulant is multiplied by
its power of s. Needs only numpy and scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import special

if TYPE_CHECKING:
    from landscape.quadratic_form import QuadraticForm

__all__ = ["Tail", "Tilt"]

FloatArray = NDArray[np.float64]

_NEGLIGIBLE = 1e-13  # Multiplicity, a quadrature's weight, whose part in log P is below rounding.
_FLAT = 1e-290  # Eigenvalue whose inverse would overflow.
_HUGE = 1e300  # What is taken for infinity where 0 times it must be 0.
_SPAN = 700.0  # Range of log s that is searched for a saddle.


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """A form at one real s > 0, in the names of the module.

    Attributes:
        s: the tilt.
        u: ``1 - s / s_max``, what is left to the right end of the strip.
        logs: log(1 + s a), (k,).
        r: (k,).
        c: (k,).
        width: the first part of K(-s).
        location: the second.
        mean: ``s E_s[Q]``.
        variance: ``s^2 Var_s[Q]``.
        third: ``s^3 K3_s[Q]``.
    """

    s: float
    u: float
    logs: FloatArray
    r: FloatArray
    c: FloatArray
    width: float
    location: float
    mean: float
    variance: float
    third: float


class Tail:
    """The lower tail of Q (sign 1) or of -Q (sign -1): where s > 0."""

    def __init__(self, form: QuadraticForm, sign: float) -> None:
        a = np.where(np.abs(form.eigenvalues) > _FLAT, sign * form.eigenvalues, 0.0)
        m = np.where(form.multiplicity > _NEGLIGIBLE, form.multiplicity, 0.0)
        self.kept = kept = (a != 0) & ((m > 0) | (form.location > 0)) | (form.slope > 0)
        self.a, self.m = a[kept], m[kept]
        self.root_l, self.root_y = np.sqrt(form.location[kept]), np.sqrt(form.slope[kept])
        self.x = sign * form.cross[kept]
        bound = self.root_l * self.root_y
        self.cosine = np.divide(self.x, bound, out=np.zeros_like(bound), where=bound > 0)
        self.cosine = self.cosine.clip(-1, 1)
        self.constant = not len(self.a)
        self.least = float(self.a.min(initial=0.0))
        self.edge = -1 / self.least if self.least < 0 else np.inf
        self.scale = float(max(np.abs(self.a).max(initial=0.0), self.root_y.max(initial=0.0)))

    @property
    def infimum(self) -> float:
        """The least value of Q: ``-1/2 sum y / a`` where it is bounded below."""
        if self.least < 0 or (self.root_y[self.a == 0] > 0).any():
            return -np.inf
        curved = self.a > 0
        return float(-0.5 * (self.root_y[curved] ** 2 / self.a[curved]).sum())

    def tilt(self, t: float) -> Tilt:
        """The form at ``s = exp(t)``, or ``s = s_max / (1 + exp(-t))`` where s is bounded.

        Both s and its distance to the end keep their digits at any scale.
        """
        a = self.a
        with np.errstate(all="ignore"):
            if self.edge == np.inf:
                s, u = float(np.exp(t)), 1.0
                product = a * s
                whole = 1 + product
            else:
                s, u = float(self.edge * special.expit(t)), float(special.expit(-t))
                share = a / self.least
                product = -share * special.expit(t)
                whole = np.where(share > 0, (1 - share) + share * u, 1 + product)
            v = 1 / whole
            finite = np.isfinite(product)
            r = np.where(finite, product * v, 1.0)
            logs = np.where(whole < 0.5, np.log(whole), np.log1p(product))
            logs = np.where(finite, logs, np.log(np.abs(a)) + t)
            sv = np.minimum(np.where(finite, s * v, 1 / a), _HUGE)
            # Squares of lengths: no digits are lost where a z* and g nearly cancel.
            near, far = self.root_l * r, self.root_y * sv
            c = v * ((near - self.cosine * far) ** 2 + (1 - self.cosine**2) * far**2)
            xv, lr, ys = self.x * sv, self.root_l**2 * r, self.root_y * s * far
            return Tilt(
                s=s,
                u=u,
                logs=logs,
                r=r,
                c=c,
                width=float(-0.5 * self.m @ logs),
                location=float((xv - 0.5 * lr + 0.5 * ys).sum()),
                mean=float(0.5 * self.m @ r - (xv * v - 0.5 * lr * v + 0.5 * ys * (1 + v)).sum()),
                variance=float(0.5 * self.m @ r**2 + c.sum()),
                third=float(self.m @ r**3 + 3 * c @ r),
            )

    def saddle(self, e: float, *, pole: float = 0.0) -> Tilt:
        """Where ``s E_s[Q] = s e - pole``: pole 1 for the saddle of the integrand with its 1/s.

        E_s[Q] falls with s, so there is one solution; Newton's method for t within a bracket.
        """

        def excess(t: float) -> tuple[float, Tilt]:
            tilt = self.tilt(t)
            return tilt.s * e - tilt.mean - pole, tilt

        if self.edge == np.inf:
            start = -np.log(self.scale)
        else:
            start = float(special.logit(min(1 / self.scale / self.edge, 0.5)))
        low = high = start
        step = 1.0
        if excess(start)[0] < 0:
            while high < _SPAN and excess(high)[0] < 0:
                low, high, step = high, min(high + step, _SPAN), 2 * step
        else:
            while low > start - _SPAN and excess(low)[0] >= 0:
                low, high, step = low - step, low, 2 * step
        t, last = (low + high) / 2, high - low
        for _ in range(200):
            value, tilt = excess(t)
            low, high = (t, high) if value < 0 else (low, t)
            slope = (tilt.variance + pole) * tilt.u
            change = -value / slope if slope else np.inf
            if abs(change) > last / 2 or not low < t + change < high:
                change = (low + high) / 2 - t  # Newton's steps are too slow or lead outside.
            if abs(change) <= 4e-16 * max(1.0, abs(t)):
                break
            t, last = t + change, abs(change)
        return tilt
