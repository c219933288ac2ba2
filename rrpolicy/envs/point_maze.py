"""The real PointMaze (gymnasium-robotics, MuJoCo) with flat observations, any maze and a goal fixed in cells.
Its pictures are top-down drawings without OpenGL."""

from __future__ import annotations

import contextlib
import os
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs

import rrpolicy.envs.robotics  # noqa: F401  registers the environments
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.render import SUCCESS_RADIUS, draw_maze
from rrpolicy.envs.simulator import RADIUS

MIN_START_DISTANCE = 0.5  # from the goal, as in gymnasium-robotics
FRAMES_PER_SECOND = 50  # of videos with one picture per step: half the ball's real speed
DEFAULT_ENV_ID = "PointMaze_UMaze-v3"


def make_point_maze(
    env_id: str = DEFAULT_ENV_ID,
    maze_map: Any = None,
    goal: Any = None,
    render_mode: str | None = None,
    *,
    render_size: int = 480,
    **kwargs: Any,
) -> gym.Env:
    """
    Make a PointMaze whose episodes run their whole length (``info["success"]`` tells whether the ball is at the goal).

    :param env_id: a registered PointMaze
    :param maze_map: another maze than the environment's own: rows, text or the path of a text file
    :param goal: (row, column) in cells, fractions allowed, the goal of every episode; None leaves the random choice to
        the environment
    :param render_mode: None or ``"rgb_array"``
    :param render_size: longer side of a picture in pixels
    :param kwargs: for the environment, e.g. ``max_episode_steps``, ``reward_type``, ``continuing_task``
    :return: an environment with ``Box(4,)`` observations x, y, vx, vy
    :raises ValueError: for an unknown environment, a bad maze, a goal in a wall or outside, naming the argument
    """
    maze = check_point_maze(env_id, maze_map, goal)
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    if goal is not None and kwargs.get("reset_target"):
        raise ValueError("reset_target must be False when goal is given, got True: the goal could not stay")
    arguments: dict[str, Any] = {"continuing_task": True, "reset_target": False, **kwargs}
    if maze_map is not None:
        arguments["maze_map"] = maze.to_gymnasium()
        arguments.setdefault("max_episode_steps", _episode_steps(maze))
    env = gym.make(env_id, render_mode=render_mode, disable_env_checker=True, **arguments)
    _remove_model_file(env)
    return FlatPointMaze(env, goal=goal, render_size=render_size)


def check_point_maze(env_id: str, maze_map: Any = None, goal: Any = None) -> MazeGeometry:
    """
    Check what :func:`make_point_maze` is to make by its geometry alone, without the simulator.

    :param env_id: a registered PointMaze
    :param maze_map: as there
    :param goal: as there
    :return: the maze
    :raises ValueError: as there, and for a goal that no start is joined to
    """
    spec = _point_maze_spec(env_id)
    maze = MazeGeometry.parse(spec.kwargs["maze_map"] if maze_map is None else maze_map)
    starts = _start_cells(maze)
    if goal is not None:
        maze.free_cell(goal, "goal")
        _joined_places(maze, maze.cell_to_xy(sorted(starts)), maze.cell_to_xy(goal))
    return maze


