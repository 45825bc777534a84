"""The ``hessian`` measurement: spectrum, density and moments of one or more operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from landscape.density import assemble_density, exact_density, moments, probe
from landscape.errors import UsageError
from landscape.operators import OPERATORS, LinearOperator
from landscape.results import Density, Moments, Spectrum
from landscape.spectrum import EXACT_LIMIT, exact_spectrum, lanczos_spectrum

__all__ = ["HessianOptions", "Units", "choose_method", "measure_operator"]

Method = Literal["auto", "exact", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class HessianOptions:
    """What to measure.

    Attributes:
        operators: names from :data:`landscape.operators.OPERATORS`.
        top: number of algebraically largest eigenvalues (default 10, or n where n is smaller).
        bottom: number of algebraically smallest.
        tol: largest residual over the largest |eigenvalue| (default 1e-6 in float32, else 1e-8).
        method: ``exact`` builds the matrix, ``lanczos`` never does, ``auto`` is exact up to n=4096.
        density: whether to estimate the spectral density and the moments.
        steps: Lanczos steps per probe.
        probes: probes; each costs ``steps`` products.
        save_vectors: keep the eigenvectors.
    """

    operators: tuple[str, ...] = ("hessian",)
    top: int | None = None
    bottom: int = 0
    tol: float | None = None
    method: Method = "auto"
    density: bool = True
    steps: int = 100
    probes: int = 8
    save_vectors: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.operators if name not in OPERATORS]
        if unknown:
            raise UsageError(
                f"--operator {unknown[0]!r} is unknown; expected one of {', '.join(OPERATORS)}"
            )
        for name, value, least in (
            ("top", self.top or 0, 0),
            ("bottom", self.bottom, 0),
            ("steps", self.steps, 1),
            ("probes", self.probes, 1),
        ):
            if value < least:
                raise UsageError(f"--{name} {value}: expected a whole number of at least {least}")
        if self.tol is not None and not 0 < self.tol < 1:
            raise UsageError(f"--tol {self.tol}: expected a number between 0 and 1")

    def wanted(self, n: int) -> tuple[int, int]:
        """Numbers of largest and smallest eigenvalues for a matrix of size n."""
        top = min(10, max(n - self.bottom, 0)) if self.top is None else self.top
        return top, self.bottom


class Units(Protocol):
    """Where finished units of work are kept; see :mod:`landscape.partial`."""

    seconds: float

    def get(self, name: str) -> dict[str, Any] | None:
        """The unit of that name, if stored."""

    def put(self, name: str, unit: Mapping[str, Any]) -> None:
        """Store a unit."""

    def drop(self, name: str) -> None:
        """Forget a unit."""

    def due(self) -> bool:
        """Whether unfinished state should be stored now."""


Progress = Callable[[str, int, int | None], None]
"""Called with a phase, the products done in it, and their expected number where known."""


def choose_method(method: Method, n: int) -> Literal["exact", "lanczos"]:
    """The method that ``auto`` stands for at size n."""
    if method != "auto":
        return method
    return "exact" if n <= EXACT_LIMIT else "lanczos"


def measure_operator(
    operator: LinearOperator,
    name: str,
    options: HessianOptions,
    *,
    seed: int,
    units: Units,
    progress: Progress = lambda phase, done, total: None,
) -> tuple[Spectrum, Density | None, Moments | None]:
    """Spectrum of one operator and, where asked for, its density and moments.

    Finished units (the eigenpairs, each probe) are put into ``units`` and taken from there, and so
    is the state of an unfinished solve, so that an interrupted run continues to the same numbers.
    """
    tol = default_tol(operator.dtype) if options.tol is None else options.tol
    top, bottom = options.wanted(operator.n)
    if choose_method(options.method, operator.n) == "exact":
        return _exact(operator, name, options, top, bottom, tol, units, progress)
    spectrum, vectors = _eigenpairs(operator, name, top, bottom, tol, seed, units, progress)
    density = _density(operator, name, spectrum, vectors, options, seed, units, progress)
    found = None
    if density is not None:
        found = moments(density, n=operator.n, eps=torch.finfo(operator.dtype).eps)
    if options.save_vectors:
        spectrum = _with_vectors(spectrum, vectors)
    return spectrum, density, found


def default_tol(dtype: torch.dtype) -> float:
    """1e-8 in float64, 1e-6 in float32, 1e-2 in bfloat16."""
    return {torch.float64: 1e-8, torch.float32: 1e-6}.get(dtype, 1e-2)


def _with_vectors(spectrum: Spectrum, vectors: Tensor) -> Spectrum:
    import dataclasses

    return dataclasses.replace(spectrum, eigenvectors=vectors.cpu().numpy())


def _exact(
    operator: LinearOperator,
    name: str,
    options: HessianOptions,
    top: int,
    bottom: int,
    tol: float,
    units: Units,
    progress: Progress,
) -> tuple[Spectrum, Density | None, Moments | None]:
    unit = f"matrix-{name}"
    phase = f"{name}: matrix"

    def on_rows(matrix: Tensor, done: int) -> None:
        progress(phase, done, operator.n)
        if units.due():
            units.put(unit, {"rows": matrix[:done].numpy().copy()})

    stored = units.get(unit)
    spectrum, vectors = exact_spectrum(
        operator,
        name,
        top=top,
        bottom=bottom,
        tol=tol,
        rows=None if stored is None else torch.from_numpy(stored["rows"]),
        on_rows=on_rows,
    )
    if options.save_vectors:
        n = operator.n
        spectrum = _with_vectors(spectrum, torch.cat([vectors[:top], vectors[n - bottom :]]))
    if not options.density:
        return spectrum, None, None
    density = exact_density(name, spectrum.eigenvalues)
    eps = torch.finfo(torch.float64 if operator.dtype == torch.float64 else operator.dtype).eps
    return spectrum, density, moments(density, n=operator.n, eps=eps)


def _eigenpairs(
    operator: LinearOperator,
    name: str,
    top: int,
    bottom: int,
    tol: float,
    seed: int,
    units: Units,
    progress: Progress,
) -> tuple[Spectrum, Tensor]:
    unit, state_unit = f"pairs-{name}", f"lanczos-{name}"
    phase = f"{name}: eigenvalues"
    stored = units.get(unit)
    if stored is not None:
        vectors = torch.from_numpy(stored["vectors"]).to(operator.like)
        return _stored_spectrum(name, stored, top, bottom, tol), vectors

    def on_step(done: int, snapshot: Callable[[], dict[str, Any]]) -> None:
        progress(phase, done, None)
        if units.due():
            units.put(state_unit, snapshot())

    spectrum, vectors = lanczos_spectrum(
        operator,
        name,
        top=top,
        bottom=bottom,
        tol=tol,
        seed=seed,
        state=units.get(state_unit),
        on_step=on_step,
    )
    units.drop(state_unit)
    units.put(
        unit,
        {
            "eigenvalues": spectrum.eigenvalues,
            "residuals": spectrum.residuals,
            "converged": spectrum.converged,
            "vectors": vectors.cpu().numpy(),
            "orthogonality": spectrum.orthogonality,
            "n_restarts": spectrum.n_restarts,
            "n_matvecs": spectrum.n_matvecs,
        },
    )
    return spectrum, vectors


def _stored_spectrum(
    name: str, unit: Mapping[str, Any], top: int, bottom: int, tol: float
) -> Spectrum:
    return Spectrum(
        operator=name,
        method="lanczos",
        eigenvalues=unit["eigenvalues"],
        residuals=unit["residuals"],
        converged=unit["converged"].astype(np.bool_),
        tol=tol,
        top=top,
        bottom=bottom,
        orthogonality=float(unit["orthogonality"]),
        symmetry=float(np.nan),
        n_restarts=int(unit["n_restarts"]),
        n_matvecs=int(unit["n_matvecs"]),
    )


def _density(
    operator: LinearOperator,
    name: str,
    spectrum: Spectrum,
    vectors: Tensor,
    options: HessianOptions,
    seed: int,
    units: Units,
    progress: Progress,
) -> Density | None:
    if not options.density:
        return None
    kept = spectrum.converged
    deflate = vectors[torch.as_tensor(kept, device=vectors.device)]
    steps = min(options.steps, operator.n - len(deflate))
    phase = f"{name}: density"
    done, n_matvecs = 0, 0
    probes = []

    def on_step() -> None:
        nonlocal done
        done += 1
        progress(phase, done, options.probes * steps)

    for index in range(options.probes if steps > 0 else 0):
        unit = f"probe-{name}-{index}"
        stored = units.get(unit)
        if stored is None:
            nodes, weights = probe(
                operator, index, steps=steps, seed=seed, deflate=deflate, on_step=on_step
            )
            stored = {"nodes": nodes, "weights": weights}
            units.put(unit, stored)
        else:
            done += len(stored["nodes"])
            progress(phase, done, options.probes * steps)
        probes.append((stored["nodes"], stored["weights"]))
        n_matvecs += len(stored["nodes"])
    return assemble_density(
        name, probes, n=operator.n, deflated=spectrum.eigenvalues[kept], n_matvecs=n_matvecs
    )
