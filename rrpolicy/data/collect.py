"""Makes datasets: waypoint demonstrations in the vectorised maze simulator, or roll-outs of agents in a real
environment, noisy or random now and then. In mazes base data wanders between random goals, expert data goes to one
and stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.environments import (
    ORIGINAL_REWARD,
    copying,
    frozen,
    keeps_rewards,
    no_originals,
    normaliser_of,
    refuse_normalised_rewards,
    single_environments,
    single_number,
    wrapped_in,
)
from rrpolicy.common.seeding import checked_seed, seeded
from rrpolicy.common.spaces import check_units, flat_box, flat_for
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.maze_streams import Streams, base_lengths, expert_length, expert_lengths
from rrpolicy.data.reference_scores import is_registered, normalized_score, reference_score
from rrpolicy.envs.controller import WaypointController
from rrpolicy.envs.maze import MazeGeometry

_CUT = "TimeLimit.truncated"  # key of ``info`` by which vectorised environments mark an episode that was cut off


@dataclass
class _Episode:
    """Rows of observation, action and reward; whether it was terminated, whether truncated, None where untold."""

    rows: list[tuple[Any, Any, float]] = field(default_factory=list)
    ends: tuple[bool, bool] | None = (False, False)


def collect_point_maze(
    maze: Any,
    n_transitions: int,
    goal: Any = None,
    seed: int = 0,
    *,
    action_noise: float = 0.2,
    dwell: tuple[int, int] = (0, 160),
    goal_offset: float = 0.2,
    jitter: float = 0.2,
    episode_length: int | None = None,
) -> TrajectoryDataset:
    """
    Demonstrations of the waypoint controller with noisy actions, in the vectorised simulator.

    :param maze: the maze, or whatever :meth:`MazeGeometry.parse` reads
    :param n_transitions: how many rows the dataset gets, exactly
    :param goal: None for base data (random start, random goal, stay a while, next goal, in long streams); a cell
        (row, column), fractions allowed, for expert data (random start, that goal, stay; many episodes)
    :param seed: the dataset is a pure function of it and the other arguments
    :param action_noise: standard deviation of the Gaussian added to actions before they are clipped and recorded
    :param dwell: fewest and most steps that base data stays at a goal
    :param goal_offset: base goals lie up to this far from a cell's centre, per axis, in cells
    :param jitter: the same for waypoints
    :param episode_length: steps of an episode; None: long streams for the base, and for the expert enough for the
        longest way, a window behind it, and about as much staying as travelling
    :return: observations (x, y, vx, vy) and actions in environment units; how they were made in ``metadata``
    :raises ValueError: if the goal is not in a free cell or a number is out of range, naming it
    """
    maze = MazeGeometry.parse(maze)
    seed = checked_seed(seed)
    _check_numbers(n_transitions, action_noise, dwell, goal_offset, episode_length)
    streams = Streams(WaypointController(maze, jitter=jitter), np.random.default_rng(seed), action_noise)
    if goal is None:
        lengths = base_lengths(n_transitions, episode_length)
        streams.wander(len(lengths), dwell, goal_offset)
    else:
        lengths = expert_lengths(n_transitions, episode_length or expert_length(maze, goal))
        streams.go_to(len(lengths), goal)
    observations, actions = streams.record(int(lengths.max()))
    keep = np.arange(lengths.max()) < lengths[:, None]
    cell = None if goal is None else [float(value) for value in goal]
    metadata = {"source": "waypoint controller", "maze": list(maze.rows), "goal": cell, "seed": seed}
    cut = np.ones(len(lengths), dtype=bool)  # nothing ends in this simulator, streams are cut off
    return TrajectoryDataset(observations[keep], actions[keep], lengths, metadata=metadata, truncated=cut)


def collect(
    agent: Predictor,
    env: gym.Env | VecEnv,
    n_transitions: int,
    seed: int = 0,
    deterministic: bool = False,
    *,
    action_noise: float = 0.0,
    epsilon: float = 0.0,
) -> TrajectoryDataset:
    """
    Roll an agent out in an environment, which is reset and left in the middle of an episode.

    :param agent: anything with ``predict``
    :param env: a gymnasium environment, or a vectorised one of Stable-Baselines3 (one call of the agent for all)
    :param n_transitions: how many rows the dataset gets, exactly; its last episodes may be unfinished
    :param seed: environment i is seeded with seed + i, noise and torch's global generator with seed
    :param deterministic: the agent's mode
    :param action_noise: standard deviation, in environment units, of the Gaussian added to the agent's actions
    :param epsilon: probability that an action is drawn uniformly from the action space instead
    :return: observations, executed actions and rewards in environment units: the originals of ``VecNormalize`` (whose
        statistics are kept constant), and ``info["original_reward"]`` where a wrapper reports it; how episodes ended,
        unless an episode ends without ``info["TimeLimit.truncated"]``; ``metadata`` says how they were made, with the
        returns of the finished episodes
    :raises ValueError: if a number is out of range, the spaces are not flat, or observations or rewards are normalised
        in a way that cannot be undone, naming the wrapper
    """
    n_transitions, seed = whole("n_transitions", n_transitions, 1), checked_seed(seed)
    deterministic = flag("deterministic", deterministic)
    venv = _vectorised(agent, env)
    _flat_box(venv.observation_space, "observation_space")
    noise = _ActionNoise(_flat_box(venv.action_space, "action_space"), action_noise, epsilon, seed)
    source = _Originals(agent, venv)
    state, begins = None, np.ones(venv.num_envs, dtype=bool)
    open_episodes = [_Episode() for _ in range(venv.num_envs)]
    episodes: list[_Episode] = []
    with seeded(seed, agent), frozen(source.normaliser), copying(venv):
        venv.seed(seed)
        observations = source.reset()
        for _ in range(-(-n_transitions // venv.num_envs)):
            actions, state = agent.predict(observations, state=state, episode_start=begins, deterministic=deterministic)
            actions, own = noise.applied(actions), source.observations
            observations, rewards, begins = source.step(actions)
            for i, episode in enumerate(open_episodes):
                episode.rows.append((own[i], actions[i].copy(), rewards[i]))
                if begins[i]:
                    episode.ends = source.ends(i)
                    episodes.append(episode)
                    open_episodes[i] = _Episode()
    metadata = {
        "source": "roll-outs of an agent",
        "seed": seed,
        "n_envs": venv.num_envs,
        "deterministic": deterministic,
        "action_noise": float(action_noise),
        "epsilon": float(epsilon),
        "returns": [sum(reward for *_, reward in episode.rows) for episode in episodes],
    }
    return _dataset_of(episodes + [episode for episode in open_episodes if episode.rows], n_transitions, metadata)


def _vectorised(agent: Predictor, env: gym.Env | VecEnv) -> VecEnv:
    if isinstance(env, VecEnv):
        return env
    if not isinstance(env, gym.Env):
        raise ValueError(f"env is a {type(env).__name__}, wanted a gymnasium.Env or a VecEnv of Stable-Baselines3")
    single = flat_for(agent, env)
    return DummyVecEnv([lambda: single])


class _Originals:
    """
    A vectorised environment with the original observations and rewards behind its normaliser.

    :raises ValueError: when it normalises in a way that cannot be undone, or the agent does not act in its units
    """

    def __init__(self, agent: Predictor, venv: VecEnv) -> None:
        check_units(agent, venv)
        self.normaliser, self._venv = normaliser_of(venv), venv
        if wrapped_in(venv, (gym.wrappers.NormalizeObservation,)):
            raise ValueError(no_originals("NormalizeObservation"))
        refuse_normalised_rewards(venv)

    def reset(self) -> np.ndarray:
        """Reset all: observations (n_envs, obs_dim) for the agent."""
        return self._seen(self._venv.reset())

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, list[float], np.ndarray]:
        """Observations for the agent, original rewards, and where an episode has ended."""
        observations, rewards, dones, infos = self._venv.step(actions)
        self._cut = [info.get(_CUT) for info in infos]
        if self.normaliser is not None:
            rewards = self.normaliser.get_original_reward()
        own = [single_number(info.get(ORIGINAL_REWARD, one)) for one, info in zip(rewards, infos, strict=True)]
        return self._seen(observations), own, np.array(dones, dtype=bool)

    def ends(self, index: int) -> tuple[bool, bool] | None:
        """Whether an episode that has ended at the last step was terminated and whether truncated; None if untold."""
        cut = self._cut[index]
        return None if cut is None else (not cut, bool(cut))

    def _seen(self, observations: Any) -> np.ndarray:
        """Copies of both, since environments may reuse their arrays."""
        self.observations = np.array(observations if self.normaliser is None else self.normaliser.get_original_obs())
        return np.array(observations)


@dataclass(frozen=True)
class MixtureComponent:
    """
    One of the agents of a mixture.

    :param name: what metadata and results call it
    :param agent: anything with ``predict``
    :param share: of the transitions, in any unit
    :param facts: JSON values about the agent, kept in the metadata
    """

    name: str
    agent: Predictor
    share: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def collect_mixture(
    drivers: Sequence[MixtureComponent],
    env: gym.Env | VecEnv,
    n_transitions: int,
    seed: int = 0,
    env_id: str | None = None,
    **how: Any,
) -> TrajectoryDataset:
    """
    Roll several agents out, one after the other, each for its share of the transitions.

    :param drivers: at least one
    :param env: as in :func:`collect`
    :param n_transitions: how many rows the dataset gets, exactly
    :param seed: of the first agent; those of the others follow, so that no two start alike
    :param env_id: the environment's, for the normalised score, which it has where it is as it is registered
    :param how: as in :func:`collect`: deterministic, action_noise, epsilon
    :return: the episodes in the order of the agents; ``metadata["agents"]`` says for each its name and facts, share,
        rows, episodes, the returns of finished ones and, where D4RL has references, their mean normalised score
    :raises ValueError: when there is no agent, or one whose share gives it no transition
    """
    shares = np.array([driver.share for driver in drivers], dtype=np.float64)
    if not shares.size or not np.isfinite(shares).all() or (shares <= 0).any():
        raise ValueError(f"the shares of agents are {shares.tolist()}, wanted at least one, all above 0")
    n_transitions, seed = whole("n_transitions", n_transitions, 1), checked_seed(seed)
    counts = np.diff(np.rint(np.cumsum(shares) / shares.sum() * n_transitions).astype(int), prepend=0)
    if counts.min() < 1:
        raise ValueError(f"n_transitions={n_transitions} gives an agent of shares {shares.tolist()} no transition")
    n_envs = env.num_envs if isinstance(env, VecEnv) else 1
    parts = [
        collect(driver.agent, env, int(count), seed + index * n_envs, **how)
        for index, (driver, count) in enumerate(zip(drivers, counts, strict=True))
    ]
    scored = bool(held := single_environments(env)) and all(_is_task(one, env_id) for one in held)
    scored = scored and (isinstance(env, gym.Env) or keeps_rewards(env))
    agents = [
        {
            "name": driver.name,
            **driver.facts,
            "share": float(share),
            "n_transitions": part.n_transitions,
            "n_episodes": part.n_episodes,
            **_outcome(env_id if scored else None, part.metadata["returns"]),
        }
        for driver, share, part in zip(drivers, shares / shares.sum(), parts, strict=True)
    ]
    common = {key: value for key, value in parts[0].metadata.items() if key != "returns"}
    joined = TrajectoryDataset.concatenate(parts)
    return replace(joined, metadata={**common, "env_id": env_id, "agents": agents})


def _is_task(env: gym.Env, env_id: str | None) -> bool:
    """Whether an environment is the one that an id stands for, as it is registered."""
    return is_registered(env) and env.spec is not None and env.spec.id == env_id


def _outcome(env_id: str | None, returns: list[float]) -> dict[str, Any]:
    """Returns, and their mean normalised score where there is one."""
    if not returns or reference_score(env_id) is None:
        return {"returns": returns}
    return {"returns": returns, "normalized_score": float(normalized_score(str(env_id), np.mean(returns)))}


class _ActionNoise:
    """What is done to an agent's actions before they are executed and recorded."""

    def __init__(self, space: gym.spaces.Box, action_noise: float, epsilon: float, seed: int) -> None:
        action_noise, epsilon = number("action_noise", action_noise, 0), number("epsilon", epsilon, 0)
        if epsilon > 1:
            raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
        if epsilon and not space.is_bounded():
            raise ValueError(f"epsilon={epsilon!r} needs a bounded action space, got {space}")
        self._space, self._std, self._epsilon = space, action_noise, epsilon
        self._rng = np.random.default_rng(seed)

    def applied(self, actions: Any) -> np.ndarray:
        """
        Actions as the environment executes them.

        :param actions: (n_envs, action_dim) in environment units, as are those that come back, inside the space
        """
        actions, low, high = np.asarray(actions), self._space.low, self._space.high
        if self._std:
            actions = actions + self._std * self._rng.standard_normal(actions.shape)
        if self._epsilon:
            replaced = self._rng.random(len(actions)) < self._epsilon
            actions = np.where(replaced[:, None], self._rng.uniform(low, high, actions.shape), actions)
        return np.clip(actions, low, high).astype(self._space.dtype)


