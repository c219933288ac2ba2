"""Closed-loop evaluation of anything that acts: seed-matched episodes, stepped together, planned in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import wraps
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

from rrpolicy.common.arguments import flag, whole
from rrpolicy.common.environments import (
    copying,
    frozen,
    keeps_rewards,
    make_by_id,
    make_several,
    normaliser_of,
    own_copy,
    refuse_normalised_rewards,
    refuse_repeated,
    single_environments,
    wrapped_in,
)
from rrpolicy.common.seeding import checked_seed, seeded
from rrpolicy.common.spaces import check_units, flat_for
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.data.reference_scores import is_registered
from rrpolicy.envs.point_maze import make_point_maze
from rrpolicy.evaluation.episodes import Episodes
from rrpolicy.evaluation.results import Evaluation
from rrpolicy.evaluation.vectorised import run_vectorised

EnvSource = gym.Env | str | Callable[[], gym.Env] | Sequence[gym.Env] | VecEnv | VectorEnv

_FORMER_ORDER = ("seed", "deterministic", "n_envs", "progress_bar", "record_observations")  # after n_eval_episodes
MAX_ENVS = 64  # copies stepped together by default: larger batches plan hardly faster


def evaluate(
    agent: Predictor,
    env: EnvSource,
    n_eval_episodes: int = 48,
    *,
    seed: int = 0,
    deterministic: bool = True,
    n_envs: int | None = None,
    progress_bar: bool = False,
    record_observations: bool = False,
    max_episode_steps: int | None = None,
) -> Evaluation:
    """
    Run whole episodes. Episode i is reset with ``seed + i``, so different agents meet the same starts. The global
    generators of torch, numpy and python are seeded too and restored afterwards; ``agent.set_random_seed(seed)`` is
    called where there is one, except for algorithms of Stable-Baselines3, which would also seed their environment.

    Returns are sums of the environment's own reward: ``info["original_reward"]`` where a wrapper reports it, and the
    unnormalised reward of ``VecNormalize``, whose statistics are kept constant. Rewards that other wrappers change
    count as they are, and such episodes have no normalised score. Environments may fill one array again and again,
    and return rewards as arrays of one number.

    :param agent: anything with ``predict``
    :param env: an environment's id or a function that makes one: several copies run together and are planned for in
        one batch; a list of environments does the same without making (and closing) them; one environment, whose
        episodes run one after another; or a vectorised environment of Stable-Baselines3 or gymnasium, each of whose
        environments runs one episode of a round
    :param n_eval_episodes: episodes
    :param seed: of the first episode, and of the global generators meanwhile; a whole number of at least 0
    :param deterministic: passed to ``predict``
    :param n_envs: copies to make, at most one per episode; default up to 64
    :param progress_bar: show one
    :param record_observations: keep every observation
    :param max_episode_steps: truncate episodes after this many steps; None leaves it to the environment, and an
        episode without a time limit that exceeds ``MAX_EPISODE_STEPS`` (100 000) is an error
    :return: returns, successes, lengths and seeds (and observations), in the order of the seeds
    :raises ValueError: for numbers below 1, an ``env`` that is none of these or gives one environment several times,
        normalised observations for an agent that acts in the environment's units, rewards that are not one number or
        are normalised in a way that cannot be undone, or last observations that are lost in other processes
    """
    counts = {"n_eval_episodes": n_eval_episodes, "n_envs": n_envs, "max_episode_steps": max_episode_steps}
    for name, value in counts.items():
        if value is not None:
            whole(name, value, 1)
    seed, deterministic = checked_seed(seed), flag("deterministic", deterministic)
    progress_bar, record_observations = (
        flag("progress_bar", progress_bar),
        flag("record_observations", record_observations),
    )
    vectorised = env if isinstance(env, VecEnv | VectorEnv) else None
    envs, made = ([], []) if vectorised is not None else environments(env, min(n_eval_episodes, n_envs or MAX_ENVS))
    singles = envs if vectorised is None else single_environments(vectorised)
    try:
        refuse_repeated(singles)
        for one in envs if vectorised is None else [vectorised]:
            check_units(agent, one)
            refuse_normalised_rewards(one)
        limit = _time_limit(singles, max_episode_steps)
        limited = limit is not None or (
            bool(singles) and all(wrapped_in(one, (gym.wrappers.TimeLimit,)) for one in singles)
        )
        episodes = Episodes(n_eval_episodes, seed, record_observations, max_episode_steps, limited)
        longest = None if limit is None else limit * n_eval_episodes
        with seeded(seed, agent), tqdm(total=longest, unit="step", leave=False, disable=not progress_bar) as bar:
            if vectorised is not None:
                normaliser = normaliser_of(vectorised) if isinstance(vectorised, VecEnv) else None
                with frozen(normaliser), copying(vectorised):
                    run_vectorised(vectorised, agent, episodes, deterministic, bar)
            else:
                slots = [flat_for(agent, one) for one in envs[:n_eval_episodes]]
                _Runner(slots, episodes, limit).run(agent, deterministic, bar)
    finally:
        for one in made:
            one.close()
    env_id, registered = _identity(singles, max_episode_steps)
    return episodes.result(env_id, registered and (vectorised is None or keeps_rewards(vectorised)))


def compare(
    agents: Mapping[str, Predictor],
    env: EnvSource,
    n_episodes: int = 48,
    seed: int = 0,
    *,
    deterministic: bool | Mapping[str, bool] = True,
    n_envs: int | None = None,
    before: Callable[[str], object] | None = None,
    after: Callable[[str, Evaluation], object] | None = None,
    **options: Any,
) -> dict[str, Evaluation]:
    """
    Evaluate several agents in the same episodes. Environments that are made from an id or a function are made once and
    shared by the agents, and closed at the end.

    >>> results = compare({"base": base, "steered": steered}, env, n_episodes=48)
    >>> paired_difference(results["steered"], results["base"], "return")

    :param agents: by name
    :param env: as in :func:`evaluate`
    :param n_episodes: for each agent
    :param seed: of the first episode of each agent
    :param deterministic: passed to ``predict``, for all agents or by name
    :param n_envs: copies to make, at most one per episode; default up to 64
    :param before: called with the name of each agent before its episodes
    :param after: called with the name and the results of each agent after its episodes
    :param options: further keywords of :func:`evaluate`
    :return: the results by name, in the order of the agents
    :raises ValueError: as :func:`evaluate`, when there are no agents, or ``deterministic`` does not name each of them
    """
    if not agents:
        raise ValueError("agents is empty, wanted at least one by name")
    modes = deterministic if isinstance(deterministic, Mapping) else dict.fromkeys(agents, deterministic)
    if missing := [name for name in agents if name not in modes]:
        raise ValueError(f"deterministic does not name {missing[0]!r}")
    whole("n_episodes", n_episodes, 1)
    if n_envs is not None:
        whole("n_envs", n_envs, 1)
    results: dict[str, Evaluation] = {}
    with ExitStack() as stack:
        shared = env
        if isinstance(env, str) or callable(env):
            shared, made = environments(env, min(n_episodes, n_envs or MAX_ENVS))
            for one in made:
                stack.enter_context(closing(one))
        for name, agent in agents.items():
            if before is not None:
                before(name)
            results[name] = evaluate(agent, shared, n_episodes, seed=seed, deterministic=modes[name], **options)
            if after is not None:
                after(name, results[name])
    return results


@wraps(evaluate, assigned=())
def evaluate_policy(*args: Any, **kwargs: Any) -> Evaluation:
    """Deprecated name of :func:`evaluate`, with its arguments in the order that they had."""
    warnings.warn(
        "evaluate_policy is deprecated, call evaluate: what follows n_eval_episodes is given by keyword",
        DeprecationWarning,
        stacklevel=2,
    )
    named = dict(zip(_FORMER_ORDER, args[3:], strict=False))
    return evaluate(*args[:3], *args[3 + len(named) :], **named, **kwargs)  # type: ignore[misc]


def _time_limit(envs: Sequence[gym.Env], max_episode_steps: int | None) -> int | None:
    """Steps after which every episode is over; None where that is not known."""
    own = [getattr(env.spec, "max_episode_steps", None) for env in envs]
    known = [limit for limit in own if limit is not None]
    limits = [max_episode_steps, max(known) if known and len(known) == len(own) else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _identity(envs: Sequence[gym.Env], max_episode_steps: int | None) -> tuple[str | None, bool]:
    """Id of the environments, and whether episodes are as they are registered."""
    spec = envs[0].spec if envs else None
    if spec is None:
        return None, False
    registered = all(is_registered(env) and env.spec is not None and env.spec.id == spec.id for env in envs)
    short = max_episode_steps is not None and max_episode_steps < (spec.max_episode_steps or np.inf)
    return spec.id, registered and not short


def make_env(env: str | Callable[[], gym.Env], render_mode: str | None = None) -> gym.Env:
    """
    Make an environment to evaluate in.

    :param env: an environment's id (PointMazes come with flat observations), or a function that makes one
    :param render_mode: for an id
    :return: the environment
    :raises ValueError: when there is no such environment, or it cannot be made
    """
    if callable(env):
        return env()
    if env.startswith("PointMaze_"):
        return make_point_maze(env, render_mode=render_mode)
    return make_by_id(env, render_mode)


def environments(env: Any, n: int) -> tuple[Sequence[gym.Env], Sequence[gym.Env]]:
    """
    Environments to step together.

    :param env: as in :func:`evaluate`, but for a vectorised one
    :param n: how many to make from an id or a function
    :return: the environments, and those of them that were made here
    :raises ValueError: for something else
    """
    if isinstance(env, gym.Env):
        return [env], []
    if isinstance(env, str):
        made: list[gym.Env] = [make_env(env) for _ in range(n)]
        return made, made
    if callable(env):
        made = make_several(env, n)
        return made, made
    if not isinstance(env, Sequence) or not env or not all(isinstance(one, gym.Env) for one in env):
        raise ValueError(
            "env must be an environment, its id, a function that makes it, a list or a vectorised environment, "
            f"got {env!r:.80}"
        )
    return env, []


class _Runner:
    """Steps several environments in lockstep until all episodes are done."""

    def __init__(self, envs: Sequence[gym.Env], episodes: Episodes, limit: int | None) -> None:
        self._record = episodes
        self._limit = limit
        self._begun = 0
        self._envs = list(envs)
        self._episodes = [0] * len(envs)
        self._current: list[Any] = [None] * len(envs)
        self._first: list[Any] = [None] * len(envs)  # observations of the episodes
        self._running = np.ones(len(envs), dtype=bool)
        for slot in range(len(envs)):
            self._begin(slot)

    def run(self, agent: Predictor, deterministic: bool, bar: Any) -> None:
        """Run all episodes; ``bar`` is a progress bar of steps."""
        state: State | None = None
        axes: tuple[int, ...] | None = ()
        starts = np.ones(len(self._envs), dtype=bool)
        while self._running.any():
            first = state is None
            actions, state = agent.predict(stack_observations(self._current), state, starts, deterministic)
            if first:
                axes = () if state is None else _axes(state, len(self._envs))
            starts = np.zeros(len(self._envs), dtype=bool)
            bar.update(int(self._running.sum()))
            for slot, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
                if not self._running[slot]:  # begins again and again, so that its memory fits what it is shown
                    starts[slot] = True
                    continue
                observation, reward, terminated, truncated, info = env.step(action)
                episode = self._episodes[slot]
                self._seen(slot, observation)
                if self._record.step(episode, reward, bool(terminated or truncated), info):
                    bar.update(self._limit - self._record.length(episode) if self._limit else 0)
                    starts[slot] = True
                    if not self._begin(slot):
                        self._running[slot], self._current[slot] = False, self._first[slot]
            if axes is not None and not self._running.all():
                state, starts = self._leave(state, axes, starts)

    def _begin(self, slot: int) -> bool:
        """Start the next episode in a slot, if there is one."""
        if self._begun == self._record.n_episodes:
            return False
        self._episodes[slot] = self._begun
        observation, _ = self._envs[slot].reset(seed=self._record.seed + self._begun)
        self._seen(slot, observation)
        self._first[slot] = self._current[slot]
        self._begun += 1
        return True

    def _seen(self, slot: int, observation: Any) -> None:
        self._current[slot] = own_copy(observation)  # environments may share the array that they fill
        self._record.seen(self._episodes[slot], observation)

    def _leave(self, state: State | None, axes: tuple[int, ...], starts: Array) -> tuple[State | None, Array]:
        """Drop the slots that have nothing left to do, with their part of the agent's memory."""
        stay = np.flatnonzero(self._running)
        if state is not None:
            state = tuple(np.take(array, stay, axis) for array, axis in zip(state, axes, strict=True))
        self._envs, self._episodes = [self._envs[slot] for slot in stay], [self._episodes[slot] for slot in stay]
        self._current, self._first = [self._current[slot] for slot in stay], [self._first[slot] for slot in stay]
        self._running = self._running[stay]
        return state, starts[stay]


def _axes(state: State, n_envs: int) -> tuple[int, ...] | None:
    """
    The axis of each array of an agent's memory along which the environments lie: the first, or the second as in
    sb3-contrib's recurrent policies. None where the shapes are ambiguous: then no environment is dropped.
    """
    fitting = [{axis for axis, size in enumerate(np.shape(array)[:2]) if size == n_envs} for array in state]
    common = set[int]({0, 1}).intersection(*fitting)
    if len(common) == 1:
        fitting = [common] * len(fitting)
    return tuple(min(axes) for axes in fitting) if all(len(axes) == 1 for axes in fitting) else None


def stack_observations(observations: list[Any]) -> Any:
    """
    Join observations of several environments to one batch.

    :param observations: of several environments; arrays, or dictionaries of arrays
    :return: the batch with a leading ``n_envs``
    """
    if isinstance(observations[0], Mapping):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
