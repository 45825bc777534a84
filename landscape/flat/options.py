"""What ``landscape flat`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.errors import UsageError
from landscape.volume.options import PriorOptions, check_cutoffs

__all__ = ["FlatOptions", "parse_sizes"]


@dataclass(frozen=True, kw_only=True)
class FlatOptions(PriorOptions):
    """What to count, under a prior.

    Attributes:
        tol: relative tolerance of ranks.
        multiplicity: m of the learning coefficient.
        walks: walks along null directions; none where 0.
        sizes: numbers of examples to count the null directions of; all examples are added. No sweep
            where empty.
    """

    tol: float = 1e-10
    multiplicity: int = 1
    walks: int = 0
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prior != "gaussian":
            raise UsageError(
                f"--prior {self.prior}: expected gaussian, whose width directions are compared "
                "with. landscape volume has uniform priors"
            )
        if not 0 < self.tol < 1:
            raise UsageError(f"--tol {self.tol}: expected a number between 0 and 1, such as 1e-10")
        check_cutoffs(self.cutoffs)
        for name, number, least in (
            ("multiplicity", self.multiplicity, 1),
            ("walk", self.walks, 0),
        ):
            if number < least:
                raise UsageError(f"--{name} {number}: expected a whole number of at least {least}")
        if any(size < 1 for size in self.sizes):
            raise UsageError(
                f"--examples-sweep {min(self.sizes)}: expected positive numbers of examples"
            )


def parse_sizes(text: str) -> tuple[int, ...]:
    """Numbers of examples from ``N,N,...``, ascending.

    Raises:
        UsageError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--examples-sweep {text!r}: expected positive numbers of examples joined by commas, "
            "such as 16,64,256"
        )
    return tuple(sorted({int(part) for part in parts}))
