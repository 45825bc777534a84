"""A task file to complete, guessed from the shapes of a checkpoint's tensors.

Names in a checkpoint are not trusted: they reach the file as string literals, or as identifiers
that are checked to be some.
"""

from __future__ import annotations

import itertools
import keyword
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from landscape.text import escape_name, natural_key

__all__ = ["Skeleton", "task_skeleton"]

_MAX_LAYERS = 100
_MAX_DEPTH = 20
_MAX_LISTED = 40
_MAX_POSITIONS = 300
_MAX_LINE = 90
_EXAMPLES = 64
_EMBEDDINGS = ("emb", "wte", "wpe", "token", "vocab")


@dataclass(frozen=True)
class Skeleton:
    """A task file.

    Attributes:
        text: Python source.
        guess: what the model was taken for, in words.
        runs: whether it measures something as it stands, on random data.
    """

    text: str
    guess: str
    runs: bool


@dataclass(frozen=True)
class _Layer:
    """A module that explains all tensors of one name."""

    name: str
    code: str
    kind: str
    inputs: int = 0
    outputs: int = 0


def task_skeleton(tensors: Mapping[str, Tensor], *, checkpoint: str, file: str) -> Skeleton:
    """Write a task file for the tensors of a checkpoint.

    Args:
        tensors: by name.
        checkpoint: its path, for the text.
        file: the path that the text is for.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in sorted(tensors, key=natural_key):
        module, _, attribute = name.rpartition(".")
        groups.setdefault(module, {})[attribute] = tuple(tensors[name].shape)
    layers = [_layer(name, group) for name, group in groups.items()]
    found = [layer for layer in layers if layer is not None]
    deepest = max((name.count(".") for name in groups), default=0)
    if len(found) == len(layers) <= _MAX_LAYERS and deepest <= _MAX_DEPTH:
        model = _sequential(found) or _chain(found) or _module(found)
    else:
        model = _unknown(tensors)
    text = _TEMPLATE.format(
        checkpoint=_comment(os.path.basename(checkpoint)),
        command=_command(checkpoint, file),
        **model.parts(),
    )
    return Skeleton(text, *model.said)


def _command(checkpoint: str, file: str) -> str:
    """The command to go on with, by the last parts of paths that make the line too long."""
    for names in ((checkpoint, file), map(os.path.basename, (checkpoint, file))):
        one, other = map(shlex.quote, names)
        line = _comment(f"landscape check {one} --task {other}")
        if len(line) <= _MAX_LINE:
            return line
    return "landscape check CKPT --task THIS_FILE"


@dataclass(frozen=True)
class _Model:
    code: str
    call: str
    data: str
    criterion: str
    guess: str
    runs: bool

    def parts(self) -> dict[str, str]:
        return {
            "code": self.code,
            "call": self.call,
            "data": self.data,
            "criterion": self.criterion,
            "guess": self.guess,
        }

    @property
    def said(self) -> tuple[str, bool]:
        return self.guess, self.runs


_TEMPLATE = '''"""A task for {checkpoint}: complete the parts marked TODO.

