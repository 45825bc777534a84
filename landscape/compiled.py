"""Compiled Hessian-vector products: the second backward pass as one fused linear function.

The product ``v -> H v`` of a micro-batch is linear and always runs the same operations, so the
second backward pass through the kept gradient graph is recorded once, everything in it that does
not depend on v is computed once, and what is left is compiled. Forward mode is not involved: it
fails on several common layers and losses.

Nothing is taken on trust: each micro-batch is checked against the eager product, and whatever goes
wrong, from a missing compiler to a mismatch, leads back to the eager product with a reason.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from landscape.errors import TaskError
from landscape.products import HessianProduct
from landscape.recording import NotCompiledError, Recorder, compile_graph, program_key
from landscape.risk import Risk, batch_tensors
from landscape.rng import normal, stream

__all__ = ["CompiledHessianProduct"]

_MOST_SHAPES = 4  # Different programs worth compiling; more means batches of ragged shapes.
_MOST_PROGRAMS = 16  # Programs kept for later checkpoints of the same network.
_N_CHECKS = 2
_PROGRAMS: dict[str, Callable[..., Any]] = {}  # Checked programs; they hold code, no tensors.


@dataclass(frozen=True)
class _Linear:
    """``v -> program(v, *constants)``: one micro-batch's product, without its weight."""

    program: Callable[..., Any]
    constants: list[Tensor]

    def __call__(self, vector: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.program(vector, *self.constants)[0]
        return result


class CompiledHessianProduct(HessianProduct):
    """Hessian-vector products by a compiled second backward pass, eager where that fails.

    Compilation happens in :meth:`prepare`, or at the first product with the whole matrix. Diagonal
    blocks (``positions``) use the eager product, within what the budget leaves. Equal-shaped
    micro-batches share one program, and so do later checkpoints in the same process.

    Cost on one thread of a shared two-core x86-64 machine with torch 2.13 (milliseconds a product,
    the least of interleaved repeats; seconds for the first compilation, and with the program in
    the compiler's cache on disk):

    =====================================  =====  ========  =====  =========  ===============
    network, one micro-batch               eager  compiled  ratio  seconds    pays back after
    =====================================  =====  ========  =====  =========  ===============
    MLP, 26k parameters, float32             5.0       3.6   1.39  5.6, 0.7     4000 products
    the same, float64                       10.5       8.6   1.22  5.5, 0.7     2900 products
    transformer, 462k, 6 texts, float32     22.2      14.6   1.52  44, 16       5800 products
    the same, float64                       40.1      30.7   1.31  51, 20       5400 products
    the same, 48 texts, float32              132        98   1.35  51, 19       1500 products
    convolutions with GroupNorm, 309k       17.2      14.3   1.20  55, 18      19000 products
    =====================================  =====  ========  =====  =========  ===============

    The seconds grow with the network's depth, not with the width or the size of the micro-batch.
    Each further micro-batch of the same shape, or checkpoint, costs one recording: 0.5 s for the
    MLP, 5 s for the transformer. It keeps 1 to 1.6 times the memory of the eager graph.

    Args:
        risk: the loss at the anchor; its parameters must not change afterwards.
        graph_memory: bytes for the tensors kept between products. Where they do not suffice for
            all micro-batches, the eager product is used.

    Attributes:
        fallback: None, or why the eager product is used, in one line.
        seconds: time that recording, compiling and checking took.
    """

    def __init__(self, risk: Risk, *, graph_memory: int | None = None) -> None:
        super().__init__(risk, graph_memory=graph_memory)
        self.fallback: str | None = None
        self.seconds = 0.0
        self._linear: list[_Linear | None] = []  # None: this micro-batch's Hessian is zero.
        self._bytes = 0
        self._versions: list[tuple[int, int]] = []

    def prepare(self) -> None:
        """Compile now rather than at the first product; nothing where that has been done.

        Never raises for a failed compilation: see :attr:`fallback`.

        Raises:
            TaskError: the loss cannot be differentiated twice, compiled or not.
        """
        if self._linear or self.fallback is not None:
            return
        _ = self.plan  # Raises where there is no second derivative.
        self._kept.clear()
        started = time.perf_counter()
        try:
            with _quiet(), self._threads(), torch.enable_grad():
                self._linear = self._compile_all()
        except Exception as error:
            self.fallback = _one_line(error)
            self._linear, self._bytes = [], 0
        self._versions = self._current_versions()
        self.seconds += time.perf_counter() - started

    def _current_versions(self) -> list[tuple[int, int]]:
        return [(p._version, p.data_ptr()) for p in self.risk.space.parameters]

    def _compile_all(self) -> list[_Linear | None]:
        risk = self.risk
        shapes = {
            tuple(t.shape for t in batch_tensors(risk.batch(i))) for i in range(risk.n_batches)
        }
        if len(shapes) > _MOST_SHAPES:
            raise NotCompiledError(
                f"the micro-batches have {len(shapes)} different shapes, and each would have to be "
                f"compiled; expected at most {_MOST_SHAPES}"
            )
        recorder = Recorder()
        programs: dict[str, Callable[..., Any]] = {}
        seen = {t.untyped_storage().data_ptr() for t in self._shared_tensors()}
        found: list[_Linear | None] = []
        total = 0
        for index in range(risk.n_batches):
            gradient = self._unweighted_gradient(index)
            graph, constants = self._record(recorder, gradient, index)
            total += _new_bytes(constants, seen)
            # Micro-batches are alike (the first is the largest): refuse before compiling.
            if max(total, total // (index + 1) * risk.n_batches) > self._budget:
                raise NotCompiledError(
                    f"the compiled product keeps about {total / (index + 1) / 1e6:.3g} MB for each "
                    f"of {risk.n_batches} micro-batches, more than the graph memory allows "
                    f"({self._budget / 1e6:.3g} MB)"
                )
            linear = None
            if graph is not None:
                key = program_key(graph, constants)
                program = programs.get(key) or _PROGRAMS.get(key)
                if program is None:
                    if len(programs) == _MOST_SHAPES:
                        raise NotCompiledError(
                            f"more than {_MOST_SHAPES} micro-batches need a program of their own"
                        )
                    program = compile_graph(graph, [self._random(0, index), *constants])
                programs[key] = program
                linear = _Linear(program, constants)
            self._check(linear, gradient, index)
            found.append(linear)
        for key, program in programs.items():  # Only now that all have passed their checks.
            _PROGRAMS[key] = program
        while len(_PROGRAMS) > _MOST_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
        self._bytes = total
        return found

    def _shared_tensors(self) -> list[Tensor]:
        """What is in memory anyway: parameters, buffers and, where they stay, the inputs."""
        model = self.risk.model
        inputs = [t for i in range(self.risk.n_batches) for t in batch_tensors(self.risk.batch(i))]
        return [*model.parameters(), *model.buffers(), *inputs]

    def _unweighted_gradient(self, index: int) -> dict[int, Tensor]:
        """The gradient's graph without the micro-batch's weight: weights differ, programs not."""
        loss = self.risk.output_loss(self.risk.outputs(index), index)
        parts = torch.autograd.grad(
            loss, self.risk.space.parameters, create_graph=True, allow_unused=True
        )
        return {i: g for i, g in enumerate(parts) if g is not None and g.requires_grad}

    def _eager(self, gradient: dict[int, Tensor], vector: Tensor) -> Tensor:
        parts = dict(enumerate(self.risk.space.split(vector)))
        result = self._apply((None, gradient), parts, retain=True, batched=False)
        return self.risk.space.flatten(result)

    def _random(self, draw: int, index: int) -> Tensor:
        like = self.risk.space.parameters[0]
        return normal(self.risk.n, stream(0, "compiled", index, draw), like=like.detach())

    def _record(
        self, recorder: Recorder, gradient: dict[int, Tensor], index: int
    ) -> tuple[fx.Graph | None, list[Tensor]]:
        if not gradient:
            return None, []
        return recorder(lambda v: self._eager(gradient, v), self._random(0, index))

    def _check(self, linear: _Linear | None, gradient: dict[int, Tensor], index: int) -> None:
        """Refuse a program that differs from the eager product by more than rounding."""
        space = self.risk.space
        eps = torch.finfo(self.risk.dtype).eps
        allowed = min(100 * eps, 0.05)
        for draw in range(_N_CHECKS):
            vector = self._random(draw, index)
            expected = self._eager(gradient, vector)
            found = torch.zeros_like(vector) if linear is None else linear(vector)
            whole = float(expected.norm())
            for name, size, want, got in zip(
                space.names, space.sizes, space.split(expected), space.split(found), strict=True
            ):
                # A part may be zero up to the rounding of the whole.
                scale = float(want.norm()) + whole * (size / space.n) ** 0.5
                error = float((got - want).norm())
                if not error <= allowed * scale:
                    raise NotCompiledError(
                        f"the compiled product differs from the eager one by {error / scale:.2g} "
                        f"(relative; allowed {allowed:.2g}) at {name!r}, micro-batch {index + 1}"
                    )

    def _product(
        self, vectors: Tensor, positions: Sequence[int] | None, *, batched: bool
    ) -> Tensor:
        if positions is None:
            self.prepare()
        if positions is not None or self.fallback is not None:
            return super()._product(vectors, positions, batched=batched)
        if self._versions != self._current_versions():
            raise TaskError(
                "the parameters changed after the product with the Hessian was compiled; make a "
                "new product for the new parameters"
            )
        vector = vectors.contiguous()
        total = torch.zeros_like(vector)
        with self._threads():
            for linear, fraction in zip(self._linear, self.risk.fractions, strict=True):
                if linear is not None:
                    total.add_(linear(vector), alpha=fraction)
        self.n_products += 1
        return total

    def rows(self, rows: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The Hessian times each of k rows (k, n); one compiled product after the other."""
        if len(rows) and positions is None:
            self.prepare()
            if self.fallback is None:
                return torch.stack([self.matvec(row) for row in rows])
        return super().rows(rows, positions)

    def _sum_of_products(
        self, shape: torch.Size, parts: dict[int, Tensor], n_kept: int, *, batched: bool
    ) -> Tensor | None:
        left = max(self._budget - self._bytes, 0) // max(self.plan.graph_bytes, 1)
        return super()._sum_of_products(shape, parts, min(n_kept, left), batched=batched)

    def release(self) -> None:
        """Free what is kept; the next product records again, but need not compile."""
        super().release()
        self._linear, self._bytes = [], 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings or log lines of the compiler, and the global generator left as it was."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _new_bytes(tensors: list[Tensor], seen: set[int]) -> int:
    """Bytes of the storages that have not been seen; they are added."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _one_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, NotCompiledError):
        return text
    name = type(error).__name__
    return f"{name}: {text}"[:200] if text else name
