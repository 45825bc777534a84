"""Matrix-vector products with the curvature of a risk, with gradient graphs kept alive.

The graph of the gradient does not depend on the vector, so it is built once per micro-batch and
only the second backward pass is run per product. Graphs are kept within a memory budget;
micro-batches beyond it are rebuilt for every product. No forward-mode differentiation is used:
it fails on several common layers and losses, and reverse over forward is silently wrong on some.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError, TaskError
from landscape.memory import free_memory, keep_freed_memory
from landscape.risk import Risk, batch_tensors

__all__ = ["CurvatureProduct", "HessianProduct", "MemoryPlan", "default_graph_memory"]

_SMALL = 4 << 20  # Bytes of a graph below which one thread is fastest.
_BLOCK = 16  # Vectors per vmapped block: larger ones gain nothing and cost memory.


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def default_graph_memory(device: torch.device) -> int:
    """Bytes that kept graphs may take: half of a device's free memory, a quarter of a host's."""
    return free_memory(device) // (2 if device.type == "cuda" else 4)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How much memory kept graphs take, in bytes.

    Attributes:
        graph_bytes: saved tensors of the first (largest) micro-batch's graph.
        budget: bytes allowed for kept graphs.
        n_batches: micro-batches in the data set.
        n_kept: how many keep their graph; the others are rebuilt for every product.
    """

    graph_bytes: int
    budget: int
    n_batches: int
    n_kept: int


class _SavedBytes:
    """Counts the distinct bytes that autograd saves while a graph is built."""

    def __init__(self, excluded: Sequence[Tensor]) -> None:
        self._seen = {t.untyped_storage().data_ptr() for t in excluded}
        self.total = 0

    def __enter__(self) -> _SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._hooks.__exit__(*details)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