Guessed from the shapes of its tensors: {guess}.
Then: {command}
"""

import sys

import torch
from torch import Tensor, nn

from landscape import Task

{code}

def data() -> tuple[Tensor, ...]:
    """The examples that the loss averages over, in a fixed order."""
    # TODO: your own inputs and targets. Numbers that are measured on random ones mean nothing.
    print("the data of this task are random numbers: complete data()", file=sys.stderr)
    generator = torch.Generator().manual_seed(0)
{data}


def build() -> Task:
    """Return the task; arguments of this function are set by --set NAME=VALUE."""
    return Task(
        model={call},  # Any weights will do: the checkpoint's replace them.
        data=data(),
        criterion="{criterion}",  # TODO: or "mse", "binary_cross_entropy", a landscape.Criterion.
    )
'''


def _layer(name: str, shapes: Mapping[str, tuple[int, ...]]) -> _Layer | None:
    weight = shapes.get("weight", ())
    names = {*shapes}
    bias = "" if "bias" in names else ", bias=False"
    if "running_mean" in names and len(weight) == 1:
        return _Layer(name, f"nn.BatchNorm{{d}}d({weight[0]})", "batch norm", outputs=weight[0])
    if not names <= {"weight", "bias"} or not weight or 0 in weight:
        return None
    if len(weight) == 1:
        kind = "LayerNorm" if "bias" in names else "RMSNorm"
        return _Layer(name, f"nn.{kind}({weight[0]})", "norm")
    out, into, *kernel = weight
    if shapes.get("bias", (out,)) != (out,):
        return None
    if not kernel:
        if not names - {"weight"} and any(word in name.lower() for word in _EMBEDDINGS):
            return _Layer(name, f"nn.Embedding({out}, {into})", "embedding", out, into)
        return _Layer(name, f"nn.Linear({into}, {out}{bias})", "linear", into, out)
    if len(kernel) > 3:
        return None
    size = f"{kernel[0]}" if len({*kernel}) == 1 else f"({', '.join(map(str, kernel))})"
    pad = f"({', '.join(str(k // 2) for k in kernel)})" if len({*kernel}) > 1 else kernel[0] // 2
    code = f"nn.Conv{len(kernel)}d({into}, {out}, {size}, padding={pad}{bias})"
    return _Layer(name, code, f"convolution {len(kernel)}", into, out)


# Networks whose layers follow each other ---------------------------------------------------------


def _follows(layers: Sequence[_Layer]) -> bool:
    """Whether every layer takes as many numbers, or multiples of them, as the one before gives."""
    wide = [layer for layer in layers if layer.inputs]
    pairs = list(itertools.pairwise(wide))
    flat = [layer.kind != "linear" for layer in wide]
    ordered = flat == sorted(flat, reverse=True)  # Convolutions come first.
    return (
        bool(wide)
        and ordered
        and all(
            b.inputs == a.outputs or (b.kind == "linear" != a.kind and b.inputs % a.outputs == 0)
            for a, b in pairs
        )
    )


def _resolve(layers: Sequence[_Layer], *, ordered: bool) -> list[_Layer]:
    """The layers with batch norms of a dimension.

    It is that of what stands before them, or where names give no order (``bn1`` before ``conv1``)
    that of a convolution of as many channels.
    """
    convolutions = [layer for layer in layers if layer.kind.startswith("convolution")]
    channels = {} if ordered else {layer.outputs: int(layer.kind[-1]) for layer in convolutions}
    found, dimension = [], 1
    for layer in layers:
        if layer.kind.startswith("convolution"):
            dimension = int(layer.kind[-1])
        elif layer.kind == "linear":
            dimension = 1
        code = layer.code
        if layer.kind == "batch norm":
            code = code.format(d=channels.get(layer.outputs, dimension))
        found.append(_Layer(layer.name, code, layer.kind, layer.inputs, layer.outputs))
    return found


def _sequential(layers: Sequence[_Layer]) -> _Model | None:
    """A plain ``nn.Sequential``: numbered layers, perhaps under one name."""
    splits = [layer.name.rpartition(".") for layer in layers]
    prefixes = {prefix for prefix, _, _ in splits}
    if len(prefixes) > 1 or not all(last.isdecimal() and last.isascii() for *_, last in splits):
        return None
    if not _follows(layers) or len(splits[-1][2]) > 4:
        return None
    numbers = [int(last) for *_, last in splits]
    if [str(number) for number in numbers] != [last for *_, last in splits]:
        return None
    if max(numbers) > _MAX_POSITIONS:
        return None
    numbered = dict(zip(numbers, _resolve(layers, ordered=True), strict=True))
    lines = [_position(number, numbered) for number in range(max(numbers) + 1)]
    inner = "".join(f"        {line}\n" for line in lines)
    note = f"    {_PADDING}\n" if _convolves(layers) else ""
    return _finished(
        layers, _SEQUENTIAL.format(note=note, inner=inner), "model()", "a sequence of layers"
    )


_SEQUENTIAL = '''
def model() -> nn.Module:
    """The architecture."""
{note}    return nn.Sequential(
{inner}    )
'''


_PADDING = "# TODO: strides and padding are guesses, which shapes do not tell."


def _convolves(layers: Sequence[_Layer]) -> bool:
    return any(layer.kind.startswith("convolution") for layer in layers)


def _position(number: int, numbered: Mapping[int, _Layer]) -> str:
    """The line of one position of a sequence, a guess where no weights stand there."""
    if number in numbered:
        return f"{numbered[number].code},"
    before = [numbered[i].kind for i in sorted(numbered) if i < number and numbered[i].inputs]
    following = numbered.get(number + 1)
    if following and following.kind == "linear" and before[-1:] != ["linear"]:
        return "nn.Flatten(),"
    if number - 1 in numbered:
        return "nn.ReLU(),  # TODO: the activation that was trained with."
    return "nn.Identity(),  # TODO: pooling, dropout or nothing?"


def _chain(layers: Sequence[_Layer]) -> _Model | None:
    """Layers of other names that follow each other, each linear or a convolution."""
    wide = [layer for layer in layers if layer.kind not in ("norm", "batch norm", "embedding")]
    if len(wide) < len(layers) or not all(_identifier(layer.name) for layer in layers):
        return None
    ordered = next((o for o in (wide, _by_width(wide)) if o and _follows(o)), None)
    if ordered is None:
        return None
    lines = [f"        self.{layer.name} = {layer.code}" for layer in ordered]
    if _convolves(layers):
        lines.insert(0, f"        {_PADDING}")
    steps = []
    for place, layer in enumerate(ordered):
        value = f"self.{layer.name}(x)"
        if place and layer.kind == "linear" != ordered[place - 1].kind:
            steps.append("        x = x.flatten(1)  # TODO: pooling before, if there was any.")
        if place < len(ordered) - 1:
            value = f"torch.relu({value})"
        steps.append(f"        x = {value}")
    code = _class(lines, steps, "# TODO: the activation and the order that were trained with.")
    return _finished(ordered, code, "Model()", "layers that follow each other")


def _by_width(layers: Sequence[_Layer]) -> list[_Layer] | None:
    """The only order in which each layer takes what the one before gives; None if not unique."""
    rest = list(layers)
    starts = [
        layer for layer in rest if layer.inputs not in {o.outputs for o in rest if o != layer}
    ]
    if len(starts) != 1:
        return None
    ordered = [starts[0]]
    rest.remove(starts[0])
    while rest:
        following = [layer for layer in rest if layer.inputs == ordered[-1].outputs]
        if len(following) != 1:
            return None
        ordered.append(following[0])
        rest.remove(following[0])
    return ordered


def _finished(layers: Sequence[_Layer], code: str, call: str, words: str) -> _Model:
    wide = [layer for layer in layers if layer.inputs]
    first, last = wide[0], wide[-1]
    shape, note = [_EXAMPLES, first.inputs], ""
    if first.kind.startswith("convolution"):
        linear = next((layer for layer in wide if layer.kind == "linear"), None)
        turn = wide[wide.index(linear) - 1] if linear else None
        places = linear.inputs // turn.outputs if linear and turn else 64
        dimension = int(first.kind[-1])
        side = max(1, round(places ** (1 / dimension)))
        sides = (
            [side] * dimension if side**dimension == places else [1] * (dimension - 1) + [places]
        )
        shape += sides
        note = f"    # TODO: the size of an input, {'x'.join(map(str, sides))}, is a guess.\n"
    inputs = f"torch.randn({', '.join(map(str, shape))}, generator=generator)"
    if first.kind == "embedding":
        inputs = f"torch.randint({first.inputs}, ({_EXAMPLES}, 16), generator=generator)"
    # Without a linear layer at the end every place has outputs of its own.
    plain = last.kind == "linear" and last.outputs > 1 and first.kind != "embedding"
    target = f"torch.randint({last.outputs}, ({_EXAMPLES},), generator=generator)"
    if not plain:
        target = f"torch.zeros({_EXAMPLES}, {last.outputs})"
    data = f"{note}    inputs = {inputs}\n    targets = {target}\n    return inputs, targets"
    runs = last.kind == "linear" and first.kind != "embedding"
    return _Model(code, call, data, "cross_entropy" if plain else "mse", words, runs)


# Anything else -----------------------------------------------------------------------------------


def _module(layers: Sequence[_Layer]) -> _Model:
    """Modules under the checkpoint's names, with the computation left to the user."""
    tree: dict[str, Any] = {}
    for layer in _resolve(layers, ordered=False):
        *path, last = layer.name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                return _listed([f"{layer.name}: {layer.code}" for layer in layers])
        if last in node:
            return _listed([f"{layer.name}: {layer.code}" for layer in layers])
        node[last] = layer.code
    lines = []
    for name, node in tree.items():
        code = _nested(node, 8)
        plain = _identifier(name)
        lines.append(f"        self.{name} = {code}" if plain else _added(name, code))
    if _convolves(layers):
        lines.insert(0, f"        {_PADDING}")
    code = _class(lines, ['        raise NotImplementedError("TODO: the computation")'], "")
    return _left_open(code, "modules whose connections it does not tell")