class FlatPointMaze(gym.Wrapper, RecordConstructorArgs):
    """
    Flat observations, a fixed goal and a drawing for a gymnasium-robotics PointMaze.

    ``reset`` takes ``options={"start": (row, column), "goal": (row, column)}``, exact cells for that episode.

    :param env: the environment
    :param goal: (row, column) in cells, fractions allowed; None leaves the choice to the environment
    :param render_size: longer side of a picture in pixels
    :raises ValueError: if the goal is not in a free cell or no start is far enough from it
    """

    def __init__(self, env: gym.Env, goal: Any = None, render_size: int = 480) -> None:
        RecordConstructorArgs.__init__(self, goal=goal, render_size=render_size)
        gym.Wrapper.__init__(self, env)
        self.env: Any  # its observations are dictionaries, which gymnasium's types cannot say
        self.maze = MazeGeometry.from_env(env)
        self._base = cast(Any, env.unwrapped)
        self._fixed_goal = None if goal is None else self._checked_goal(goal)
        if self._fixed_goal is not None:
            self._start_places(self._fixed_goal)
        self._render_size = render_size
        self._trail: list[np.ndarray] = []
        self._observation = np.zeros(4)
        self.observation_space = self._base.observation_space["observation"]
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND}

    @property
    def goal_xy(self) -> np.ndarray | None:
        """The goal (x, y) of this episode in environment units; None before the first reset unless it is fixed."""
        goal = getattr(self._base, "goal", self._fixed_goal)
        return None if goal is None else np.array(goal)

    @property
    def goal_cell(self) -> np.ndarray | None:
        """The same as fractional cell coordinates (row, column)."""
        return None if self.goal_xy is None else self.maze.xy_to_rowcol(self.goal_xy)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Begin an episode.

        :param seed: makes goal and start reproducible
        :param options: ``start`` and ``goal`` in exact cell coordinates; anything else goes to gymnasium-robotics
        :return: observation ``(4,)`` and info
        :raises ValueError: if start or goal are no places in the maze
        """
        options = dict(options or {})
        start, goal = options.pop("start", None), options.pop("goal", None)
        observation, info = self.env.reset(seed=seed, options=options or None)
        wanted = self._fixed_goal if goal is None else self._checked_goal(goal)
        if wanted is not None or start is not None:
            if wanted is not None:
                self._base.goal = wanted.copy()
                self._base.update_target_site_pos()
            position = self._random_start() if start is None else self._checked_start(start)
            self._base.reset_pos = position
            self._base.point_env.set_state(position, np.zeros(2))
            self._observation = np.concatenate([position, np.zeros(2)])
        else:
            self._observation = observation["observation"]
        success = bool(np.linalg.norm(self._observation[:2] - self._base.goal) <= SUCCESS_RADIUS)
        info["success"] = info["is_success"] = success
        self._trail = [self._observation[:2].copy()]
        return self._observation.copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Push the ball for one environment step.

        :param action: ``(2,)`` forces in [-1, 1]
        :return: observation ``(4,)``, reward, terminated, truncated, info with ``success`` (SB3's ``is_success`` too)
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observation = observation["observation"]
        info["is_success"] = info["success"]
        if self.render_mode is not None:
            self._trail.append(self._observation[:2].copy())
        return self._observation.copy(), float(reward), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """The maze from above, ``(height, width, 3)`` uint8; None when the render mode is None."""
        if self.render_mode is None:
            return None
        return draw_maze(
            self.maze,
            size=self._render_size,
            position=self._observation[:2],
            goal=self.goal_xy,
            trail=np.array(self._trail),
        )

    def _checked_goal(self, goal: Any) -> np.ndarray:
        """Position of a goal in cell coordinates."""
        self.maze.free_cell(goal, "goal")
        return self.maze.cell_to_xy(goal)

    def _checked_start(self, start: Any) -> np.ndarray:
        """Position of a start in cell coordinates, which must hold the whole ball."""
        self.maze.free_cell(start, "start")
        position = self.maze.cell_to_xy(start)
        if self.maze.clearance(position) < RADIUS:
            raise ValueError(f"start must be {RADIUS} away from walls, got {start!r} in the maze:\n{self.maze}")
        return position

    def _start_places(self, goal: np.ndarray) -> np.ndarray:
        """Centres ``(n, 2)`` of the cells that an episode with this goal can start in."""
        return _joined_places(self.maze, np.array(self._base.maze.unique_reset_locations), goal)

    def _random_start(self) -> np.ndarray:
        """Uniform over start cells, off the centre by the environment's own noise."""
        places = self._start_places(self._base.goal)
        noise = self._base.position_noise_range
        return places[self.np_random.integers(len(places))] + self.np_random.uniform(-noise, noise, size=2)


def _point_maze_spec(env_id: str) -> EnvSpec:
    """Registered specification of a PointMaze."""
    known = sorted(key for key in gym.registry if key.startswith("PointMaze_"))
    if env_id not in known:
        raise ValueError(f"env_id must be one of {', '.join(known)}; got {env_id!r}")
    return gym.registry[env_id]


def _joined_places(maze: MazeGeometry, places: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Those of some start places ``(n, 2)`` that are joined to a goal and not at it."""
    cells = maze.xy_to_cell(places)
    distances = maze.path_distances(maze.xy_to_rowcol(goal))[cells[:, 0], cells[:, 1]]
    places = places[np.isfinite(distances) & (np.linalg.norm(places - goal, axis=1) > MIN_START_DISTANCE)]
    if not len(places):
        cell = tuple(maze.xy_to_rowcol(goal).round(3).tolist())
        raise ValueError(f"goal {cell} must be joined to a free start cell in the maze:\n{maze}")
    return places


def _start_cells(maze: MazeGeometry) -> set[tuple[int, int]]:
    """Starts and goals as gymnasium-robotics reads them from the marks; it would loop forever or fail without these."""
    marked: dict[str, set[tuple[int, int]]] = {mark: set() for mark in "rgc."}
    for r, row in enumerate(maze.rows):
        for c, cell in enumerate(row):
            marked.setdefault(cell, set()).add((r, c))
    starts, goals = marked["r"] | marked["c"], marked["g"] | marked["c"]
    if not starts:
        starts, goals = marked["."], goals or marked["."]
    elif not goals:
        goals = marked["."]
    if not starts or not goals or (len(starts) == 1 and starts <= goals):
        raise ValueError(f"maze_map must leave a start and a goal that differ:\n{maze}")
    return starts


def _episode_steps(maze: MazeGeometry) -> int:
    """gymnasium-robotics' own limits, by size."""
    longest = max(maze.shape)
    return 300 if longest <= 5 else 600 if longest <= 8 else 800


def _remove_model_file(env: gym.Env) -> None:
    """gymnasium-robotics leaves one temporary XML file per environment behind; the model is loaded, so drop it."""
    base: Any = env.unwrapped
    with contextlib.suppress(OSError):
        os.remove(base.tmp_xml_file_path)
