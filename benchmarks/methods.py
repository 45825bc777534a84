"""The tools compared, behind one interface; each is imported where it is used."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from problems import Problem
from torch import Tensor, nn

TOP = 10

# What each solver imports where it is used: loaded beforehand, so that no run pays for it.
IMPORTED = {
    "landscape": ("landscape.eigensolver", "landscape.density"),
    "curvlinops": ("curvlinops", "scipy.sparse.linalg"),
    "hessian-eigenthings": ("hessian_eigenthings.algorithms",),
    "PyHessian": ("pyhessian.hessian",),
}


@dataclass(kw_only=True)
class Outcome:
    """What one run returned.

    Attributes:
        values: eigenvalues, descending.
        vectors: eigenvectors as rows, or None where there are none.
        products: matrix-vector products used.
        claimed: how many pairs the tool itself calls converged, or None where it does not say.
        details: anything else worth recording.
    """

    values: np.ndarray | None = None
    vectors: Tensor | None = None
    products: int
    claimed: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


def _risk(problem: Problem) -> Any:
    from landscape.data import materialise
    from landscape.risk import Risk
    from landscape.task import Task

    data = (problem.inputs.cpu(), problem.targets.cpu())
    task = Task(model=problem.model, data=data, criterion="cross_entropy")
    first = problem.parameters[0]
    return Risk(task, materialise(data), device=first.device, dtype=first.dtype)


def _ours(problem: Problem, *, graph_memory: int | None = None, compiled: bool = False) -> Any:
    from landscape.operators import curvature

    risk = _risk(problem)
    return curvature("hessian", risk, graph_memory=graph_memory, compiled=compiled)


def _ours_mixed(problem: Problem, *, compiled: bool = False) -> Any:
    from landscape.mixed import MixedOperator, rounded
    from landscape.operators import curvature

    risk = _risk(problem)
    exact = curvature("hessian", risk, graph_memory=0)
    cheap = curvature("hessian", rounded(risk, torch.float32), compiled=compiled)
    return MixedOperator(exact, cheap)


def _ours_prepared(problem: Problem, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Our operator, and the seconds that compilation took where that is asked for."""
    compiled, mixed = options.get("compiled", False), options.get("mixed", False)
    build = _ours_mixed if mixed else _ours
    operator = build(problem, compiled=compiled)
    if not compiled:
        return operator, {}
    product = (operator.cheap if mixed else operator).product
    wall, cpu = time.perf_counter(), time.process_time()
    product.prepare()
    if product.fallback is not None:
        raise RuntimeError(f"not compiled: {product.fallback}")
    taken = {"compile": time.perf_counter() - wall, "compile_cpu": time.process_time() - cpu}
    return operator, taken


def ours_product(problem: Problem) -> Callable[[Tensor], Tensor]:
    """The product of a kept gradient graph."""
    return _ours(problem).matvec


def ours_rebuilt(problem: Problem) -> Callable[[Tensor], Tensor]:
    """The product with the graph rebuilt each time, as where graphs exceed the memory budget."""
    return _ours(problem, graph_memory=0).matvec


def ours_compiled(problem: Problem) -> Callable[[Tensor], Tensor]:
    """The compiled product; compilation happens in its first call and is not counted."""
    operator = _ours(problem, compiled=True)
    operator.product.prepare()
    if operator.product.fallback is not None:
        raise RuntimeError(f"not compiled: {operator.product.fallback}")
    return operator.matvec