def _added(name: str, code: str) -> str:
    return f"        self.add_module({_literal(name)}, {code})"


def _nested(node: object, indent: int) -> str:
    if not isinstance(node, dict):
        return str(node)
    space = " " * (indent + 4)
    inner = {name: _nested(child, indent + 4) for name, child in node.items()}
    if list(inner) == [str(i) for i in range(len(inner))]:
        body = "".join(f"{space}{code},\n" for code in inner.values())
        return f"nn.ModuleList(\n{space}[\n{_deeper(body)}{space}]\n{' ' * indent})"
    body = "".join(f"{space}{_literal(name)}: {code},\n" for name, code in inner.items())
    return f"nn.ModuleDict(\n{space}{{\n{_deeper(body)}{space}}}\n{' ' * indent})"


def _deeper(body: str) -> str:
    return "".join(f"    {line}\n" for line in body.splitlines())


def _unknown(tensors: Mapping[str, Tensor]) -> _Model:
    shapes = [f"{name}: {'x'.join(map(str, t.shape)) or 'scalar'}" for name, t in tensors.items()]
    return _listed(shapes)


def _listed(lines: Sequence[str]) -> _Model:
    """A file that lists what there is and leaves the architecture to the user."""
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    noted = "\n".join(f"# {_comment(line)[:95]}" for line in [*lines[:_MAX_LISTED], *more])
    steps = ['        raise NotImplementedError("TODO: the computation")']
    modules = ["        # TODO: its modules, under the names above."]
    code = f"# The checkpoint holds\n{noted}\n\n{_class(modules, steps, '')}"
    return _left_open(code, "no architecture that shapes alone would tell")


