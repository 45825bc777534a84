"""Discrete symmetries: permutations of units and of heads, sign flips.

They multiply the number of copies of a basin. Sources: Hecht-Nielsen, Advanced Neural Computers
(1990), and Sussmann, Neural Networks 5 (1992), for tanh networks, which have no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from landscape.flat.actions import monomial, moved_parameters, permute_heads
from landscape.flat.graph import Attention, Graph
from landscape.flat.records import DiscreteCount
from landscape.flat.signs import SignGroup, sign_group
from landscape.flat.subject import Subject
from landscape.risk import Risk
from landscape.rng import stream

__all__ = ["DiscreteReport", "DiscreteSymmetry", "discrete_of_risk", "discrete_symmetries"]

_TRIES = 3  # Random elements that a symmetry must survive.
_DRAWS = 20  # Until one is not the identity.
_EXAMPLES = 256  # Examples that the outputs are compared on.
TOLERANCE = 1e-10

Action = Callable[[Mapping[str, Tensor], Generator], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteSymmetry:
    """A finite group that acts on the parameters and leaves every output as it is.

    Attributes:
        name: ``permutations of units``, ``permutations of channels``, ``permutations of heads`` or
            ``sign flips``.
        layer: the module whose outputs it acts on.
        units: how many units or heads.
        log_order: log of the number of its elements, in nats.
        continuous: whether a continuous symmetry of the same layer contains it, as that of linear
            units does: its copies then lie on the same connected sheet (or on one of two) instead
            of being isolated.
        parameters: names of the parameters that it moves.
        action: see :meth:`apply`.
        change: largest relative change of an output under random elements: rounding.
    """

    name: str
    layer: str
    units: int
    log_order: float
    continuous: bool
    parameters: tuple[str, ...]
    action: Action
    change: float = math.nan

    def apply(self, parameters: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """The parameters that move, after a random element of the group.

        Args:
            parameters: all of the model's, by name.
            generator: on the CPU.
        """
        return self.action(parameters, generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteReport:
    """The discrete symmetries of a network, each verified.

    Attributes:
        symmetries: they commute or normalise each other, so that their orders multiply.
        notes: what was left out and why.
    """

    symmetries: tuple[DiscreteSymmetry, ...]
    notes: tuple[str, ...] = ()

    @property
    def log_order(self) -> float:
        """Log of the number of elements of all of them together, in nats."""
        return math.fsum(s.log_order for s in self.symmetries)

    @property
    def isolated_log_order(self) -> float:
        """The same without those that a continuous symmetry contains."""
        return math.fsum(s.log_order for s in self.symmetries if not s.continuous)

    def counts(self) -> tuple[DiscreteCount, ...]:
        """The symmetries as a result file keeps them."""
        return tuple(
            DiscreteCount(
                name=s.name,
                layer=s.layer,
                units=s.units,
                log_order=s.log_order,
                continuous=s.continuous,
            )
            for s in self.symmetries
        )


def discrete_symmetries(
    model: nn.Module,
    forward: Callable[[nn.Module], Tensor],
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> DiscreteReport:
    """Permutations of hidden units and heads, and sign flips, found in the module graph.

    Args:
        model: it is not changed; a copy in float64 is examined.
        forward: runs a model of this kind on some examples, in float64, and returns its outputs.
        names: parameters that may move; all where None. What would move another is left out.
        seed: of the random elements that verify.

    Returns:
        those under which random elements change no output by more than 1e-10 of the largest.

    Cost: four forward passes for each.
    """
    return verified(Subject(model, [forward], names), seed=seed)


def discrete_of_risk(risk: Risk, *, seed: int = 0) -> DiscreteReport:
    """The same for the model and the first 256 examples of a risk, and its selected parameters."""
    return verified(Subject.of(risk, examples=_EXAMPLES), seed=seed)


def verified(subject: Subject, *, seed: int = 0) -> DiscreteReport:
    """The discrete symmetries of a subject; see :func:`discrete_symmetries`."""
    graph = subject.graph
    found: list[DiscreteSymmetry] = []
    notes = list(graph.notes)
    for number, symmetry in enumerate(_candidates(graph)):
        where = f"{symmetry.name} of {symmetry.layer!r}"
        missing = [name for name in symmetry.parameters if name not in subject.names]
        if missing:
            notes.append(f"{where} would move {missing[0]!r}, which is not selected; left out")
            continue
        generator = stream(seed, "discrete symmetry", number)
        change = max(
            subject.change(_element(symmetry, subject.parameters, generator)) for _ in range(_TRIES)
        )
        if not change <= TOLERANCE:
            notes.append(f"{where} change the outputs by {change:.1e} of the largest; left out")
            continue
        found.append(DiscreteSymmetry(**{**vars(symmetry), "change": change}))
    return DiscreteReport(symmetries=tuple(found), notes=tuple(notes))


def _element(
    symmetry: DiscreteSymmetry, parameters: Mapping[str, Tensor], generator: Generator
) -> dict[str, Tensor]:
    """A random element; among so few as two, not the identity, which would prove nothing."""
    for _ in range(_DRAWS):
        changed = symmetry.apply(parameters, generator)
        if any(not torch.equal(tensor, parameters[name]) for name, tensor in changed.items()):
            break
    return changed


def _candidates(graph: Graph) -> Iterator[DiscreteSymmetry]:
    for sites in graph.coupled():
        touched = [op for op in graph.ops if op.target in sites]
        linear = not touched
        parameters = moved_parameters(graph, sites)
        if not parameters:
            continue
        units = graph.sizes[sites[0]]
        if not any(site in graph.pinned for site in sites):
            cells = sorted({op.groups for op in touched if 1 < op.groups < units})
            order = _log_permutations(units, cells)
            if order > 0:
                kinds = {m.kind for m in graph.maps if m.target in sites}
                channels = "convolution" in kinds or bool(cells)
                yield DiscreteSymmetry(
                    name=f"permutations of {'channels' if channels else 'units'}",
                    layer=graph.layer(sites),
                    units=units,
                    log_order=order,
                    continuous=linear,
                    parameters=parameters,
                    action=_permutation(graph, sites, units, cells),
                )
        signs = sign_group(graph, sites)
        if signs.log_order > 0:
            yield DiscreteSymmetry(
                name="sign flips",
                layer=graph.layer(signs.sites),
                units=units,
                log_order=signs.log_order,
                continuous=linear,
                parameters=moved_parameters(graph, signs.sites),
                action=_flip(graph, sites, signs),
            )
    for attention in graph.attentions:
        order = _log_head_orders(attention)
        if order > 0:
            slots = (attention.q, attention.k, attention.v, attention.o)
            names = [n for s in slots for n in (s.weight, s.bias) if n is not None]
            yield DiscreteSymmetry(
                name="permutations of heads",
                layer=attention.layer,
                units=attention.q.heads,
                log_order=order,
                continuous=False,
                parameters=tuple(dict.fromkeys(names)),
                action=_heads(attention),
            )


def _log_factorial(count: int) -> float:
    return math.lgamma(count + 1)


def _log_permutations(units: int, cells: Sequence[int]) -> float:
    """Log of the number of permutations that map groups of channels to groups."""
    if not cells:
        return _log_factorial(units)
    if len(cells) > 1:
        return 0.0  # Groups of several sizes: what maps all of them is not worked out.
    return _log_factorial(cells[0]) + cells[0] * _log_factorial(units // cells[0])


def _permutation(graph: Graph, sites: Sequence[int], units: int, cells: Sequence[int]) -> Action:
    def act(parameters: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        groups = cells[0] if cells else 1
        outer = torch.randperm(groups, generator=generator)
        size = units // groups
        inner = [torch.randperm(size, generator=generator) for _ in range(groups)]
        order = torch.cat([size * g + inner[int(g)] for g in outer])
        return monomial(graph, parameters, sites, order, {})

    return act


def _flip(graph: Graph, sites: Sequence[int], signs: SignGroup) -> Action:
    def act(parameters: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        factors = signs.draw(generator)
        everywhere = torch.arange(graph.sizes[sites[0]])
        return monomial(graph, parameters, signs.sites, everywhere, factors)

    return act


def _log_head_orders(attention: Attention) -> float:
    groups, each = attention.k.heads, attention.q.heads // attention.k.heads
    return _log_factorial(groups) + groups * _log_factorial(each)


def _heads(attention: Attention) -> Action:
    def act(parameters: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        groups = attention.k.heads
        each = attention.q.heads // groups
        kv = torch.randperm(groups, generator=generator)
        q = torch.cat([each * g + torch.randperm(each, generator=generator) for g in kv])
        return permute_heads(attention, parameters, kv, q)

    return act