def _check_numbers(
    n_transitions: int, action_noise: float, dwell: tuple[int, int], goal_offset: float, episode_length: int | None
) -> None:
    """Raise ValueError for arguments out of range."""
    whole("n_transitions", n_transitions, 1)
    number("action_noise", action_noise, 0)
    if not 0 <= dwell[0] <= dwell[1]:
        raise ValueError(f"dwell must be two numbers of steps, the fewest first, got {dwell!r}")
    if not 0 <= goal_offset < 0.5:
        raise ValueError(f"goal_offset must be in [0, 0.5) cells, got {goal_offset!r}")
    if episode_length is not None:
        whole("episode_length", episode_length, 1)


def _flat_box(space: gym.Space, name: str) -> gym.spaces.Box:
    """The space, if datasets can hold it."""
    try:
        return flat_box(space, name.removesuffix("_space"))
    except ValueError as error:
        raise ValueError(f"env must have a flat Box as {name}: {error}") from None


def _dataset_of(episodes: list[_Episode], n_transitions: int, metadata: Mapping[str, Any]) -> TrajectoryDataset:
    """The first n transitions of recorded episodes."""
    stops = np.cumsum([len(episode.rows) for episode in episodes])
    lengths = np.diff(np.minimum(stops, n_transitions), prepend=0)
    kept, complete = lengths > 0, stops <= n_transitions
    rows = [row for episode in episodes for row in episode.rows][:n_transitions]
    observations, actions, rewards = (np.array(column) for column in zip(*rows, strict=True))
    told = [episode.ends for episode in episodes if episode.ends is not None]
    ends = (np.asarray(told) & complete[:, None])[kept] if len(told) == len(episodes) else None
    terminated, truncated = (None, None) if ends is None else (ends[:, 0], ends[:, 1])
    return TrajectoryDataset(observations, actions, lengths[kept], rewards, dict(metadata), terminated, truncated)
