"""Continuous symmetries: how many null directions each accounts for, and what is left over.

Tangents of different symmetries overlap, so that their union is counted as the rank of all of them
together. Each is verified by a random finite element before it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from landscape.flat.data_nulls import data_families
from landscape.flat.declared import DeclaredSymmetry, declared_family, straight_slope
from landscape.flat.family import LIMIT, Family, orthonormal, selected, tangents, tried
from landscape.flat.head_groups import head_families
from landscape.flat.linear_groups import linear_families, rotation_families
from landscape.flat.ranks import triangle
from landscape.flat.records import Symmetry
from landscape.flat.relu_units import switched_families, switched_layers
from landscape.flat.scales import scale_families
from landscape.flat.shifts import logit_shift, shift_families
from landscape.flat.spans import span_families
from landscape.flat.subject import Subject
from landscape.rng import stream

__all__ = ["KnownNulls", "known_nulls"]

TOLERANCE = 1e-10  # Of outputs under a finite element.
_SLOPE = 1e-5  # Of a declared direction, relative to a random one.
_LEAK = 1e-6  # Of |J t| / (|J| |t|) for a null direction t.
_STEPS = (1e-2, 1e-4, 1e-6)  # Of families that hold for small coefficients only.


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownNulls:
    """The null directions that are accounted for.

    Attributes:
        entries: symmetries first, then what the data cause.
        symmetry: an orthonormal basis of all symmetries' tangents, (s, n).
        everything: the same with what the data cause, (s + d, n).
        notes: what was refuted or could not be read.
    """

    entries: tuple[Symmetry, ...]
    symmetry: Tensor
    everything: Tensor
    notes: tuple[str, ...]

    @property
    def symmetry_total(self) -> int:
        """Null directions of all symmetries together."""
        return len(self.symmetry)

    @property
    def data_total(self) -> int:
        """Further null directions that the data cause."""
        return len(self.everything) - len(self.symmetry)


def known_nulls(
    subject: Subject,
    *,
    shift_invariant: bool,
    declared: Sequence[DeclaredSymmetry] = (),
    jacobian: Tensor | None = None,
    seed: int = 0,
) -> KnownNulls:
    """The symmetries of a network and the null directions that the data cause.

    Args:
        subject: the network, all data that count, and the selected parameters.
        shift_invariant: whether a constant added to all logits changes nothing (softmax).
        declared: symmetries that the user knows of.
        jacobian: the behavioural Jacobian or a factor of it, (r, n): a tangent must be in its null
            space; not checked where None.
        seed: of the random elements.

    Returns:
        what was verified, in the order in which it was counted: an entry's ``added`` is what the
        earlier ones do not explain.

    Raises:
        UsageError: a declaration does not fit the model.

    Cost: a forward pass and the tangents for each family, and O(k n^2) flops for all k tangents.
    """
    slope = _Slope(jacobian)
    families = [(f, False) for f in _families(subject, shift_invariant)]
    families += [(declared_family(d, subject), d.basis is not None) for d in declared]
    families.sort(key=lambda pair: not pair[0].symmetry)
    basis = torch.zeros(0, subject.n, dtype=torch.float64)
    entries: list[Symmetry] = []
    notes = [note for graph in subject.graphs() for note in graph.notes]
    whole: list[Tensor] = []
    symmetric: Tensor | None = None
    for number, (family, straight) in enumerate(families):
        if not family.symmetry and symmetric is None:
            basis, entries = _combined(subject, whole, basis, entries)
            symmetric = basis
        if family.size * subject.total > LIMIT:
            notes.append(
                f"{family.name} of {family.layer!r} is left out: {family.size} directions of "
                f"{subject.total} parameters are too many to keep"
            )
            continue
        verdict = _verified(family, straight, subject, stream(seed, "symmetry", number))
        rows = selected(verdict.rows, subject.n)
        own = orthonormal(rows)
        leak = slope(own)
        if not verdict.holds or leak > _LEAK:
            notes.append(
                f"{family.name} of {family.layer!r} does not hold: a random element changes the "
                f"outputs by {verdict.change:.1e} of the largest (slope {leak:.1e}); left out"
            )
            continue
        if family.symmetry and subject.partial:
            whole.append(verdict.rows)
        fresh = _beyond(own, basis)
        basis = torch.cat([basis, fresh])
        entries.append(
            Symmetry(
                name=verdict.family.name,
                layer=family.layer,
                count=len(own),
                added=len(fresh),
                change=verdict.change,
                by_data=not family.symmetry,
            )
        )
    if symmetric is None:
        basis, entries = _combined(subject, whole, basis, entries)
        symmetric = basis
    return KnownNulls(
        entries=_gathered(entries),
        symmetry=symmetric,
        everything=basis,
        notes=tuple(dict.fromkeys(notes)),
    )


class _Slope:
    """How far unit vectors are from the null space of a Jacobian: ``|J t| / |J|``."""

    def __init__(self, jacobian: Tensor | None) -> None:
        self._rows = None if jacobian is None or not len(jacobian) else triangle(jacobian)
        self._norm = 0.0 if self._rows is None else float(torch.linalg.matrix_norm(self._rows, 2))

    def __call__(self, rows: Tensor) -> float:
        if self._rows is None or not self._norm or not len(rows):
            return 0.0
        return float(torch.linalg.vector_norm(rows @ self._rows.T, dim=1).max()) / self._norm


def _combined(
    subject: Subject, whole: list[Tensor], basis: Tensor, entries: list[Symmetry]
) -> tuple[Tensor, list[Symmetry]]:
    """Combinations of several symmetries that together leave unselected parameters alone."""
    if not whole or sum(map(len, whole)) * whole[0].shape[1] > LIMIT:
        return basis, entries
    rows = torch.cat(whole)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    joint = selected(rows / length.clamp(min=1e-300), subject.n)
    fresh = _beyond(joint, basis)
    more = Symmetry(
        name="combined symmetries",
        layer="",
        count=len(fresh),
        added=len(fresh),
        change=max((entry.change for entry in entries), default=0.0),
    )
    return torch.cat([basis, fresh]), [*entries, more]


def _families(subject: Subject, shift_invariant: bool) -> Iterator[Family]:
    graph, parameters = subject.graph, subject.parameters
    layers = switched_layers(subject.graphs())
    taken: dict[int, set[int]] = {}
    for layer in layers:
        fixed = set(layer.dead) | (set(layer.linear) if layer.direct else set())
        for site in (*layer.op.sources, layer.op.target):
            taken.setdefault(site, set()).update(fixed)
    yield from scale_families(graph, taken)
    for layer in layers:
        yield from switched_families(graph, layer, parameters)
    yield from linear_families(graph)
    yield from shift_families(graph, parameters)
    yield from rotation_families(graph)
    yield from head_families(graph, parameters)
    if shift_invariant:
        yield from logit_shift(graph, parameters)
    yield from span_families(graph, parameters)
    yield from data_families(subject)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Verdict:
    family: Family
    rows: Tensor
    change: float
    holds: bool


def _verified(
    family: Family, straight: bool, subject: Subject, generator: torch.Generator
) -> _Verdict:
    """The first of a family and its alternatives that random elements do not refute."""
    first: _Verdict | None = None
    for candidate in (family, *family.alternatives):
        allowed = _SLOPE if straight else TOLERANCE
        if straight:
            change = straight_slope(candidate, subject, generator)
        else:
            scales = _STEPS if candidate.local else (0.3,)
            change = min(tried(candidate, subject, generator, scale=scale) for scale in scales)
        verdict = _Verdict(
            family=candidate,
            rows=tangents(candidate, subject),
            change=change,
            holds=change <= allowed,
        )
        if verdict.holds:
            return verdict
        first = first or verdict
    assert first is not None
    return first


def _beyond(rows: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what rows (k, n) add to the span of an orthonormal basis."""
    own = orthonormal(rows)
    if not len(own):
        return own
    for _ in range(2):
        own = own - (own @ basis.T) @ basis
    _, singular, found = torch.linalg.svd(own, full_matrices=False)
    fresh: Tensor = found[singular > 1e-7]  # Of unit vectors: an angle.
    return fresh - (fresh @ basis.T) @ basis


def _gathered(entries: Sequence[Symmetry]) -> tuple[Symmetry, ...]:
    """Entries of one name and layer as one, those that explain something."""
    found: dict[tuple[str, str, bool], Symmetry] = {}
    for entry in entries:
        key = (entry.name, entry.layer, entry.by_data)
        old = found.get(key)
        found[key] = (
            entry
            if old is None
            else replace(
                old,
                count=old.count + entry.added,
                added=old.added + entry.added,
                change=max(old.change, entry.change),
            )
        )
    return tuple(entry for entry in found.values() if entry.added)
