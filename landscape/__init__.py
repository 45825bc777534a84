"""Measure the geometry of the loss around a trained network.

The public names are imported on first use, so that ``import landscape`` alone loads neither torch
nor h5py.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from landscape.checkpoint import read_checkpoint as read_checkpoint
    from landscape.compare.options import CompareOptions as CompareOptions
    from landscape.compare.records import CompareResult as CompareResult
    from landscape.compare_runs import compare_networks as compare_networks
    from landscape.criteria import BinaryCrossEntropy as BinaryCrossEntropy
    from landscape.criteria import Criterion as Criterion
    from landscape.criteria import CrossEntropy as CrossEntropy
    from landscape.criteria import SquaredError as SquaredError
    from landscape.errors import LandscapeError as LandscapeError
    from landscape.flat.declared import DeclaredSymmetry as DeclaredSymmetry
    from landscape.flat.options import FlatOptions as FlatOptions
    from landscape.flat.records import FlatResult as FlatResult
    from landscape.flat_runs import flat_directions as flat_directions
    from landscape.hessian import HessianOptions as HessianOptions
    from landscape.information.options import InformationOptions as InformationOptions
    from landscape.information.records import InformationResult as InformationResult
    from landscape.information_runs import information_of_data as information_of_data
    from landscape.modules.options import ModulesOptions as ModulesOptions
    from landscape.modules.records import ModulesResult as ModulesResult
    from landscape.modules_runs import module_coupling as module_coupling
    from landscape.results import HessianResult as HessianResult
    from landscape.risk import Risk as Risk
    from landscape.runs import hessian_spectrum as hessian_spectrum
    from landscape.series import collect as collect
    from landscape.series_store import load_series as load_series
    from landscape.settings import Settings as Settings
    from landscape.slice_runs import loss_slice as loss_slice
    from landscape.slices.options import SliceOptions as SliceOptions
    from landscape.slices.records import SliceResult as SliceResult
    from landscape.store import load as load
    from landscape.sweep_store import load_sweep as load_sweep
    from landscape.task import Task as Task
    from landscape.task import resolve_task as resolve_task
    from landscape.volume.options import VolumeOptions as VolumeOptions
    from landscape.volume.records import VolumeResult as VolumeResult
    from landscape.volume_merge import merge_volumes as merge_volumes
    from landscape.volume_runs import log_volume as log_volume

_HOME = {
    "BinaryCrossEntropy": "criteria",
    "CompareOptions": "compare.options",
    "CompareResult": "compare.records",
    "Criterion": "criteria",
    "CrossEntropy": "criteria",
    "DeclaredSymmetry": "flat.declared",
    "FlatOptions": "flat.options",
    "FlatResult": "flat.records",
    "HessianOptions": "hessian",
    "HessianResult": "results",
    "InformationOptions": "information.options",
    "InformationResult": "information.records",
    "ModulesOptions": "modules.options",
    "ModulesResult": "modules.records",
    "LandscapeError": "errors",
    "Risk": "risk",
    "Settings": "settings",
    "SliceOptions": "slices.options",
    "SliceResult": "slices.records",
    "SquaredError": "criteria",
    "Task": "task",
    "VolumeOptions": "volume.options",
    "VolumeResult": "volume.records",
    "collect": "series",
    "compare_networks": "compare_runs",
    "flat_directions": "flat_runs",
    "hessian_spectrum": "runs",
    "information_of_data": "information_runs",
    "load": "store",
    "load_series": "series_store",
    "load_sweep": "sweep_store",
    "log_volume": "volume_runs",
    "loss_slice": "slice_runs",
    "merge_volumes": "volume_merge",
    "module_coupling": "modules_runs",
    "read_checkpoint": "checkpoint",
    "resolve_task": "task",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'landscape' has no attribute {name!r}")
    return getattr(importlib.import_module(f"landscape.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
