"""The Hessian as GGN plus residual: norms of the parts, and how many eigenvalues are negative.

``H = J^T C J + R`` with ``R = sum_k (d loss / d f_k) d^2 f_k / dw^2``: the residual is what a
non-zero loss, whose gradient in the outputs is not 0, brings in beside the GGN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.density import probe
from landscape.information.records import Split, SplitNorms
from landscape.memory import stored_tensor
from landscape.operators import CurvatureOperator, LinearOperator
from landscape.results import FloatArray
from landscape.rng import stream
from landscape.spectrum import dense_matrix
from landscape.units import Progress, Units

__all__ = ["exact_split", "norms_of", "probed_split"]

_PARTS = 3  # H, GGN and R.
Blocks = Mapping[str, Sequence[int]]


def exact_split(
    hessian: CurvatureOperator,
    ggn: CurvatureOperator,
    blocks: Blocks,
    *,
    tol: float,
    units: Units,
    progress: Progress,
) -> tuple[Split, int]:
    """Everything from both explicit matrices, and the products behind it.

    Args:
        hessian: H of size n.
        ggn: the GGN.
        blocks: indices of the parameters of every diagonal block that is looked at.
        tol: an eigenvalue below ``-tol`` times the largest magnitude is negative.
        units: where rows of the matrices are kept.
        progress: called with the rows done.

    Cost: n products with each, O(n^3) flops and 4 n^2 numbers.
    """
    h, g = (_matrix(operator, units, progress) for operator in (hessian, ggn))
    space = hessian.product.risk.space
    norms, values = [], torch.linalg.eigvalsh(h)
    for layer, positions in {"": range(len(space.sizes)), **blocks}.items():
        place = space.coordinates(positions)
        parts = [m[place][:, place] if layer else m for m in (h, g)]
        parts.append(parts[0] - parts[1])
        own = torch.linalg.eigvalsh(parts[0]) if layer else values
        squares = np.array([[[float(part.square().sum()) for part in parts]]])
        [found] = norms_of(squares, {layer: len(place)})
        negative = float((own < -tol * float(own.abs().max())).sum())
        norms.append(_exactly(found, negative=negative))
    split = Split(
        exact=True,
        n_probes=0,
        norms=tuple(norms),
        smallest=float(values[0]),
        largest=float(values[-1]),
        at_least=False,
        squares=np.zeros((0, len(norms), _PARTS)),
    )
    return split, 2 * hessian.n


def _exactly(found: SplitNorms, *, negative: float) -> SplitNorms:
    zero: dict[str, Any] = dict.fromkeys((f"{name}_stderr" for name in _NAMES), 0.0)
    return replace(found, negative=negative, **zero)


def _matrix(operator: CurvatureOperator, units: Units, progress: Progress) -> Tensor:
    """The explicit matrix, whose rows are kept as a unit of its name."""
    unit, n = f"matrix-{operator.name}", operator.n

    def on_rows(matrix: Tensor, done: int) -> None:
        progress(f"{operator.name}: matrix", done, n)
        if units.due() or done == n:
            units.put(unit, {"rows": matrix[:done].numpy().copy()})

    stored = units.get(unit)
    rows = None if stored is None else stored_tensor(stored["rows"])
    matrix = dense_matrix(operator, rows=rows, on_rows=on_rows)
    operator.release()
    return (matrix + matrix.T) / 2


def probed_split(
    hessian: CurvatureOperator,
    ggn: CurvatureOperator,
    blocks: Blocks,
    *,
    probes: int,
    steps: int,
    tol: float,
    seed: int,
    units: Units,
    progress: Progress,
) -> tuple[Split, int]:
    """Norms from probes, ``E |A v|^2 = |A|_F^2`` for v of independent signs, and Lanczos.

    A diagonal block has probes of its own, since products with the whole mix it with others. As
    many eigenvalues are negative as Ritz values, or more (Cauchy's interlacing). Source of the
    estimator: Hutchinson, Communications in Statistics 18 (1989), for ``A^T A``.

    Args:
        hessian: H of size n.
        ggn: the GGN.
        blocks: indices of the parameters of every diagonal block that is looked at.
        probes: random vectors for each.
        steps: of Lanczos, in search of negative eigenvalues; 0 for none.
        tol: an eigenvalue below ``-tol`` times the largest magnitude is negative.
        seed: of the probes and the start vector.
        units: where finished probes and Ritz values are kept.
        progress: called with the products done.

    Returns:
        the split, and the number of products behind it.

    Cost: ``2 probes (1 + blocks) + steps`` products, and ``steps`` n numbers.
    """
    sizes = hessian.product.risk.space.sizes
    chosen: dict[str, Sequence[int]] = {"": range(len(sizes)), **blocks}
    widths = {layer: sum(sizes[i] for i in positions) for layer, positions in chosen.items()}
    pairs = {
        layer: (hessian.block(positions), ggn.block(positions))
        for layer, positions in chosen.items()
    }
    squares = np.empty((probes, len(chosen), _PARTS))
    total = 2 * probes * len(chosen)
    for number in range(probes):
        stored = units.get(f"probe-{number}")
        if stored is None:
            rows = []
            for row, (layer, (h, g)) in enumerate(pairs.items()):
                progress("norms", 2 * (number * len(chosen) + row), total)
                signs = _signs(widths[layer], stream(seed, "norms", layer, number), h)
                products = [operator.matvec(signs).double() for operator in (h, g)]
                products.append(products[0] - products[1])
                rows.append([float(product.square().sum()) for product in products])
            stored = {"squares": np.array(rows)}
            units.put(f"probe-{number}", stored)
        squares[number] = stored["squares"]
    ggn.release()
    ritz = _ritz_values(hessian, steps, seed, units, progress) if steps else np.full(1, np.nan)
    hessian.release()
    whole, *others = norms_of(squares, widths)
    negative = float((ritz < -tol * np.abs(ritz).max()).sum()) if steps else math.nan
    split = Split(
        exact=False,
        n_probes=probes,
        norms=(replace(whole, negative=negative), *others),
        smallest=float(ritz[0]),
        largest=float(ritz[-1]),
        at_least=steps < hessian.n,
        squares=squares,
    )
    return split, total + (len(ritz) if steps else 0)


def _signs(size: int, generator: torch.Generator, operator: LinearOperator) -> Tensor:
    bits = torch.randint(2, (size,), generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(operator.like)


_NAMES = ("hessian", "ggn", "residual", "ratio")


def norms_of(squares: FloatArray, sizes: Mapping[str, int]) -> list[SplitNorms]:
    """Norms and the ratio with jackknife errors over probes.

    Args:
        squares: ``|A v|^2`` for each probe, block and A = H, GGN, R, (probes, blocks, 3).
        sizes: of the blocks.

    Returns:
        one entry for each block; the errors of one probe are NaN.
    """
    count = len(squares)
    whole = _roots(squares.mean(0))
    left_out = _roots((squares.sum(0) - squares) / (count - 1)) if count > 1 else whole[None]
    spread = (count - 1) / count * ((left_out - left_out.mean(0)) ** 2).sum(0)
    errors = np.sqrt(spread) if count > 1 else np.full_like(whole, np.nan)
    return [
        SplitNorms(
            layer=layer,
            size=size,
            **dict(zip(_NAMES, values.tolist(), strict=True)),
            **dict(zip((f"{n}_stderr" for n in _NAMES), error.tolist(), strict=True)),
            negative=math.nan,
        )
        for (layer, size), values, error in zip(sizes.items(), whole, errors, strict=True)
    ]


def _roots(squares: FloatArray) -> FloatArray:
    """Norms of H, GGN and R and the ratio, from squares (..., 3), (..., 4)."""
    norms = np.sqrt(squares)
    h, r = norms[..., 0], norms[..., 2]
    ratio = np.divide(r, h, out=np.full_like(h, np.nan), where=h > 0)
    found: FloatArray = np.concatenate([norms, ratio[..., None]], axis=-1)
    return found


def _ritz_values(
    operator: CurvatureOperator, steps: int, seed: int, units: Units, progress: Progress
) -> FloatArray:
    """Ritz values of one Krylov space, ascending."""
    unit = units.get("ritz")
    if unit is None:
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            progress("negative eigenvalues", done, steps)

        steps = min(steps, operator.n)
        nodes, _ = probe(operator, 0, steps=steps, seed=seed, on_step=on_step)
        unit = {"nodes": nodes}
        units.put("ritz", unit)
    return np.sort(unit["nodes"])
