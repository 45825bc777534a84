"""The task: architecture, data and criterion, and how its name on the command line is resolved."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from landscape.criteria import Batch, Criterion, as_criterion
from landscape.errors import LandscapeError, TaskError, UsageError
from landscape.tasks._extras import next_step

if TYPE_CHECKING:
    from landscape.flat.declared import DeclaredSymmetry
    from landscape.tasks import BuiltinTask

__all__ = ["ResolvedTask", "Task", "parse_settings", "resolve_task"]


def default_forward(model: nn.Module, batch: Batch) -> Tensor:
    """``model(batch[0])``: a batch is (inputs, targets, ...)."""
    if isinstance(batch, Mapping):
        raise TaskError(
            "the batches are mappings, so the task needs a forward function, for example "
            "Task(..., forward=lambda model, batch: model(batch['input_ids']).logits)"
        )
    outputs: Tensor = model(batch[0])
    return outputs


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything about a training problem except the weights, which a checkpoint supplies.

    Attributes:
        model: the architecture; its weights are replaced by the checkpoint's. Parameters with
            ``requires_grad=False`` are frozen: they are left out of the flat vector.
        data: a map-style ``Dataset``, a ``DataLoader`` that does not shuffle, a tuple or list of
            tensors (one data set, split by the micro-batch size), or a sequence of batches.
        criterion: a built-in name (``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"``), a
            :class:`~landscape.criteria.Criterion`, or a function of (outputs, batch).
        forward: the model's outputs for a batch; ``model(batch[0])`` unless given.
        initialise: re-initialises the model with a generator (used by priors of ``init`` kind);
            every module's ``reset_parameters()`` unless given.
        symmetries: what :mod:`landscape.flat` cannot see in the module graph; each is checked.
        convert_weights: the model's state dict from (model, a checkpoint's tensors by name), where
            the file has other names than the model; it may change the model.
        batch_size: largest micro-batch, in examples, where none is asked for; 1024 unless given.
        files: what else defines the loss beside code, weights and data, such as a configuration;
            their content is part of a result's identity.
    """

    model: nn.Module
    data: Any
    criterion: Any
    forward: Callable[[nn.Module, Batch], Tensor] = default_forward
    initialise: Callable[[nn.Module, Generator], None] | None = None
    symmetries: Sequence[DeclaredSymmetry] = ()
    convert_weights: Callable[[nn.Module, dict[str, Tensor]], Mapping[str, Tensor]] | None = None
    batch_size: int | None = None
    files: Sequence[str | os.PathLike[str]] = ()
    _criterion: Criterion = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(
                f"the task's model is a {type(self.model).__name__}; expected a torch.nn.Module"
            )
        if not isinstance(self.symmetries, Sequence) or isinstance(self.symmetries, str):
            raise TaskError(
                f"the task's symmetries are a {type(self.symmetries).__name__}; expected a list of "
                "landscape.DeclaredSymmetry"
            )
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise TaskError(
                f"the task's batch_size is {size!r}; expected a positive number of examples"
            )
        object.__setattr__(self, "_criterion", as_criterion(self.criterion))

    @property
    def resolved_criterion(self) -> Criterion:
        """The criterion as an object, whatever form it was given in."""
        return self._criterion


