"""The observation statistics of Stable-Baselines3's ``VecNormalize``, read from its pickle without running it.
A pickle is a program; here its instructions are only followed on paper: what it would call or build becomes an inert
node with that thing's name, and the numbers of two arrays are taken from it. Nothing is imported, called or built."""

from __future__ import annotations

import pickletools  # a disassembler: it executes nothing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.typing import Array

MAX_BYTES = 2**24
_DTYPES = {"f8": np.float64, "f4": np.float32}


@dataclass(frozen=True)
class ObservationStatistics:
    """
    What turns observations into those that an agent was trained on.

    :param mean: (obs_dim,)
    :param variance: (obs_dim,)
    :param clip: largest absolute value after scaling
    :param epsilon: added to the variance
    """

    mean: Array
    variance: Array
    clip: float = 10.0
    epsilon: float = 1e-8

    def normalize(self, observations: Array) -> Array:
        """:param observations: (n, obs_dim) in environment units"""
        scaled = (observations - self.mean) / np.sqrt(self.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


def read_statistics(path: str | Path) -> ObservationStatistics | None:
    """
    :param path: ``vecnormalize.pkl`` of an agent
    :return: None when observations were not normalised
    :raises ValueError: naming the file, when it holds something else or its numbers cannot be right
    """
    place = Path(path)
    if place.stat().st_size > MAX_BYTES:
        raise ValueError(f"{place}: has {place.stat().st_size} bytes, too large: at most {MAX_BYTES} are read")
    try:
        state = _traced(place.read_bytes()).state
        if state.get("norm_obs") is False:
            return None
        moments = state["obs_rms"].state
        mean, variance = (_array(moments[name]) for name in ("mean", "var"))
        numbers = float(state.get("clip_obs", 10.0)), float(state.get("epsilon", 1e-8))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{place}: no statistics of a VecNormalize that can be read: {error}") from error
    finite = all(np.isfinite(values).all() for values in (mean, variance, np.array(numbers)))
    if mean.ndim != 1 or mean.shape != variance.shape or not finite or (variance < 0).any() or min(numbers) <= 0:
        raise ValueError(f"{place}: mean {mean.shape} and variance {variance.shape}, wanted finite ones of one shape")
    return ObservationStatistics(mean, variance, *numbers)


@dataclass
class _Node:
    """Something that unpickling would have made; ``state`` is what it would have been given."""

    name: str
    parts: Any = ()
    state: Any = field(default_factory=dict)


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAKERS: dict[str, Any] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_IGNORED = {"PROTO", "FRAME", "STOP"}


def _traced(data: bytes) -> Any:
    """The inert node that a pickle's last instruction would have returned."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _IGNORED:
            continue
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("BINPUT"):
            memo[argument] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Node(str(argument)))
        elif name.startswith(("BININT", "LONG", "BINFLOAT", "BINUNICODE", "SHORT_BIN", "BINBYTES", "BYTEARRAY")):
            stack.append(argument)
        else:
            _combine(name, stack)
    return stack.pop()  # the disassembler ends at STOP, and raises where there is none


def _combine(name: str, stack: list[Any]) -> None:
    """An instruction that takes several things from the stack."""
    if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_to_mark(stack)))
    elif name in ("SETITEMS", "SETITEM"):
        items = _to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        target = stack[-1] if isinstance(stack[-1], dict) else {}  # keys of other mappings are of no interest
        target.update({key: value for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str})
    elif name in ("APPENDS", "APPEND"):
        items = _to_mark(stack) if name == "APPENDS" else [stack.pop()]
        if isinstance(stack[-1], list):
            stack[-1].extend(items)
    elif name == "STACK_GLOBAL":
        stack[-2:] = [_Node(f"{stack[-2]} {stack[-1]}")]
    elif name in ("REDUCE", "NEWOBJ"):
        stack[-2:] = [_Node(stack[-2].name, stack[-1])]
    elif name == "BUILD":
        state = stack.pop()
        stack[-1].state = state
    else:
        raise ValueError(f"the instruction {name} is not known")


def _to_mark(stack: list[Any]) -> list[Any]:
    """Everything above the last mark, taken from the stack with the mark."""
    place = max(index for index, value in enumerate(stack) if value is _MARK)
    taken = stack[place + 1 :]
    del stack[place:]
    return taken


def _array(node: Any) -> Array:
    """The numbers of an inert numpy array, float64."""
    if node.name.endswith("multiarray _reconstruct"):
        _, shape, dtype, fortran, content = node.state
    elif node.name.endswith("numeric _frombuffer"):  # since protocol 5
        content, dtype, shape, order = node.parts
        fortran = order == "F" and len(shape) > 1
    else:
        raise ValueError(f"found {node.name!r}, wanted a numpy array")
    kind, order = dtype.parts[0], dtype.state[1]
    if kind not in _DTYPES or not isinstance(content, bytes | bytearray) or fortran:
        raise ValueError(f"an array of type {kind!r}, wanted one of {', '.join(_DTYPES)}")
    values = np.frombuffer(content, np.dtype(_DTYPES[kind]).newbyteorder(order))
    return values.reshape(shape).astype(np.float64)
