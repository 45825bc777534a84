"""The part of a result file that ``landscape information`` writes; see :mod:`landscape.store`."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.information.records import (
    EffectiveRank,
    GradientGram,
    InformationResult,
    Split,
    SplitNorms,
)
from landscape.record_store import (
    Axes,
    read_arrays,
    read_numbers,
    read_rows,
    record_numbers,
    write_arrays,
    write_rows,
)
from landscape.results import Result, RunInfo
from landscape.store import group_at, write_attributes

__all__ = ["read_information", "write_information"]

_GRAM: Axes = {
    "eigenvalues": ("k",),
    "kernel": ("shown", "shown_too"),
    "kernel_example": ("shown",),
    "kernel_label": ("shown",),
}
_SPLIT: Axes = {"squares": ("probe", "block", "part")}


def write_information(file: h5py.File, result: Result) -> None:
    """Write everything but the run's record and the examples' indices."""
    if not isinstance(result, InformationResult):
        raise TypeError(f"a {type(result).__name__} has no place in a file of information")
    gradients = group_at(file, "gradients")
    write_attributes(gradients, record_numbers(result.gradients))
    write_arrays(gradients, result.gradients, _GRAM)
    write_rows(
        group_at(file, "gradient_ranks"), result.gradients.ranks, EffectiveRank, "gradient_layer"
    )
    write_rows(
        group_at(file, "activation_ranks"), result.activations, EffectiveRank, "activation_layer"
    )
    split = group_at(file, "split")
    write_attributes(split, record_numbers(result.split))
    write_arrays(split, result.split, _SPLIT)
    write_rows(group_at(file, "split_norms"), result.split.norms, SplitNorms, "norm_layer")


def read_information(
    file: h5py.File, info: RunInfo, indices: NDArray[np.int64] | None
) -> InformationResult:
    """The result that a file holds.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    gradients = file["gradients"]
    arrays: dict[str, Any] = read_arrays(gradients, GradientGram, _GRAM, {})
    if len(arrays["kernel"]) != arrays["kernel"].shape[1]:
        raise ValueError(f"gradients: the kernel has shape {arrays['kernel'].shape}")
    ranks = read_rows(file["gradient_ranks"], EffectiveRank, "gradient_layer")
    norms = read_rows(file["split_norms"], SplitNorms, "norm_layer")
    split = file["split"]
    parts: dict[str, Any] = read_arrays(split, Split, _SPLIT, {"block": len(norms), "part": 3})
    if not ranks or not norms:
        raise ValueError("there are no ranks of the gradients, or no norms")
    return InformationResult(
        info=info,
        indices=indices,
        gradients=GradientGram(**read_numbers(gradients, GradientGram), **arrays, ranks=ranks),
        activations=read_rows(file["activation_ranks"], EffectiveRank, "activation_layer"),
        split=Split(**read_numbers(split, Split), **parts, norms=norms),
    )
