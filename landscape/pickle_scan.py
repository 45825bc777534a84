"""What a pickle would do, found by following its opcodes without executing any.

A scan names the globals that a pickle asks for, and bounds what loading it could cost: a tuple of
tuples that share parts takes 2^n steps to hash in a file of a hundred bytes, and some codecs of
``_codecs.encode`` take quadratic time.
"""

from __future__ import annotations

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass
from typing import Any

__all__ = ["Scan", "full_name", "scan_pickles"]

_MAX_OPCODES = 5_000_000
_MAX_COST = 20_000_000
_COMPUTED = "(a name computed while loading)"
_ENCODE = "_codecs.encode"
# How protocol 2 writes bytes; other codecs are never needed.
_CODECS = frozenset({"latin1", "latin-1"})
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD", "FROZENSET"})
_FILLS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


@dataclass(frozen=True)
class Scan:
    """What was found.

    Attributes:
        names: the globals that the pickles name.
        protocol: the highest one.
        complete: whether every opcode was followed to the end.
        excess: which limit loading would pass, as the end of a sentence; empty where none.
    """

    names: frozenset[str]
    protocol: int
    complete: bool
    excess: str


class _Value:
    """A value on the stack: how many parts it has in all, and what it is where that matters."""

    __slots__ = ("cost", "name", "parts", "text")

    def __init__(
        self,
        cost: int = 1,
        *,
        text: str | None = None,
        name: str = "",
        parts: tuple[_Value, ...] = (),
    ) -> None:
        self.cost, self.text, self.name, self.parts = cost, text, name, parts


class _ExcessError(Exception):
    """Loading would pass a limit."""


def scan_pickles(data: bytes, pickles: int = 1) -> Scan:
    """Follow consecutive pickles.

    Args:
        data: bytes that begin with them.
        pickles: how many there are.
    """
    machine = _Machine(len(data))
    excess = ""
    stream = io.BytesIO(data)
    try:
        for _ in range(pickles):
            machine.begin()
            for opcode, arg, _position in pickletools.genops(stream):
                machine.step(opcode, arg)
        complete = True
    except _ExcessError as limit:
        complete, excess = False, str(limit)
    except Exception:
        # Damaged or hostile: what was found so far still belongs in the message.
        complete = False
    return Scan(frozenset(machine.names), machine.protocol, complete, excess)


class _Machine:
    """The stack and the memo, with values replaced by their sizes."""

    def __init__(self, size: int) -> None:
        self.names: set[str] = set()
        self.protocol = 0
        self._size = size
        self._opcodes = self._total = 0
        self.begin()

    def begin(self) -> None:
        """Start another pickle."""
        self._stack: list[_Value | None] = []  # None is a mark
        self._memo: dict[int, _Value] = {}

    def step(self, opcode: pickletools.OpcodeInfo, arg: Any) -> None:
        """Follow one opcode."""
        name = opcode.name
        self._opcodes += 1
        self._spend(1)
        if self._opcodes > _MAX_OPCODES:
            raise _ExcessError(f"has more than {_MAX_OPCODES} operations")
        if name == "PROTO":
            self.protocol = max(self.protocol, int(arg))
        elif name == "MARK":
            self._stack.append(None)
        elif name in _PUTS:
            self._put(len(self._memo) if name == "MEMOIZE" else int(arg))
        elif name in _GETS:
            value = self._memo[int(arg)]
            self._spend(value.cost)
            self._stack.append(value)
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "POP":
            self._stack.pop()  # A mark, where nothing is above it.
        else:
            # Read before what is popped can fail: the name belongs in the message.
            found = self._named(name, arg)
            self._push(name, arg, self._pop(opcode), found, len(opcode.stack_after))

    def _put(self, index: int) -> None:
        # The C unpickler's memo is an array, of as many places as the largest index.
        if index > self._size:
            raise _ExcessError(f"keeps a value at place {index} of a file of {self._size} bytes")
        value = self._stack[-1]
        if value is None:
            raise ValueError("a mark cannot be kept")
        self._memo[index] = value

    def _named(self, name: str, arg: Any) -> str:
        """The global that an opcode asks for, noted; empty where it asks for none."""
        found = ""
        if name in ("GLOBAL", "INST"):
            module, _space, attribute = arg.partition(" ")
            found = full_name(module, attribute)
        elif name == "STACK_GLOBAL":
            texts = [None if value is None else value.text for value in self._stack[-2:]]
            known = len(texts) == 2 and None not in texts
            found = full_name(str(texts[0]), str(texts[1])) if known else _COMPUTED
        elif name.startswith("EXT"):
            found = f"copyreg extension {arg}"
        if found:
            self.names.add(found)
        return found

    def _pop(self, opcode: pickletools.OpcodeInfo) -> list[_Value]:
        """The values that an opcode takes, lowest first, without the mark among them."""
        before = opcode.stack_before
        popped: list[_Value | None] = []
        if pickletools.markobject in before:
            while (value := self._stack.pop()) is not None:
                popped.append(value)
            before = before[: before.index(pickletools.markobject)]
        popped += [self._stack.pop() for _ in before]
        values = [value for value in popped if value is not None]
        if len(values) < len(popped):
            raise ValueError("a mark where a value belongs")
        return values[::-1]

    def _push(self, name: str, arg: Any, taken: list[_Value], found: str, pushes: int) -> None:
        if name in _FILLS:
            container, *items = taken
            container.cost += sum(item.cost for item in items)
            self._spend(sum(item.cost for item in items))  # Keys are hashed.
            self._stack.append(container)
        elif name in _TUPLES:
            parts = tuple(taken) if len(taken) < 4 else ()
            self._stack.append(_Value(1 + sum(value.cost for value in taken), parts=parts))
        elif name in _CALLS:
            # A call may hash all that it is given, whatever has been put in since.
            self._spend(sum(part.cost for value in taken for part in value.parts))
            function, *arguments = taken or [_Value()]
            if name == "REDUCE" and function.name == _ENCODE:
                codec = arguments[0].parts[1].text if len(arguments[0].parts) == 2 else None
                if codec not in _CODECS:
                    raise _ExcessError("encodes text by a codec that pickles do not need")
            self._stack.append(_Value(1 + sum(value.cost for value in taken)))
        elif pushes:
            text = arg if isinstance(arg, str) and ("UNICODE" in name or "STRING" in name) else None
            self._stack.append(_Value(text=text, name=found))

    def _spend(self, cost: int) -> None:
        self._total += cost
        if self._total > _MAX_COST:
            raise _ExcessError(f"expands to more than {_MAX_COST} parts")


def full_name(module: str, name: str) -> str:
    """The dotted name of a global, by today's modules."""
    # torch.save writes protocol 2, whose names are those of Python 2.
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
