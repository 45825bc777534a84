"""Optional libraries: imported when a task needs them, with a clear message where absent."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

from landscape.errors import TaskError, UsageError

# These import torchvision wherever it is installed.
_USERS_OF_TORCHVISION = frozenset({"peft", "timm", "torchvision", "transformers"})
_OPERATOR = "operator torchvision::"
_MATCHING = (
    "The installed torchvision was built for another torch. Install the two from one place, for "
    "example: pip install --force-reinstall torch torchvision "
    "--index-url https://download.pytorch.org/whl/cpu"
)
# Kept for good: operators go with the object that declares them.
_DECLARED: list[Any] = []


def optional(module: str, extra: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: its dotted name.
        extra: the extra of this package that installs it.

    Raises:
        UsageError: it is not installed.
        TaskError: it is installed and fails to import.
    """
    root = module.partition(".")[0]
    try:
        if root in _USERS_OF_TORCHVISION:
            _import_torchvision()
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise _broken(root, error) from error
        raise UsageError(
            f"this task needs {root}, which is not installed. Install it with: "
            f"pip install 'landscape-geometry[{extra}]'"
        ) from None
    except Exception as error:
        raise _broken(root, error) from error


def _broken(root: str, error: Exception) -> TaskError:
    return TaskError(
        f"{root} is installed but cannot be imported ({type(error).__name__}: {error}). "
        f"{next_step(error) or 'Reinstall it in a version that fits the installed torch'}"
    )


def next_step(error: BaseException) -> str:
    """What to do about an error, or what led to it, that torchvision raises beside another torch.

    Empty where the error is another.
    """
    seen: BaseException | None = error
    while seen is not None:
        if _OPERATOR in str(seen):
            return _MATCHING
        seen = seen.__cause__ or seen.__context__
    return ""


@functools.cache
def _import_torchvision() -> ModuleType | None:
    """Import torchvision where it is installed, also when its compiled operators do not load.

    A torchvision built with CUDA finds no CUDA libraries beside a CPU build of torch, and then
    fails on declaring shapes for operators that do not exist. No classifier uses them: with the
    names declared the rest of it works.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _OPERATOR not in str(error):
            raise
    import torch

    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library
    _DECLARED.append(library.Library("torchvision", "FRAGMENT"))
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _DECLARED[0].define(schema)
    return importlib.import_module("torchvision")
