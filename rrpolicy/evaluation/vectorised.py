"""Episodes in a vectorised environment of Stable-Baselines3 or of gymnasium, in each of its autoreset modes.

Episodes run in rounds: all environments are reset with consecutive seeds, and each runs one episode. Episode i is thus
the same as in a single environment, and short episodes are not over-represented (Stable-Baselines3 assigns episodes to
environments for the same reason)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from rrpolicy.common.environments import ORIGINAL_REWARD, normaliser_of, own_copy
from rrpolicy.common.spaces import flat_box_or_none, flattened, flattened_box, unflattened
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.evaluation.episodes import SUCCESS_KEYS, Episodes

KEYS = frozenset({*SUCCESS_KEYS, ORIGINAL_REWARD, "final_obs", "final_info"})


class _Step(NamedTuple):
    """Result of a step of n environments."""

    observations: Any  # a batch; of the next episode where one has ended and was reset
    reached: Sequence[Any]  # observations of the episodes themselves, in the environment's own units
    rewards: Array
    over: Array
    infos: Sequence[Mapping[str, Any]]
    repeated: Sequence[int] = ()  # where the last observation of an episode equals the first one of the next


class _Copies(Protocol):
    """Common interface of the two kinds of vectorised environments."""

    num_envs: int
    observation_space: gym.Space[Any]  # of one
    action_space: gym.Space[Any]

    def reset(self, seed: int) -> tuple[Any, Sequence[Any]]:
        """Reset all, with consecutive seeds: the batch, and each observation in the environment's own units."""
        ...

    def step(self, actions: Any) -> _Step:
        """Step all by actions as :func:`_actions` makes them."""
        ...


def run_vectorised(
    env: VecEnv | VectorEnv[Any, Any, Any], agent: Predictor, episodes: Episodes, deterministic: bool, bar: Any
) -> None:
    """
    Run all episodes.

    :param env: left open, in the middle of an episode
    :param bar: a progress bar of steps
    """
    copies: _Copies = _StableBaselines(env) if isinstance(env, VecEnv) else _Gymnasium(env)
    n_envs = copies.num_envs
    flat = flat_box_or_none(getattr(agent, "observation_space", None)) is not None
    ended = lost = 0
    for first in range(0, episodes.n_episodes, n_envs):
        running = np.arange(first, first + n_envs) < episodes.n_episodes
        observations, begun = copies.reset(episodes.seed + first)
        for slot in np.flatnonzero(running).tolist():
            episodes.seen(first + slot, begun[slot])
        left = begun
        state: State | None = None
        starts = np.ones(n_envs, dtype=bool)
        while running.any():
            batch = flattened(copies.observation_space, observations) if flat else observations
            actions, state = agent.predict(batch, state, starts, deterministic)
            step = copies.step(_rows_of_actions(copies.action_space, actions, n_envs))
            observations, starts = step.observations, step.over
            bar.update(int(running.sum()))
            for slot in np.flatnonzero(running).tolist():
                episodes.seen(first + slot, step.reached[slot])
                over = episodes.step(first + slot, step.rewards[slot], bool(step.over[slot]), step.infos[slot])
                running[slot] = not over
                ended += bool(step.over[slot])
                lost += slot in step.repeated and not _equal(left[slot], step.reached[slot])
            left = step.reached
    if episodes.recorded and ended and lost == ended:
        raise ValueError(
            "the last observation of every episode is the first one of the next, as where environments in other "
            "processes fill one array again, or give no terminal_observation: wanted ones that return copies"
        )


def _rows_of_actions(space: gym.Space[Any], actions: Any, n_envs: int) -> Any:
    """
    An agent's actions as the environments take them.

    :param space: of one environment
    :param actions: a batch; vectors (n_envs, act_dim) for a Dict or Tuple are taken apart by the library's rule
    :return: an array (n_envs, ...), or elements of the space, one for each environment
    :raises ValueError: for vectors of another width, or a space that is not made of boxes
    """
    if isinstance(space, gym.spaces.Box):
        return np.reshape(actions, (n_envs, *space.shape))
    if not isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) or not isinstance(actions, np.ndarray):
        return actions
    shape = (n_envs, *flattened_box(space, "action").shape)
    if actions.shape != shape:
        raise ValueError(f"actions have shape {actions.shape}, wanted {shape} for the action space {space!s:.100}")
    return [unflattened(space, row) for row in actions]


