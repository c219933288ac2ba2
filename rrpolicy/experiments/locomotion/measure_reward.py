"""ρ as a reward: its values for steps and windows of data compared with the environment's reward and the return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rrpolicy.common.stats import spearman
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.transitions import episode_returns, finished
from rrpolicy.evaluation import Row
from rrpolicy.experiments.locomotion.artifacts import RobotStore
from rrpolicy.experiments.locomotion.spec import RobotUnit
from rrpolicy.experiments.results import Log, Recorder, plain_row
from rrpolicy.experiments.scoring import Scoring
from rrpolicy.rewards.relative_reward import RelativeReward


class Scored(NamedTuple):
    """
    n windows or steps of data.

    ``rho`` (n,) in nats, ``true`` (n,) the environment's mean reward of their steps, ``episode`` (n,) their episodes.
    """

    rho: Array
    true: Array
    episode: Array


def reward_correlation(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """
    Rank correlations over held-out base and expert data, for ρ and for the discriminator: of windows and, where there
    is a step head, of single steps. Knowing an expert is enough for some correlation over the data of both; base data
    alone, ``-in-base``, show whether better and worse are distinguished within one behaviour.
    """
    recorder = Recorder(log)
    recorder.start("scoring data")
    data, scoring = store.sources(unit)[1], Scoring.of(store.recipe)
    for name, reward in (("reward", store.reward(unit)[0]), ("discriminator", store.discriminator(unit)[0])):
        recorder.rows(correlations(name, reward, data, unit.seed, scoring.n_scored, scoring.least_scored))
        recorder.rows(
            correlations(f"{name}-in-base", reward, data[:1], unit.seed, scoring.n_scored, scoring.least_scored)
        )
    recorder.done()
    return recorder


def correlations(
    name: str,
    reward: RelativeReward,
    datasets: Sequence[TrajectoryDataset],
    seed: int,
    n_scored: int = 8192,
    least_scored: int = 4,
) -> list[Row]:
    """
    Spearman's rank correlation of ρ with the reward of the same steps, and of its mean over an episode with the return,
    for which episodes count that were recorded to their end.

    :param name: of the reward, as the rows' agent
    :param reward: its window head scores windows, its step head steps; what it lacks is left out
    :param datasets: with true rewards
    :param seed: chooses windows and steps
    :param n_scored: windows, and steps
    :param least_scored: of an episode, behind its mean
    :raises ValueError: when the data hold no rewards, or the reward scores no windows of trajectories
    """
    data = TrajectoryDataset.concatenate(datasets)
    whole = np.concatenate([finished(one) for one in datasets])
    returns, rows = episode_returns(data), []
    for kind in (kind for kind in ("window", "step") if kind in reward.heads):
        scored = scores_of(kind, reward, data, seed, n_scored)
        rows.append(
            {**plain_row(name, f"spearman_{kind}_reward", spearman(scored.rho, scored.true)), "n": len(scored.rho)}
        )
        counts = np.bincount(scored.episode, minlength=len(returns))
        known = whole & (counts >= least_scored)
        if known.any():
            sums = np.bincount(scored.episode, scored.rho, minlength=len(returns))
            metric = "spearman_episode_return" if kind == "window" else "spearman_episode_return_of_steps"
            value = spearman(sums[known] / counts[known], returns[known])
            rows.append({**plain_row(name, metric, value), "n": int(known.sum())})
    return rows


def scores_of(head: str, reward: RelativeReward, data: TrajectoryDataset, seed: int, n: int) -> Scored:
    """
    Scores of random windows or steps: of an observation and the action taken there, as an environment with ρ as reward
    gives it.

    :param head: ``"window"`` or ``"step"``
    :param reward: with this head
    :param data: with rewards
    :param seed: chooses them
    :param n: at most
    :raises ValueError: when the data hold no rewards, or the reward scores nothing of trajectories
    """
    layout, generator = reward.layout, np.random.default_rng(seed)
    if data.rewards is None or layout is None:
        raise ValueError(f"data without rewards, or a reward without {head}s, cannot be compared")
    if head == "step":
        chosen = generator.permutation(len(data))[:n]
        observations, actions, true = data.observations[chosen], data.actions[chosen], data.rewards[chosen]
    else:
        chosen = generator.permutation(np.asarray(data.window_starts(layout, padding=False)))[:n]
        observations, actions, *_ = data.windows(layout, chosen)
        true = data.rewards[chosen[:, None] + np.arange(layout.span - layout.past)].mean(axis=1)
    rho = reward.predict(observations, actions if layout.plan_actions else None)
    return Scored(rho, true, np.searchsorted(np.cumsum(data.episode_lengths), chosen, side="right"))
