"""Pickles of other libraries, followed on paper: what their instructions would build, without building it.

A pickle is a program. Here its instructions are only traced: what it would import, call or construct becomes an inert
:class:`Node` with that thing's name, and the numbers that it carries can be taken from there. Nothing is imported,
called or built, and the work is bounded.
"""

from __future__ import annotations

import pickletools  # a disassembler: it executes nothing
import struct
from dataclasses import dataclass, field
from typing import Any

from rrpolicy.common.messages import printable

MAX_INSTRUCTIONS = 50_000
MAX_NAME = 200  # characters of what a pickle would import
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAKERS: dict[str, Any] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_IGNORED = {"PROTO", "FRAME", "STOP"}
_VALUES = ("BININT", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BIN", "BINBYTES", "BYTEARRAY")
_FAULTS = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


@dataclass(eq=False, repr=False)
class Node:
    """
    Something that unpickling would have made.

    :param name: module and name of what would have been called, ``persistent`` for what lies outside the pickle
    :param parts: the arguments of the call
    :param state: what it would have been given afterwards
    :param items: what would have been stored in it under keys that are text
    """

    name: str
    parts: Any = ()
    state: Any = field(default_factory=dict)
    items: dict[str, Any] = field(default_factory=dict)


def traced(data: bytes) -> Any:
    """
    What a pickle would have returned, with a :class:`Node` for everything that is not a plain value.

    :param data: of protocol 2 or later
    :raises ValueError: for something else, or for more than :data:`MAX_INSTRUCTIONS` instructions
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_INSTRUCTIONS:
                raise ValueError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")
            _follow(opcode.name, argument, stack, marks, memo)
        return stack.pop()  # the disassembler ends at STOP, and raises where there is none
    except _FAULTS as error:
        raise ValueError(f"no pickle that can be followed: {printable(error)}") from error


def _follow(name: str, argument: Any, stack: list[Any], marks: list[int], memo: dict[Any, Any]) -> None:
    if name in _IGNORED:
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _MAKERS:
        stack.append(_MAKERS[name]())
    elif name == "MARK":
        marks.append(len(stack))
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name.endswith("BINPUT"):
        memo[argument] = stack[-1]
    elif name.endswith("BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        stack.append(Node(_joined(*str(argument).split(" ", 1))))
    elif name.startswith(_VALUES):
        stack.append(argument)
    else:
        _combine(name, stack, marks)


def _combine(name: str, stack: list[Any], marks: list[int]) -> None:
    """An instruction that takes several things from the stack."""
    if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        if len(stack) < count:
            raise ValueError(f"{name} finds nothing on the stack")
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_to_mark(stack, marks)))
    elif name in ("SETITEMS", "SETITEM"):
        items = _to_mark(stack, marks) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        target = stack[-1].items if isinstance(stack[-1], Node) else stack[-1]
        if isinstance(target, dict):
            target.update({key: value for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str})
    elif name in ("APPENDS", "APPEND"):
        items = _to_mark(stack, marks) if name == "APPENDS" else [stack.pop()]
        if isinstance(stack[-1], list):
            stack[-1].extend(items)
    elif name == "STACK_GLOBAL":
        stack[-2:] = [Node(_joined(*stack[-2:]))]
    elif name in ("REDUCE", "NEWOBJ"):
        stack[-2:] = [Node(stack[-2].name, stack[-1])]
    elif name == "BINPERSID":
        stack[-1] = Node("persistent", stack[-1])
    elif name == "BUILD":
        state = stack.pop()
        stack[-1].state = state
    else:
        raise ValueError(f"the instruction {name} is not known")


def _joined(module: Any, name: Any) -> str:
    """The name of an import; text joined with itself again and again would grow without bound."""
    if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < MAX_NAME):
        raise ValueError("the name of an import is no short text")
    return f"{module} {name}"


def _to_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    """Everything above the last mark, taken from the stack with the mark."""
    place = marks.pop()
    taken = stack[place:]
    del stack[place:]
    return taken
