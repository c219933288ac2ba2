"""Replay buffers of Stable-Baselines3 as datasets. Its off-policy algorithms keep actions scaled to [-1, 1] and several
environments interleaved; here actions are in environment units and episodes one after the other."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rrpolicy.common.spaces import flattened, flattened_box
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset

_ROUNDING = 1e-5  # by which a scaled action may be larger than 1


def from_replay_buffer(source: ReplayBuffer | OffPolicyAlgorithm, scaled: bool | None = None) -> TrajectoryDataset:
    """
    What a replay buffer holds, oldest rows first. The first episode of a buffer that has overwritten its beginning
    lacks its first rows; the last one of each environment may be unfinished.

    :param source: a buffer, or an algorithm with one, such as SAC, whose actions are known to be scaled
    :param scaled: whether the buffer keeps actions scaled to [-1, 1], as SAC, TD3 and DDPG do, instead of in
        environment units; needed for a buffer without its algorithm, unless the action space is [-1, 1] itself
    :return: observations (flattened as in environments), actions and rewards in environment units; how episodes ended,
        unless the buffer does not handle time limits apart
    :raises ValueError: for an empty buffer, other spaces, or when it is not told whether actions are scaled
    """
    name = "replay buffer"
    if isinstance(source, OffPolicyAlgorithm):
        name, scaled = f"replay buffer of {type(source).__name__}", True
        if source.replay_buffer is None:
            raise ValueError(
                f"the {type(source).__name__} has no replay buffer: it is not saved with the algorithm, "
                "see load_replay_buffer"
            )
        source = source.replay_buffer
    if not isinstance(source, ReplayBuffer):
        raise ValueError(f"source is a {type(source).__name__}, wanted a ReplayBuffer or an off-policy algorithm")
    rows = _rows(source)
    observations = flattened(source.observation_space, _taken(source.observations, rows))
    actions = _unscaled(source, np.asarray(source.actions[rows], dtype=np.float64), scaled)
    over, cut = source.dones[rows] > 0, source.timeouts[rows] > 0
    last = over | _breaks(source, rows, observations)
    last[-1] = True
    observations, actions, rewards, last, over, cut = (
        array.swapaxes(0, 1).reshape(-1, *array.shape[2:])  # one environment after the other
        for array in (observations, actions, source.rewards[rows], last, over & ~cut, over & cut)
    )
    ends = np.flatnonzero(last)
    told = source.handle_timeout_termination
    return TrajectoryDataset(
        observations,
        actions,
        np.diff(ends, prepend=-1),
        rewards,
        {"source": name},
        over[ends] if told else None,
        cut[ends] if told else None,
    )


def _rows(buffer: ReplayBuffer) -> Array:
    """Row numbers from the oldest to the newest."""
    if not buffer.full:
        if not buffer.pos:
            raise ValueError("the replay buffer is empty, wanted at least one row")
        return np.arange(buffer.pos)
    # a buffer that saves memory keeps its newest next observation where the oldest observation was
    first = buffer.pos + int(buffer.optimize_memory_usage)
    return np.arange(first, buffer.pos + buffer.buffer_size) % buffer.buffer_size


def _taken(observations: Array | dict[str, Array], rows: Array) -> Array | dict[str, Array]:
    if isinstance(observations, dict):
        return {key: array[rows] for key, array in observations.items()}
    return observations[rows]


def _unscaled(buffer: ReplayBuffer, actions: Array, scaled: bool | None) -> Array:
    """
    Actions in environment units.

    :param actions: ``(n, n_envs, action_dim)``
    """
    box = flattened_box(buffer.action_space, "action")
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    if (low == -1).all() and (high == 1).all():
        return actions
    if scaled is None:
        raise ValueError(
            f"the action space is {box!s:.80} and the buffer does not tell whether its actions are scaled to [-1, 1]: "
            "wanted its algorithm, or from_replay_buffer(buffer, scaled=True or False)"
        )
    if not scaled:
        return actions
    if not box.is_bounded():
        raise ValueError(f"scaled=True, and the action space {box!s:.80} has no bounds to scale by")
    if (largest := float(np.abs(actions).max())) > 1 + _ROUNDING:
        raise ValueError(f"scaled=True, and actions reach {largest:g}, wanted at most 1 in size")
    return low + 0.5 * (actions + 1.0) * (high - low)


def _breaks(buffer: ReplayBuffer, rows: Array, observations: Array) -> Array:
    """
    Rows ``(n, n_envs)`` after which an environment was reset in the middle of an episode, as when ``learn`` is called
    again: what followed is not the next row.
    """
    broken = np.zeros(observations.shape[:2], dtype=bool)
    if not buffer.optimize_memory_usage:
        following = flattened(buffer.observation_space, _taken(buffer.next_observations, rows))
        broken[:-1] = (following[:-1] != observations[1:]).any(axis=-1)
    return broken
