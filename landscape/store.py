"""Result files: the HDF5 schema, run keys, and crash-safe writing.

A result file is written to a temporary file beside it, flushed to disk and renamed, so that a kill
at any instant leaves either the old or the new state. Files are readable as netCDF-4 too: every
array axis has a dimension scale in its own leaf group. Result files are untrusted input: links out
of the file, external storage and absurd sizes are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from landscape.disk_file import DiskFile
from landscape.errors import LandscapeError, ResultFileError
from landscape.results import (
    MODULES,
    Density,
    Estimate,
    HessianResult,
    Moments,
    Result,
    RunInfo,
    Spectrum,
)

__all__ = ["SCHEMA", "atomic_h5", "load", "open_untrusted", "result_name", "run_key", "save"]

SCHEMA = "landscape/1"
_PARTS = ("volume", "flat", "compare", "slice", "information", "modules")

_NAMES = ("operator", "method_name")  # Fields that a record's group is named by.
_MAX_RATIO = 2000  # Logical over stored bytes beyond which a data set is not credible.


def run_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of everything that determines a run's estimates, as canonical JSON."""
    text = json.dumps({"schema": SCHEMA, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def result_name(checkpoint: str, command: str, key: str, suffix: str = "") -> str:
    """``<stem>.<command>.<key8><suffix>.h5``."""
    return f"{Path(checkpoint).stem}.{command}.{key[:8]}{suffix}.h5"


@contextlib.contextmanager
def atomic_h5(path: Path) -> Iterator[h5py.File]:
    """Write an HDF5 file that appears under its name only when it is complete and on disk.

    Raises:
        ResultFileError: the folder cannot be written, or the disk or the quota is full.
    """
    # Unique by host and process: two jobs with one key never write into each other's file.
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(DiskFile(temporary)) as disk:
            try:
                with h5py.File(disk, "w", track_order=True) as file:
                    yield file
            except Exception:
                disk.check()  # What HDF5 says after it is not the cause.
                raise
            disk.finish()
        disk.check()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ResultFileError.of(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; not every system can open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_stale(path: Path) -> None:
    """Delete temporary files of this result whose process on this machine is dead."""
    prefix = f"{path.name}.{socket.gethostname()}."
    for found in path.parent.glob(f"{glob_escape(path.name)}.*.tmp"):
        pid = found.name.removeprefix(prefix).removesuffix(".tmp")
        if found.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            found.unlink(missing_ok=True)


def glob_escape(name: str) -> str:
    """The name with glob characters made literal."""
    import glob

    return glob.escape(name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_array(
    group: h5py.Group, name: str, values: NDArray[Any], axes: tuple[str, ...]
) -> h5py.Dataset:
    """Write an array and attach a dimension scale to every axis, creating missing scales."""
    if values.dtype == np.bool_:
        data = group.create_dataset(name, data=values.astype(np.int8), **_filters(values))
        data.attrs["dtype"] = "bool"  # How xarray marks booleans in netCDF.
    else:
        data = group.create_dataset(name, data=values, **_filters(values))
    for axis, label in enumerate(axes):
        if label == name:
            data.make_scale(label)
            continue
        if label not in group:
            group.create_dataset(label, data=np.arange(values.shape[axis])).make_scale(label)
        data.dims[axis].attach_scale(group[label])
    return data


def _filters(values: NDArray[Any]) -> dict[str, Any]:
    if values.size == 0:
        return {}
    return {"compression": "gzip", "compression_opts": 4, "shuffle": True, "fletcher32": True}


def write_attributes(node: h5py.Group, values: Mapping[str, Any]) -> None:
    """Write attributes, structures as JSON; None is left out."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping | list | tuple):
            node.attrs[name] = json.dumps(value, default=str)
        elif isinstance(value, Estimate):
            node.attrs[name] = value.value
            for part in ("stderr", "lower", "upper"):
                node.attrs[f"{name}_{part}"] = getattr(value, part)
        elif isinstance(value, str):
            # File names need not be UTF-8, but HDF5's strings are.
            node.attrs[name] = value.encode(errors="backslashreplace").decode()
        else:
            node.attrs[name] = value


def scalars(record: Any) -> dict[str, Any]:
    """The fields of a record that are stored as attributes: all but arrays and the name."""
    return {
        f.name: getattr(record, f.name)
        for f in dataclasses.fields(record)
        if f.name not in _NAMES and not isinstance(getattr(record, f.name), np.ndarray)
    }


def save(path: Path, result: Result) -> None:
    """Write a result file atomically."""
    with atomic_h5(path) as file:
        write_attributes(file, scalars(result.info))
        if isinstance(result, HessianResult):
            _write_hessian(file, result)
        else:
            command = result.info.command if result.info.command in _PARTS else "volume"
            getattr(_part(command), f"write_{command}")(file, result)
        if result.indices is not None:
            write_array(group_at(file, "data"), "indices", result.indices, ("example",))


def _part(command: str) -> ModuleType:
    """What writes and reads the part of a result file that a command owns; imported on request."""
    return importlib.import_module(f"landscape.{command}_store")


def _write_hessian(file: h5py.File, result: HessianResult) -> None:
    for name, spectrum in result.spectra.items():
        group, axis = group_at(file, f"spectrum/{name}"), _axis_of(name)
        write_attributes(group, scalars(spectrum))
        for field in ("eigenvalues", "residuals", "converged"):
            write_array(group, field, getattr(spectrum, field), (axis("k"),))
        if spectrum.eigenvectors is not None:
            vector = axis("vector")
            write_array(group, vector, wanted_indices(spectrum), (vector,))
            write_array(group, "eigenvectors", spectrum.eigenvectors, (vector, axis("n")))
    for name, density in result.densities.items():
        group, axis = group_at(file, f"density/{name}"), _axis_of(name)
        write_attributes(group, scalars(density))
        # The grid is a coordinate: of its own name, or an array beside it in a module's group.
        axes = (axis("grid"),)
        for field in ("grid", "density", "stderr"):
            write_array(group, field, getattr(density, field), axes)
        for field in ("nodes", "weights"):
            write_array(group, field, getattr(density, field), (axis("probe"), axis("step")))
    for name, moments in result.moments.items():
        write_attributes(group_at(file, f"moments/{name}"), scalars(moments))


def _axis_of(name: str) -> Callable[[str], str]:
    """Names of a group's axes: xarray refuses a child's axis that shares a parent's name."""
    return (lambda axis: f"module_{axis}") if MODULES in name else (lambda axis: axis)


def group_at(file: h5py.Group, path: str) -> h5py.Group:
    """The group of that path, made where it is missing."""
    group = file
    for part in path.split("/"):
        group = group[part] if part in group else group.create_group(part, track_order=True)
    return group


def wanted_indices(spectrum: Spectrum) -> NDArray[np.int64]:
    """Indices in ``eigenvalues`` of the pairs that were asked for (top, then bottom)."""
    k = len(spectrum.eigenvalues)
    return np.concatenate([np.arange(spectrum.top), np.arange(k - spectrum.bottom, k)])


@contextlib.contextmanager
def open_untrusted(path: Path | str) -> Iterator[h5py.File]:
    """Open a result file for reading after checking that it stays within itself.

    Raises:
        ResultFileError: no such file, not HDF5, truncated, not a result of this tool, another
            schema version, external links or storage, or declared sizes that are not credible.
    """
    path = Path(path)
    if not path.is_file():
        expected = "expected a .h5 file of landscape"
        if path.is_dir():
            todo = f"Name its result files: {path / '*.h5'}"
            raise ResultFileError(f"result file {path} is a folder; {expected}. {todo}")
        raise ResultFileError(f"result file {path} does not exist; {expected}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        # A file of another name is a checkpoint or a figure, which nobody should delete.
        own = path.suffix == ".h5"
        todo = "Delete it and run the command again" if own else "Name a .h5 file of landscape"
        raise ResultFileError(
            f"result file {path} cannot be read: it is not HDF5, truncated or corrupt ({error}). "
            f"{todo}"
        ) from error
    with file:
        try:
            _check_schema(file, path)
            _refuse_foreign_storage(file, path)
            yield file
        except LandscapeError:
            raise
        except Exception as error:
            # HDF5 reports damage as almost any exception, by where it happens to look.
            raise ResultFileError(
                f"result file {path} is damaged: {type(error).__name__}: {error}. Delete it and "
                "run the command again"
            ) from error


def _check_schema(file: h5py.File, path: Path) -> None:
    schema = file.attrs.get("schema")
    if not isinstance(schema, str) or not schema.startswith("landscape/"):
        raise ResultFileError(
            f"{path} is an HDF5 file, but not a result of landscape (it has no 'schema' "
            "attribute). Expected a file written by a measuring command"
        )
    if schema != SCHEMA:
        raise ResultFileError(
            f"result file {path} has schema {schema!r}; this version reads {SCHEMA!r}. Read "
            "it with the version that wrote it, or compute it again with --overwrite"
        )


def _refuse_foreign_storage(group: h5py.Group, path: Path) -> None:
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ResultFileError(
                f"result file {path} holds the {type(link).__name__} {name!r}; results never "
                "link elsewhere, so this file is not trusted"
            )
        node = group[name]
        if isinstance(node, h5py.Group):
            _refuse_foreign_storage(node, path)
            continue
        if not isinstance(node, h5py.Dataset):
            continue
        size = node.size or 0
        stored = node.id.get_storage_size()
        if node.external or node.is_virtual:
            raise ResultFileError(
                f"result file {path} keeps {name!r} in external storage; results never do, so "
                "this file is not trusted"
            )
        declared = size * node.dtype.itemsize
        if declared > max(1 << 20, stored * _MAX_RATIO):
            raise ResultFileError(
                f"result file {path} declares {size} elements for {name!r} but stores {stored} "
                "bytes; it is damaged or forged"
            )


def read_fields(kind: type[Any], node: h5py.Group, name: str) -> Any:
    """Rebuild a record from a group's attributes and arrays, by its fields' declared types."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        declared = str(f.type)
        if f.name in _NAMES:
            values[f.name] = name
        elif declared == "Estimate":
            parts = {p: _number(node, f"{f.name}_{p}") for p in ("stderr", "lower", "upper")}
            values[f.name] = Estimate(value=_number(node, f.name), **parts)
        elif "Array" in declared:
            missing = f.name not in node and "None" in declared
            values[f.name] = None if missing else read_array(node, f.name)
        else:
            values[f.name] = _CONVERT[declared](node.attrs.get(f.name))
            if values[f.name] is None and "None" not in declared:
                raise KeyError(f"the attribute {f.name!r} is missing")
    _check_shapes(values, node.name)
    return kind(**values)


def _number(node: h5py.Group, name: str) -> float:
    if name not in node.attrs:
        raise KeyError(f"the attribute {name!r} is missing")
    return float(node.attrs[name])


# Arrays that share their axes, and how many axes those are.
_ALIKE: tuple[tuple[tuple[str, ...], int], ...] = (
    (("eigenvalues", "residuals", "converged"), 1),
    (("grid", "density", "stderr"), 1),
    (("nodes", "weights"), 2),
)


def _check_shapes(values: Mapping[str, Any], where: str) -> None:
    """Refuse arrays that no result has, before anything is computed from them."""
    for names, axes in _ALIKE:
        shapes = [values[n].shape for n in names if isinstance(values.get(n), np.ndarray)]
        if shapes and (len(set(shapes)) != 1 or len(shapes[0]) != axes):
            raise ValueError(f"{where}: the arrays {', '.join(names)} have shapes {shapes}")
    for name in ("top", "bottom", "n_deflated", "n_probes", "n_parameters", "n_examples"):
        if values.get(name, 0) < 0:
            raise ValueError(f"{where}: {name} is {values[name]}")


def read_array(node: h5py.Group, name: str) -> NDArray[Any]:
    """An array of numbers, with booleans as such.

    Raises:
        KeyError: there is none.
        TypeError: it holds something else.
    """
    if name not in node:
        raise KeyError(f"the array {name!r} is missing")
    data = node[name]
    values = np.asarray(data[()])
    if values.dtype.kind not in "biuf":
        raise TypeError(f"the array {name!r} holds {values.dtype}, not numbers")
    return values.astype(np.bool_) if data.attrs.get("dtype") == "bool" else values


def read_shaped(node: h5py.Group, name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An array of numbers of a shape, whose axes are free where None stands; raises as the above.

    Raises:
        ValueError: it has another shape.
    """
    values = read_array(node, name)
    if values.ndim != len(shape) or any(
        want not in (None, size) for want, size in zip(shape, values.shape, strict=True)
    ):
        raise ValueError(f"{node.name}: the array {name!r} has shape {values.shape}, not {shape}")
    return values


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "str": _optional(str),
    "int": _optional(int),
    "float": _optional(float),
    "int | None": _optional(int),
    "tuple[str, ...]": _optional(lambda text: tuple(json.loads(text))),
    "Mapping[str, Any]": _optional(lambda text: dict(json.loads(text))),
    "Mapping[str, str]": _optional(lambda text: dict(json.loads(text))),
}


def load(path: Path | str) -> Any:
    """Load a result file as the dataclass that the library function returned.

    Returns:
        a :class:`landscape.results.HessianResult`,
        :class:`landscape.volume.records.VolumeResult`,
        :class:`landscape.flat.records.FlatResult`,
        :class:`landscape.slices.records.SliceResult`,
        :class:`landscape.modules.records.ModulesResult`,
        :class:`landscape.compare.records.CompareResult` or
        :class:`landscape.information.records.InformationResult`, by the file's command.

    Raises:
        ResultFileError: see :func:`open_untrusted`.
    """
    with open_untrusted(path) as file:
        if (kind := file.attrs.get("kind")) in ("series", "sweep"):
            raise ResultFileError(
                f"{path} is a {kind} of many checkpoints, not one result; read it with "
                f"landscape.load_{kind}"
            )
        info = read_fields(RunInfo, file, "")
        indices = read_array(file["data"], "indices") if "data" in file else None
        if info.command in _PARTS:
            return getattr(_part(info.command), f"read_{info.command}")(file, info, indices)
        return HessianResult(
            info=info,
            spectra=_read_all(Spectrum, file, "spectrum"),
            densities=_read_all(Density, file, "density"),
            moments=_read_all(Moments, file, "moments"),
            indices=indices,
        )


def _read_all(kind: type[Any], file: h5py.File, group: str) -> dict[str, Any]:
    if group not in file:
        return {}
    found: dict[str, Any] = {}
    for name, node in file[group].items():
        found[name] = read_fields(kind, node, name)
        if isinstance(node, h5py.Group) and "modules" in node:
            for module, block in node["modules"].items():
                label = f"{name}{MODULES}{module}"
                found[label] = read_fields(kind, block, label)
    return found