@dataclass(frozen=True, kw_only=True)
class ResolvedTask:
    """A task and where it came from.

    Attributes:
        name: what the user named, e.g. ``my_task.py:build`` or ``digits-mlp``.
        path: the source file that ran.
        sha256: SHA-256 of that source file, and of the task's own ``files`` where it has any.
        settings: the builder's arguments (``--set``).
    """

    task: Task
    name: str
    path: str
    sha256: str
    settings: dict[str, Any]


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` pairs; values are TOML where they parse as TOML, else strings.

    Raises:
        UsageError: a pair without ``=``, an empty or repeated key.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UsageError(f"--set {pair!r}: expected key=value, for example --set width=32")
        if key in settings:
            raise UsageError(f"--set {key}: given twice")
        try:
            parsed = tomllib.loads(f"value = {text}")
        except tomllib.TOMLDecodeError:
            parsed = {}
        # More than one line of TOML is a text, not a value.
        settings[key] = parsed["value"] if parsed.keys() == {"value"} else text
    return settings


def resolve_task(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ResolvedTask:
    """Build the task that a name stands for, running its code.

    Args:
        name: ``path/to/task.py[:attr]``, ``package.module[:attr]`` or a built-in name; ``attr``
            defaults to ``build`` and may be a builder or a :class:`Task`.
        settings: keyword arguments of the builder.
        checkpoint: the first checkpoint, beside which an adapter looks for the model's
            configuration.

    Raises:
        UsageError: no such file, unknown built-in name, missing attribute, bad settings.
        TaskError: the import or the builder failed, or the wrong type was returned.
    """
    # Layers initialise themselves from the global generator; it is left as it was.
    with torch.random.fork_rng(devices=[]):
        return _resolve(name, dict(settings or {}), checkpoint)


def _resolve(
    name: str, settings: dict[str, Any], checkpoint: str | os.PathLike[str] | None
) -> ResolvedTask:
    target, attribute = _split(name)
    if target.endswith(".py") or "/" in target or "\\" in target:
        path, builder = _from_file(target, attribute)
    elif target in _builtin():
        module = importlib.import_module(_builtin()[target].module)
        path, builder = _module_path(module), _attribute(module, attribute, name)
    elif "." in target or ":" in name:
        path, builder = _from_module(target, attribute)
    else:
        known = sorted(_builtin())
        near = difflib.get_close_matches(target, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"unknown built-in task {name!r}; known: {', '.join(known)}.{hint} "
            "For your own task name its file: --task path/to/task.py"
        )
    entry = _builtin().get(target)
    given = {"checkpoint": checkpoint} if entry and entry.needs_checkpoint else {}
    task = _build(builder, settings, name, given)
    return ResolvedTask(
        task=task, name=name, path=path, sha256=_digest([path, *task.files]), settings=settings
    )


def _builtin() -> dict[str, BuiltinTask]:
    from landscape.tasks import ADAPTERS, BUILTIN_TASKS

    return BUILTIN_TASKS | ADAPTERS


def _digest(paths: Sequence[str | os.PathLike[str]]) -> str:
    """SHA-256 of one file, or of the digests of several."""
    digests = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256"))
        except OSError as error:
            raise TaskError(
                f"the task's file {os.fspath(path)!r} cannot be read ({error.strerror})"
            ) from error
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _split(name: str) -> tuple[str, str]:
    target, colon, attribute = name.rpartition(":")
    # "C:\task.py" is a path, not an attribute.
    if colon and attribute.isidentifier() and not (len(target) == 1 and target.isalpha()):
        return target, attribute
    return name, "build"


def _from_file(target: str, attribute: str) -> tuple[str, object]:
    path = Path(os.path.expanduser(target))
    if not os.path.exists(path):
        raise UsageError(
            f"task file {target!r} does not exist (working directory {Path.cwd()})."
            f"{_near(path)} To write one from a checkpoint: landscape init-task CKPT -o FILE.py"
        )
    if not path.is_file():
        raise UsageError(f"task {target!r} is not a file; expected a Python file")
    path = path.resolve()
    unique = "landscape_task_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"task {target!r} is not a Python file (expected the ending .py)")
    module = importlib.util.module_from_spec(spec)
    _search_in(str(path.parent))
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except LandscapeError:
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(unique, None)
        raise TaskError(
            f"task file {target!r} failed to import: {_describe(error, path)}"
        ) from error
    return str(path), _attribute(module, attribute, target)


def _near(path: Path) -> str:
    """A question after the Python file of the nearest name in a path's folder, where there is."""
    try:
        names = [found.name for found in path.parent.glob("*.py")]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.parent / near[0])!r}?" if near else ""


def _search_in(folder: str) -> None:
    """Let a task file import the modules beside it.

    Last on the path, so that a user's landscape.py or torch.py does not shadow the installed one;
    only the working directory, which the command line puts there, comes later still.
    """
    if folder not in sys.path:
        last_is_here = bool(sys.path) and sys.path[-1] == os.getcwd()
        sys.path.insert(len(sys.path) - last_is_here, folder)


def _from_module(target: str, attribute: str) -> tuple[str, object]:
    if not all(part.isidentifier() for part in target.split(".")):
        raise UsageError(
            f"task {target!r} is neither a file (its path ends in .py) nor a module "
            "(package.module) nor a built-in name"
        )
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is not None and (target == error.name or target.startswith(error.name + ".")):
            raise UsageError(
                f"task module {target!r} was not found: no module named {error.name!r}. For a "
                "file, give its path with the ending .py"
            ) from error
        raise TaskError(f"task module {target!r} failed to import: {_describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"task module {target!r} failed to import: {_describe(error)}") from error
    return _module_path(module), _attribute(module, attribute, target)


def _module_path(module: object) -> str:
    path = getattr(module, "__file__", None)
    if path is None:
        raise UsageError(f"task module {module!r} has no source file")
    return str(path)


def _attribute(module: object, attribute: str, name: str) -> object:
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = sorted(
            key
            for key, value in vars(module).items()
            if not key.startswith("_")
            and (isinstance(value, Task) or inspect.isfunction(value))
            and _is_local(value, module)
        )
        raise UsageError(
            f"task {name!r} has no attribute {attribute!r}; it defines "
            f"{', '.join(public) or 'no function or Task'}. Name one with --task {name}:ATTRIBUTE"
        ) from None


def _is_local(value: object, module: object) -> bool:
    return isinstance(value, Task) or value.__module__ == getattr(module, "__name__", None)


def _build(builder: object, settings: dict[str, Any], name: str, given: dict[str, Any]) -> Task:
    if isinstance(builder, Task):
        if settings:
            raise UsageError(
                f"task {name!r} is a Task, not a builder, so --set {next(iter(settings))}=... has "
                "nothing to set"
            )
        return builder
    if not callable(builder):
        raise TaskError(
            f"task {name!r} is a {type(builder).__name__}; expected a function that returns a "
            "landscape.Task"
        )
    _check_arguments(builder, settings, name, given)
    try:
        task = builder(**{**given, **settings})
    except LandscapeError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {name!r}: its builder raised {_describe(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(
            f"task {name!r}: its builder returned a {type(task).__name__}; expected a "
            "landscape.Task(model=..., data=..., criterion=...)"
        )
    return task


def _check_arguments(
    builder: Callable[..., Any], settings: dict[str, Any], name: str, given: dict[str, Any]
) -> None:
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):
        return  # Some callables written in C have none; the call itself will tell.
    try:
        signature.bind(**settings)
    except TypeError as error:
        own = [p for p in signature.parameters.values() if p.name not in given]
        accepted = ", ".join(_setting(p) for p in own) or "no settings"
        unknown = [key for key in settings if key not in signature.parameters]
        seen, hint = str(error), ""
        if unknown and not any(p.kind == p.VAR_KEYWORD for p in own):
            near = difflib.get_close_matches(unknown[0], [p.name for p in own], n=1)
            seen = f"unknown setting {unknown[0]!r}"
            hint = f". Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"task {name!r}: {seen}; --set accepts: {accepted}{hint}") from None


def _setting(parameter: inspect.Parameter) -> str:
    """A builder's argument for a message: its name, and its default where it has one."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return str(parameter.replace(annotation=parameter.empty))
    if parameter.default in (parameter.empty, None):
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def _describe(error: BaseException, path: Path | None = None) -> str:
    """The error in one line, with the line of the user's file where it arose."""
    where = ""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        where = f" (line {error.lineno})"
    else:
        frames = []
        trace = error.__traceback__
        while trace is not None:
            frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        mine = [line for file, line in frames if path is not None and file == str(path)]
        if mine:
            where = f" (line {mine[-1]})"
        elif path is None and frames:
            where = f" ({Path(frames[-1][0]).name}, line {frames[-1][1]})"
    step = next_step(error)
    return f"{type(error).__name__}: {error}{where}{step and f'. {step}'}"
