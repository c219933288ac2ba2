"""A reward in the place of an environment's own, so that anything that learns from rewards can learn from ρ.

The reward of a transition is ρ of the observation reached, or, when actions are planned, of the observation left and
the action taken there; the environment's own reward stays in ``info["original_reward"]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards.relative_reward import Head, RelativeReward

Transform = Callable[[Array], Array]
ORIGINAL = "original_reward"


class StepReward(Protocol):
    """What scores single steps: a :class:`RelativeReward` with a step head, or what is made of one."""

    @property
    def layout(self) -> TrajectoryLayout | None:
        """What observations and actions are."""
        ...

    @property
    def heads(self) -> tuple[Head, ...]:
        """``"step"`` among them."""
        ...

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """(n, obs_dim), (n, act_dim) in environment units -> (n,) in nats."""
        ...


class _TransitionReward:
    """ρ of transitions (n,), nats or what ``transform`` makes of them."""

    def __init__(self, reward: StepReward, observation_space: gym.Space[Any], transform: Transform | None) -> None:
        layout = reward.layout
        if layout is None or "step" not in reward.heads:
            raise ValueError(f"single transitions need a layout and a step head, this reward has {reward.heads}")
        if observation_space.shape != (layout.observation_dim,):
            raise ValueError(
                f"the environment's observations have shape {observation_space.shape}, "
                f"the reward wants ({layout.observation_dim},)"
            )
        self._reward, self._transform, self._needs_actions = reward, transform, layout.plan_actions

    def __call__(self, left: Array, actions: Array, reached: Array) -> Array:
        values = self._reward.predict(left, actions) if self._needs_actions else self._reward.predict(reached)
        return values if self._transform is None else self._transform(values)


class RelativeRewardWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment that pays ρ.

    :param env: environment with the flat observations that the reward was made for
    :param reward: ρ with a step head
    :param transform: applied to ρ (n,), e.g. to bound it; None for none
    :raises ValueError: when the reward cannot score this environment's transitions
    """

    def __init__(self, env: gym.Env[Any, Any], reward: StepReward, transform: Transform | None = None) -> None:
        super().__init__(env)
        self._transition_reward = _TransitionReward(reward, env.observation_space, transform)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._left = np.asarray(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, original, terminated, truncated, info = self.env.step(action)
        reached = np.asarray(observation)
        (value,) = self._transition_reward(self._left[None], np.asarray(action)[None], reached[None])
        self._left = reached
        return observation, float(value), terminated, truncated, {**info, ORIGINAL: float(original)}


class RelativeRewardVecEnv(VecEnvWrapper):
    """
    SB3 environments that pay ρ, all of them scored in one call.

    :param venv: vectorised environment
    :param reward: ρ with a step head
    :param transform: applied to ρ (n_envs,); None for none
    :raises ValueError: when the reward cannot score these transitions
    """

    def __init__(self, venv: VecEnv, reward: StepReward, transform: Transform | None = None) -> None:
        super().__init__(venv)
        self._transition_reward = _TransitionReward(reward, venv.observation_space, transform)

    def reset(self) -> VecEnvObs:
        self._left = np.asarray(self.venv.reset())
        return self._left

    def step_async(self, actions: Array) -> None:
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, originals, dones, infos = self.venv.step_wait()
        reached = np.array(observations, copy=True)
        for i in np.flatnonzero(dones):  # SB3 has reset these already and keeps where they really ended
            reached[i] = infos[i]["terminal_observation"]
        values = self._transition_reward(self._left, self._actions, reached)
        self._left = np.asarray(observations)
        for info, original in zip(infos, originals, strict=True):
            info[ORIGINAL] = float(original)
        return observations, values.astype(np.float32), dones, infos


def relabel(dataset: TrajectoryDataset, reward: RelativeReward) -> TrajectoryDataset:
    """
    The same transitions with ρ of each row as their rewards.

    :raises ValueError: when dataset and reward do not fit
    """
    return dataset.with_rewards(reward.predict(dataset.observations, dataset.actions))
