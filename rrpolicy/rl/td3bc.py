"""TD3+BC (Fujimoto, Gu 2021) of the d3rlpy library: offline reinforcement learning from data with their true rewards.
d3rlpy is optional and only trains; the policy acts, and is kept (`policies`), without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import Actor
from torch import nn

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.report import actions_outside
from rrpolicy.data.transitions import terminals
from rrpolicy.rl.policies import boxes

LEAST_STD = 1e-3  # added to the spread of observations, as in the paper
INSTALL = (  # without its dependencies: it pins an older gymnasium than it runs with
    "TD3+BC needs d3rlpy: pip install gym==0.26.2 structlog click colorama dataclasses-json scikit-learn && "
    "pip install --no-deps d3rlpy==2.8.1"
)


@dataclass(frozen=True)
class OfflineSettings:
    """
    Numbers of offline training.

    :param total_timesteps: gradient steps
    :param arguments: for d3rlpy's ``TD3PlusBCConfig``, whose defaults are the paper's, e.g. ``alpha``
    :raises ValueError: when there is no step
    """

    total_timesteps: int = 50_000
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.total_timesteps < 1:
            raise ValueError(f"total_timesteps is {self.total_timesteps}, it must be at least 1")


SETTINGS = OfflineSettings()


def train_offline(
    datasets: Sequence[TrajectoryDataset],
    time_limit: int | None,
    seed: int = 0,
    settings: OfflineSettings = SETTINGS,
    progress_bar: bool = False,
) -> Actor:
    """
    Learn from data alone.

    :param datasets: with true rewards and actions in [-1, 1]
    :param time_limit: environment steps after which episodes are cut off; None: they never are. Used for data without
        flags of how their episodes ended, with a warning
    :param seed: of weights and batches, global generators included
    :param settings: how long and with which numbers
    :param progress_bar: show d3rlpy's
    :return: a policy that takes observations in environment units
    :raises ValueError: for data without rewards or with other actions, or when d3rlpy is not installed, saying how it
        can be
    """
    data = TrajectoryDataset.concatenate(datasets)
    over = np.concatenate([terminals(one, time_limit) for one in datasets])
    if data.rewards is None:
        raise ValueError("the dataset has no rewards, wanted the true ones")
    if actions_outside(data, gym.spaces.Box(-1.0, 1.0, (data.action_dim,))) > 0:
        raise ValueError(f"actions reach {np.abs(data.actions).max():g}, wanted at most 1 in size")
    mean, std = data.observations.mean(axis=0), data.observations.std(axis=0) + LEAST_STD
    ends = np.zeros(len(data), dtype=bool)
    ends[np.cumsum(data.episode_lengths) - 1] = True
    arrays = ((data.observations - mean) / std, data.actions, data.rewards, over, ends & ~over)
    return _actor(_linears(arrays, seed, settings, progress_bar), mean, std)


def _linears(arrays: tuple[Array, ...], seed: int, settings: OfflineSettings, progress_bar: bool) -> list[nn.Linear]:
    """
    d3rlpy's policy as its layers, with ReLU between them and tanh behind.

    :param arrays: observations, actions, rewards, terminals and timeouts of n rows
    """
    try:
        import d3rlpy
        import structlog
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error})") from error
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))  # warnings alone
    d3rlpy.seed(seed)
    observations, actions, rewards, over, cut = arrays
    dataset = d3rlpy.dataset.MDPDataset(
        observations.astype(np.float32),
        actions,
        rewards,
        over.astype(np.float32),
        cut.astype(np.float32),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
        action_size=actions.shape[1],
    )
    learner = d3rlpy.algos.TD3PlusBCConfig(**settings.arguments).create()
    steps = settings.total_timesteps
    learner.fit(
        dataset,
        steps,
        n_steps_per_epoch=steps,
        show_progress=progress_bar,
        save_interval=steps + 1,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    return [layer for layer in learner.impl.policy.modules() if isinstance(layer, nn.Linear)]


def _actor(layers: Sequence[nn.Linear], mean: Array, std: Array) -> Actor:
    """Stable-Baselines3's actor with these weights; the standardisation of observations goes into the first layer."""
    actor = _blank(len(mean), layers[-1].out_features, [layer.out_features for layer in layers[:-1]])
    own = [layer for layer in actor.mu if isinstance(layer, nn.Linear)]
    shift, scale = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
    with torch.no_grad():
        for target, source in zip(own, layers, strict=True):
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
        own[0].weight.div_(scale)
        own[0].bias.sub_(own[0].weight @ shift)
    return actor


def _blank(observation_dim: int, action_dim: int, net_arch: list[int]) -> Actor:
    seen, acted = boxes(observation_dim, action_dim)
    actor = Actor(seen, acted, net_arch, FlattenExtractor(seen), observation_dim)
    actor.set_training_mode(False)
    return actor
