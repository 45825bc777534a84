"""What all measurements share: data subset, precision, device, seed, budget."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

import torch

from landscape import __version__
from landscape.budget import Budget
from landscape.errors import UsageError
from landscape.risk import LossKind

__all__ = ["DTYPES", "Settings", "device_name", "resolve_device", "resolve_dtype", "versions"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all measurements share.

    Attributes:
        loss: ``task``, ``behaviour`` or ``relabelled``.
        params: globs that select parameters; all trainable ones where empty.
        examples: size of a random subset of the data; everything where None.
        data_seed: seed of that subset: other seeds of the estimates see the same data.
        batch_size: largest micro-batch in examples; changes results only by rounding.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        dtype: ``float32``, ``float64``, ``bfloat16``, or None for the command's default.
        seed: seed of every random stream of the estimates.
        graph_memory: bytes for kept gradient graphs; a share of the free memory where None.
        budget: seconds or products after which a run stops and reports what it has.
        compiled: compile the Hessian's products; see :mod:`landscape.compiled`.
        products: ``float32`` for Krylov spaces of float32 products, whose eigenpairs are verified
            in float64; see :mod:`landscape.mixed`.
    """

    loss: LossKind = "task"
    params: tuple[str, ...] = ()
    examples: int | None = None
    data_seed: int = 0
    batch_size: int | None = None
    device: str = "auto"
    dtype: str | None = None
    seed: int = 0
    graph_memory: int | None = None
    budget: Budget = field(default_factory=Budget)
    compiled: bool = False
    products: Literal["float32"] | None = None

    def __post_init__(self) -> None:
        if self.loss not in ("task", "behaviour", "relabelled"):
            raise UsageError(f"--loss {self.loss!r}: expected task, behaviour or relabelled")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.products not in (None, "float32"):
            raise UsageError(f"--products {self.products!r}: expected float32")
        for name, seed in (("seed", self.seed), ("data-seed", self.data_seed)):
            if not -(2**63) <= seed < 2**63:
                raise UsageError(f"--{name} {seed}: expected a whole number of at most 64 bits")
        for name, value in (("examples", self.examples), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: expected a positive whole number")


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is cuda where there is one, else cpu.

    Raises:
        UsageError: an unknown name or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device {name!r} is unknown; expected auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices. Use "
            "--device cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no MPS device. Use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name!r} is not supported; expected cpu, cuda, cuda:1 or mps")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of that name.

    Raises:
        UsageError: float64 on mps, which has none.
    """
    if device.type == "mps" and name == "float64":
        raise UsageError("float64 does not exist on mps. Use --dtype float32 or --device cpu")
    return DTYPES[name]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {name: metadata.version(name) for name in ("numpy", "scipy", "h5py")}
    return {
        "landscape": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **found,
    }


def device_name(device: torch.device) -> str:
    """The device with its hardware's name where torch knows it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
