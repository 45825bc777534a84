"""What ``landscape volume`` is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from landscape.errors import UsageError

__all__ = [
    "METHODS",
    "PriorOptions",
    "VolumeOptions",
    "check_cutoffs",
    "parse_cutoffs",
    "parse_shard",
]

METHODS = ("quadratic", "radial", "anneal")


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """The prior, and how much the loss may rise.

    Attributes:
        prior: ``gaussian`` or ``uniform``.
        mean: ``zero``, ``anchor``, ``init`` or a checkpoint; where None ``init`` with the sigma of
            that name, else ``zero``.
        sigma: ``rms``, ``init``, ``layer-rms`` or a number; of a Gaussian prior only.
        uniform: ``box`` or ``ball``, of a uniform prior only.
        half_width: half-width of the box or radius of the ball.
        cutoffs: largest excess losses, each a basin of its own.
    """

    prior: Literal["gaussian", "uniform"] = "gaussian"
    mean: str | None = None
    sigma: str | float | None = None
    uniform: Literal["box", "ball"] | None = None
    half_width: float | None = None
    cutoffs: tuple[float, ...] = (0.01,)


@dataclass(frozen=True, kw_only=True)
class VolumeOptions(PriorOptions):
    """What to measure, under a prior.

    Attributes:
        methods: ``quadratic``, ``radial``, ``anneal``; or ``auto``, every method that the prior
            allows, but ``anneal`` only where it takes few gradients.
        curvature: ``ggn``, ``hessian``, or ``auto``: the GGN for ``behaviour``, whose Hessian it is
            at the anchor, else the Hessian.
        exact: ``exact`` builds the curvature matrix or its factor, ``lanczos`` never does, ``auto``
            builds it where it is small enough.
        top: eigenpairs deflated on the matrix-free path.
        steps: Lanczos steps per probe there.
        probes: probes there, at least.
        samples: rays.
        chains: particles of a run of ``anneal``, in islands of 8.
        error: add probes and rays until the standard error is at most so many nats.
        tether: largest distance from the anchor in prior standard deviations (rms over
            coordinates); none where None.
        directions: ``tilted`` by the curvature, or ``symmetric`` about the anchor.
        shard: (i, m): rays i-1, i-1+m, ... of the sample only; all where None.
    """

    methods: tuple[str, ...] = ("auto",)
    curvature: Literal["auto", "ggn", "hessian"] = "auto"
    exact: Literal["auto", "exact", "lanczos"] = "auto"
    top: int = 100
    steps: int = 40
    probes: int = 10
    samples: int = 200
    chains: int = 64
    error: float = 1.0
    tether: float | None = None
    directions: Literal["tilted", "symmetric"] = "tilted"
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("prior", self.prior, ("gaussian", "uniform")),
            ("uniform", self.uniform or "box", ("box", "ball")),
            ("curvature", self.curvature, ("auto", "ggn", "hessian")),
            ("exact", self.exact, ("auto", "exact", "lanczos")),
            ("directions", self.directions, ("tilted", "symmetric")),
        ):
            if value not in allowed:
                raise UsageError(f"--{name} {value!r}: expected one of {', '.join(allowed)}")
        unknown = [name for name in self.methods if name not in (*METHODS, "auto")]
        if unknown or not self.methods:
            found = unknown[0] if unknown else ""
            raise UsageError(f"--method {found!r}: expected one of auto, {', '.join(METHODS)}")
        check_cutoffs(self.cutoffs)
        for name, number, least in (
            ("top", self.top, 0),
            ("steps", self.steps, 1),
            ("probes", self.probes, 2),
            ("samples", self.samples, 1),
        ):
            if number < least:
                raise UsageError(f"--{name} {number}: expected a whole number of at least {least}")
        if self.chains % 8 or self.chains < 32:
            raise UsageError(f"--chains {self.chains}: expected a multiple of 8, at least 32")
        for name, size, what in (
            ("error", self.error, "a positive number of nats"),
            (
                "tether",
                self.tether,
                "a positive number of prior standard deviations; without it there is no limit",
            ),
        ):
            if size is not None and not 0 < size < math.inf:
                raise UsageError(f"--{name} {size}: expected {what}")
        if self.shard is not None and "anneal" in self.methods:
            raise UsageError(
                "--shard with --method anneal: shards share out rays; expected --method radial. "
                "Run anneal by itself: it goes on with a larger --budget"
            )
        if self.prior == "uniform" and "anneal" in self.methods:
            raise UsageError(
                "--method anneal with --prior uniform: its path starts at a Gaussian prior; "
                "expected one. Use --method radial"
            )
        if self.prior == "uniform" and "quadratic" in self.methods:
            raise UsageError(
                "--method quadratic with --prior uniform: the tilted law has no mass to compare "
                "with where the curvature is 0; expected a Gaussian prior. Use --method radial"
            )
        if self.tether is not None and "quadratic" in self.methods:
            raise UsageError(
                "--method quadratic with --tether: the quadratic model's volume is known in closed "
                "form for the whole sublevel set only. Leave out --tether, or use --method radial"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods, ``auto`` resolved."""
        if "auto" not in self.methods:
            return tuple(name for name in METHODS if name in self.methods)
        if self.prior == "uniform":
            return ("radial",)
        return METHODS if self.tether is None else ("radial", "anneal")


def check_cutoffs(cutoffs: tuple[float, ...]) -> None:
    """Refuse cutoffs that are not positive, finite and different.

    Raises:
        UsageError: says which.
    """
    for cutoff in cutoffs:
        if not 0 < cutoff < math.inf:
            raise UsageError(
                f"--cutoff {cutoff:g}: expected a positive number, the largest excess loss that "
                "still counts as the same basin, such as 0.01"
            )
    if not cutoffs or len(set(cutoffs)) < len(cutoffs):
        raise UsageError("--cutoff: expected one or more different numbers, such as 0.001,0.01")


def parse_cutoffs(text: str) -> tuple[float, ...]:
    """Cutoffs from ``E``, ``E,E,...`` or ``LOW:HIGH:COUNT`` (log-spaced, both ends included).

    Raises:
        UsageError: anything else.
    """
    try:
        if ":" in text:
            low, high, count = text.split(":")
            ends, number = (float(low), float(high)), int(count)
            check_cutoffs(ends)
            if number < 2:
                raise UsageError(f"--cutoff {text}: expected a count of at least 2")
            spaced = np.geomspace(*ends, number)
            # Ends as given, and no noise in the last digits of what lies between.
            return tuple(float(f"{value:.6g}") for value in spaced)
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--cutoff {text!r}: expected a number, numbers joined by commas, or LOW:HIGH:COUNT "
            "such as 1e-4:1:13"
        ) from error


def parse_shard(text: str) -> tuple[int, int]:
    """``I/M``, the I-th of M shards.

    Raises:
        UsageError: anything else.
    """
    first, slash, last = text.partition("/")
    if slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UsageError(f"--shard {text!r}: expected I/M with 1 <= I <= M, such as 2/8")
