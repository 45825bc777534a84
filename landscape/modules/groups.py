"""Groups of coordinates of the flat vector: by layer, block or attention head, or by patterns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from landscape.errors import UsageError
from landscape.flat.graph import Attention
from landscape.modules.heads import find_heads, head_coordinates
from landscape.modules.patterns import GroupPatterns
from landscape.params import ParameterSpace

__all__ = ["Grouping", "group_parameters"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """A partition of the coordinates.

    Attributes:
        names: of the groups.
        indices: their coordinates, ascending.
        positions: indices of the parameters of every group that consists of whole ones, else None.
        attentions: where heads were asked for, what they were read from.
    """

    names: tuple[str, ...]
    indices: tuple[Tensor, ...]
    positions: tuple[tuple[int, ...] | None, ...]
    attentions: tuple[Attention, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Number of coordinates of each."""
        return [len(index) for index in self.indices]


def group_parameters(
    groups: str | GroupPatterns, model: nn.Module, params: Sequence[str] = ()
) -> Grouping:
    """Groups of a model's selected parameters.

    Args:
        groups: ``layer``: the parameters of one module. ``block``: all below one index of a
            numbered container, such as ``blocks.0``; others by layer. ``head``: the rows and
            columns of one attention head in the maps of queries, keys, values and outputs, query
            heads that share keys together; others by layer. A TOML file, or its patterns.
        model: the model.
        params: globs that select parameters; all trainable ones where empty.

    Raises:
        UsageError: an unknown word, a pattern that matches nothing, a parameter in two groups or in
            none, no attention heads, or fewer than two groups.
    """
    space = ParameterSpace(model, params)
    attentions: tuple[Attention, ...] = ()
    if groups == "head":
        attentions = find_heads(model, space)
        found = _by_head(space, attentions)
    else:
        if groups == "layer":
            labels = [_layer(name) for name in space.names]
        elif groups == "block":
            labels = [_block(name) for name in space.names]
        else:
            labels = _by_pattern(_patterns(groups), space, model)
        found = _joined(space, labels)
    if len(found.names) < 2:
        raise UsageError(
            f"all selected parameters are in one group, {found.names[0]!r}; expected two or more. "
            "Use another --groups, or select more --params"
        )
    return Grouping(
        names=found.names,
        indices=found.indices,
        positions=found.positions,
        attentions=attentions,
    )


def _patterns(groups: str | GroupPatterns) -> GroupPatterns:
    if isinstance(groups, GroupPatterns):
        return groups
    if not groups.endswith(".toml") and not Path(groups).is_file():
        raise UsageError(f"--groups {groups!r}: expected layer, block, head or a TOML file")
    return GroupPatterns.read(groups)


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _block(name: str) -> str:
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: place + 1])
    return _layer(name)


def _by_pattern(patterns: GroupPatterns, space: ParameterSpace, model: nn.Module) -> list[str]:
    """The group of every selected parameter."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    source = patterns.source
    for group, globs in patterns.groups.items():
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in trainable):
                near = difflib.get_close_matches(glob, trainable, n=3, cutoff=0.3)
                raise UsageError(
                    f"{source}: {glob!r} of group {group!r} matches no trainable parameter; "
                    f"nearest names: {', '.join(near or trainable[:3])}"
                )
    labels = []
    for name in space.names:
        found = [
            group
            for group, globs in patterns.groups.items()
            if any(fnmatchcase(name, glob) for glob in globs)
        ]
        if len(found) > 1:
            raise UsageError(
                f"{source}: parameter {name!r} is in the groups {' and '.join(map(repr, found))}; "
                "expected every parameter in one group. Narrow one of their patterns"
            )
        if not found and not patterns.rest:
            raise UsageError(
                f"{source}: parameter {name!r} is in no group; expected every selected parameter "
                "in one. Add a pattern, rest = true above [groups], or --params"
            )
        labels.append(found[0] if found else _rest(patterns, name))
    return labels


def _rest(patterns: GroupPatterns, name: str) -> str:
    label = "rest" if patterns.rest == "one" else _layer(name)
    if label in patterns.groups:
        raise UsageError(
            f"{patterns.source}: parameter {name!r} of the rest falls to {label!r}, which is the "
            "name of a group; expected another name. Rename the group"
        )
    return label


def _joined(space: ParameterSpace, labels: Sequence[str]) -> Grouping:
    """Groups of whole parameters."""
    members: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    return Grouping(
        names=tuple(members),
        indices=tuple(map(space.coordinates, members.values())),
        positions=tuple(map(tuple, members.values())),
    )


def _by_head(space: ParameterSpace, attentions: Sequence[Attention]) -> Grouping:
    starts = dict(zip(space.names, space.starts, strict=True))
    shapes: Mapping[str, torch.Size] = dict(zip(space.names, space.shapes, strict=True))
    heads = dict(head_coordinates(attentions, starts, shapes))
    taken = torch.zeros(space.n, dtype=torch.bool)
    for index in heads.values():
        taken[index] = True
    rest: dict[str, list[Tensor]] = {}
    for name, start, size in zip(space.names, space.starts, space.sizes, strict=True):
        free = start + (~taken[start : start + size]).nonzero().flatten()
        if len(free):
            rest.setdefault(_layer(name), []).append(free)
    found = {**heads, **{name: torch.cat(parts) for name, parts in rest.items()}}
    order = sorted(found, key=lambda name: int(found[name][0]))
    return Grouping(
        names=tuple(order),
        indices=tuple(found[name] for name in order),
        positions=(None,) * len(order),
    )