class CurvatureProduct(ABC):
    """``V -> sum_b fraction_b C_b V`` for a curvature matrix C that is a mean over examples.

    Args:
        risk: the loss at the anchor; its parameters must not change afterwards.
        graph_memory: bytes for kept graphs (default: :func:`default_graph_memory`).

    Attributes:
        n_products: products with the whole data set so far.
    """

    def __init__(self, risk: Risk, *, graph_memory: int | None = None) -> None:
        self.risk = risk
        self.n_products = 0
        self._budget = default_graph_memory(risk.device) if graph_memory is None else graph_memory
        self._kept: dict[int, Any] = {}
        self._plan: MemoryPlan | None = None
        self._vmap_works = True
        if risk.device.type == "cpu":
            keep_freed_memory()

    @abstractmethod
    def _build(self, index: int) -> Any:
        """The graph of micro-batch ``index``; None where its curvature is identically zero."""

    @abstractmethod
    def _apply(
        self, graph: Any, parts: dict[int, Tensor], *, retain: bool, batched: bool
    ) -> tuple[Tensor, ...]:
        """Product of one micro-batch's curvature with a vector, or with rows where batched.

        ``parts`` holds the vector by parameter index; the result is restricted to those too.
        """

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan; measured on the first micro-batch when first asked for."""
        if self._plan is None:
            risk = self.risk
            if not risk.n_batches:  # More processes than examples.
                return MemoryPlan(graph_bytes=0, budget=self._budget, n_batches=0, n_kept=0)
            inputs = batch_tensors(risk.batch(0))
            with _SavedBytes([*risk.space.parameters, *risk.model.buffers(), *inputs]) as saved:
                graph = self._build_checked(0)
            _refuse_broken_graph(graph)
            n_kept = min(risk.n_batches, self._budget // max(saved.total, 1))
            self._plan = MemoryPlan(
                graph_bytes=saved.total,
                budget=self._budget,
                n_batches=risk.n_batches,
                n_kept=int(n_kept),
            )
            if n_kept:
                self._kept[0] = graph
        return self._plan

    def _build_checked(self, index: int) -> Any:
        try:
            return self._build(index)
        except LandscapeError:
            raise
        except RuntimeError as error:
            raise _no_second_derivative(error) from error

    def matvec(self, vector: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """C v for a vector (n,); one matrix-vector product.

        Args:
            vector: flat vector over the parameters at ``positions``.
            positions: indices of parameters: the diagonal block of C that belongs to them. All
                parameters where None.
        """
        return self._product(vector, positions, batched=False)

    def rows(self, rows: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """C applied to each of k rows (k, n), in vmapped blocks where that works."""
        if not len(rows):
            return rows.clone()
        if len(rows) > 1 and self._vmap_works:
            try:
                return torch.cat(
                    [self._product(b, positions, batched=True) for b in torch.split(rows, _BLOCK)]
                )
            except RuntimeError:
                # Some backward formulas have no batching rule; one vector at a time always works.
                self._vmap_works = False
        return torch.stack([self.matvec(row, positions) for row in rows])

    def _product(
        self, vectors: Tensor, positions: Sequence[int] | None, *, batched: bool
    ) -> Tensor:
        risk = self.risk
        chosen = range(len(risk.space.names)) if positions is None else positions
        parts = dict(zip(chosen, risk.space.split(vectors, chosen), strict=True))
        total: Tensor | None = None
        with risk.ranks.unanimous():
            n_kept = self.plan.n_kept
            with self._threads():
                total = self._sum_of_products(vectors.shape, parts, n_kept, batched=batched)
        self.n_products += len(vectors) if batched else 1
        return risk.ranks.sum(torch.zeros_like(vectors) if total is None else total)

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        """One thread where the tensors are small: starting more costs more than it gives."""
        small = self.risk.device.type == "cpu" and self.plan.graph_bytes < _SMALL
        return _single_thread() if small else contextlib.nullcontext()

    def _sum_of_products(
        self, shape: torch.Size, parts: dict[int, Tensor], n_kept: int, *, batched: bool
    ) -> Tensor | None:
        total: Tensor | None = None
        for index in range(self.risk.n_batches):
            graph = self._kept[index] if index in self._kept else self._build_checked(index)
            keep = index < n_kept
            if keep:
                self._kept[index] = graph
            if graph is None:
                continue
            try:
                result = self._apply(graph, parts, retain=keep, batched=batched)
            except RuntimeError as error:
                if batched:
                    raise
                raise _no_second_derivative(error) from error
            product = torch.cat([t.reshape(*shape[:-1], -1) for t in result], dim=-1)
            total = product if total is None else total.add_(product)
        return total

    def _pull_back(
        self,
        tensors: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        parts: dict[int, Tensor],
        *,
        retain: bool,
        batched: bool,
    ) -> tuple[Tensor, ...]:
        """Vector-Jacobian product of tensors with respect to the parameters that parts names."""
        if not tensors:
            return tuple(torch.zeros_like(part) for part in parts.values())
        return torch.autograd.grad(
            tensors,
            [self.risk.space.parameters[i] for i in parts],
            grad_outputs=cotangents,
            retain_graph=retain,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=batched,
        )

    def release(self) -> None:
        """Free the kept graphs."""
        self._kept.clear()


class HessianProduct(CurvatureProduct):
    """Hessian-vector products ``H v`` by a second backward through the kept gradient graph."""

    def _build(self, index: int) -> Any:
        risk = self.risk
        gradient = torch.autograd.grad(
            risk.batch_loss(index), risk.space.parameters, create_graph=True, allow_unused=True
        )
        # A parameter that enters linearly (or not at all) has a constant gradient: no graph.
        kept = {i: g for i, g in enumerate(gradient) if g is not None and g.requires_grad}
        return (None, kept) if kept else None

    def _apply(
        self, graph: Any, parts: dict[int, Tensor], *, retain: bool, batched: bool
    ) -> tuple[Tensor, ...]:
        _, gradient = graph
        places = [i for i in parts if i in gradient]
        return self._pull_back(
            [gradient[i] for i in places],
            [parts[i] for i in places],
            parts,
            retain=retain,
            batched=batched,
        )


def _refuse_broken_graph(graph: Any) -> None:
    """Refuse a gradient graph that is cut by a function without a second derivative.

    Autograd marks the cut by an ``Error`` node, but prunes it where nothing behind it leads to the
    parameters: the second derivative would then be wrong in silence.
    """
    if graph is None:
        return
    for node in graph_nodes(list(graph[1].values())):
        if type(node).__name__ == "Error":
            raise TaskError(
                "the loss could not be differentiated twice: the graph of its gradient is cut by a "
                "function whose backward pass is marked once_differentiable. Write that backward "
                "with differentiable torch operations"
            )


def graph_nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """Every node of the autograd graph behind some tensors, once."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


def _no_second_derivative(error: RuntimeError) -> LandscapeError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return TaskError(
            f"out of memory while differentiating: {text}. Use a smaller --batch-size or "
            "--graph-memory, or --dtype float32"
        )
    return TaskError(
        f"the loss could not be differentiated twice: {text}. A fused kernel or a custom "
        "autograd.Function without a second derivative is the usual cause; for attention use the "
        "'eager' or 'math' implementation"
    )
