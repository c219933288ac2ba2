"""Behaviour cloning: a policy of Stable-Baselines3 fitted to recorded actions by maximum likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from tqdm.auto import trange

from rrpolicy.common.seeding import MAX_SB3_SEED, checked_seed
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.report import check_actions
from rrpolicy.rl.policies import boxes


def clone_behaviour(
    dataset: TrajectoryDataset,
    n_steps: int = 5_000,
    seed: int = 0,
    *,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    net_arch: Sequence[int] = (256, 256),
    action_space: gym.spaces.Box | None = None,
    progress_bar: bool = False,
) -> ActorCriticPolicy:
    """
    Behaviour cloning: a Gaussian policy of SB3 fitted to the actions by maximum likelihood.

    :param dataset: what to imitate
    :param n_steps: gradient steps
    :param seed: of weights and batches; the global generators are left alone
    :param batch_size: transitions in a batch
    :param learning_rate: Adam's, decayed to 0 along a cosine
    :param net_arch: hidden widths
    :param action_space: into whose bounds the policy's actions are clipped; None: [-1, 1]
    :param progress_bar: show one
    :return: a policy that acts at every environment step
    :raises ValueError: when actions of the dataset lie outside these bounds
    """
    seed, spaces = checked_seed(seed, MAX_SB3_SEED), boxes(dataset.observation_dim, dataset.action_dim, action_space)
    check_actions(dataset, spaces[1], "action_space, the environment's")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {"pi": list(net_arch), "vf": []}
        policy = ActorCriticPolicy(*spaces, lambda _: learning_rate, net_arch=layers)
    observations, actions = torch.tensor(dataset.observations), torch.tensor(dataset.actions)  # theirs are read-only
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(policy.optimizer, max(n_steps, 1))
    generator = torch.Generator().manual_seed(seed)
    policy.set_training_mode(True)
    for _ in trange(n_steps, unit="step", leave=False, disable=not progress_bar):
        rows = torch.randint(len(observations), (batch_size,), generator=generator)
        loss = -policy.get_distribution(observations[rows]).log_prob(actions[rows]).mean()
        policy.optimizer.zero_grad()
        loss.backward()
        policy.optimizer.step()
        decay.step()
    policy.set_training_mode(False)
    return policy
