"""On-policy rounds: a reward is also fitted at every x_t that the steered base visits while it samples.

Offline, ρ is only fitted at noised data; steering leads elsewhere. A sampler gives samples and reports each x_t of its
steps; base and expert are compared there, and the extraction continues with half of its targets from these points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.targets import Targets, targets_along

Visit = Callable[[Tensor, Tensor], None]
"""Called with x_t (n, *event_shape) and t (n,) of a denoising step."""

Sampler = Callable[[Visit], Tensor]
"""Gives samples (n, *event_shape) and calls its argument once for each denoising step."""


def on_policy_targets(
    base: ScoreModel, expert: ScoreModel, sample: Sampler, generator: torch.Generator, n_value_draws: int = 1
) -> Targets:
    """
    Score differences and values at every x_t that a sampler visits, as ``pairs`` of `RewardExtractor.learn`.

    :param base: the base
    :param expert: the expert
    :param sample: gives samples, each of which makes as many targets as it takes denoising steps
    :param generator: of the value targets
    :param n_value_draws: later levels per value target; 0 for gradients alone
    """
    visited: list[tuple[Tensor, Tensor]] = []
    x0 = sample(lambda x_t, t: visited.append((x_t, t)))
    return targets_along(base, expert, x0, visited, generator, n_value_draws)


def learn_on_policy(
    extractor: RewardExtractor,
    data: Any,
    total_timesteps: int,
    n_rounds: int,
    samplers: Callable[[int], Iterable[Sampler]],
    generator: torch.Generator,
) -> RewardExtractor:
    """
    Continue an extraction with rounds that also compare the two models where samplers lead.

    :param extractor: has learned offline
    :param data: as for `RewardExtractor.learn`
    :param total_timesteps: gradient steps of a round
    :param n_rounds: each learns from the targets of all rounds so far
    :param samplers: of a round, counted from 0; called when the round begins, so that they can use the current reward
    :param generator: of the value targets
    :return: the extractor
    """
    n_value_draws = extractor.n_value_draws if extractor.value_coef > 0 else 0
    compared: list[Targets] = []
    for index in range(n_rounds):
        for sample in samplers(index):
            compared.append(on_policy_targets(extractor.base, extractor.expert, sample, generator, n_value_draws))
        pairs = Targets.joined(compared)
        extractor.learn(data, total_timesteps, log_interval=0, reset_num_timesteps=False, pairs=pairs)
    return extractor
