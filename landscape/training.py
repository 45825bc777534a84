"""Train a built-in task and save checkpoints along the way.

The point is a series of checkpoints to measure, reproducible from the task, its settings and a
seed; no random state but the run's own generators is used or changed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from landscape.errors import NotFiniteError, UsageError
from landscape.initialisation import draw_weights
from landscape.task import Task, resolve_task
from landscape.tasks import ADAPTERS, BUILTIN_TASKS, Recipe
from landscape.training_files import claim_folder, log_spaced_steps, write_checkpoint

__all__ = ["Recipe", "TrainingPoint", "train"]

_EVALUATION_BATCH = 1024

TrainingLoss = Callable[[Task, tuple[Tensor, ...]], Tensor]
"""What is minimised on a minibatch; it may hold terms that the measured loss does not have."""


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """One saved checkpoint of a training run.

    Attributes:
        step: optimiser steps taken so far.
        path: the checkpoint.
        train_loss: criterion on the training split, in evaluation mode.
        test_loss: criterion on the test split, in evaluation mode.
        train_accuracy: part of the training split's targets predicted, None for regression.
        test_accuracy: the same on the test split.
    """

    step: int
    path: Path
    train_loss: float
    test_loss: float
    train_accuracy: float | None
    test_accuracy: float | None


def train(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    checkpoints: int = 10,
    seed: int = 0,
    out: Path,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[TrainingPoint], None] | None = None,
) -> list[TrainingPoint]:
    """Train a built-in task by its recipe and save checkpoints at log-spaced steps.

    The same call writes the same files again, on the CPU bit for bit.

    Args:
        name: a built-in task.
        settings: arguments of the task's builder.
        steps: optimiser steps; the recipe's number unless given.
        checkpoints: number of checkpoints, step 0 and the last among them; 1 saves the last only.
        seed: seeds the initial weights and the order of the minibatches.
        out: folder of the checkpoints, created where it does not exist.
        device: a torch device.
        overwrite: replace the checkpoints of another run in the folder.
        progress: called with every checkpoint once it is saved.

    Raises:
        UsageError: an unknown task, a bad setting or option, a folder that cannot be written or
            that holds another run's checkpoints.
        NotFiniteError: the loss became NaN or infinite; the checkpoints so far are kept.
    """
    settings = dict(settings or {})
    entries = {n: entry for n, entry in (BUILTIN_TASKS | ADAPTERS).items() if entry.trainable}
    if name not in entries:
        raise UsageError(
            f"{name!r} is not a built-in task, and only those are trained here; expected one of "
            f"{', '.join(sorted(entries))}. Train your own task with your own code and pass "
            "its checkpoints on."
        )
    if "split" in settings:
        raise UsageError(
            "setting split: training uses the train split and reports the test split as well; "
            "leave split out"
        )
    train_task = resolve_task(name, settings).task
    test_task = resolve_task(name, {**settings, "split": "test"}).task
    module = importlib.import_module(entries[name].module)
    recipe: Recipe = module.RECIPE
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    saved_steps = log_spaced_steps(recipe.steps, checkpoints)
    place = _device(device)
    generator = _seeded(seed)

    run = {
        "task": name,
        "settings": _canonical(_all_settings(module.build, settings)),
        "recipe": _canonical(asdict(recipe)),
        "seed": str(seed),
        "device": place.type,
    }
    out = Path(out)
    claim_folder(out, run, overwrite=overwrite)

    model = train_task.model
    draw_weights(train_task, train_task.model, _seeded(seed))
    model.to(place)
    train_data, test_data = (
        tuple(tensor.to(place) for tensor in task.data) for task in (train_task, test_task)
    )
    digits = max(6, len(str(recipe.steps)))
    points: list[TrainingPoint] = []

    def save(step: int) -> None:
        train_loss, train_accuracy = _evaluate(train_task, model, train_data)
        test_loss, test_accuracy = _evaluate(test_task, model, test_data)
        for split, loss in (("training", train_loss), ("test", test_loss)):
            if not math.isfinite(loss):
                raise _diverged(split, loss, step)
        point = TrainingPoint(
            step=step,
            path=out / f"step_{step:0{digits}d}.safetensors",
            train_loss=train_loss,
            test_loss=test_loss,
            train_accuracy=train_accuracy,
            test_accuracy=test_accuracy,
        )
        numbers = {
            key: str(value)
            for key, value in asdict(point).items()
            if key != "path" and value is not None
        }
        write_checkpoint(point.path, model, {**run, **numbers, "landscape_version": _version()})
        points.append(point)
        if progress is not None:
            progress(point)

    if saved_steps[0] == 0:
        save(0)
    objective: TrainingLoss = getattr(module, "training_loss", _criterion_loss)
    losses = _optimise(train_task, objective, train_data, recipe, generator)
    for step, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise _diverged("minibatch", loss, step)
        if step in saved_steps:
            save(step)
    return points


def _seeded(seed: int) -> Generator:
    try:
        return Generator().manual_seed(seed)
    except (RuntimeError, TypeError, ValueError):
        raise UsageError(f"seed {seed!r}: expected an integer below 2^64") from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device {name!r} cannot be used: {reason}. Use cpu, or a device that this "
            "installation of torch has"
        ) from None
    return device


def _all_settings(builder: Callable[..., Task], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The builder's settings with its defaults, so that a later default changes no record."""
    bound = inspect.signature(builder).bind(**settings)
    bound.apply_defaults()
    return {key: value for key, value in bound.arguments.items() if key != "split"}


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _criterion_loss(task: Task, batch: tuple[Tensor, ...]) -> Tensor:
    return task.resolved_criterion.loss(task.forward(task.model, batch), batch)


