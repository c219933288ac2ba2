"""Seeds for the global random generators, within a block and without side effects."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from rrpolicy.common.arguments import whole

MAX_SEED = 2**62  # seeds count up from it, in 64 bits
MAX_SB3_SEED = 2**32 - 1  # of Stable-Baselines3's algorithms, which seed numpy


def checked_seed(seed: Any, largest: int = MAX_SEED) -> int:
    """
    A seed as an argument.

    :param seed: a whole number of Python or numpy, at least 0
    :param largest: the largest one
    :return: it, of Python, as environments want it
    :raises ValueError: for anything else
    """
    number = whole("seed", seed, 0)
    if number > largest:
        raise ValueError(f"seed is {seed!r:.60}, it must be at most {largest}")
    return number


@contextmanager
def seeded(seed: int, agent: Any = None) -> Iterator[None]:
    """
    Seed the global generators of torch, numpy and python; their states are restored afterwards.

    :param seed: a whole number
    :param agent: one with ``set_random_seed`` is seeded by it, unless it is of Stable-Baselines3, whose policies draw
        from torch's global generator and whose algorithms would also seed their environment
    """
    seed = whole("seed", seed)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        seeds_itself = getattr(agent, "set_random_seed", None)
        if callable(seeds_itself) and not isinstance(agent, BaseAlgorithm | BasePolicy):
            seeds_itself(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
