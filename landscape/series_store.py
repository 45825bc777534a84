"""Series files: results joined over the training step, in the same schema as result files.

A series is a function of its results: the file has no date, and its ``content`` attribute is a hash
of everything in it but the names of the result files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.errors import ResultFileError
from landscape.flat_series import FlatSeries
from landscape.flat_series_store import read_flat_series, write_flat_series
from landscape.results import MODULES, HessianResult
from landscape.series import collect
from landscape.series_records import Band, OperatorSeries, Series, TrainingSeries
from landscape.store import SCHEMA, atomic_h5, load, open_untrusted, read_shaped, write_array
from landscape.volume_series import VolumeSeries
from landscape.volume_series_store import read_volume_series, write_volume_series

__all__ = [
    "collect_files",
    "content",
    "kind_of",
    "load_series",
    "read_series",
    "save_series",
    "write_series",
]

# Axes of every array, and what stands for them at module blocks: xarray refuses a child's axis
# that shares a parent's name.
_RUN_TEXT = ("checkpoint", "checkpoint_sha256", "source", "key")
_RUN = ("loss", "gradient_norm", "wall_seconds", "n_matvecs")
_BANDS = ("trace", "trace_square", "negative_mass", "near_zero_mass")
_PARTS = ("value", "stderr", "lower", "upper")
_ARRAYS: Mapping[str, tuple[str, ...]] = {
    "eigenvalues": ("step", "k"),
    "residuals": ("step", "k"),
    "converged": ("step", "k"),
    "smallest": ("step", "k_smallest"),
    "smallest_residuals": ("step", "k_smallest"),
    "smallest_converged": ("step", "k_smallest"),
    "resolution": ("step",),
    "n_probes": ("step",),
    "n_matvecs": ("step",),
    "overlap": ("step",),
    "overlap_converged": ("step",),
    "positive": ("step", "log_lambda"),
    "negative": ("step", "log_lambda"),
}
_NUMBERS: Mapping[str, type] = {"n": int, "overlap_size": int, "bandwidth": float}


def kind_of(path: Path | str) -> Literal["result", "series", "sweep"]:
    """Whether a file is the result of one checkpoint, a series, or the series of a sweep's runs.

    Raises:
        ResultFileError: it is neither.
    """
    with open_untrusted(path) as file:
        kind = file.attrs.get("kind")
        return kind if kind in ("series", "sweep") else "result"


def collect_files(paths: Sequence[Path]) -> Series | VolumeSeries | FlatSeries:
    """Join result files of one command; eigenvectors are read for two files at a time.

    Raises:
        ResultFileError: a file is not a result.
        UsageError: the results do not belong to one series.
    """

    def without_vectors(result: Any) -> Any:
        if not isinstance(result, HessianResult):
            return result
        spectra = {
            name: dataclasses.replace(spectrum, eigenvectors=None)
            for name, spectrum in result.spectra.items()
        }
        return dataclasses.replace(result, spectra=spectra)

    def vectors(index: int, operator: str) -> NDArray[Any] | None:
        with open_untrusted(paths[index]) as file:
            node = file[f"spectrum/{operator}"]
            return np.asarray(node["eigenvectors"][()]) if "eigenvectors" in node else None

    results = [without_vectors(load(path)) for path in paths]
    return collect(results, sources=[str(path) for path in paths], vectors=vectors)


def content(series: TrainingSeries) -> str:
    """SHA-256 of everything in a series but the names of the result files."""
    digest = hashlib.sha256(SCHEMA.encode())
    # Names as they are read back, since they need not be UTF-8.
    texts: dict[str, Any] = {n: tuple(map(_text, getattr(series, n))) for n in _RUN_TEXT}
    texts |= {"task": _text(series.task), "source": (), "notices": (), "warnings": ()}
    for name, value in _flat(dataclasses.replace(series, **texts)):
        digest.update(f"\n{name}=".encode())
        if isinstance(value, np.ndarray):
            # NaN has many bit patterns, and zero two.
            plain = (
                np.where(np.isnan(value), np.nan, value + 0) if value.dtype.kind == "f" else value
            )
            digest.update(f"{plain.dtype.str}{plain.shape}".encode())
            digest.update(np.ascontiguousarray(plain).tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _flat(record: Any) -> Iterator[tuple[str, Any]]:
    """All leaves of a record, with their paths."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in ("operators", "methods"):
            for name, part in value.items():
                yield from ((f"{name}/{label}", leaf) for label, leaf in _flat(part))
        elif isinstance(value, Band):
            yield from ((f"{field.name}/{label}", leaf) for label, leaf in _flat(value))
        else:
            yield field.name, value


def save_series(path: Path, series: Series | VolumeSeries | FlatSeries) -> None:
    """Write a series file atomically.

    Raises:
        ResultFileError: the folder cannot be written.
    """
    with atomic_h5(path) as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["command"] = "collect"
        write_series(file, series)


def write_series(group: h5py.Group, series: Series | VolumeSeries | FlatSeries) -> None:
    """Write a series into a group."""
    for name, value in (
        ("kind", "series"),
        ("of", _kind(series)),
        ("content", content(series)),
        ("config", json.dumps(dict(series.config), default=str)),
        ("task", _text(series.task)),
        ("numbered", series.numbered),
        ("n_parameters", series.n_parameters),
        ("n_examples", series.n_examples),
        ("warnings", json.dumps(series.warnings)),
        ("notices", json.dumps(series.notices)),
    ):
        group.attrs[name] = value
    run = group.create_group("run", track_order=True)
    write_array(run, "step", series.step, ("step",))
    for name in _RUN:
        write_array(run, name, getattr(series, name), ("step",))
    for name in _RUN_TEXT:
        # Not in attributes: those hold 64 kB at most.
        texts = np.array([_text(t) for t in getattr(series, name)], dtype=object)
        data = run.create_dataset(name, data=texts, dtype=h5py.string_dtype())
        data.dims[0].attach_scale(run["step"])
    if isinstance(series, VolumeSeries):
        write_volume_series(group, series)
    elif isinstance(series, FlatSeries):
        write_flat_series(group, series)
    else:
        for operator in series.operators.values():
            _write_operator(group, series.step, operator)


