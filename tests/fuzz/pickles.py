"""Pickles that are mutated, and pickles that grow from opcodes: followed on paper at most, and in bounds."""

from __future__ import annotations

import io
import pickletools  # a disassembler: it executes nothing
import struct
from collections.abc import Callable

import torch

from fuzz.hostile import Rng, pick
from fuzz.mutate import Mutation, Mutator, anything, several
from fuzz.texts import json_file
from fuzz.zips import METHODS, inside, members_of, packed, zeros, zip_file

_GLOBALS = (
    b"os\nsystem\n",
    b"builtins\nexec\n",
    b"torch._utils\n_rebuild_tensor_v2\n",
    b"collections\nOrderedDict\n",
    b"numpy.core.multiarray\n_reconstruct\n",
    b"torch\nFloatStorage\n",
    b"posixpath\njoin\n",
)
_PIECES: tuple[bytes, ...] = (
    b"N",
    b"(",
    b")",
    b"]",
    b"}",
    b"\x88",
    b"\x89",
    b"0",
    b"1",
    b"2",
    b"\x94",
    b"\x94",
    b"h\x00",
    b"h\x00",
    b"h\x01",
    b"h\x02",
    b"h\x05",
    b"\x8c\x01a",
    b"\x8c\x04data",
    b"\x93",
    b"\x93",
    b"\x85",
    b"\x86",
    b"\x86",
    b"\x87",
    b"t",
    b"l",
    b"d",
    b"s",
    b"u",
    b"a",
    b"e",
    b"e",
    b"R",
    b"\x81",
    b"\x92",
    b"b",
    b"K\x05",
    b"J\xff\xff\xff\x7f",
    b"G" + bytes(8),
    b"\x8a\x08" + b"\xff" * 8,
    b"\x8b" + struct.pack("<i", 2**30),
    b"C\x04abcd",
    b"B" + struct.pack("<I", 2**31),
    b"X\x02\x00\x00\x00ab",
    b"\x8d" + struct.pack("<Q", 2**62),
    b"\x8e" + struct.pack("<Q", 2**40),
    b"\x8f",
    b"\x90",
    b"\x91",
    b"\x96\x02" + bytes(7) + b"ab",
    b"\x97",
    b"\x98",
    b"Q",
    b"P1\n",
    b"I12\n",
    b"F1.5\n",
    b"S'x'\n",
    b"Vx\n",
    b"L" + b"9" * 30 + b"L\n",
    b"i" + _GLOBALS[0],
    b"q\x00",
    b"r\xff\xff\xff\x7f",
    b"p0\n",
    b"g0\n",
    b"j\x00\x00\x00\x00",
    b".",
    b"\x80\x02",
    b"\x95" + struct.pack("<Q", 2**40),
    b"\x82\x01",
    *(b"c" + name for name in _GLOBALS),
)


def doubling(piece: bytes, n: int) -> bytes:
    """
    A program that does the same over and over with what it has just made.

    :param piece: instructions that leave one thing, memoised under 0 before
    """
    return b"\x80\x04\x8c\x01a\x94" + piece * n + b"."


DOUBLINGS: dict[str, bytes] = {
    "STACK_GLOBAL": b"h\x00\x93q\x00h\x00",  # a name made of a name twice
    "TUPLE2": b"h\x00\x86q\x00",
    "TUPLE3": b"h\x00h\x00\x87q\x00",
    "LIST": b"(h\x00h\x00lq\x00",
    "APPENDS": b"](h\x00h\x00eq\x00",
    "REDUCE": b"h\x00\x86h\x00R",
    "BUILD": b"h\x00b",
    "DICT": b"(h\x00h\x00dq\x00",
    "DUP": b"22\x86",
}


def grown(content: bytes, rng: Rng) -> Mutation:
    """A pickle of random instructions, or a few of them within the given one."""
    kind, n = rng.random(), 1 + int(rng.geometric(0.08))
    pieces = b"".join(pick(rng, _PIECES) for _ in range(n))
    if kind < 0.3:
        return b"\x80\x04" + pieces + b".", f"grown: {pieces[:40]!r}"
    if kind < 0.45:
        name, times = pick(rng, list(DOUBLINGS)), pick(rng, (3, 10, 30, 60, 200))
        return doubling(DOUBLINGS[name], times), f"{name} doubled {times} times"
    if kind < 0.55:
        return b"\x80\x04" + pieces * 2000 + b".", f"grown, 2000 times: {pieces[:40]!r}"
    starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    at = pick(rng, starts)
    return content[:at] + pieces + content[at:], f"at {at}: {pieces[:40]!r}"


def pickle_file(content: bytes, rng: Rng) -> Mutation:
    """A pickle damaged or grown."""
    return several(((1.0, grown), (1.0, anything), (1.0, _number)), content, rng)