def ours_block(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Products with the rows of a matrix, vmapped over the kept graph."""
    return _ours(problem).rows


def ours_top(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Thick-restart Lanczos; building the risk and the graph included."""
    from landscape.eigensolver import extreme_eigenpairs

    operator, taken = _ours_prepared(problem, options)
    pairs = extreme_eigenpairs(operator, top=options.get("top", TOP), tol=options["tol"])
    return Outcome(
        values=pairs.values,
        vectors=pairs.vectors,
        products=pairs.n_matvecs,
        claimed=int(pairs.converged.sum()),
        details={"restarts": pairs.n_restarts, "orthogonality": pairs.orthogonality, **taken},
    )


def ours_slq(problem: Problem, options: dict[str, Any]) -> Outcome:
    """One probe; building the risk and the graph included."""
    from landscape.density import probe

    operator, taken = _ours_prepared(problem, options)
    nodes, _ = probe(operator, 0, steps=options["steps"], seed=0)
    details = {"largest_node": float(nodes[-1]), **taken}
    return Outcome(products=operator.n_matvecs, details=details)


def _curvlinops(problem: Problem, *, written_out: bool = False) -> Any:
    from curvlinops import HessianLinearOperator

    class Counting(HessianLinearOperator):
        """Counts the columns it is applied to."""

        products = 0

        def _matmat(self, M: list[Tensor]) -> list[Tensor]:
            self.products += M[0].shape[-1]
            return super()._matmat(M)

    if written_out:
        problem = problem.written_out()
    # Its check of determinism is switched off: the others make none here.
    return Counting(
        problem.model,
        nn.CrossEntropyLoss(),
        problem.parameters,
        [(problem.inputs, problem.targets)],
        check_deterministic=False,
    )


def curvlinops_product(
    problem: Problem, *, written_out: bool = False
) -> Callable[[Tensor], Tensor]:
    """``operator @ vector``; written out: with normalisation in elementary operations."""
    operator = _curvlinops(problem, written_out=written_out)
    return lambda vector: operator @ vector


def curvlinops_block(problem: Problem) -> Callable[[Tensor], Tensor]:
    """``operator @ matrix`` for the columns of a matrix."""
    operator = _curvlinops(problem, written_out=True)
    return lambda rows: (operator @ rows.T).T


def curvlinops_top(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Its SciPy export with ARPACK's ``eigsh``."""
    from scipy.sparse.linalg import eigsh

    operator = _curvlinops(problem, written_out=options.get("written_out", False))
    first = problem.parameters[0]
    start = torch.randn(problem.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, vectors = eigsh(
        operator.to_scipy(),
        k=TOP,
        which="LA",
        tol=options["tol"],
        ncv=options.get("ncv"),
        v0=start.to(first.dtype).double().numpy(),
    )
    order = np.argsort(-values)
    rows = torch.from_numpy(np.ascontiguousarray(vectors.T[order]))
    return Outcome(values=values[order], vectors=rows, products=operator.products, claimed=TOP)


def curvlinops_slq(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Its spectral density by Lanczos quadrature (it estimates the spectrum's ends first)."""
    from curvlinops import lanczos_approximate_spectrum

    operator = _curvlinops(problem, written_out=options.get("written_out", False))
    torch.manual_seed(0)
    lanczos_approximate_spectrum(operator, ncv=options["steps"])
    return Outcome(products=operator.products)


def _eigenthings(problem: Problem) -> Any:
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators import HessianOperator

    class Counting(HessianOperator):
        """Counts its products."""

        products = 0

        def matvec(self, v: Tensor) -> Tensor:
            self.products += 1
            return super().matvec(v)

    batches = [(problem.inputs, problem.targets)]
    return Counting(problem.model, batches, supervised_loss(nn.CrossEntropyLoss()))


def eigenthings_product(problem: Problem) -> Callable[[Tensor], Tensor]:
    """``operator @ vector``."""
    operator = _eigenthings(problem)
    return lambda vector: operator @ vector


def eigenthings_top(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Its Lanczos method, whose number of steps is fixed beforehand (by default 20 for 10 pairs).

    ``max_iter`` sets it; ``doubling`` starts from the default and doubles it until the tool's own
    residual estimates are within the tolerance, as a user without foreknowledge has to.
    """
    from hessian_eigenthings.algorithms import lanczos

    operator = _eigenthings(problem)
    tol, doubling = options.get("tol", 1.0), options.get("doubling", False)
    steps, settings = options.get("max_iter", 2 * TOP if doubling else None), {}
    while True:
        if steps is not None:
            settings = {"max_iter": min(steps, problem.n), "reorthogonalize": True, "tol": tol}
        found = lanczos(operator, k=TOP, which="LA", seed=0, **settings)
        missed = found.residuals.max() > tol * found.eigenvalues.abs().max()
        if not (doubling and missed) or steps >= 160:
            break
        steps *= 2
    return Outcome(
        values=found.eigenvalues.double().cpu().numpy(),
        vectors=found.eigenvectors,
        products=operator.products,
        claimed=int(found.converged.sum()),
    )


def eigenthings_slq(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Its spectral density with one run."""
    from hessian_eigenthings.algorithms import spectral_density

    operator = _eigenthings(problem)
    found = spectral_density(operator, num_runs=1, lanczos_steps=options["steps"], seed=0)
    largest = float(found.raw_eigenvalues.max())
    return Outcome(products=operator.products, details={"largest_node": largest})


def _pyhessian(problem: Problem) -> tuple[Any, list[int]]:
    """Its single-batch mode, which keeps the gradient graph as ours does; counts products."""
    # It creates every vector in the default type.
    torch.set_default_dtype(problem.parameters[0].dtype)
    # The package hides its module behind the class of the same name.
    module = importlib.import_module("pyhessian.hessian")
    count = [0]
    original = getattr(module.hessian_vector_product, "original", module.hessian_vector_product)

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return original(*arguments)

    counted.original = original  # type: ignore[attr-defined]
    module.hessian_vector_product = counted
    # It accumulates into the parameters' gradients.
    problem.model.zero_grad(set_to_none=True)
    cuda = problem.inputs.is_cuda
    batch = (problem.inputs, problem.targets)
    return module.hessian(problem.model, nn.CrossEntropyLoss(), data=batch, cuda=cuda), count


def pyhessian_product(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Its product; it works on lists of tensors."""
    module = importlib.import_module("pyhessian.hessian")
    tool, _ = _pyhessian(problem)
    sizes = [p.numel() for p in tool.params]

    def product(vector: Tensor) -> Tensor:
        parts = [v.view_as(p) for v, p in zip(vector.split(sizes), tool.params, strict=True)]
        found = module.hessian_vector_product(tool.gradsH, tool.params, parts)
        return torch.cat([t.reshape(-1) for t in found])

    return product


def pyhessian_top(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Its deflated power method."""
    tool, count = _pyhessian(problem)
    torch.manual_seed(0)
    settings = options.get("pyhessian", {})
    values, vectors = tool.eigenvalues(top_n=TOP, **settings)
    rows = torch.stack([torch.cat([t.reshape(-1) for t in v]) for v in vectors])
    order = np.argsort(-np.array(values))
    return Outcome(values=np.array(values)[order], vectors=rows[order.copy()], products=count[0])


def pyhessian_slq(problem: Problem, options: dict[str, Any]) -> Outcome:
    """Its density with one run."""
    tool, count = _pyhessian(problem)
    torch.manual_seed(0)
    nodes, _ = tool.density(iter=options["steps"], n_v=1)
    return Outcome(products=count[0], details={"largest_node": float(np.max(nodes))})


PRODUCTS: dict[str, tuple[Callable[[Problem], Callable[[Tensor], Any]], int]] = {
    "landscape": (ours_product, 1),
    "landscape, block of 8": (ours_block, 8),
    "landscape, rebuilt graph": (ours_rebuilt, 1),
    "landscape, compiled": (ours_compiled, 1),
    "curvlinops": (curvlinops_product, 1),
    "curvlinops, written out": (partial(curvlinops_product, written_out=True), 1),
    "curvlinops, written out, block of 8": (curvlinops_block, 8),
    "hessian-eigenthings": (eigenthings_product, 1),
    "PyHessian": (pyhessian_product, 1),
}
"""Ways to a product, with the number of vectors per call."""

SOLVERS: dict[str, dict[str, Callable[[Problem, dict[str, Any]], Outcome]]] = {
    "top": {
        "landscape": ours_top,
        "curvlinops": curvlinops_top,
        "hessian-eigenthings": eigenthings_top,
        "PyHessian": pyhessian_top,
    },
    "slq": {
        "landscape": ours_slq,
        "curvlinops": curvlinops_slq,
        "hessian-eigenthings": eigenthings_slq,
        "PyHessian": pyhessian_slq,
    },
}