def _left_open(code: str, guess: str) -> _Model:
    data = "\n".join(
        (
            f"    inputs = torch.randn({_EXAMPLES}, 1, generator=generator)",
            f"    targets = torch.randint(2, ({_EXAMPLES},), generator=generator)",
            "    return inputs, targets",
        )
    )
    return _Model(code, "Model()", data, "cross_entropy", guess, False)


def _class(lines: Sequence[str], steps: Sequence[str], note: str) -> str:
    noted = [f"        {note}"] if note else []
    last = [] if "raise" in steps[-1] else ["        return x"]
    return "\n".join(
        [
            "\nclass Model(nn.Module):",
            '    """The architecture, with parameters under the names of the checkpoint\'s."""\n',
            "    def __init__(self) -> None:",
            "        super().__init__()",
            *lines,
            "",
            "    def forward(self, x: Tensor) -> Tensor:",
            '        """Outputs for a batch of inputs."""',
            *noted,
            *steps,
            *last,
            "",
        ]
    )


def _identifier(name: str) -> bool:
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    # Names that nn.Module has already.
    return plain and not name.startswith("_") and not hasattr(nn.Module(), name)


def _literal(text: str) -> str:
    """A Python string literal in double quotes."""
    return '"' + escape_name(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _comment(text: str) -> str:
    """Text that ends neither a comment nor a docstring, and is no format string."""
    return escape_name(text).replace("\\", "/").replace('"', "'")
