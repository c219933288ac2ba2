"""ρ as a reward: its values for steps and windows of data held against the environment's reward and the return."""

from __future__ import annotations

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.pipeline import plain_row
from rrpolicy.reproduce.ledger import Ledger, Say
from rrpolicy.reproduce.locomotion.units import Unit
from rrpolicy.reproduce.locomotion.workshop import Workshop
from rrpolicy.rewards.maze_metrics import spearman
from rrpolicy.rewards.relative_reward import RelativeReward

N_WINDOWS = 8192
MIN_WINDOWS = 4  # of an episode, behind its mean


def measure_use(shop: Workshop, unit: Unit, say: Say = lambda text: None) -> Ledger:
    """Rank correlations over held-out base and expert data, for ρ and for the discriminator."""
    ledger = Ledger(say)
    ledger.begin("scoring data")
    data = TrajectoryDataset.concatenate(shop.sources(unit)[1])
    for name, reward in (("reward", shop.reward(unit)[0]), ("discriminator", shop.discriminator(unit)[0])):
        windows, true, episode, episode_return = window_scores(reward, data, unit.seed)
        means = np.array([(windows[episode == one].mean(), episode_return[episode == one][0])
                          for one in np.unique(episode) if (episode == one).sum() >= MIN_WINDOWS])  # fmt: skip
        ledger.add([
            {**plain_row(name, "spearman_window_reward", spearman(windows, true)), "n": len(windows)},
            {**plain_row(name, "spearman_episode_return", spearman(*means.T)), "n": len(means)},
        ])  # fmt: skip
    ledger.close()
    return ledger


def window_scores(reward: RelativeReward, data: TrajectoryDataset, seed: int) -> tuple[Array, Array, Array, Array]:
    """
    :param reward: with a window head
    :param data: with rewards
    :return: of random windows (n,): ρ in nats, mean true reward of its steps, index and return of their episode
    :raises ValueError: when the data hold no rewards
    """
    layout = reward.layout
    if data.rewards is None or layout is None:
        raise ValueError("data without rewards, or a reward without windows, cannot be compared")
    starts = np.asarray(data.window_starts(layout, padding=False))
    chosen = np.random.default_rng(seed).permutation(starts)[:N_WINDOWS]
    rows = chosen[:, None] + np.arange(layout.horizon) * layout.stride
    actions = data.actions[rows] if layout.plan_actions else None
    ends = np.cumsum(data.episode_lengths)
    episode = np.searchsorted(ends, chosen, side="right")
    totals = np.add.reduceat(data.rewards.astype(np.float64), ends - data.episode_lengths)
    steps = data.rewards[chosen[:, None] + np.arange(layout.span)]
    return reward.predict(data.observations[rows], actions), steps.mean(axis=1), episode, totals[episode]
