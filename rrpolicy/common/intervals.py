"""The interval of a rate, for everything that counts successes."""

from __future__ import annotations

import math

Z = 1.959963984540054  # normal quantile of a two-sided 95 % interval


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """
    Wilson's (1927) 95 % score interval, whose width is never 0.

    :param successes: how many
    :param n: of how many, at least 1
    """
    p, shrink = successes / n, 1 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / shrink
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / shrink
    return 0.0 if p == 0 else centre - half, 1.0 if p == 1 else centre + half
