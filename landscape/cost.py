"""What a spectrum costs over many processes: memory of each and time of a product, predicted.

From one measured product: a network of N parameters on D examples takes time in proportion to N D;
saved activations of an example grow as N^(2/3), as for transformers whose depth and width grow
together (N ~ depth width^2, activations ~ depth width). Every process holds the parameters, a
whole vector and a product (four times N numbers while it is put together), its slice of the Krylov
basis, its examples, and at least one micro-batch's gradient graph. A product gathers a vector and
sums one: 3 (P - 1) / P times N numbers over the link of every process (Thakur, Rabenseifner and
Gropp, Int. J. High Perform. Comput. Appl. 19 (2005), for ring algorithms).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from landscape.errors import UsageError

__all__ = ["Cost", "Measured", "Scenario", "parse_scenario", "predicted"]

_WHOLE = 4  # Vectors of N numbers in every process.
_ACTIVATIONS = 2 / 3  # Power of N by which an example's saved activations grow.
_EXCHANGES = 8  # Small and large exchanges of a Lanczos step.
_LATENCY = 5e-5  # Seconds of one, at least.


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measured product, in one process.

    Attributes:
        parameters: N.
        examples: D.
        product_seconds: a product with all gradient graphs kept.
        gradient_seconds: a gradient, which a product costs besides where its graph is not kept.
        graph_bytes: a micro-batch's graph.
        batch: examples of that micro-batch.
        example_bytes: one example of the data.
        number_bytes: of a number, such as 4 in float32.
    """

    parameters: float
    examples: float
    product_seconds: float
    gradient_seconds: float
    graph_bytes: float
    batch: float
    example_bytes: float
    number_bytes: int


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is to be predicted; None is as measured.

    Attributes:
        processes: P, each with a device of its own.
        parameters: N.
        examples: D.
        steps: vectors of the Krylov basis.
        memory: bytes of each device.
        bandwidth: bytes per second of each process's link.
        faster: how many times as fast as the measured device.
    """

    processes: int = 1
    parameters: float | None = None
    examples: float | None = None
    steps: int = 100
    memory: float = 80 * 2.0**30
    bandwidth: float = 25 * 2.0**30
    faster: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The prediction, bytes of each process and seconds.

    Attributes:
        whole_bytes: parameters, a whole vector and a product.
        basis_bytes: its slice of the Krylov basis.
        graph_bytes: one micro-batch's gradient graph.
        data_bytes: its examples.
        kept: part of its gradient graphs that the rest of the memory holds.
        compute_seconds: of a product, its own share.
        exchange_seconds: of a product.
        fewest: processes from which on the memory suffices; None where it never does.
    """

    whole_bytes: float
    basis_bytes: float
    graph_bytes: float
    data_bytes: float
    kept: float
    compute_seconds: float
    exchange_seconds: float
    fewest: int | None

    @property
    def memory(self) -> float:
        """Bytes that a process needs at least."""
        return self.whole_bytes + self.basis_bytes + self.graph_bytes + self.data_bytes

    @property
    def product_seconds(self) -> float:
        """Seconds of one product."""
        return self.compute_seconds + self.exchange_seconds


def predicted(measured: Measured, scenario: Scenario) -> Cost:
    """Memory of every process and time of a product; see the module's text for the model."""
    processes = scenario.processes
    n = measured.parameters if scenario.parameters is None else scenario.parameters
    examples = measured.examples if scenario.examples is None else scenario.examples
    share = examples / processes
    vector = n * measured.number_bytes
    growth = (n / measured.parameters) ** _ACTIVATIONS
    batch = max(min(measured.batch, share), 1.0)
    graph = measured.graph_bytes * growth * batch / measured.batch
    whole = _WHOLE * vector
    basis = (scenario.steps + 1) * vector / processes
    data = share * measured.example_bytes
    left = max(scenario.memory - whole - basis - data, 0.0) / 2  # Half: intermediate results.
    kept = min(left * batch / (graph * share), 1.0) if graph else 1.0
    work = (n / measured.parameters) * (max(share, 1.0) / measured.examples) / scenario.faster
    seconds = measured.product_seconds + (1 - kept) * measured.gradient_seconds
    exchange = 0.0
    if processes > 1:
        moved = 3 * (processes - 1) / processes * vector
        exchange = moved / scenario.bandwidth + _EXCHANGES * _LATENCY * math.log2(processes)
    return Cost(
        whole_bytes=whole,
        basis_bytes=basis,
        graph_bytes=graph,
        data_bytes=data,
        kept=kept,
        compute_seconds=work * seconds,
        exchange_seconds=exchange,
        fewest=_fewest(
            scenario.memory - whole,
            divided=(scenario.steps + 1) * vector + examples * measured.example_bytes,
            graph=measured.graph_bytes * growth / measured.batch,
        ),
    )


def _fewest(left: float, *, divided: float, graph: float) -> int | None:
    """Processes at which what is divided and one example's graph fit into what is left."""
    left -= graph
    return None if left <= 0 else max(math.ceil(divided / left), 1)


_UNITS = {"": 1.0, "KB": 2.0**10, "MB": 2.0**20, "GB": 2.0**30, "TB": 2.0**40}
_NAMES = {"gpus": "processes", "devices": "processes", "ranks": "processes"}
_WHOLE_NUMBERS = ("processes", "steps")
_BYTES = ("memory", "bandwidth")
_LEAST = {"memory": 2.0**20, "bandwidth": 2.0**10, "faster": 1e-6}  # 80 is no memory: 80GB is.
_MOST = 1e18


def parse_scenario(text: str) -> Scenario:
    """``gpus=64,parameters=7e9,memory=80GB``: names of :class:`Scenario`, with numbers.

    Raises:
        UsageError: an unknown name, a name that comes twice, or no positive number.
    """
    known = [field.name for field in fields(Scenario)]
    found: dict[str, float] = {}
    for part in text.split(","):
        given, equals, value = (piece.strip() for piece in part.partition("="))
        name = _NAMES.get(given, given)
        if not equals or name not in known:
            raise UsageError(
                f"--plan {text!r}: {part.strip()!r} is not understood; expected gpus=64 and, "
                f"separated by commas, any of {', '.join(k for k in known if k != 'processes')}"
            )
        if name in found:
            raise UsageError(f"--plan {text!r}: {given} is given twice")
        found[name] = _number(text, name, value)
    return Scenario(**found)  # type: ignore[arg-type]  # whole where they must be


def _number(text: str, name: str, value: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]B)?(/s)?", value, re.IGNORECASE)
    whole, least = name in _WHOLE_NUMBERS, _LEAST.get(name, 1.0)
    number = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0.0
    if match is not None and (
        (match[2] and name not in _BYTES) or (match[3] and name != _BYTES[1])
    ):
        number = 0.0  # A unit that the name has not.
    if not least <= number <= _MOST or (whole and number != int(number)):
        example = "80GB" if name in _BYTES else "64" if whole else "7e9"
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"--plan {text!r}: {name} is {value!r}; expected {kind} such as {example}")
    return int(number) if whole else number
