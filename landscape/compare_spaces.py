"""The overlap of the top eigenspaces of two networks' Hessians, as units of work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from landscape.compare.records import Eigenspaces
from landscape.eigensolver import extreme_eigenpairs
from landscape.hessian import default_tol
from landscape.memory import stored_tensor
from landscape.operators import curvature
from landscape.risk import Risk
from landscape.series import subspace_overlap
from landscape.sharded import sharded
from landscape.units import Progress, Units, kept_state

__all__ = ["compare_eigenspaces"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Largest:
    """Eigenpairs: values (k,), vectors as rows (k, n), whether all converged, products."""

    values: np.ndarray[Any, np.dtype[np.float64]]
    vectors: Tensor
    converged: bool
    n_matvecs: int


def compare_eigenspaces(
    a: Risk,
    b: Risk,
    k: int,
    matched: Mapping[str, Tensor],
    *,
    seed: int,
    units: Units,
    progress: Progress,
) -> tuple[Eigenspaces, int]:
    """The overlap of the spaces of the k largest eigenvalues, and the products that it took.

    Args:
        a: the task loss at A.
        b: at B, whose model gets the matched parameters and keeps them.
        k: dimension of the spaces.
        matched: parameters of B after its units were matched to those of A; empty where they were
            not.
        seed: of the start vectors.
        units: eigenpairs and unfinished state are kept there.
        progress: told of the products.
    """
    common: dict[str, Any] = {"seed": seed, "units": units, "progress": progress}
    found = [_largest(a, k, "A", **common), _largest(b, k, "B", **common)]
    aligned = math.nan
    if matched:
        own = dict(b.model.named_parameters())
        for name, tensor in matched.items():
            own[name].data = tensor.to(own[name])
        found.append(_largest(b, k, "B matched", **common))
        aligned = _overlap(found[0], found[2])
    spaces = Eigenspaces(
        eigenvalues_a=found[0].values,
        eigenvalues_b=found[1].values,
        overlap=_overlap(found[0], found[1]),
        aligned=aligned,
        chance=k / a.n,
        converged=all(pairs.converged for pairs in found),
    )
    return spaces, sum(pairs.n_matvecs for pairs in found)


def _largest(
    risk: Risk, k: int, name: str, *, seed: int, units: Units, progress: Progress
) -> _Largest:
    stored = units.get(f"pairs {name}")
    if stored is not None:
        return _Largest(
            values=np.asarray(stored["values"]),
            vectors=stored_tensor(stored["vectors"]),
            converged=bool(stored["converged"]),
            n_matvecs=int(stored["n_matvecs"]),
        )

    state, on_step = kept_state(
        units, f"lanczos {name}", lambda done: progress(f"eigenvalues of {name}", done, None)
    )
    operator = sharded(curvature("hessian", risk), risk.ranks)
    pairs = extreme_eigenpairs(
        operator,
        top=k,
        tol=default_tol(risk.dtype),
        seed=seed,
        state=state,
        on_step=on_step,
    )
    found = _Largest(
        values=pairs.values,
        vectors=operator.coordinates.whole(pairs.vectors).cpu(),
        converged=bool(pairs.converged.all()),
        n_matvecs=pairs.n_matvecs,
    )
    operator.release()
    units.drop(f"lanczos {name}")
    units.put(
        f"pairs {name}",
        {
            "values": found.values,
            "vectors": found.vectors.numpy(),
            "converged": found.converged,
            "n_matvecs": found.n_matvecs,
        },
    )
    return found


def _overlap(one: _Largest, other: _Largest) -> float:
    return subspace_overlap(one.vectors.numpy(), other.vectors.numpy())
