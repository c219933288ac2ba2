"""PointMaze for Stable-Baselines3 without MuJoCo: many balls of the vectorised simulator stepped in one call, to train
on in seconds. Observations, starts, true rewards and time limit are the real environment's, against which a test holds
it; agents are evaluated in the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rrpolicy.envs.maze import FREE, MARKS, MazeGeometry
from rrpolicy.envs.point_maze import MIN_START_DISTANCE
from rrpolicy.envs.render import SUCCESS_RADIUS
from rrpolicy.envs.simulator import PointMazeSimulator

RewardType = Literal["dense", "sparse"]
START_NOISE = 0.25  # around a start cell's centre, per axis: gymnasium-robotics' position_noise_range
_START_MARKS = MARKS.replace("g", "")


class PointMazeVecEnv(VecEnv):
    """
    Independent PointMaze episodes to one goal, restarted by themselves as SB3 wants it.

    :param maze: the maze, or whatever :meth:`MazeGeometry.parse` reads
    :param goal: (row, column) in cells, fractions allowed
    :param n_envs: balls
    :param max_episode_steps: environment steps of 0.01 s after which an episode is truncated
    :param action_repeat: environment steps for which each action is held; a step's reward is their sum, so that
        returns are those of the real environment
    :param reward_type: ``"dense"``: exp(-distance to the goal); ``"sparse"``: 1 within the success radius, else 0
    :param seed: of the starts; SB3's algorithms set their own through :meth:`seed`
    :raises ValueError: for a bad maze, a goal that is not free or that no start leads to, or numbers below 1
    """

    def __init__(
        self,
        maze: Any,
        goal: Any,
        n_envs: int = 128,
        max_episode_steps: int = 300,
        action_repeat: int = 1,
        reward_type: RewardType = "dense",
        seed: int | None = None,
    ) -> None:
        counts = {"n_envs": n_envs, "max_episode_steps": max_episode_steps, "action_repeat": action_repeat}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        if reward_type not in get_args(RewardType):
            raise ValueError(f"reward_type must be one of {get_args(RewardType)}, got {reward_type!r}")
        self.render_mode = None
        self.maze = MazeGeometry.parse(maze)
        self.start_places = start_places(self.maze, goal)
        self.goal_xy = self.maze.cell_to_xy(goal)
        self.max_episode_steps, self.action_repeat, self.reward_type = max_episode_steps, action_repeat, reward_type
        self._simulator = PointMazeSimulator(self.maze)
        self._rng = np.random.default_rng(seed)
        self._states = np.zeros((n_envs, 4))
        self._elapsed = np.zeros(n_envs, dtype=np.int64)
        self._actions = np.zeros((n_envs, 2))
        super().__init__(
            n_envs,
            gym.spaces.Box(-np.inf, np.inf, (4,), np.float64),
            gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        )

    # ------------------------------------------------------------------ episodes

    def reset(self) -> VecEnvObs:
        """Begin all episodes anew: observations ``(n_envs, 4)`` as x, y, vx, vy."""
        if self._seeds[0] is not None:
            self._rng = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._begin(np.arange(self.num_envs))
        return self._states.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """
        Keep the actions of the next step.

        :param actions: forces ``(n_envs, 2)``, clipped to [-1, 1]
        """
        self._actions = np.asarray(actions, dtype=np.float64)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all environments, and reset those whose episode ended.

        :return: observations ``(n_envs, 4)``, rewards, dones, infos with ``success`` (``is_success`` too) and, at an
            episode's end, ``terminal_observation``; an end is always a truncation
        """
        rewards = np.zeros(self.num_envs)
        running = np.ones(self.num_envs, dtype=bool)
        for _ in range(self.action_repeat):
            self._states[running] = self._simulator.step(self._states[running], self._actions[running])
            self._elapsed += running
            rewards += np.where(running, self._true_reward(self._distances()), 0.0)
            running &= self._elapsed < self.max_episode_steps
            if not running.any():
                break
        infos: list[dict[str, Any]] = [
            {"success": success, "is_success": success, "TimeLimit.truncated": not on}
            for success, on in zip((self._distances() <= SUCCESS_RADIUS).tolist(), running.tolist(), strict=True)
        ]
        over = np.flatnonzero(~running)
        for i in over:
            infos[i]["terminal_observation"] = self._states[i].copy()
        self._begin(over)
        return self._states.copy(), rewards.astype(np.float32), ~running, infos

    def _begin(self, who: np.ndarray) -> None:
        """Balls at rest, uniformly over the start cells and off their centres."""
        places = self.start_places[self._rng.integers(len(self.start_places), size=len(who))]
        self._states[who, :2] = places + self._rng.uniform(-START_NOISE, START_NOISE, size=(len(who), 2))
        self._states[who, 2:] = 0.0
        self._elapsed[who] = 0

    def _distances(self) -> np.ndarray:
        return np.linalg.norm(self._states[:, :2] - self.goal_xy, axis=1)

    def _true_reward(self, distances: np.ndarray) -> np.ndarray:
        """Of one environment step ``(n_envs,)``, as gymnasium-robotics pays it."""
        return np.exp(-distances) if self.reward_type == "dense" else (distances <= SUCCESS_RADIUS).astype(np.float64)

    # ------------------------------------------------------------------ what else SB3 asks of a vectorised environment

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of this object, once for each ball: they share all of them."""
        return [getattr(self, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """
        Set an attribute, which all environments share.

        :raises ValueError: when only some of the balls are meant, which share their attributes
        """
        if self._count(indices) != self.num_envs:
            raise ValueError(f"indices must be None, the environments share {attr_name!r}; got {indices!r}")
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """One call of this object's method, its result once for each ball."""
        return [getattr(self, method_name)(*method_args, **method_kwargs)] * self._count(indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """Never."""
        return [False] * self._count(indices)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """None: pictures are the real environment's."""
        return [None] * self.num_envs

    def _count(self, indices: Any) -> int:
        return len(list(self._get_indices(indices)))


def start_places(maze: MazeGeometry, goal: Any) -> np.ndarray:
    """
    Centres of the cells that an episode with this goal can start in, as the real environment chooses them: cells marked
    as starts if there are any, not too near, and joined to the goal by a path.

    :param goal: (row, column) in cells, fractions allowed
    :return: ``(n, 2)`` in environment units
    :raises ValueError: for a goal that is not free or has no start
    """
    maze.free_cell(goal, "goal")
    marks = np.array([list(row) for row in maze.rows])
    marked = np.isin(marks, list(_START_MARKS))
    cells = np.argwhere((marked if marked.any() else marks == FREE) & np.isfinite(maze.path_distances(goal)))
    places = maze.cell_to_xy(cells)
    places = places[np.linalg.norm(places - maze.cell_to_xy(goal), axis=1) > MIN_START_DISTANCE]
    if not len(places):
        raise ValueError(f"goal {goal!r} must be joined to a free start cell in the maze:\n{maze}")
    return places