def _kind(series: TrainingSeries) -> str:
    """The command whose results were joined."""
    if isinstance(series, FlatSeries):
        return "flat"
    return "volume" if isinstance(series, VolumeSeries) else "hessian"


def _text(text: str) -> str:
    # File names need not be UTF-8, but HDF5's strings are.
    return text.encode(errors="backslashreplace").decode()


def _place(name: str) -> str:
    return f"operator/{name}"


def _write_operator(file: h5py.Group, step: NDArray[np.int64], operator: OperatorSeries) -> None:
    group = file.require_group(_place(operator.operator))
    prefix = "module_" if MODULES in operator.operator else ""
    axes = {
        "step": step,
        "k": np.arange(1, operator.eigenvalues.shape[1] + 1),
        "k_smallest": np.arange(1, operator.smallest.shape[1] + 1),
        "log_lambda": operator.log_lambda,
    }
    for label, values in axes.items():
        write_array(group, prefix + label, values, (prefix + label,))
    for name, labels in _ARRAYS.items():
        write_array(group, name, getattr(operator, name), tuple(prefix + a for a in labels))
    for name in _BANDS:
        for part in _PARTS:
            values = getattr(getattr(operator, name), part)
            write_array(group, _part(name, part), values, (f"{prefix}step",))
    for name in _NUMBERS:
        group.attrs[name] = getattr(operator, name)


def _part(name: str, part: str) -> str:
    return name if part == "value" else f"{name}_{part}"


def load_series(path: Path | str) -> Any:
    """Load a series file as the dataclass that :func:`landscape.series.collect` returned.

    Returns:
        a :class:`landscape.series_records.Series`, a
        :class:`landscape.volume_series.VolumeSeries` or a
        :class:`landscape.flat_series.FlatSeries`, by what was collected.

    Raises:
        ResultFileError: it is no series file, or damaged.
    """
    with open_untrusted(path) as file:
        kind = file.attrs.get("kind")
        if kind == "sweep":
            raise ResultFileError(
                f"{path} holds the series of several runs; read it with landscape.load_sweep"
            )
        if kind != "series":
            raise ResultFileError(
                f"{path} is the result of one checkpoint, not a series; expected a file of "
                "landscape collect"
            )
        return read_series(file)


def read_series(file: h5py.Group) -> Any:
    """The series that a file or a group holds; damage is reported by the caller."""
    rows = _read_rows(file)
    if file.attrs.get("of") == "volume":
        return read_volume_series(file, rows)
    if file.attrs.get("of") == "flat":
        return read_flat_series(file, rows)
    operators, t = {}, len(rows["step"])
    for name, node in file["operator"].items():
        operators[name] = _read_operator(node, name, t)
        for module, block in node["modules"].items() if "modules" in node else ():
            label = f"{name}{MODULES}{module}"
            operators[label] = _read_operator(block, label, t)
    return Series(**rows, operators=operators)


def _read_rows(file: h5py.Group) -> dict[str, Any]:
    """The fields that all series have."""
    run = file["run"]
    step = read_shaped(run, "step", (None,)).astype(np.int64)
    t = len(step)
    return {
        "step": step,
        "numbered": bool(file.attrs["numbered"]),
        **{name: _texts(run, name, t) for name in _RUN_TEXT},
        **{name: read_shaped(run, name, (t,)) for name in _RUN},
        "task": str(file.attrs["task"]),
        "n_parameters": int(file.attrs["n_parameters"]),
        "n_examples": int(file.attrs["n_examples"]),
        "config": dict(json.loads(file.attrs["config"])),
        "warnings": tuple(map(str, json.loads(file.attrs["warnings"]))),
        "notices": tuple(map(str, json.loads(file.attrs["notices"]))),
    }


def _read_operator(node: h5py.Group, name: str, t: int) -> OperatorSeries:
    prefix = "module_" if MODULES in name else ""
    sizes = {"step": t}
    for axis in ("k", "k_smallest", "log_lambda"):
        sizes[axis] = len(read_shaped(node, prefix + axis, (None,)))
    values: dict[str, Any] = {
        array: read_shaped(node, array, tuple(sizes[a] for a in axes))
        for array, axes in _ARRAYS.items()
    }
    for band in _BANDS:
        parts = {part: read_shaped(node, _part(band, part), (t,)) for part in _PARTS}
        values[band] = Band(**parts)
    for attribute, convert in _NUMBERS.items():
        values[attribute] = convert(node.attrs[attribute])
    grid = read_shaped(node, f"{prefix}log_lambda", (None,))
    return OperatorSeries(operator=name, log_lambda=grid, **values)


def _texts(node: h5py.Group, name: str, t: int) -> tuple[str, ...]:
    values = node[name].asstr(errors="backslashreplace")[()]
    if np.shape(values) != (t,):
        raise ValueError(f"{node.name}: {name!r} has shape {np.shape(values)}, not ({t},)")
    return tuple(map(str, values))
