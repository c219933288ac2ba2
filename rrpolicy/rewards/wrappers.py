"""A reward in the place of an environment's own, so that anything that learns from rewards can learn from ρ.

The reward of a transition is ρ of the observation reached, or, when actions are planned, of the observation left and
the action executed there; the environment's own reward stays in ``info["original_reward"]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rrpolicy.common.environments import (
    ORIGINAL_REWARD,
    copying,
    own_copy,
    single_environments,
    single_number,
    vec_wrappers_of,
    wrapped_in,
    wrappers_of,
)
from rrpolicy.common.spaces import FlatSpaces, flat_box, flattened, unflattened
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.rewards.protocol import StepReward, check_step_reward
from rrpolicy.rewards.uncertain import with_max_uncertainty

Transform = Callable[[Array], Array]
CHUNK = 16_384  # transitions scored at a time, which bounds the memory
_RESCALING = (gym.wrappers.NormalizeObservation, gym.wrappers.RescaleObservation)
_SAME_VALUES = (
    gym.wrappers.FlattenObservation,
    gym.wrappers.ReshapeObservation,
    gym.wrappers.DtypeObservation,
)


class _TransitionReward:
    """ρ of transitions (n,), nats or what ``transform`` makes of them."""

    def __init__(self, reward: StepReward, observation_space: gym.Space[Any], transform: Transform | None) -> None:
        layout = check_step_reward(reward)
        if flat_box(observation_space, "observation").shape != (layout.observation_dim,):
            raise ValueError(
                f"the environment's observations have shape {observation_space.shape}, "
                f"the reward wants ({layout.observation_dim},)"
            )
        self._reward, self._transform, self._needs_actions = reward, transform, layout.plan_actions

    @property
    def needs_actions(self) -> bool:
        """Whether states and actions are scored, or states alone."""
        return self._needs_actions

    def __call__(self, left: Array, actions: Array, reached: Array) -> Array:
        values = self._reward.predict(left, actions) if self._needs_actions else self._reward.predict(reached)
        return values if self._transform is None else self._transform(values)


# ---------------------------------------------------------------------- units under wrappers


def _check_wrappers(env: gym.Env[Any, Any], needs_actions: bool) -> None:
    """
    Check that the innermost environment's units are known through its wrappers.

    :raises ValueError: for wrappers through which the innermost environment's units are not known, naming them
    """
    for wrapper in wrappers_of(env):
        name = type(wrapper).__name__
        shown = isinstance(wrapper, gym.ObservationWrapper) and not isinstance(wrapper, _SAME_VALUES)
        if shown and wrapper.observation_space.shape == wrapper.env.observation_space.shape:
            raise ValueError(_refusal(name, "changes observations"))  # a reward that fits would fit either
        followed = isinstance(wrapper, gym.wrappers.TransformAction) or not isinstance(wrapper, gym.ActionWrapper)
        if needs_actions and not followed:
            raise ValueError(_refusal(name, "changes actions in a way that cannot be followed"))


def _refusal(name: str, what: str) -> str:
    return (
        f"env is wrapped in {name}, which {what}, and rho is in the innermost environment's units: wanted {name} "
        "around the environment whose reward is rho, or wrapped_units=True when the reward was made for wrapped units"
    )


def _executed(env: gym.Env[Any, Any], action: Any) -> Array:
    """The action (act_dim,) that the innermost environment executes when ``env`` is given ``action``."""
    for wrapper in wrappers_of(env):
        if isinstance(wrapper, gym.wrappers.TransformAction):
            action = wrapper.action(action)
        elif isinstance(wrapper, FlatSpaces):
            action = unflattened(wrapper.env.action_space, action)
    space = env.unwrapped.action_space
    return _inside(space, flattened(space, action))


def _inside(space: gym.Space[Any], actions: Array) -> Array:
    """Actions (..., act_dim) as the environment executes them: 50 and 2 are one action where 2 is the bound."""
    if not isinstance(space, gym.spaces.Box):
        return actions
    return np.clip(actions, space.low.ravel(), space.high.ravel())


class RelativeRewardWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment whose reward is ρ.

    :param env: environment with the flat observations that the reward was made for
    :param reward: ρ with a step head
    :param transform: applied to ρ (n,), e.g. to bound it; None for none
    :param wrapped_units: whether the reward was made for actions and observations as the wrappers of ``env`` take and
        give them; False: for the innermost environment's own, so that ρ is of the action that is executed behind
        ``RescaleAction``, ``ClipAction``, ``TransformAction`` (of a function without memory) and the space's bounds
    :param max_uncertainty: standard deviation in nats of an `UncertainReward` beyond which ρ counts less, see
        `Ensemble`; None for none
    :raises ValueError: when the reward cannot score this environment's transitions, or a wrapper is in between through
        which the innermost environment's units cannot be seen, naming it
    """

    keeps_original_reward = True

    def __init__(
        self,
        env: gym.Env[Any, Any],
        reward: StepReward,
        transform: Transform | None = None,
        *,
        wrapped_units: bool = False,
        max_uncertainty: float | None = None,
    ) -> None:
        super().__init__(env)
        reward = with_max_uncertainty(reward, max_uncertainty)
        self._transition_reward = _TransitionReward(reward, env.observation_space, transform)
        self._wrapped_units = wrapped_units
        if not wrapped_units:
            _check_wrappers(env, self._transition_reward.needs_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._left = own_copy(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        given = own_copy(action)
        observation, original, terminated, truncated, info = self.env.step(action)
        reached = own_copy(observation)
        if self._transition_reward.needs_actions and not self._wrapped_units:
            given = _executed(self.env, given)
        (value,) = self._transition_reward(self._left[None], np.asarray(given)[None], reached[None])
        self._left = reached
        return observation, float(value), terminated, truncated, {ORIGINAL_REWARD: single_number(original), **info}


class RelativeRewardVecEnv(VecEnvWrapper):
    """
    SB3 environments whose rewards are ρ, all of them scored in one call.

    :param venv: vectorised environment; ``VecNormalize`` goes around this wrapper, not into it
    :param reward: ρ with a step head
    :param transform: applied to ρ (n_envs,); None for none
    :param wrapped_units: as in :class:`RelativeRewardWrapper`
    :param max_uncertainty: as in :class:`RelativeRewardWrapper`
    :raises ValueError: when the reward cannot score these transitions, or a wrapper is in between through which the
        innermost environments' units cannot be seen, naming it
    """

    keeps_original_reward = True

    def __init__(
        self,
        venv: VecEnv,
        reward: StepReward,
        transform: Transform | None = None,
        *,
        wrapped_units: bool = False,
        max_uncertainty: float | None = None,
    ) -> None:
        super().__init__(venv)
        reward = with_max_uncertainty(reward, max_uncertainty)
        self._transition_reward = _TransitionReward(reward, venv.observation_space, transform)
        self._envs: Sequence[gym.Env] = ()  # whose wrappers the actions have to be followed through
        self._wrapped_units = wrapped_units
        if not wrapped_units:
            self._check_units()

    def _check_units(self) -> None:
        """
        Check that the innermost environments' units are known through all wrappers.

        :raises ValueError: naming the wrapper that is in between
        """
        needs_actions = self._transition_reward.needs_actions
        if any(isinstance(wrapper, VecNormalize) for wrapper in vec_wrappers_of(self.venv)):
            raise ValueError(_refusal("VecNormalize", "changes observations or rewards"))
        envs = single_environments(self.venv)
        for env in envs:
            _check_wrappers(env, needs_actions)
        if not envs:  # in other processes
            for kind in (*_RESCALING, gym.ActionWrapper) if needs_actions else _RESCALING:
                if wrapped_in(self.venv, (kind,)):
                    raise ValueError(_refusal(kind.__name__, "cannot be followed into another process"))
            if wrapped_in(self.venv, (gym.ObservationWrapper,)) and not wrapped_in(self.venv, _SAME_VALUES):
                raise ValueError(_refusal("an ObservationWrapper", "cannot be followed into another process"))
        if needs_actions and wrapped_in(self.venv, (gym.wrappers.TransformAction, FlatSpaces)):
            self._envs = envs

    def reset(self) -> VecEnvObs:
        with copying(self.venv):
            observations = self.venv.reset()
        self._left = own_copy(observations)
        return observations

    def step_async(self, actions: Array) -> None:
        self._actions = own_copy(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        with copying(self.venv):  # so that last observations are those of the episodes
            observations, originals, dones, infos = self.venv.step_wait()
        reached = own_copy(observations)
        following = reached.copy()
        for i in np.flatnonzero(dones):  # SB3 has reset these already and keeps where they really ended
            reached[i] = infos[i]["terminal_observation"]
        values = self._transition_reward(self._left, self._executed(), reached)
        self._left = following
        own = [{ORIGINAL_REWARD: single_number(one), **info} for info, one in zip(infos, originals, strict=True)]
        return observations, values.astype(np.float32), dones, own

    def _executed(self) -> Array:
        """Actions (n_envs, act_dim) as the reward takes them."""
        if self._wrapped_units or not self._transition_reward.needs_actions:
            return self._actions
        if self._envs:
            return np.stack([_executed(env, row) for env, row in zip(self._envs, self._actions, strict=True)])
        return _inside(self.action_space, self._actions)


# ---------------------------------------------------------------------- recorded transitions


def scored_in_chunks(reward: StepReward, observations: Array, actions: Array | None = None) -> Iterator[Array]:
    """
    ρ of many transitions without the memory of all at once.

    :param reward: ρ
    :param observations: (n, obs_dim), environment units
    :param actions: (n, act_dim), needed when the reward scores actions
    :return: ρ of some of them after the others, nats
    """
    for start in range(0, len(observations), CHUNK):
        part = slice(start, start + CHUNK)
        yield reward.predict(observations[part], None if actions is None else actions[part])


def scores_of(dataset: TrajectoryDataset, reward: StepReward) -> Array:
    """ρ (N,) of each row of a dataset, nats."""
    return np.concatenate(list(scored_in_chunks(reward, dataset.observations, dataset.actions)))


def relabel(dataset: TrajectoryDataset, reward: StepReward) -> TrajectoryDataset:
    """
    The same transitions with ρ of each row as their rewards.

    :raises ValueError: when dataset and reward do not fit
    """
    return dataset.with_rewards(scores_of(dataset, reward))
