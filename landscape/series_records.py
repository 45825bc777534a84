"""What joined results are: frozen dataclasses, the same ones that a series file loads as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Band", "OperatorSeries", "Series", "TrainingSeries"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A number at every step with its standard error and 95% interval, each (t,).

    All are equal where the number is exact, and NaN where it was not measured.
    """

    value: FloatArray
    stderr: FloatArray
    lower: FloatArray
    upper: FloatArray


@dataclass(frozen=True, kw_only=True)
class OperatorSeries:
    """One operator's spectrum at t steps.

    Attributes:
        operator: ``hessian``, ``ggn``, ... or ``<operator>/modules/<name>``.
        n: size of the operator.
        eigenvalues: the K largest in descending order, (t, K), in loss units per squared parameter.
        residuals: ``|A v - theta v|`` of each, (t, K).
        converged: residual within the tolerance of its run, (t, K).
        smallest: the smallest in ascending order, (t, B); B is 0 where some run has none.
        smallest_residuals: of each, (t, B).
        smallest_converged: of each, (t, B).
        trace: tr A.
        trace_square: tr A^2.
        negative_mass: fraction of the n eigenvalues below ``-resolution``.
        near_zero_mass: fraction within the resolution of zero.
        resolution: half-width about zero that a run does not resolve, (t,); NaN if not measured.
        n_probes: probes behind the estimates, 0 where they are exact, -1 if not measured, (t,).
        n_matvecs: products used for eigenvalues and density, (t,).
        overlap: of the top eigenspace with the previous step's, between 0 and 1, (t,). NaN at the
            first step and where eigenvectors are missing.
        overlap_converged: whether every eigenpair of both spaces is converged, (t,).
        overlap_size: dimension of the compared eigenspaces.
        log_lambda: common grid of log10 |eigenvalue|, (g,).
        positive: expected number of positive eigenvalues per decade, (t, g); NaN if not measured.
        negative: the same of negative ones.
        bandwidth: standard deviation of the Gaussian that smooths both, in decades.
    """

    operator: str
    n: int
    eigenvalues: FloatArray
    residuals: FloatArray
    converged: BoolArray
    smallest: FloatArray
    smallest_residuals: FloatArray
    smallest_converged: BoolArray
    trace: Band
    trace_square: Band
    negative_mass: Band
    near_zero_mass: Band
    resolution: FloatArray
    n_probes: NDArray[np.int64]
    n_matvecs: NDArray[np.int64]
    overlap: FloatArray
    overlap_converged: BoolArray
    overlap_size: int
    log_lambda: FloatArray
    positive: FloatArray
    negative: FloatArray
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class TrainingSeries:
    """Results over the training step: what every series says of its rows.

    Attributes:
        step: training steps in ascending order, (t,); 0, 1, ... where they are not known.
        numbered: whether ``step`` is the training step; else rows are in the order of their names.
        checkpoint: file of the weights of every row.
        checkpoint_sha256: its content.
        source: result file of every row, as it was named.
        key: run key of every row.
        loss: (t,).
        gradient_norm: (t,).
        wall_seconds: of the analysis, (t,).
        n_matvecs: matrix-vector products over the whole data set, (t,).
        task: name of the task.
        n_parameters: number of parameters that were measured.
        n_examples: number of examples.
        config: the options on which all results agree.
        warnings: what differs between results, and what is missing.
        notices: what was left out for good reason.
    """

    step: NDArray[np.int64]
    numbered: bool
    checkpoint: tuple[str, ...]
    checkpoint_sha256: tuple[str, ...]
    source: tuple[str, ...]
    key: tuple[str, ...]
    loss: FloatArray
    gradient_norm: FloatArray
    wall_seconds: FloatArray
    n_matvecs: NDArray[np.int64]
    task: str
    n_parameters: int
    n_examples: int
    config: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Series(TrainingSeries):
    """Spectra over the training step.

    Attributes:
        operators: the spectra, by operator and module.
    """

    operators: Mapping[str, OperatorSeries]