class _StableBaselines:
    """Environments that are reset within the step that ends an episode; the last observation is in ``info``."""

    def __init__(self, venv: VecEnv) -> None:
        self._venv, self._normaliser = venv, normaliser_of(venv)
        self.num_envs, self.observation_space, self.action_space = (
            venv.num_envs,
            venv.observation_space,
            venv.action_space,
        )

    def reset(self, seed: int) -> tuple[Any, Sequence[Any]]:
        self._venv.seed(seed)
        observations = own_copy(self._venv.reset())
        return observations, self._own_units(observations)

    def step(self, actions: Any) -> _Step:
        observations, rewards, dones, infos = self._venv.step(actions)
        observations, dones = own_copy(observations), np.array(dones, dtype=bool).reshape(self.num_envs)
        reached, repeated = self._own_units(observations), []
        for i in np.flatnonzero(dones).tolist():
            last = infos[i].get("terminal_observation", _row(observations, i))
            if _equal(last, _row(observations, i)):
                repeated.append(i)
            reached[i] = last if self._normaliser is None else self._normaliser.unnormalize_obs(last)
        if self._normaliser is not None:
            rewards = self._normaliser.get_original_reward()
        return _Step(observations, reached, np.array(rewards), dones, infos, repeated)

    def _own_units(self, observations: Any) -> list[Any]:
        original = observations if self._normaliser is None else self._normaliser.get_original_obs()
        return [_row(original, i) for i in range(self.num_envs)]


class _Gymnasium:
    """Environments that are reset in the next step, in the same one, or on request."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self._env = env
        self._disabled = env.metadata.get("autoreset_mode") == AutoresetMode.DISABLED
        self.num_envs, self.observation_space, self.action_space = (
            env.num_envs,
            env.single_observation_space,
            env.single_action_space,
        )

    def reset(self, seed: int) -> tuple[Any, Sequence[Any]]:
        observations = own_copy(self._env.reset(seed=seed)[0])
        return observations, [_row(observations, i) for i in range(self.num_envs)]

    def step(self, actions: Any) -> _Step:
        if isinstance(actions, list):
            actions = _batch(actions)
        observations, rewards, terminated, truncated, infos = self._env.step(actions)
        observations, over = own_copy(observations), np.logical_or(terminated, truncated).reshape(self.num_envs)
        rewards = np.array(rewards)
        reached, told, repeated = [_row(observations, i) for i in range(self.num_envs)], [], []
        for i in range(self.num_envs):
            info = _info(infos, i)
            if "final_obs" in info:  # mode SAME_STEP
                last = info.pop("final_obs")
                if _equal(last, reached[i]):
                    repeated.append(i)
                reached[i] = last
            told.append(info.pop("final_info", info))
        if self._disabled and over.any():
            observations = own_copy(self._env.reset(options={"reset_mask": over.copy()})[0])
        return _Step(observations, reached, rewards, over, told, repeated)


def _row(observations: Any, index: int) -> Any:
    """One observation of a batch."""
    if isinstance(observations, Mapping):
        return {key: _row(values, index) for key, values in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_row(values, index) for values in observations)
    return observations[index]


def _batch(elements: Sequence[Any]) -> Any:
    """Elements of a Dict, a Tuple or a Box as an element of gymnasium's batched space."""
    if isinstance(elements[0], Mapping):
        return {key: _batch([one[key] for one in elements]) for key in elements[0]}
    if isinstance(elements[0], tuple):
        return tuple(_batch(entries) for entries in zip(*elements, strict=True))
    return np.stack(elements)


def _equal(one: Any, other: Any) -> bool:
    """Whether two observations hold the same values, in the dtype of the second."""
    if isinstance(one, Mapping):
        return all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return all(_equal(mine, its) for mine, its in zip(one, other, strict=True))
    return np.array_equal(np.asarray(one, dtype=np.asarray(other).dtype), other)


def _info(infos: Any, index: int) -> dict[str, Any]:
    """The infos of one environment, of the keys used here, from gymnasium's arrays with masks or list of them."""
    if not isinstance(infos, Mapping):  # under DictInfoToList
        return {key: infos[index][key] for key in KEYS & infos[index].keys()}
    own: dict[str, Any] = {}
    for key in KEYS & infos.keys():
        values, told = infos[key], infos.get(f"_{key}")
        if told is None or told[index]:
            own[key] = _info(values, index) if key == "final_info" else values[index]
    return own
