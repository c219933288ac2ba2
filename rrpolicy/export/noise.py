"""Normal numbers as torch's CPU generator draws them, by numpy: an exported planner plans from the planner's own noise.

Words come from MT19937. Arrays of 16 numbers or more are drawn in blocks of 16, eight radii and eight angles of
Box & Muller (1958) from floats of 24 bits; the last 16 numbers are drawn anew where 16 does not divide their number.
Fewer numbers are drawn one by one from doubles of 53 bits, the second of each pair kept for the next call.
"""

from __future__ import annotations

import math

import numpy as np

from rrpolicy.common.typing import Array

BLOCK = 16


class NormalGenerator:
    """
    The counterpart of ``torch.Generator`` for ``torch.randn``.

    :param seed: as for ``manual_seed``, of which the lower 32 bits count
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState()
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        """Begin anew, at a hundredth of the time that another generator takes."""
        self._words.seed(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def draw(self, shape: tuple[int, ...]) -> Array:
        """Standard normal numbers, float32; equal to torch's but for the last bits of logarithm and cosine."""
        size = math.prod(shape)
        numbers = self._blocks(size) if size >= BLOCK else np.array([self._one() for _ in range(size)], np.float32)
        return numbers.reshape(shape)

    def _uniform(self, size: int) -> Array:
        """[0, 1) in steps of 2^-24, float32."""
        words = self._words.randint(0, 2**32, size, dtype=np.uint32)
        return (words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _blocks(self, size: int) -> Array:
        uniform = self._uniform(size)
        whole = size - size % BLOCK
        numbers = np.empty(size, np.float32)
        numbers[:whole] = _box_muller(uniform[:whole])
        if whole < size:
            uniform[-BLOCK:] = self._uniform(BLOCK)
            numbers[-BLOCK:] = _box_muller(uniform[-BLOCK:])
        return numbers

    def _one(self) -> float:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        words = self._words.randint(0, 2**32, 4, dtype=np.uint32).astype(np.uint64)
        angle, radius = (((words[::2] << np.uint64(32)) | words[1::2]) & np.uint64(2**53 - 1)) * 2.0**-53
        radius = math.sqrt(-2 * math.log1p(-radius))
        self._kept = radius * math.sin(2 * math.pi * angle)
        return radius * math.cos(2 * math.pi * angle)


def _box_muller(uniform: Array) -> Array:
    """(n,) in [0, 1), n a multiple of 16 -> (n,) normal: cosines in a block's first half, sines in its second."""
    radius, angle = uniform.reshape(-1, 2, BLOCK // 2).transpose(1, 0, 2)
    radius = np.sqrt(-2 * np.log(1 - radius))
    angle = np.float32(2 * math.pi) * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