def _optimise(
    task: Task,
    objective: TrainingLoss,
    data: tuple[Tensor, ...],
    recipe: Recipe,
    generator: Generator,
) -> Iterator[float]:
    """Take the recipe's steps, yielding after each the minibatch loss that led to it."""
    model = task.model
    optimiser = _optimiser(model, recipe)
    batches = _minibatches(data, recipe.batch_size, generator)
    for step in range(recipe.steps):
        if recipe.cosine:
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
        model.train()
        batch = next(batches)
        optimiser.zero_grad()
        loss = objective(task, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        yield loss.item()


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=rate, weight_decay=decay, momentum=recipe.momentum
        )
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(model.parameters(), lr=rate, weight_decay=decay)


def _minibatches(
    data: tuple[Tensor, ...], size: int, generator: Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Endless minibatches, every example once per epoch; the whole data where they fit."""
    examples = len(data[0])
    if size >= examples:
        while True:
            yield data
    while True:
        for chosen in torch.split(torch.randperm(examples, generator=generator), size):
            yield tuple(tensor[chosen.to(tensor.device)] for tensor in data)


@torch.no_grad()
def _evaluate(task: Task, model: nn.Module, data: tuple[Tensor, ...]) -> tuple[float, float | None]:
    """Mean loss and, for classification, accuracy over the whole data."""
    model.eval()
    criterion = task.resolved_criterion
    total = weight = correct = 0.0
    for batch in zip(*(torch.split(tensor, _EVALUATION_BATCH) for tensor in data), strict=True):
        outputs = task.forward(model, batch)
        total += criterion.weight(batch) * criterion.loss(outputs, batch).item()
        weight += criterion.weight(batch)
        if criterion.name == "cross_entropy":
            correct += (outputs.argmax(-1) == batch[1]).sum().item()
    return total / weight, correct / weight if criterion.name == "cross_entropy" else None


def _diverged(what: str, loss: float, step: int) -> NotFiniteError:
    return NotFiniteError(
        f"training stopped at step {step}: the {what} loss is {loss}, expected a finite number. "
        "Try other settings or another seed; the checkpoints of earlier steps are kept."
    )


def _version() -> str:
    try:
        return metadata.version("landscape-geometry")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
