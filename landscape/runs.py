"""The ``hessian`` measurement of one checkpoint: from a task and weights to a result."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from landscape.errors import UsageError
from landscape.gram import factor
from landscape.hessian import (
    HessianOptions,
    choose_method,
    default_tol,
    measure_operator,
    too_wide,
)
from landscape.hessian import (
    Path as Route,
)
from landscape.measurement import BUDGET_SPENT, Measurement, Stopwatch, prepared
from landscape.mixed import MixedOperator, rounded
from landscape.operators import LinearOperator, curvature
from landscape.params import ParameterSpace
from landscape.results import MODULES, HessianResult, Moments, Spectrum
from landscape.risk import Risk
from landscape.settings import DTYPES, Settings, resolve_device
from landscape.sharded import sharded
from landscape.spectrum import check_wanted
from landscape.store import run_key
from landscape.task import ResolvedTask, Task
from landscape.units import MemoryUnits, Progress, Units, silent

__all__ = ["HessianRun", "hessian_spectrum"]


@dataclass(kw_only=True)
class HessianRun(Measurement):
    """A prepared ``hessian`` measurement of one checkpoint; :meth:`measure` does it.

    The key does not depend on the batch size, the device, the number of probes or what is saved
    besides.

    Args:
        options: what to measure; for the others see :class:`landscape.measurement.Measurement`.

    Attributes:
        methods: ``dense``, ``gram`` or ``lanczos`` of every operator.
        wanted: numbers of largest and smallest eigenvalues that are asked for.
    """

    command: ClassVar[str] = "hessian"

    options: HessianOptions
    methods: dict[str, Route] = field(init=False)
    wanted: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        model = self.resolved.task.model
        settings, options = self.settings, self.options
        n = ParameterSpace(model, settings.params).n
        self._check_ranks()
        self._device = self.ranks.device(resolve_device(settings.device))
        self.methods = {
            name: choose_method(options.method, name, n, self._gram_rows(name, n))
            for name in options.operators
        }
        self._top, self._bottom = self.wanted = options.wanted(n)
        check_wanted(n, self._top, self._bottom)
        exact = any(method != "lanczos" for method in self.methods.values())
        self._choose_precision("float64" if exact or settings.products else "float32")
        self._check_products()
        products = DTYPES[self._products] if self._products else self._dtype
        self._tol = default_tol(products) if options.tol is None else options.tol
        self.key = self._key()

    @property
    def _products(self) -> str | None:
        """The precision of Lanczos' products, where it is another and some operator needs them."""
        return self.settings.products if "lanczos" in self.methods.values() else None

    def _check_ranks(self) -> None:
        """Refuse what only one process can do."""
        if self.ranks.size == 1:
            return
        exact = self.resolved.task.resolved_criterion.fisher_is_ggn
        if "fisher" in self.options.operators and not exact:
            raise UsageError(
                "--operator fisher in several processes: this criterion's Fisher matrix is a "
                "Monte-Carlo one, whose labels are drawn by micro-batch; use --operator ggn, or "
                "one process"
            )
        if self.settings.compiled:
            raise UsageError("--compile works in one process only; leave it out, or use one")

    def _check_products(self) -> None:
        """Refuse ``products`` where float64 cannot verify them."""
        if self.settings.products is None:
            return
        if self._dtype is not torch.float64:
            raise UsageError(
                f"--products float32 verifies in float64, but the precision is {self._dtype_name} "
                f"(--dtype, --device); leave --products out"
            )
        exact = self.resolved.task.resolved_criterion.fisher_is_ggn
        if "fisher" in self.options.operators and not exact:
            raise UsageError(
                "--products float32 with --operator fisher: this criterion's Fisher matrix is a "
                "Monte-Carlo one, whose labels differ between precisions; leave --products out"
            )

    def _gram_rows(self, name: str, n: int) -> int | None:
        """Rows of the factor of a GGN, where it has one that fits into a quarter of the memory."""
        criterion = self.resolved.task.resolved_criterion
        if name != "ggn" and not (name == "fisher" and criterion.fisher_is_ggn):
            return None
        method = self.options.method
        if method == "lanczos" or not (self.factor_is_real or method == "exact"):
            return None
        return self.factor_rows(n)

    @property
    def config(self) -> dict[str, Any]:
        """Every resolved option that the estimates depend on."""
        options = self.options
        return {
            **self.shared_config(),
            **({"products": self._products} if self._products else {}),
            "operators": list(options.operators),
            "method": self.methods,
            "top": self._top,
            "bottom": self._bottom,
            "tol": self._tol,
            "density": options.density,
            "steps": options.steps,
            "multiplicity": options.multiplicity,
            "per_module": options.per_module,
        }

    def _key(self) -> str:
        parts = {**self.config, **self.identity()}
        if all(method != "lanczos" for method in self.methods.values()):
            # All eigenvalues are found whatever part of them is asked for.
            for name in ("top", "bottom", "steps", "multiplicity"):
                del parts[name]
        if "fisher" in self.options.operators:
            # Labels of a Monte-Carlo Fisher matrix are drawn by micro-batch.
            exact = self.resolved.task.resolved_criterion.fisher_is_ggn
            parts["batch_size"] = None if exact else self.settings.batch_size
        return run_key(parts)

    def measure(
        self,
        *,
        units: Units | None = None,
        progress: Progress = silent,
    ) -> HessianResult:
        """Measure and return the result.

        Args:
            units: finished units of an earlier, interrupted run; kept up to date.
            progress: called with a phase, the products done in it and their number where known.

        Raises:
            TaskError: the loss is not deterministic or cannot be differentiated twice.
            NotFiniteError: the loss, the gradient or a product is not finite.
        """
        units = self.ranks.units(MemoryUnits() if units is None else units)
        settings = self.settings
        risk = self.risk()
        loss = risk.require_deterministic()
        gradient_norm = float(torch.linalg.vector_norm(risk.gradient().double()))
        watch = Stopwatch(units)
        spectra, densities, moments = {}, {}, {}

        def tick(phase: str, done: int, total: int | None) -> None:
            watch.note()
            progress(phase, done, total)

        meter = settings.budget.meter()
        operators: list[LinearOperator] = []
        notes: list[str] = []

        def spent() -> bool:
            return meter.spent(sum(operator.n_matvecs for operator in operators))

        stop = self.ranks.decide(spent)

        for name in self.options.operators:
            whole = self._operator(name, risk)
            parts = [(name, whole, self.methods[name])]
            if self.options.per_module:
                for module, positions in risk.space.modules().items():
                    block = whole.block(positions)
                    route = choose_method(self.options.method, name, block.n, None)
                    parts.append((f"{name}{MODULES}{module}", block, route))
            for label, part, route in parts:
                operator = sharded(part, self.ranks) if route == "lanczos" else part
                operators.append(operator)
                spectra[label], density, found = measure_operator(
                    operator,
                    label,
                    self.options,
                    seed=settings.seed,
                    units=units,
                    path=route,
                    factor=functools.partial(factor, risk),
                    stop=stop,
                    progress=tick,
                )
                if density is not None and found is not None:
                    densities[label], moments[label] = density, found
            products = whole.cheap if isinstance(whole, MixedOperator) else whole
            reason = getattr(getattr(products, "product", None), "fallback", None)
            if reason is not None:
                notes.append(f"{name}: the products could not be compiled: {reason}")
            whole.release()
        cut = stop() and not self._is_whole(spectra, moments)
        info = self.info(
            config={**self.config, "probes": self.options.probes},
            risk=risk,
            loss=loss,
            gradient_norm=gradient_norm,
            status="budget" if cut else "complete",
            watch=watch,
            n_matvecs=sum(s.n_matvecs for s in spectra.values())
            + sum(d.n_matvecs for d in densities.values()),
            warnings=(*notes, *self._warnings(spectra, cut=cut)),
        )
        return HessianResult(
            info=info,
            spectra=spectra,
            densities=densities,
            moments=moments,
            indices=self.indices,
        )

    def _operator(self, name: str, risk: Risk) -> LinearOperator:
        """The operator of that name at the risk's anchor."""
        settings = self.settings
        build = functools.partial(
            curvature, name, seed=settings.seed, graph_memory=settings.graph_memory
        )
        if settings.products is None or self.methods[name] != "lanczos":
            return build(risk, compiled=settings.compiled)
        # A few exact products are not worth a kept graph.
        exact = build(risk, graph_memory=0)
        cheap = rounded(risk, DTYPES[settings.products], batch_size=settings.batch_size)
        return MixedOperator(exact, build(cheap, compiled=settings.compiled))

    def _is_whole(self, spectra: Mapping[str, Spectrum], moments: Mapping[str, Moments]) -> bool:
        """Whether nothing that was asked for is missing."""
        options = self.options
        for name, spectrum in spectra.items():
            if spectrum.exact:
                continue
            found = moments.get(name)
            if not spectrum.converged.all():
                return False
            if options.density and (found is None or found.n_probes < options.probes):
                return False
            if found is not None and options.error is not None and too_wide(found, options.error):
                return False
        return True

    def _warnings(self, spectra: Mapping[str, Spectrum], *, cut: bool) -> list[str]:
        found = []
        if cut:
            found.append(BUDGET_SPENT)
        for name, spectrum in spectra.items():
            missed = int((~spectrum.converged).sum())
            if missed and not cut:
                worst = float(spectrum.residuals.max())
                better = "no --products" if self.settings.products else "--dtype float64"
                found.append(
                    f"{name}: {missed} of {len(spectrum.converged)} eigenvalues are not converged "
                    f"(largest residual {worst:.2e}); use {better} or a larger --tol"
                )
        return found


def hessian_spectrum(
    task: Task | ResolvedTask | str,
    checkpoint: Path | str | None = None,
    *,
    settings: Settings | None = None,
    options: HessianOptions | None = None,
    task_settings: Mapping[str, Any] | None = None,
) -> HessianResult:
    """Hessian spectrum of a network: the library's counterpart of ``landscape hessian``.

    Args:
        task: a :class:`Task`, a task file ``file.py:attr`` or a built-in name.
        checkpoint: weights to load; the model's own where None.
        settings: data, device and precision.
        options: what to measure.
        task_settings: arguments of the task's builder, where ``task`` is a name.

    Returns:
        eigenvalues with residuals, and density and moments with standard errors.

    Raises:
        LandscapeError: see :mod:`landscape.errors`.

    Example:
        >>> result = hessian_spectrum("digits-mlp", options=HessianOptions(top=3))
        >>> len(result.spectra["hessian"].eigenvalues)
        1210
    """
    settings = Settings() if settings is None else settings
    return HessianRun(
        **prepared(task, checkpoint, settings, task_settings),
        options=HessianOptions() if options is None else options,
    ).measure()
