"""Closed-loop evaluation of anything that acts: seed-matched episodes, stepped together, planned in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm.auto import tqdm

from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.envs.point_maze import make_point_maze
from rrpolicy.evaluation.results import Evaluation

EnvSource = gym.Env | str | Callable[[], gym.Env] | Sequence[gym.Env]

MAX_ENVS = 64  # copies stepped together unless asked otherwise: larger batches plan hardly faster


def evaluate_policy(
    agent: Predictor,
    env: EnvSource,
    n_eval_episodes: int = 48,
    seed: int = 0,
    deterministic: bool = True,
    n_envs: int | None = None,
    progress_bar: bool = False,
    record_observations: bool = False,
) -> Evaluation:
    """
    Run whole episodes. Episode i is reset with ``seed + i``, so different agents meet the same starts. Policies that
    draw from torch's global generator, as Stable-Baselines3's do, draw the same each time; it is left as it was.

    :param agent: anything with ``predict``
    :param env: an environment's id or a function that makes one: several copies run together and are planned for in
        one batch; a list of environments does the same without making (and closing) them; or one environment, whose
        episodes run one after another
    :param n_eval_episodes: episodes
    :param seed: of the first episode, and of torch's global generator meanwhile
    :param deterministic: passed to ``predict``
    :param n_envs: copies to make, at most one per episode; default up to 64
    :param progress_bar: show one
    :param record_observations: keep every observation
    :return: returns, successes, lengths and seeds (and observations), in the order of the seeds
    :raises ValueError: for numbers below 1, or an ``env`` that is none of these
    """
    for name, value in (("n_eval_episodes", n_eval_episodes), ("n_envs", n_envs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
    envs, made = _environments(env, min(n_eval_episodes, n_envs or MAX_ENVS))
    env_id = getattr(envs[0].spec, "id", None)
    try:
        runner = _Runner(envs[:n_eval_episodes], n_eval_episodes, seed, record_observations)
        progress = tqdm(total=runner.longest, unit="step", leave=False, disable=not progress_bar)
        with torch.random.fork_rng(devices=[]), progress as bar:
            torch.default_generator.manual_seed(int(seed))
            runner.run(agent, deterministic, bar)
    finally:
        for one in made:
            one.close()
    known = all(success is not None for success in runner.successes)
    successes = np.array(runner.successes, dtype=bool) if known else None
    observations = tuple(np.array(episode) for episode in runner.observations) if record_observations else None
    seeds = seed + np.arange(n_eval_episodes)
    return Evaluation(runner.returns, successes, runner.lengths, seeds, observations, env_id)


def make_env(env: str | Callable[[], gym.Env], render_mode: str | None = None) -> gym.Env:
    """
    :param env: an environment's id (PointMazes come with flat observations), or a function that makes one
    :param render_mode: for an id
    :return: the environment
    """
    if callable(env):
        return env()
    if env.startswith("PointMaze_"):
        return make_point_maze(env, render_mode=render_mode)
    return gym.make(env, render_mode=render_mode, disable_env_checker=True)


def _environments(env: EnvSource, n: int) -> tuple[Sequence[gym.Env], Sequence[gym.Env]]:
    """Environments to step together, and those of them that were made here."""
    if isinstance(env, gym.Env):
        return [env], []
    source = partial(make_env, env) if isinstance(env, str) else env
    if callable(source):
        made = [source() for _ in range(n)]
        return made, made
    if not isinstance(source, Sequence) or not source or not all(isinstance(one, gym.Env) for one in source):
        raise ValueError(f"env must be an environment, its id, a function that makes it or a list, got {env!r:.80}")
    return source, []


class _Runner:
    """Steps several environments in lockstep until all episodes are done."""

    def __init__(self, envs: Sequence[gym.Env], n_episodes: int, seed: int, record: bool) -> None:
        self.returns = np.zeros(n_episodes)
        self.lengths = np.zeros(n_episodes, dtype=np.int64)
        self.successes: list[bool | None] = [None] * n_episodes
        self.observations: list[list[Any]] = [[] for _ in range(n_episodes)]
        self._record = record
        self._limit = getattr(envs[0].spec, "max_episode_steps", None)
        self._seed = seed
        self._begun = 0
        self._envs = list(envs)
        self._episodes = [0] * len(envs)
        self._current: list[Any] = [None] * len(envs)
        for slot in range(len(envs)):
            self._begin(slot)

    @property
    def longest(self) -> int | None:
        """Steps of all episodes if each runs to its limit; None where there is none."""
        return None if self._limit is None else self._limit * len(self.returns)

    def run(self, agent: Predictor, deterministic: bool, bar: Any) -> None:
        state: State | None = None
        starts = np.ones(len(self._envs), dtype=bool)
        while self._envs:
            actions, state = agent.predict(stack_observations(self._current), state, starts, deterministic)
            starts = np.zeros(len(self._envs), dtype=bool)
            over = []
            bar.update(len(self._envs))
            for slot, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
                observation, reward, terminated, truncated, info = env.step(action)
                episode = self._episodes[slot]
                self._seen(slot, observation)
                self.returns[episode] += float(reward)
                self.lengths[episode] += 1
                if terminated or truncated:
                    success = info.get("success", info.get("is_success"))
                    self.successes[episode] = None if success is None else bool(success)
                    starts[slot] = True
                    bar.update(self._limit - int(self.lengths[episode]) if self._limit else 0)
                    if not self._begin(slot):
                        over.append(slot)
            if over:
                state, starts = self._leave(over, state, starts)

    def _begin(self, slot: int) -> bool:
        """Start the next episode in a slot, if there is one."""
        if self._begun == len(self.returns):
            return False
        self._episodes[slot] = self._begun
        observation, _ = self._envs[slot].reset(seed=self._seed + self._begun)
        self._seen(slot, observation)
        self._begun += 1
        return True

    def _seen(self, slot: int, observation: Any) -> None:
        self._current[slot] = observation
        if self._record:
            self.observations[self._episodes[slot]].append(observation)

    def _leave(self, over: list[int], state: State | None, starts: Array) -> tuple[State | None, Array]:
        """Drop the slots that have nothing left to do, with their part of the agent's memory."""
        stay = np.setdiff1d(np.arange(len(self._envs)), over)
        n_envs = len(self._envs)
        if state is not None:  # sb3-contrib's recurrent policies keep n_envs on the second axis
            state = tuple(np.take(array, stay, axis=0 if len(array) == n_envs else 1) for array in state)
        self._envs, self._episodes, self._current = (
            [values[slot] for slot in stay] for values in (self._envs, self._episodes, self._current)
        )
        return state, starts[stay]


def stack_observations(observations: list[Any]) -> Any:
    """
    :param observations: of several environments; arrays, or dictionaries of arrays
    :return: the batch with a leading ``n_envs``
    """
    if isinstance(observations[0], Mapping):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
