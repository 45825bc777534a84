"""The ``hessian`` measurement: spectrum, density and moments of one or more operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.density import assemble_density, exact_density, probe
from landscape.errors import UsageError
from landscape.gram import GRAM_LIMIT
from landscape.memory import stored_tensor
from landscape.operators import OPERATORS, LinearOperator
from landscape.results import MODULES, Density, FloatArray, Moments, Spectrum
from landscape.spectrum import EXACT_LIMIT, dense_spectrum, gram_spectrum, lanczos_spectrum
from landscape.sums import moments
from landscape.units import Progress, Units, kept_state, silent

__all__ = ["HessianOptions", "choose_method", "measure_operator", "too_wide"]

Method = Literal["auto", "exact", "lanczos"]
Path = Literal["dense", "gram", "lanczos"]


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
        error: add probes until the half-width of the trace's 95% interval is at most this part of
            the trace.
        multiplicity: ``always`` looks for further copies of every wanted eigenvalue, ``auto``
            where zeros are among them.
        per_module: measure the diagonal block of every module with parameters, too.
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
    error: float | None = None
    multiplicity: Literal["auto", "always"] = "auto"
    per_module: bool = False
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
        if self.multiplicity not in ("auto", "always"):
            raise UsageError(f"--multiplicity {self.multiplicity!r}: expected auto or always")
        if self.error is not None and not 0 < self.error < 1:
            raise UsageError(f"--error {self.error}: expected a number between 0 and 1")
        if self.tol is not None and not 0 < self.tol < 1:
            raise UsageError(f"--tol {self.tol}: expected a number between 0 and 1")

    def wanted(self, n: int) -> tuple[int, int]:
        """Numbers of largest and smallest eigenvalues for a matrix of size n."""
        top = min(10, max(n - self.bottom, 0)) if self.top is None else self.top
        return top, self.bottom

    def fitting(self, n: int) -> tuple[int, int]:
        """The same, or all of a diagonal block that has fewer."""
        top, bottom = self.wanted(n)
        return min(top, n), min(bottom, n - min(top, n))


_MOST_PROBES = 10_000


def choose_method(method: Method, name: str, n: int, gram_rows: int | None) -> Path:
    """How an operator of size n is treated.

    Args:
        method: ``exact``, ``lanczos`` or ``auto``: exact where that is small enough.
        name: the operator's name.
        n: its size.
        gram_rows: rows of its factor where it has one and that fits into memory, else None.

    Returns:
        ``dense``: the explicit matrix; ``gram``: the Gram matrix of the factor, where that is the
        smaller one; or ``lanczos``.
    """
    if method == "lanczos":
        return "lanczos"
    if gram_rows is not None and gram_rows <= GRAM_LIMIT and gram_rows < n:
        return "gram"
    if n <= EXACT_LIMIT:
        return "dense"
    if method == "auto":
        return "lanczos"
    if n > 5 * EXACT_LIMIT:
        raise UsageError(
            f"--method exact: the {name} has n = {n} rows, {8 * n * n / 2**30:.0f} GB as a matrix; "
            f"at most {5 * EXACT_LIMIT} are built. Use --method lanczos, or fewer --params"
        )
    return "dense"


def measure_operator(
    operator: LinearOperator,
    name: str,
    options: HessianOptions,
    *,
    seed: int,
    units: Units,
    path: Path | None = None,
    factor: Callable[..., Tensor] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> tuple[Spectrum, Density | None, Moments | None]:
    """Spectrum of one operator and, where asked for, its density and moments.

    Finished units (the eigenpairs, each probe) are put into ``units`` and taken from there, and so
    is the state of an unfinished solve, so that an interrupted run continues to the same numbers.

    Args:
        operator: the operator.
        name: its name.
        options: what to measure.
        seed: seed of start vectors and probes.
        units: where finished units are kept.
        path: ``dense``, ``gram`` or ``lanczos``; from the options and the size where None.
        factor: builds the factor of the Gram path, as :func:`landscape.gram.factor` does.
        stop: whether the budget is spent; asked between steps and probes of the ``lanczos`` path.
        progress: called with a phase, the products done in it and their number where known.
    """
    if path is None:
        path = choose_method(options.method, name, operator.n, None)
    job = _Job(operator, name, options, seed, units, stop, progress)
    if path == "dense":
        return job.dense()
    if path == "gram" and factor is not None:
        return job.gram(factor)
    return job.lanczos()


def default_tol(dtype: torch.dtype) -> float:
    """1e-8 in float64, 1e-6 in float32, 1e-2 in bfloat16."""
    return {torch.float64: 1e-8, torch.float32: 1e-6}.get(dtype, 1e-2)


class _Job:
    """One operator's measurement, by any of the three paths."""

    def __init__(
        self,
        operator: LinearOperator,
        name: str,
        options: HessianOptions,
        seed: int,
        units: Units,
        stop: Callable[[], bool],
        progress: Progress,
    ) -> None:
        self.stop = stop
        self.unit = name.replace("/", "|")  # Names of stored units are flat.
        self.operator, self.name, self.options = operator, name, options
        self.seed, self.units, self.progress = seed, units, progress
        self.tol = default_tol(operator.precision) if options.tol is None else options.tol
        block = MODULES in name
        self.top, self.bottom = (options.fitting if block else options.wanted)(operator.n)

    def dense(self) -> tuple[Spectrum, Density | None, Moments | None]:
        """Every eigenvalue of the explicit matrix."""
        unit, n = f"matrix-{self.unit}", self.operator.n

        def on_rows(matrix: Tensor, done: int) -> None:
            self.progress(f"{self.name}: matrix", done, n)
            if self.units.due():
                self.units.put(unit, {"rows": matrix[:done].numpy().copy()})

        stored = self.units.get(unit)
        spectrum, vectors = dense_spectrum(
            self.operator,
            self.name,
            top=self.top,
            bottom=self.bottom,
            tol=self.tol,
            rows=None if stored is None else stored_tensor(stored["rows"]),
            on_rows=on_rows,
        )
        wanted = torch.cat([vectors[: self.top], vectors[n - self.bottom :]])
        return self._whole(spectrum, wanted)

    def gram(
        self, factor: Callable[..., Tensor]
    ) -> tuple[Spectrum, Density | None, Moments | None]:
        """Every eigenvalue from the Gram matrix of the factor."""
        unit = f"factor-{self.unit}"

        def on_rows(rows: Tensor) -> None:
            self.progress(f"{self.name}: factor", len(rows), None)
            if self.units.due():
                self.units.put(unit, {"rows": rows.numpy().copy()})

        stored = self.units.get(unit)
        rows = factor(
            rows=None if stored is None else stored_tensor(stored["rows"]), on_rows=on_rows
        )
        spectrum, vectors = gram_spectrum(
            rows, self.name, top=self.top, bottom=self.bottom, tol=self.tol
        )
        if self.options.save_vectors and self.bottom:
            raise UsageError(
                "--save-vectors with --bottom: the smallest eigenvalues of a Gram matrix are a "
                "null space without distinguished vectors; leave --bottom out or use --method "
                "lanczos"
            )
        return self._whole(spectrum, vectors)

    def _whole(
        self, spectrum: Spectrum, vectors: Tensor
    ) -> tuple[Spectrum, Density | None, Moments | None]:
        """A fully known spectrum with its density and moments."""
        if self.options.save_vectors:
            spectrum = _with_vectors(spectrum, vectors)
        if not self.options.density:
            return spectrum, None, None
        density = exact_density(self.name, spectrum.eigenvalues)
        return spectrum, density, self._moments(density)

    def _moments(self, density: Density) -> Moments:
        return moments(density, n=self.operator.n, eps=torch.finfo(self.operator.dtype).eps)

    def lanczos(self) -> tuple[Spectrum, Density | None, Moments | None]:
        """The extreme eigenvalues, and the rest by stochastic quadrature."""
        spectrum, vectors = self._eigenpairs()
        density = self._density(spectrum, vectors) if self.options.density else None
        if self.options.save_vectors:
            spectrum = _with_vectors(spectrum, self.operator.coordinates.collected(vectors))
        return spectrum, density, None if density is None else self._moments(density)

    def _eigenpairs(self) -> tuple[Spectrum, Tensor]:
        unit, state_unit = f"pairs-{self.unit}", f"lanczos-{self.unit}"
        stored = self.units.get(unit)
        if stored is not None:
            vectors = self.operator.coordinates.own(stored_tensor(stored["vectors"]))
            return self._stored_spectrum(stored), vectors.to(self.operator.like)

        state, on_step = kept_state(
            self.units,
            state_unit,
            lambda done: self.progress(f"{self.name}: eigenvalues", done, None),
            stop=self.stop,
        )
        spectrum, vectors = lanczos_spectrum(
            self.operator,
            self.name,
            top=self.top,
            bottom=self.bottom,
            tol=self.tol,
            seed=self.seed,
            multiplicity=self.options.multiplicity,
            stop=self.stop,
            state=state,
            on_step=on_step,
        )
        if self.stop() and not spectrum.converged.all():
            return spectrum, vectors  # Not finished: a larger budget continues from the state.
        self.units.drop(state_unit)
        scalars = ("orthogonality", "n_restarts", "n_matvecs")
        arrays = ("eigenvalues", "residuals", "converged")
        self.units.put(
            unit,
            {name: getattr(spectrum, name) for name in (*arrays, *scalars)}
            | {"vectors": self.operator.coordinates.collected(vectors).numpy()},
        )
        return spectrum, vectors

    def _stored_spectrum(self, unit: Mapping[str, Any]) -> Spectrum:
        return Spectrum(
            operator=self.name,
            method="lanczos",
            eigenvalues=unit["eigenvalues"],
            residuals=unit["residuals"],
            converged=unit["converged"].astype(np.bool_),
            tol=self.tol,
            top=self.top,
            bottom=self.bottom,
            orthogonality=float(unit["orthogonality"]),
            symmetry=float(np.nan),
            n_restarts=int(unit["n_restarts"]),
            n_matvecs=int(unit["n_matvecs"]),
        )

    def _density(self, spectrum: Spectrum, vectors: Tensor) -> Density | None:
        operator, options = self.operator, self.options
        kept = spectrum.converged
        deflate = vectors[torch.as_tensor(kept, device=vectors.device)]
        steps = min(options.steps, operator.n - len(deflate))
        done = 0
        probes: list[tuple[FloatArray, FloatArray]] = []

        def on_step() -> None:
            nonlocal done
            done += 1
            self.progress(f"{self.name}: density", done, max(options.probes * steps, done))

        def assembled() -> Density:
            return assemble_density(
                self.name,
                probes,
                n=operator.n,
                deflated=spectrum.eigenvalues[kept],
                n_matvecs=sum(len(nodes) for nodes, _ in probes),
            )

        while steps > 0 and len(probes) < _MOST_PROBES:
            if len(probes) >= options.probes and (
                options.error is None or not too_wide(self._moments(assembled()), options.error)
            ):
                break
            unit = f"probe-{self.unit}-{len(probes)}"
            stored = self.units.get(unit)
            if stored is None:
                if self.stop():
                    break
                nodes, weights = probe(
                    operator,
                    len(probes),
                    steps=steps,
                    seed=self.seed,
                    deflate=deflate,
                    on_step=on_step,
                )
                stored = {"nodes": nodes, "weights": weights}
                self.units.put(unit, stored)
            else:
                done += len(stored["nodes"])
            probes.append((stored["nodes"], stored["weights"]))
        return assembled() if probes or steps == 0 else None


def too_wide(found: Moments, error: float) -> bool:
    """Whether the half-width of the trace's 95% interval exceeds this part of the trace."""
    trace = found.trace
    return not (trace.upper - trace.lower) / 2 <= error * abs(trace.value)


def _with_vectors(spectrum: Spectrum, vectors: Tensor) -> Spectrum:
    return dataclasses.replace(spectrum, eigenvectors=vectors.cpu().numpy())
