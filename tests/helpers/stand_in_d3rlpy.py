"""What training offline asks of d3rlpy, with layers of given widths in the place of a policy that has learned."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn


def layers(*widths: int) -> list[nn.Linear]:
    """Layers that are the same for the same widths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [nn.Linear(a, b) for a, b in pairwise(widths)]


def stand_in(patch: pytest.MonkeyPatch, *hidden: int) -> list[tuple[Any, ...]]:
    """
    Install it.

    :param hidden: widths of the policy's hidden layers
    :return: the arrays that it is given: observations, actions, rewards, terminals and timeouts
    """
    given: list[tuple[Any, ...]] = []

    class Learner:
        def __init__(self, **arguments: Any) -> None: ...

        def create(self) -> Learner:
            return self

        def fit(self, dataset: tuple[Any, ...], n_steps: int, **options: Any) -> None:
            given.append(dataset)
            made = layers(dataset[0].shape[1], *hidden, dataset[1].shape[1])
            self.impl = SimpleNamespace(policy=nn.Sequential(*made))

    d3rlpy: Any = ModuleType("d3rlpy")
    d3rlpy.seed = lambda seed: None
    d3rlpy.ActionSpace = SimpleNamespace(CONTINUOUS="continuous")
    d3rlpy.dataset = SimpleNamespace(MDPDataset=lambda *arrays, **spaces: arrays)
    d3rlpy.algos = SimpleNamespace(TD3PlusBCConfig=Learner)
    d3rlpy.logging = SimpleNamespace(NoopAdapterFactory=lambda: None)
    structlog: Any = ModuleType("structlog")
    structlog.make_filtering_bound_logger = structlog.configure = lambda *_, **__: None
    patch.setitem(sys.modules, "d3rlpy", d3rlpy)
    patch.setitem(sys.modules, "structlog", structlog)
    return given
