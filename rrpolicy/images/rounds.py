"""A round on policy for images: base and expert are also compared where ρ leads the base."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import ImageModel, sample_events
from rrpolicy.rewards.targets import Targets, targets_along


def on_policy_targets(
    base: ImageModel,
    expert: ImageModel,
    reward: ImageReward,
    n: int,
    n_value_draws: int = 1,
    seed: int = 0,
    **sampling: Any,
) -> Targets:
    """
    Score differences and values at every x_t that the steered base visits, as ``pairs`` of `RewardExtractor.learn`.

    :param base: the model that is steered
    :param expert: the model that it is compared with
    :param reward: ρ as far as it is extracted
    :param n: samples, each of which gives as many pairs as it takes denoising steps
    :param n_value_draws: later levels per value target; 0 for gradients alone
    :param seed: of all noise
    :param sampling: further options of `sample_events`
    :raises ValueError: when the reward was made for events of another kind
    """
    way: list[tuple[Tensor, Tensor]] = []
    x0 = sample_events(base, n, reward=reward, seed=seed, visit=lambda x_t, t: way.append((x_t, t)), **sampling)
    generator = torch.Generator().manual_seed(seed + 1)
    return targets_along(base, expert, x0, way, generator, n_value_draws)
