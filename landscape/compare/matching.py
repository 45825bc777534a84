"""Permutations of hidden units that bring one network's weights close to another's.

Weight matching (Ainsworth, Hayase, Srinivasa, ICLR 2023, algorithm 1): layer after layer, the order
of units that maximises the inner product of all weights around them, a linear assignment problem,
until nothing moves. Every step increases ``<w_A, w_B>``, that is, shortens ``|w_A - w_B|``.

Activation matching (section 3.1 there; Li et al., "Convergent Learning", 2015): of every layer the
order that maximises the sum of the correlations of units over the data, one assignment problem each
since it does not depend on the other layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from landscape.compare.activations import correlations
from landscape.compare.records import Matching
from landscape.flat.actions import monomial, moved_parameters
from landscape.flat.graph import Graph, Slot
from landscape.flat.subject import Subject
from landscape.risk import Risk

__all__ = ["Matched", "match_units"]

_SWEEPS = 100
_TOLERANCE = 1e-10  # Relative change of an output that is rounding.
_EXAMPLES = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """A network whose units changed places.

    Attributes:
        parameters: those that moved, by name, in float64 on the CPU.
        matching: what moved, layer by layer.
        change: largest relative change of an output: rounding.
        notes: what could not be matched and why.
    """

    parameters: Mapping[str, Tensor]
    matching: tuple[Matching, ...]
    change: float
    notes: tuple[str, ...]


def match_units(
    risk: Risk, anchor: Mapping[str, Tensor], *, by: Literal["weights", "activations"] = "weights"
) -> Matched:
    """Permute the hidden units of a risk's model (network B) towards the weights of network A.

    Units that the module graph shows to be exchangeable: those of hidden layers and channels, all
    sites of one class together, but not heads of attention or groups of channels.

    Args:
        risk: network B and the data, all of it in one process. The outputs of 256 examples are
            compared.
        anchor: parameters and buffers of network A by name.
        by: what of the units is compared.

    Returns:
        the permuted parameters of B, for which the outputs are verified to be the same; nothing
        moves where they are not.

    Cost: some forward passes, with ``activations`` over all data; an assignment problem of O(h^3)
    for each layer of h units and sweep.
    """
    subject = Subject.of(risk, examples=_EXAMPLES)
    graph = subject.graph
    ours = {name: tensor.detach().to("cpu", torch.float64) for name, tensor in anchor.items()}
    theirs: dict[str, Tensor] = dict(subject.parameters)
    classes = [sites for sites in graph.coupled() if _exchangeable(graph, sites)]
    orders = {sites: torch.arange(graph.sizes[sites[0]]) for sites in classes}
    alike: Mapping[tuple[int, ...], Tensor] = {}
    if by == "activations" and classes:
        alike = correlations(_with(subject.model, ours), subject.model, _passes(risk), classes)
    for _ in range(1 if by == "activations" else _SWEEPS):
        settled = True
        for sites in classes:
            gains = alike[sites] if sites in alike else _gains(graph, sites, ours, theirs)
            best = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
            stay = torch.arange(len(best))
            gained = float(gains[stay, best].sum() - gains.trace())
            if gained > 1e-12 * float(gains.abs().max()) * len(best):
                theirs |= monomial(graph, theirs, sites, best, {})
                orders[sites] = orders[sites][best]
                settled = False
        if settled:
            break
    moved = {n: t for n, t in theirs.items() if t is not subject.parameters[n]}
    change = subject.change(moved)
    notes = list(graph.notes)
    if graph.attentions:
        notes.append("heads of attention are not matched")
    if not change <= _TOLERANCE:
        notes.append(f"matched units change the outputs by {change:.1e} of the largest; left out")
        return Matched(parameters={}, matching=(), change=0.0, notes=tuple(notes))
    return Matched(
        parameters=moved,
        matching=tuple(
            Matching(
                layer=graph.layer(sites),
                units=len(order),
                moved=int((order != torch.arange(len(order))).sum()),
            )
            for sites, order in orders.items()
        ),
        change=change,
        notes=tuple(notes),
    )


def _passes(risk: Risk) -> list[Callable[[nn.Module], Tensor]]:
    return [run for run, _ in Subject.of(risk).passes]


def _with(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with other parameters and buffers."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in (*found.named_parameters(), *found.named_buffers()):
            if name in state:
                tensor.copy_(state[name])
    return found


def _exchangeable(graph: Graph, sites: Sequence[int]) -> bool:
    units = graph.sizes[sites[0]]
    groups = any(1 < op.groups < units for op in graph.ops if op.target in sites)
    pinned = any(site in graph.pinned for site in sites)
    return units > 1 and not groups and not pinned and bool(moved_parameters(graph, sites))


def _gains(
    graph: Graph, sites: Sequence[int], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> Tensor:
    """Inner products of everything around unit i of A and unit j of B, (h, h)."""
    units = graph.sizes[sites[0]]
    total = torch.zeros(units, units, dtype=torch.float64)
    for slot in dict.fromkeys(_slots(graph, sites)):
        rows = [slot.matrix(state[slot.parameter], units) for state in (ours, theirs)]
        total += rows[0] @ rows[1].T
    return total


def _slots(graph: Graph, sites: Sequence[int]) -> list[Slot]:
    """Where units of some sites index the parameters."""
    found: list[Slot] = []
    for m in graph.maps:
        if m.target in sites:
            found.append(m.rows)
            if m.bias is not None:
                found.append(Slot(parameter=m.bias, axis=0))
        if m.source in sites and m.columns is not None:
            found.append(m.columns)
    found += [added.slot for added in graph.added if added.site in sites]
    for op in graph.ops:
        if op.target in sites or set(op.sources) & set(sites):
            found += [slot for slot in (op.weight, op.bias) if slot is not None]
    return found
