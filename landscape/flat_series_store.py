"""The part of a series file that only counts of directions have."""

from __future__ import annotations

from typing import Any

import h5py

from landscape.flat_series import FlatSeries, RankSeries
from landscape.record_store import Axes, read_arrays, read_texts, write_arrays, write_texts
from landscape.store import group_at, read_shaped, write_array

__all__ = ["read_flat_series", "write_flat_series"]

_STEP = ("step",)
_RANKS: Axes = dict.fromkeys(
    ("rank", "null", "looser", "tighter", "last_kept", "first_dropped", "participation"), _STEP
)
_TOTALS: Axes = dict.fromkeys(
    (
        "symmetry_total",
        "data_total",
        "unexplained",
        "learning",
        "learning_stderr",
        "walked",
        "walks_left",
    ),
    _STEP,
)
_SYMMETRIES: Axes = {"by_data": ("symmetry",), "explained": ("step", "symmetry")}
_LAYERS: Axes = {"share": ("step", "layer")}
_CURVES: Axes = dict.fromkeys(
    ("steep", "intermediate", "flat", "n_eff", "effective_dimension"), ("step", "cutoff")
)


def write_flat_series(file: h5py.Group, series: FlatSeries) -> None:
    """Write everything but what all series have."""
    for name, ranks in series.operators.items():
        write_arrays(_with_step(file, f"flat/ranks/{name}", series), ranks, _RANKS)
    write_arrays(_with_step(file, "flat/totals", series), series, _TOTALS)
    group = _with_step(file, "flat/symmetries", series)
    write_arrays(group, series, _SYMMETRIES)
    write_texts(group, "name", series.symmetry, "symmetry")
    group = _with_step(file, "flat/layers", series)
    write_arrays(group, series, _LAYERS)
    write_texts(group, "name", series.layer, "layer")
    group = _with_step(file, "flat/prior", series)
    write_array(group, "cutoff", series.cutoff, ("cutoff",))
    write_arrays(group, series, _CURVES)


def _with_step(file: h5py.Group, path: str, series: FlatSeries) -> h5py.Group:
    group = group_at(file, path)
    write_array(group, "step", series.step, _STEP)
    return group


def read_flat_series(file: h5py.Group, rows: dict[str, Any]) -> FlatSeries:
    """The series that a file holds.

    Args:
        file: the file.
        rows: what all series have.

    Raises:
        KeyError, ValueError, TypeError: it is damaged, as the caller reports.
    """
    node = file["flat"]
    sizes = {"step": len(rows["step"])}
    arrays: dict[str, Any] = {}
    for name, axes in (("symmetries", _SYMMETRIES), ("layers", _LAYERS), ("totals", _TOTALS)):
        arrays |= read_arrays(node[name], FlatSeries, axes, sizes)
    cutoff = read_shaped(node["prior"], "cutoff", (None,))
    sizes["cutoff"] = len(cutoff)
    arrays |= read_arrays(node["prior"], FlatSeries, _CURVES, sizes)
    operators = {
        name: RankSeries(operator=name, **read_arrays(part, RankSeries, _RANKS, sizes))
        for name, part in node["ranks"].items()
    }
    if "jacobian" not in operators:
        raise KeyError("flat/ranks: there is no jacobian")
    parts = arrays["symmetry_total"] + arrays["data_total"] + arrays["unexplained"]
    if (parts != operators["jacobian"].null).any():
        raise ValueError("flat/totals: they do not add up to the null directions")
    return FlatSeries(
        **rows,
        **arrays,
        operators=operators,
        symmetry=read_texts(node["symmetries"], "name", sizes["symmetry"]),
        layer=read_texts(node["layers"], "name", sizes["layer"]),
        cutoff=cutoff,
    )
