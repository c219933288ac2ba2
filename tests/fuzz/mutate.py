"""Damage that needs no knowledge of a format: bytes flipped, cut, inserted, moved, and numbers in headers replaced.

A mutator takes the content of a file and a generator and returns other content and a few words that say what it did.
Where it cannot read what it was given, it raises whatever its library does; `several` then falls back on plain bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate

from fuzz.hostile import Rng, pick

Mutation = tuple[bytes, str]
Mutator = Callable[[bytes, Rng], Mutation]

INTERESTING = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
FORMATS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")


def place(rng: Rng, size: int) -> int:
    """A position, near the ends (headers, directories) as often as anywhere."""
    if size < 2:
        return 0
    kind = rng.random()
    if kind < 0.25:
        return int(rng.integers(min(size, 64)))
    if kind < 0.5:
        return size - 1 - int(rng.integers(min(size, 64)))
    return int(rng.integers(size))


def flip(content: bytes, rng: Rng) -> Mutation:
    """A few bytes, or bits, become others."""
    changed, places = bytearray(content), []
    for _ in range(1 + int(rng.geometric(0.5))) if content else ():
        at = place(rng, len(content))
        changed[at] ^= 1 << int(rng.integers(8)) if rng.random() < 0.5 else int(rng.integers(1, 256))
        places.append(at)
    return bytes(changed), f"flip at {places}"


def number(content: bytes, rng: Rng) -> Mutation:
    """A number of some width becomes an extreme one."""
    form = pick(rng, FORMATS)
    width = struct.calcsize(form)
    value = pick(rng, INTERESTING) % 256**width
    at = place(rng, max(len(content) - width, 1))
    return content[:at] + struct.pack(form, value) + content[at + width :], f"{value} as {form} at {at}"


def cut(content: bytes, rng: Rng) -> Mutation:
    """The file ends, or begins, somewhere else."""
    at = place(rng, len(content))
    return (content[:at], f"cut at {at}") if rng.random() < 0.8 else (content[at:], f"cut before {at}")


def insert(content: bytes, rng: Rng) -> Mutation:
    """Bytes come in between."""
    at, size = place(rng, len(content)), int(rng.geometric(0.1))
    more = rng.bytes(size) if rng.random() < 0.5 else bytes([int(rng.integers(256))]) * size
    return content[:at] + more + content[at:], f"{size} bytes inserted at {at}"


def splice(content: bytes, rng: Rng) -> Mutation:
    """A part is left out, said twice or written over another."""
    start, target, size = place(rng, len(content)), place(rng, len(content)), int(rng.geometric(0.02))
    part = content[start : start + size]
    kind = int(rng.integers(3))
    if kind == 0:
        return content[:start] + content[start + size :], f"{size} bytes left out at {start}"
    if kind == 1:
        return content[:target] + part + content[target:], f"{size} bytes of {start} repeated at {target}"
    return content[:target] + part + content[target + len(part) :], f"{size} bytes of {start} written over {target}"


def noise(content: bytes, rng: Rng) -> Mutation:
    """Nothing of the file is left, or only its first bytes."""
    kept = 0 if rng.random() < 0.5 else 16
    size = int(rng.integers(0, 300))
    return content[:kept] + rng.bytes(size), f"{kept} bytes and {size} random ones"


def anything(content: bytes, rng: Rng) -> Mutation:
    """One of the above."""
    return pick(rng, (flip, flip, number, number, cut, insert, splice, splice, noise))(content, rng)


def several(mutators: Sequence[tuple[float, Mutator]], content: bytes, rng: Rng) -> Mutation:
    """
    One mutation, sometimes two or three.

    :param mutators: with their weights
    """
    limits, said = list(accumulate(weight for weight, _ in mutators)), []
    for _ in range(1 + int(rng.random() < 0.25) + int(rng.random() < 0.1)):
        _, chosen = mutators[bisect(limits, rng.random() * limits[-1])]
        try:
            content, words = chosen(content, rng)
        except Exception:  # damaged beyond what this mutator reads, and libraries say that in any way
            content, words = anything(content, rng)
        said.append(words)
    return content, "; ".join(said)
