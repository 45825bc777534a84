"""Made-up results of ``landscape volume``, whose numbers are known."""

from __future__ import annotations

import numpy as np
from records import made_up_run

from landscape.results import RunInfo
from landscape.volume.records import Directions, PriorTable, Rays, VolumeEstimate, VolumeResult

CUTOFFS = (0.01, 0.1, 1.0)
EIGENVALUES = np.array([1e6, 50.0, 40.0, 1e-3, 0.0])
MULTIPLICITY = np.array([1.0, 2.0, 0.5, 1.5, 3.0])
N = 8


def info(step: int | None = 7, *, config: dict | None = None, **changes: object) -> RunInfo:
    """The record of a run."""
    options = {"loss": "behaviour", "prior": "gaussian", "mean": "zero", "sigma": [0.5]}
    options |= {"curvature": "ggn", "route": "dense", "directions": "tilted"}
    options |= {"samples": 4, "error": 1.0, "shard": None}
    own = {
        "command": "volume",
        "key": f"{step} key of the run",
        "n_parameters": N,
        "loss": 0.0,
        "started": "2026-01-01T00:00:02",
        "finished": "2026-01-01T00:00:05",
        "n_forward": 40,
    }
    return made_up_run(step, config={**options, **(config or {})}, **{**own, **changes})


def estimate(method: str, cutoffs: tuple[float, ...], shift: float = 0.0) -> VolumeEstimate:
    """``log V = 2 log cutoff - 20 + shift``, exact by quadratic and with an error by radial."""
    cutoff = np.array(cutoffs)
    unknown, zero = np.full(len(cutoff), np.nan), np.zeros(len(cutoff))
    log_volume = 2 * np.log(cutoff) - 20 + shift
    exact = method == "quadratic"
    error = zero if exact else zero + 0.5
    return VolumeEstimate(
        method_name=method,
        path="dense" if exact else "tilted, dense",
        cutoff=cutoff,
        log_volume=log_volume,
        stderr=error,
        lower=log_volume - 2 * error,
        upper=log_volume + 2 * error,
        lower_bound=zero.astype(bool),
        width=log_volume - 3 if exact else unknown,
        location=zero - 1 if exact else unknown,
        remainder=zero + 4 if exact else unknown,
        effective_dimension=zero + 4 if exact or len(cutoff) > 2 else unknown,
        tilt=1 / cutoff if exact else unknown,
        n_samples=np.full(len(cutoff), 0 if exact else 4, dtype=np.int64),
        ess=unknown if exact else zero + 3.5,
        largest_share=unknown if exact else zero + 0.4,
        n_matvecs=9 if exact else 0,
        n_forward=0 if exact else 39,
    )


def directions(cutoffs: tuple[float, ...]) -> Directions:
    """One steep direction, 2.5 intermediate and 4.5 flat ones at every cutoff up to 1."""
    cutoff = np.array(cutoffs)
    a, m = EIGENVALUES, MULTIPLICITY
    with np.errstate(divide="ignore"):
        width = np.sqrt(2 * cutoff[:, None] / a)
        ratio = np.tile(1 / np.sqrt(a), (len(cutoff), 1))
    nats = np.tile(m / 2 * np.log1p(a), (len(cutoff), 1))
    # 50 and 40 are 0.14 and 0.16 of the prior's width.
    kind = np.where(ratio < 0.1, 0, np.where(ratio <= 2, 1, 2)).astype(np.int64)
    return Directions(
        eigenvalue=a,
        multiplicity=m,
        location=np.zeros(len(a)),
        width=width,
        ratio=ratio,
        kind=kind,
        nats=nats,
        cutoff=cutoff,
        remainder=np.full(len(cutoff), -4.0),
    )


def rays(cutoffs: tuple[float, ...], index: np.ndarray) -> Rays:
    """Rays whose weights depend on their number alone."""
    draws = [np.random.default_rng(int(i)).normal(size=len(cutoffs)) for i in index]
    weight = np.stack(draws, axis=1) - 20.0
    flags = np.zeros(weight.shape, dtype=bool)
    return Rays(
        cutoff=np.array(cutoffs),
        index=np.asarray(index, dtype=np.int64),
        radius=np.exp(weight + 20),
        log_weight=weight,
        log_weight_outside=weight + 1e-4,
        converged=~flags,
        not_finite=flags,
        non_monotone=flags,
        evaluations=np.full(weight.shape, 5, dtype=np.int64),
    )


def volume_result(
    step: int | None = 7,
    *,
    cutoffs: tuple[float, ...] = CUTOFFS,
    methods: tuple[str, ...] = ("quadratic", "radial"),
    shift: float = 0.0,
    table: bool = True,
    index: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    **changes: object,
) -> VolumeResult:
    """A result of one checkpoint."""
    chosen = np.arange(4) if index is None else np.asarray(index)
    return VolumeResult(
        info=info(step, **changes),
        indices=indices,
        estimates={name: estimate(name, cutoffs, shift) for name in methods},
        directions=directions(cutoffs) if table else None,
        rays=rays(cutoffs, chosen) if "radial" in methods else None,
        prior=PriorTable(
            names=("w",), sizes=(N,), mean=(0.0,), scale=(0.5,), anchor=(1.0,), location=(4.0,)
        ),
    )
