"""Bytes as they come out of broken disks and hands of strangers, by a seeded generator, and what readers make of it."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrpolicy.data.readers import load_dataset


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One byte changed as a rule; sometimes more, a piece lost or the end missing."""
    values, kind = bytearray(content), rng.random()
    if kind < 0.1:
        return content[: rng.randrange(len(content))]
    if kind < 0.2:
        start = rng.randrange(len(content))
        del values[start : start + rng.randrange(1, 64)]
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            place = rng.randrange(min(len(content), rng.choice((1500, 10**6))))
            values[place] = rng.choice((0, 127, 255, rng.randrange(256), values[place] ^ 1 << rng.randrange(8)))
    return bytes(values)


def refused(path: Path, words: str, read: Callable[[Path], Any] = load_dataset) -> None:
    """Reading is one printable line that names the file, and takes next to no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()
    is_clear(str(caught.value), path)


def read_or_refused(place: Path, damaged: Path, n: int, read: Callable[[Path], Any] = load_dataset) -> list[bool]:
    """Whether each of ``n`` mutations of a file was read; whatever is raised but one clear line fails the test."""
    content, outcomes = damaged.read_bytes(), []
    for seed in range(n):
        damaged.write_bytes(mutated(content, random.Random(seed)))
        try:
            read(place)
            outcomes.append(True)
        except ValueError as error:
            is_clear(str(error), place)
            outcomes.append(False)
    damaged.write_bytes(content)
    return outcomes


def is_clear(message: str, path: Path) -> None:
    assert str(path) in message and message.isprintable() and len(message) <= 300, message
