"""Bytes as they come out of broken disks and hands of strangers, by a seeded generator."""

import random


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