def _number(content: bytes, rng: Rng) -> Mutation:
    """An argument of an instruction replaced, so that what follows still means what it meant."""
    known = [
        (opcode.name, argument, at)
        for opcode, argument, at in pickletools.genops(content)
        if opcode.name in ("BININT1", "SHORT_BINUNICODE", "BINFLOAT") and at is not None
    ]
    name, argument, at = pick(rng, known)
    if name == "BININT1":
        value = int(rng.integers(256))
        return content[: at + 1] + bytes([value]) + content[at + 2 :], f"{argument} at {at} = {value}"
    if name == "BINFLOAT":
        number = pick(rng, (float("nan"), float("inf"), -1.0, 0.0, 1e308, 5e-324))
        return content[: at + 1] + struct.pack(">d", number) + content[at + 9 :], f"{argument} at {at} = {number}"
    size = content[at + 1]
    text = bytes(pick(rng, b"abcfiOV<>=|48") for _ in range(size))
    return content[: at + 2] + text + content[at + 2 + size :], f"{argument!r} at {at} = {text!r}"


# ---------------------------------------------------------------------- weights as torch saves them


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def torch_file(original: bytes) -> Mutator:
    """For a file of ``torch.save``: another value in the same place, or surgery on the zip file and its pickle."""
    name = next(name for name in members_of(original) if name.endswith("data.pkl"))
    ways: tuple[tuple[float, Mutator], ...] = ((1.0, zip_file), (1.5, inside(pickle_file, name)), (0.5, anything))

    def mutate(content: bytes, rng: Rng) -> Mutation:
        if rng.random() < 0.5:
            weights = dict(torch.load(io.BytesIO(original), weights_only=True))
            words = pick(rng, _WEIGHTS)(weights, rng)
            return torch_saved(weights), words
        return several(ways, content, rng)

    return mutate


def _stride(weights: dict[str, object], rng: Rng) -> str:
    name, n = pick(rng, list(weights)), pick(rng, (10, 10_000, 30_000))
    weights[name] = torch.zeros(1).expand(n, n)
    return f"{name} is one number of shape {(n, n)}"


def _odd(weights: dict[str, object], rng: Rng) -> str:
    name = pick(rng, list(weights))
    old = weights[name]
    shape = old.shape if isinstance(old, torch.Tensor) else (2,)
    makers: dict[str, Callable[[], object]] = {
        "sparse": lambda: torch.zeros(shape).to_sparse(),
        "meta": lambda: torch.zeros(shape, device="meta"),
        "complex": lambda: torch.zeros(shape, dtype=torch.complex64),
        "float8": lambda: torch.zeros(shape).to(DTYPE8),
        "bool": lambda: torch.zeros(shape, dtype=torch.bool),
        "NaN": lambda: torch.full(shape, torch.nan),
        "quantised": lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.quint8),
        "huge": lambda: torch.full(shape, 3e38),
        "a number": lambda: 3.0,
        "a list": lambda: [1.0],
        "nothing": lambda: None,
        "a parameter": lambda: torch.nn.Parameter(torch.zeros(shape)),
        "empty": lambda: torch.zeros(0),
        "float64": lambda: torch.zeros(shape, dtype=torch.float64),
        "int": lambda: torch.zeros(shape, dtype=torch.int64),
        "transposed": lambda: torch.zeros(shape).T if len(shape) == 2 else torch.zeros(1, *shape),
    }
    chosen = pick(rng, list(makers))
    weights[name] = makers[chosen]()
    return f"{name} is {chosen}"


def _names(weights: dict[str, object], rng: Rng) -> str:
    name = pick(rng, list(weights))
    new = pick(rng, (f"{name}x", "", 3, "\x1b[31m", "x" * 10_000, name.replace("0", "99999"), f"{name}.0.weight"))
    value = weights[name]
    if rng.random() < 0.5:
        del weights[name]
    weights[new] = value  # type: ignore[index]
    return f"{name} is {new!r:.40}"


DTYPE8 = torch.float8_e4m3fn
_WEIGHTS: tuple[Callable[[dict[str, object], Rng], str], ...] = (_stride, _odd, _odd, _odd, _names)


def sb3_file(original: bytes) -> Mutator:
    """For a zip file of Stable-Baselines3, changed anywhere."""
    weights = torch_file(members_of(original)["policy.pth"])
    ways: tuple[tuple[float, Mutator], ...] = (
        (4.0, inside(weights, "policy.pth")),
        (1.5, inside(json_file, "data")),
        (1.5, zip_file),
        (0.5, anything),
    )
    return lambda content, rng: several(ways, content, rng)


def nested_deflate(content: bytes, name: str, n_bytes: int) -> bytes:
    """A member that is itself a zip file with a member that is packed a thousand times smaller."""
    return packed({**members_of(content), name: zeros(n_bytes)}, {name: METHODS["deflate"]})
