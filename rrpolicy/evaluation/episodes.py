"""Record of running episodes: returns, lengths, success at the last step and at any step, observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rrpolicy.common.environments import ORIGINAL_REWARD, own_copy, single_number
from rrpolicy.evaluation.results import Evaluation

SUCCESS_KEYS = ("success", "is_success")
MAX_EPISODE_STEPS = 100_000  # after which an episode without a time limit is an error


def success_in(info: Mapping[str, Any]) -> bool | None:
    """
    Success as a step's ``info`` reports it, under ``success`` or ``is_success``; None where it has neither.

    :raises ValueError: when the value is not a single number or boolean
    """
    for key in SUCCESS_KEYS:
        if info.get(key) is not None:
            return bool(single_number(info[key], f"info[{key!r}]"))
    return None


class Episodes:
    """
    Record of n episodes with consecutive seeds.

    :param n_episodes: how many
    :param seed: of the first
    :param record_observations: keep every observation
    :param max_episode_steps: after so many steps an episode is cut off; None leaves it to the environment
    :param limited: whether the environment has a time limit
    """

    def __init__(
        self, n_episodes: int, seed: int, record_observations: bool, max_episode_steps: int | None, limited: bool
    ) -> None:
        self.n_episodes, self.seed = n_episodes, seed
        self._limit = max_episode_steps
        self._bound = None if limited or max_episode_steps is not None else MAX_EPISODE_STEPS
        self._returns = np.zeros(n_episodes)
        self._lengths = np.zeros(n_episodes, dtype=np.int64)
        self._at_end = np.zeros(n_episodes, dtype=bool)
        self._once = np.zeros(n_episodes, dtype=bool)
        self._reported = False
        self._observations: list[list[Any]] | None = [[] for _ in range(n_episodes)] if record_observations else None

    @property
    def recorded(self) -> bool:
        """Whether observations are kept."""
        return self._observations is not None

    def length(self, episode: int) -> int:
        """Steps of an episode so far."""
        return int(self._lengths[episode])

    def seen(self, episode: int, observation: Any) -> None:
        """Add the observation of a reset or of a step."""
        if self._observations is not None:
            self._observations[episode].append(own_copy(observation))

    def step(self, episode: int, reward: Any, over: bool, info: Mapping[str, Any]) -> bool:
        """
        Add a step. ``info["original_reward"]`` takes precedence over the reward.

        :return: whether the episode is over
        :raises ValueError: for a reward that is no single number, or an episode that has no end
        """
        self._returns[episode] += single_number(info.get(ORIGINAL_REWARD, reward))
        self._lengths[episode] += 1
        success = success_in(info)
        self._reported |= success is not None
        self._at_end[episode] = bool(success)
        self._once[episode] |= bool(success)
        length = self._lengths[episode]
        if not over and length == self._bound:
            raise ValueError(
                f"an episode has not ended after {length} steps and no time limit is known: wanted max_episode_steps"
            )
        return bool(over) or length == self._limit

    def result(self, env_id: str | None, registered: bool) -> Evaluation:
        """The results; successes are None where no step of any episode reported any."""
        observations = None
        if self._observations is not None:
            observations = tuple(np.array(episode) for episode in self._observations)
        return Evaluation(
            self._returns,
            self._at_end if self._reported else None,
            self._lengths,
            self.seed + np.arange(self.n_episodes),
            observations,
            env_id,
            self._once if self._reported else None,
            registered,
        )
