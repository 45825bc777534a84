"""What the built-in tasks share: checked settings, splits, activations and the digits data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from landscape.errors import UsageError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
SPLITS = ("train", "test", "all")

# Part of the definition of every task: another seed would be another data set.
_SPLIT_SEED = 20240229
_NUMBERS = 1 << 26


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return the value of an integer setting within bounds, or raise :class:`UsageError`."""
    # A bool is an int in Python, but width=true is a mistake.
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= minimum
        and (maximum is None or value <= maximum)
    ):
        return value
    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise UsageError(f"setting {name}={value!r}: expected an integer {bounds}")


def check_fraction(name: str, value: object) -> float:
    """Return the value of a setting strictly between 0 and 1, or raise :class:`UsageError`."""
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise UsageError(f"setting {name}={value!r}: expected a number strictly between 0 and 1")


def check_number(name: str, value: object, minimum: float) -> float:
    """Return the value of a finite setting of at least a minimum, or raise :class:`UsageError`."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and minimum <= value < math.inf
    ):
        return float(value)
    raise UsageError(f"setting {name}={value!r}: expected a number of at least {minimum:g}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return the value of a setting that is one of the choices, or raise :class:`UsageError`."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return value
    raise UsageError(f"setting {name}={value!r}: expected one of {', '.join(known)}")


def check_flag(name: str, value: object) -> bool:
    """Return the value of a boolean setting, or raise :class:`UsageError`."""
    if isinstance(value, bool):
        return value
    raise UsageError(f"setting {name}={value!r}: expected true or false")


def activation_named(name: object) -> Callable[[], nn.Module]:
    """The module class of a named activation function.

    Raises:
        UsageError: an unknown name.
    """
    return ACTIVATIONS[check_choice("activation", name, ACTIVATIONS)]


def split_indices(examples: int, train_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the training and the test examples, each in the data's own order.

    The assignment is random but always the same; neither side is empty for two examples or more.
    """
    generator = Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(examples, generator=generator)
    count = min(max(round(train_fraction * examples), 1), examples - 1)
    return order[:count].sort().values, order[count:].sort().values


def take_split(
    split: str, tensors: tuple[Tensor, ...], train_fraction: float
) -> tuple[Tensor, ...]:
    """The rows of every tensor that belong to the split, in the data's own order.

    Raises:
        UsageError: a split other than ``train``, ``test`` and ``all``.
    """
    if check_choice("split", split, SPLITS) == "all":
        return tensors
    train, test = split_indices(len(tensors[0]), train_fraction)
    chosen = train if split == "train" else test
    return tuple(tensor[chosen] for tensor in tensors)


def digits(split: str) -> tuple[Tensor, Tensor]:
    """The 8x8 digits of scikit-learn: images ``(N, 1, 8, 8)`` in [0, 1] and classes ``(N,)``.

    1797 images, 80 % of them for training.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    classes = torch.as_tensor(raw.target, dtype=torch.int64)
    images, classes = take_split(split, (images, classes), 0.8)
    return images, classes


def mlp(
    inputs: int, outputs: int, *, width: object, depth: object, activation: object, bias: object
) -> nn.Sequential:
    """A multilayer perceptron with ``depth`` hidden layers; depth 0 is a linear model.

    Raises:
        UsageError: a setting of the wrong type or out of range.
    """
    widths = [check_integer("width", width, 1)] * check_integer("depth", depth, 0)
    return mlp_of(
        inputs, outputs, widths=widths, activation=activation, bias=check_flag("bias", bias)
    )


def mlp_of(
    inputs: int, outputs: int, *, widths: Sequence[int], activation: object, bias: bool
) -> nn.Sequential:
    """A multilayer perceptron with hidden layers of these widths.

    Raises:
        UsageError: an unknown activation.
    """
    new_activation = activation_named(activation)
    layers: list[nn.Module] = []
    for fan_in, width in pairwise([inputs, *widths]):
        layers += [nn.Linear(fan_in, width, bias=bias), new_activation()]
    last = widths[-1] if widths else inputs
    return nn.Sequential(*layers, nn.Linear(last, outputs, bias=bias))


@torch.no_grad()
def fitting_batch(
    model: nn.Module, forward: Callable[[nn.Module, Any], Tensor], example: Any
) -> int:
    """Examples in a micro-batch whose layers put out about 2^26 numbers; from 1 to 1024.

    A graph of second derivatives keeps several times as much: about 2 GB in float32.

    Args:
        model: in eval mode.
        forward: the task's.
        example: a batch of one example, of the largest size in the data.

    Cost: one forward pass.
    """
    numbers = 0

    def count(_: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal numbers
        first = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
        numbers += first.numel() if isinstance(first, Tensor) else 0

    hooks = [m.register_forward_hook(count) for m in model.modules() if not [*m.children()]]
    try:
        outputs = forward(model.eval(), example)
    finally:
        for hook in hooks:
            hook.remove()
    return min(max(_NUMBERS // (numbers + outputs.numel()), 1), 1024)


def initialise_by(build: Callable[[], nn.Module]) -> Callable[[nn.Module, Generator], None]:
    """A task's ``initialise`` that takes the parameters of a newly built model."""

    def initialise(model: nn.Module, generator: Generator) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.initial_seed())
            fresh = dict(build().named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(fresh[name])

    return initialise
