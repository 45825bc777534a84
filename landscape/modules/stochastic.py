"""Coupling from products alone: probes of log-determinants, sketches of blocks, Lanczos' extremes.

Every log-determinant is ``E v^T log(M_R) v`` over random signs v on the coordinates of a region R,
by Lanczos quadrature. The Gauss rule overestimates it and the Gauss-Radau rule with a node at the
lower end of the spectrum underestimates it (:mod:`landscape.volume.measures`), so that each probe
says how much the number of steps leaves open. The same signs serve all regions, and the largest
eigenpairs serve as a control variate (:mod:`landscape.modules.low_rank`).

Sources: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017); Golub and Meurant, Matrices,
Moments and Quadrature (2010), chapter 11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.eigensolver import extreme_eigenpairs
from landscape.errors import NotFiniteError
from landscape.krylov import quadrature
from landscape.modules.low_rank import LowRank
from landscape.modules.records import ModuleCoupling
from landscape.modules.regions import LogDets, Region, regions
from landscape.modules.sketch import Blocks, Sketch, block_sketch, blocks_of
from landscape.operators import LinearOperator
from landscape.results import Estimate, FloatArray
from landscape.rng import stream
from landscape.units import Progress, Units
from landscape.volume.measures import gauss_radau

__all__ = ["Products", "stochastic_coupling", "stored_units"]

_COST = "cost"
_LARGEST = "largest"
_TOL = 1e-6  # Of the extreme eigenvalues, relative to the largest.
_LEAST = 2  # Probes that no budget leaves out.
_SMALL = 3  # Coordinates up to which a block is built.
_MATVECS = 1000  # Of a pair of extreme eigenvalues, converged or not.


@dataclass(frozen=True, kw_only=True)
class Products:
    """A matrix that is known through products, and its blocks.

    Attributes:
        whole: A.
        groups: coordinates of every group, ascending.
        block: the diagonal block of some groups, whose coordinates are those of the groups in
            ascending order.
        largest: finds the largest eigenvalues of A, (d,), orthonormal vectors as rows (d, n), and
            the products that this took; none are needed (d = 0), but they lower the noise.
    """

    whole: LinearOperator
    groups: Sequence[Tensor]
    block: Callable[[Region], LinearOperator]
    largest: Callable[[], tuple[Tensor, Tensor, int]]

    def coordinates(self, region: Region) -> Tensor:
        """The coordinates of a region, ascending."""
        return torch.cat([self.groups[a] for a in region]).sort().values


def stochastic_coupling(
    products: Products,
    *,
    tilt: float,
    tol: float,
    sketch: int,
    steps: int,
    probes: int,
    pairs: bool,
    seed: int,
    units: Units,
    stop: Callable[[int], bool],
    progress: Progress,
) -> tuple[ModuleCoupling, int]:
    """Coupling between groups, with errors, and the products that it took.

    Args:
        products: the whitened curvature.
        tilt: s >= 0.
        tol: relative tolerance of ranks.
        sketch: test vectors of every group.
        steps: Lanczos steps of every log-determinant.
        probes: probes of the log-determinants.
        pairs: whether pairs are measured.
        seed: seed of all random vectors.
        units: where finished parts are kept.
        stop: whether the budget is spent after so many products; only probes are cut short.
        progress: called with the products done.

    Raises:
        NotFiniteError: ``I + s A`` is not positive definite, or a product is not finite.

    Cost: for G groups about 100 (G + 1) products for the extremes, ``sketch`` for every group and
    ``steps`` for every probe and region: 1 + 2 G regions, and G (G - 1) / 2 with pairs.
    """
    work = _Work(products=products, seed=seed, units=units, progress=progress)
    extremes = work.extremes()
    end = min(float(extremes["lowest"]) - float(extremes["residual"]), 0.0)
    if 1 + tilt * end <= 0:
        raise NotFiniteError(
            f"I + s A is not positive definite: the smallest eigenvalue of the whitened curvature "
            f"is {float(extremes['lowest']):.4g}, and the tilt is {tilt:.4g}; expected a tilt "
            f"below {-1 / end:.4g}. Use --loss behaviour or --curvature ggn, whose curvature is "
            "never negative, or a smaller --tilt"
        )
    scale = max(abs(float(extremes["lowest"])), abs(float(extremes["highest"])))
    blocks = work.blocks(sketch, scale=scale, tol=tol)
    dets = work.log_dets(tilt=tilt, end=end, steps=steps, probes=probes, pairs=pairs, stop=stop)
    record = _assembled(
        products.groups, tilt, tol, steps, extremes=extremes, blocks=blocks, dets=dets
    )
    return record, work.done


class _Work:
    """Parts of a run, each kept as a unit once it is done."""

    def __init__(self, *, products: Products, seed: int, units: Units, progress: Progress) -> None:
        self.products, self.seed = products, seed
        self._units, self._progress = units, progress
        self.done = self.spent = 0  # Products behind all of it, and those of this run.

    def _put(self, name: str, unit: dict[str, Any]) -> None:
        self._units.put(name, {**unit, _COST: self.done})

    def _get(self, name: str) -> dict[str, Any] | None:
        unit = self._units.get(name)
        if unit is not None:
            self.done = max(self.done, int(unit[_COST]))
        return unit

    def _count(self, products: int) -> None:
        self.done += products
        self.spent += products

    def _tick(self, phase: str, total: int | None = None) -> None:
        self._count(1)
        self._progress(phase, self.done, total)

    def extremes(self) -> dict[str, Any]:
        """Smallest and largest eigenvalue of the whole and of every group."""
        rows = []
        count = len(self.products.groups)
        for name, region in [
            ("whole", tuple(range(count))),
            *((f"{a}", (a,)) for a in range(count)),
        ]:
            unit = self._get(f"extremes-{name}")
            if unit is None:
                unit = self._extremes(region)
                self._put(f"extremes-{name}", unit)
            rows.append(np.asarray(unit["numbers"]))
        table = np.stack(rows)
        return {
            # Those of the blocks lie between (Cauchy), whatever the residuals.
            "lowest": table[:, 0].min(),
            "highest": table[:, 1].max(),
            "lowest_groups": table[1:, 0],
            "highest_groups": table[1:, 1],
            "residual": table[:, 2].max(),
            "converged": int(table[:, 3].all()),
        }

    def _extremes(self, region: Region) -> dict[str, Any]:
        whole = len(region) == len(self.products.groups)
        operator = self.products.whole if whole else self.products.block(region)
        if operator.n <= _SMALL:
            dense = operator.dense().double().cpu()
            values = torch.linalg.eigvalsh((dense + dense.T) / 2)
            self._count(operator.n)
            return {"numbers": np.array([float(values[0]), float(values[-1]), 0.0, 1.0])}
        pairs = extreme_eigenpairs(
            operator,
            top=1,
            bottom=1,
            tol=_TOL,
            seed=self.seed,
            max_matvecs=_MATVECS,
            on_step=lambda done, _: self._progress("extremes", self.done + done, None),
        )
        self._count(pairs.n_matvecs)
        numbers = [
            pairs.values[-1],
            pairs.values[0],
            pairs.residuals.max(),
            float(pairs.converged.all()),
        ]
        return {"numbers": np.array(numbers)}

    def blocks(self, count: int, *, scale: float, tol: float) -> Blocks:
        """Norms and ranks of all blocks."""
        stored = self._get("blocks")
        if stored is not None:
            return Blocks(**{f.name: np.asarray(stored[f.name]) for f in fields(Blocks)})
        groups = self.products.groups
        sketches: list[Sketch] = []
        for index, group in enumerate(groups):
            name = f"sketch-{index}"
            unit = self._get(name)
            found = block_sketch(
                self.products.whole,
                group,
                index,
                count=count,
                seed=self.seed,
                products=None if unit is None else torch.from_numpy(unit["products"].copy()),
                on_product=lambda: self._tick("blocks"),
            )
            if unit is None:
                self._put(name, {"products": found.products.numpy()})
            sketches.append(found)
        blocks = blocks_of(sketches, groups, scale=scale, tol=tol)
        self._put("blocks", {f.name: getattr(blocks, f.name) for f in fields(Blocks)})
        for index in range(len(groups)):
            self._units.drop(f"sketch-{index}")
        return blocks

    def log_dets(
        self,
        *,
        tilt: float,
        end: float,
        steps: int,
        probes: int,
        pairs: bool,
        stop: Callable[[int], bool],
    ) -> LogDets:
        """Bounds of the log-determinants of all regions by probe."""
        wanted, base = regions(len(self.products.groups))
        tables = [self._table(probe, len(wanted)) for probe in range(self._known(probes))]
        every = [(probe, r) for probe in range(probes) for r in range(base)]
        if pairs:
            every += [(probe, r) for probe in range(probes) for r in range(base, len(wanted))]
        open_ = [(probe, r) for probe, r in every if not np.isfinite(tables[probe][r]).all()]
        left = sum(
            min(steps, sum(len(self.products.groups[a]) for a in wanted[r])) for _, r in open_
        )
        control: LowRank | None = None
        if open_:
            values, vectors, more = self.products.largest()
            control = LowRank(values, vectors, self.products.groups, tilt=tilt)
            if self._get(_LARGEST) is None:  # Counted once, however often a run goes on.
                self._count(more)
                self._put(_LARGEST, {"n_matvecs": more})
        total = self.done + left
        for probe, r in open_:
            if stop(self.spent) and (probe >= _LEAST or r >= base):
                break
            assert control is not None
            tables[probe][r] = self._bounds(
                wanted[r], probe, control, tilt=tilt, end=end, steps=steps, total=total
            )
            self._put(_probe(probe), {"bounds": tables[probe].copy()})
        found = np.stack(tables, axis=1)
        return LogDets(regions=wanted, high=found[..., 0], low=found[..., 1])

    def _known(self, probes: int) -> int:
        """Probes that are asked for or stored."""
        while self._units.get(_probe(probes)) is not None:
            probes += 1
        return probes

    def _table(self, probe: int, count: int) -> FloatArray:
        unit = self._get(_probe(probe))
        return np.full((count, 2), np.nan) if unit is None else np.array(unit["bounds"])

    def _bounds(
        self,
        region: Region,
        probe: int,
        control: LowRank,
        *,
        tilt: float,
        end: float,
        steps: int,
        total: int,
    ) -> tuple[float, float]:
        """Upper and lower bound of ``v^T log(I + s A_R) v``, less what is known of its noise."""
        whole = len(region) == len(self.products.groups)
        operator = self.products.whole if whole else self.products.block(region)
        generator = stream(self.seed, "signs", probe)
        signs = torch.randint(0, 2, (self.products.whole.n,), generator=generator) * 2 - 1
        start = signs[self.products.coordinates(region)].to(operator.like)
        nodes, weights = quadrature(
            operator, start, steps=steps, on_step=lambda: self._tick("log-determinants", total)
        )
        # What lies below the known end of the spectrum is rounding.
        nodes = np.maximum(nodes, end)
        known = control.excess(region, signs.double())
        high = _log_sum(nodes, weights, operator.n, tilt)
        low = high  # An invariant subspace leaves nothing open.
        if len(nodes) >= min(steps, operator.n + 1):
            low = min(_log_sum(*gauss_radau(nodes, weights, end=end), operator.n, tilt), high)
        return high - known, low - known


def _probe(index: int) -> str:
    return f"signs-{index}"


def _log_sum(nodes: FloatArray, weights: FloatArray, n: int, tilt: float) -> float:
    return float(n * (weights @ np.log1p(tilt * nodes)))


def stored_units(record: ModuleCoupling, n_matvecs: int) -> dict[str, dict[str, Any]]:
    """A finished result as the units that it was made of, so that probes can be added."""
    units: dict[str, dict[str, Any]] = {
        "tilt": {"tilt": record.tilt, "n_matvecs": 0},
        _LARGEST: {"n_matvecs": 0},
    }
    flag = float(record.converged)
    ends = zip(record.lowest_groups, record.highest_groups, strict=True)
    rows = [(record.lowest, record.highest), *ends]
    for name, (low, high) in zip(("whole", *map(str, range(len(record.size)))), rows, strict=True):
        units[f"extremes-{name}"] = {"numbers": np.array([low, high, record.residual, flag])}
    units["blocks"] = {f.name: getattr(record, f.name) for f in fields(Blocks)}
    for probe in range(record.n_probes):
        bounds = np.stack([record.log_det_high[:, probe], record.log_det_low[:, probe]], axis=1)
        units[_probe(probe)] = {"bounds": bounds}
    for name, unit in units.items():
        if name != "tilt":
            unit[_COST] = n_matvecs
    return units


def _assembled(
    groups: Sequence[Tensor],
    tilt: float,
    tol: float,
    steps: int,
    *,
    extremes: dict[str, Any],
    blocks: Blocks,
    dets: LogDets,
) -> ModuleCoupling:
    """The record of all parts."""
    count = len(groups)
    whole = tuple(range(count))
    singles: list[Region] = [(a,) for a in whole]
    others = [tuple(b for b in whole if b != a) for a in whole]
    coupling = {part: np.zeros((count, count)) for part in _PARTS}
    for i in whole:
        for j in range(i):
            pair = dets.coupling([(j,), (i,)], [(j, i)])
            for part in _PARTS:
                coupling[part][i, j] = coupling[part][j, i] = getattr(pair, part)
    rest = [dets.coupling([(a,), b], [whole]) for a, b in zip(whole, others, strict=True)]
    within = [dets.combined([single]) for single in singles]
    schur = [dets.combined([whole], [b]) for b in others]
    region = np.zeros((len(dets.regions), count), dtype=np.bool_)
    for row, members in enumerate(dets.regions):
        region[row, list(members)] = True
    return ModuleCoupling(
        method="matrix-free",
        tilt=tilt,
        size=np.array([len(group) for group in groups], dtype=np.int64),
        tol=tol,
        **{f.name: getattr(blocks, f.name) for f in fields(Blocks)},
        coupling=coupling["value"],
        coupling_stderr=coupling["stderr"],
        coupling_lower=coupling["lower"],
        coupling_upper=coupling["upper"],
        correlations=np.full((count, count, 0), np.nan),
        rest=_part(rest, "value"),
        rest_stderr=_part(rest, "stderr"),
        rest_lower=_part(rest, "lower"),
        rest_upper=_part(rest, "upper"),
        log_det_groups=_part(within, "value"),
        log_det_groups_stderr=_part(within, "stderr"),
        log_det_schur=_part(schur, "value"),
        log_det_schur_stderr=_part(schur, "stderr"),
        log_det=dets.combined([whole]),
        total=dets.coupling(singles, [whole]),
        truncation=dets.truncation(singles, [whole]),
        **extremes,
        steps=steps,
        region=region,
        log_det_high=dets.high,
        log_det_low=dets.low,
    )


_PARTS = ("value", "stderr", "lower", "upper")


def _part(found: Sequence[Estimate], part: str) -> FloatArray:
    return np.array([getattr(estimate, part) for estimate in found])
