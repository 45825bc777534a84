"""What measurements under a prior share: its standard deviation, resolved once per series."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from landscape.measurement import Measurement
from landscape.params import ParameterSpace
from landscape.prior_options import resolve_prior, resolve_sigma
from landscape.priors import GaussianPrior, UniformPrior
from landscape.volume.options import PriorOptions

__all__ = ["PriorMeasurement"]


@dataclass(kw_only=True)
class PriorMeasurement(Measurement):
    """A prepared measurement of one checkpoint under a prior.

    Args:
        options: the prior and what to measure under it; for the others see
            :class:`landscape.measurement.Measurement`.
        sigma: the standard deviation of every tensor where an earlier checkpoint of a series has
            resolved it, so that results compare; from the options where None.
        prior_access: how to read a checkpoint that the prior's mean names.

    Attributes:
        notes: what had to be decided about the prior's standard deviation.
    """

    options: PriorOptions
    sigma: tuple[float, ...] | None = None
    prior_access: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(init=False, default=())

    def _resolve_sigma(self) -> None:
        """Resolve the standard deviation of a Gaussian prior that no earlier checkpoint has."""
        options = self.options
        if self.sigma is not None or options.prior != "gaussian":
            return
        space = self.load()
        self.sigma, self.notes = resolve_sigma(
            "rms" if options.sigma is None else options.sigma,
            space=space,
            anchor=space.vector().double().cpu(),
            task=self.resolved.task,
            seed=self.settings.seed,
        )

    @property
    def mean(self) -> str:
        """Centre of the prior: where initial weights are, if their spread is asked for."""
        given = self.options.mean
        return given if given is not None else "init" if self.options.sigma == "init" else "zero"

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Every resolved option that the estimates depend on."""

    def prior_config(self) -> dict[str, Any]:
        """The options of the prior that the estimates depend on."""
        options = self.options
        return {
            "prior": options.prior,
            "mean": self.mean,
            "sigma": None if self.sigma is None else list(self.sigma),
            "uniform": options.uniform,
            "half_width": options.half_width,
            "cutoffs": list(options.cutoffs),
        }

    def prior(self, space: ParameterSpace, anchor: Tensor) -> GaussianPrior | UniformPrior:
        """The prior that the options name, for the selected parameters with values (n,).

        Raises:
            LandscapeError: see :func:`landscape.prior_options.resolve_prior`.
        """
        options = self.options
        return resolve_prior(
            options.prior,
            space=space,
            anchor=anchor,
            task=self.resolved.task,
            mean=self.mean,
            sigma=options.sigma if self.sigma is None else self.sigma,
            uniform=options.uniform,
            half_width=options.half_width,
            seed=self.settings.seed,
            **self.prior_access,
        )
