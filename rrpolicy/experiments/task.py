"""Tasks: an environment and, in a maze, its walls and the goal; the same for every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from rrpolicy.common.environments import make_by_id
from rrpolicy.common.kinds import PlaceFields
from rrpolicy.common.messages import printable
from rrpolicy.common.schema import checked
from rrpolicy.common.typing import Array
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.point_maze import DEFAULT_ENV_ID, check_point_maze, make_point_maze
from rrpolicy.envs.simulator import MAX_SPEED

POINT_MAZE = "PointMaze_"
FASHION_MNIST = "FashionMNIST"  # what the zoo calls its image pair, which has no environment


@dataclass(frozen=True)
class Task:
    """
    An environment and, in a maze, the goal.

    :param env_id: a registered environment
    :param maze_map: rows of another maze than the environment's own
    :param goal: (row, column) in cells, fractions allowed; None leaves it to the environment
    """

    env_id: str = DEFAULT_ENV_ID
    maze_map: tuple[str, ...] | None = None
    goal: tuple[float, float] | None = None

    @classmethod
    def create(cls, env_id: str = DEFAULT_ENV_ID, maze_map: Any = None, goal: Sequence[float] | None = None) -> Task:
        """
        Make a task from what a user gives.

        :param env_id: of an environment, as ``gymnasium.make`` takes it, ``"my_package:MyEnv-v0"``; the task has
            the id under which it is registered, which is what archives can hold
        :param maze_map: rows, text or the path of a text file
        :raises ValueError: for an unknown environment, a bad maze, a goal that is not in a free cell, or what no
            archive can hold: an odd id, a maze of too many cells
        """
        rows = None if maze_map is None else MazeGeometry.parse(maze_map).rows
        place = None if goal is None else (float(goal[0]), float(goal[1]))
        task = cls(env_id, rows, place)
        if task.is_maze:
            check_point_maze(env_id, rows, place)
        else:
            env = task.make()
            env.close()
            if env_id not in gym.registry and env.spec is not None:  # of a module, or without a version
                task = replace(task, env_id=env.spec.id)
        task.to_card()
        return task

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Task | None:
        """
        The task noted in the card of an archive, None when none is.

        A card is data: an environment that is not registered already is never looked for, since that could import a
        module of the card's choice, and a maze is its rows, never the path of a file.

        :raises ValueError: for another environment, maze or goal
        """
        place = checked(PlaceFields, {name: card.get(name) for name in ("environment", "maze", "goal")}, "card")
        if place.environment is None:
            return None
        if place.environment not in gym.registry:
            raise ValueError(
                f"the card's environment {place.environment} is not registered here: import the package "
                f"that registers it, or name one with --env"
            )
        try:
            return cls.create(place.environment, place.maze, place.goal)
        except ValueError as error:
            raise ValueError(f"card: {printable(error, 200)}") from error

    def to_card(self) -> dict[str, Any]:
        """
        The task as entries of a card, which :meth:`from_card` reads.

        :raises ValueError: for a place that no card can hold, such as ``"my_package:MyEnv-v0"``
        """
        card = {
            "environment": self.env_id,
            "maze": None if self.maze_map is None else list(self.maze_map),
            "goal": None if self.goal is None else list(self.goal),
        }
        checked(PlaceFields, card, "no archive can tell this task")
        return card

    def with_goal(self, goal: Sequence[float] | None) -> Task:
        """The same place with another goal."""
        return Task.create(self.env_id, self.maze_map, goal)

    def as_collected(self, metadata: Sequence[Mapping[str, Any]]) -> Task:
        """
        The same environment as data were collected in: in their maze, unless this task has one of its own, and their
        goal.

        :param metadata: of the data sets
        :raises ValueError: for a maze or a goal that cannot be
        """
        rows, goals = metadata[0].get("maze"), {tuple(one.get("goal") or ()) for one in metadata}
        if not self.is_maze or rows is None:
            return self
        other = self.maze_map is None and tuple(rows) != self.maze.rows
        task = Task.create(self.env_id, rows) if other else self
        goal = goals.pop() if len(goals) == 1 and task.maze.rows == tuple(rows) else ()
        return task.with_goal(goal) if goal else task

    @property
    def is_maze(self) -> bool:
        """Whether it is a PointMaze, known in cells and with a simulator of its own."""
        return self.env_id.startswith(POINT_MAZE)

    @cached_property
    def maze(self) -> MazeGeometry:
        """
        The geometry of the task's maze.

        :raises ValueError: when the environment is not a PointMaze
        """
        if self.maze_map is not None:
            return MazeGeometry(self.maze_map)
        if not self.is_maze:
            raise ValueError(f"env must be a PointMaze, got {self.env_id!r}")
        return check_point_maze(self.env_id)

    @property
    def place(self) -> str:
        """The environment and, where it is not that of the environment, the maze, for messages."""
        if self.maze_map is None:
            return self.env_id
        return f"{self.env_id} with the maze {printable(' '.join(self.maze_map), 60)}"

    def is_at(self, other: Task) -> bool:
        """Whether the other task is in the same environment; of two mazes, whether their walls are the same."""
        if self.is_maze and other.is_maze:
            return self.maze.rows == other.maze.rows
        return self.env_id == other.env_id

    @property
    def acts_deterministically(self) -> bool:
        """Whether agents act by their mode where the recipe does not choose: True in mazes; elsewhere they sample."""
        return self.is_maze

    def normalizer(self) -> Normalizer | None:
        """A maze's own, equal for every data set of the maze; None where it is fitted to data."""
        return maze_normalizer(self.maze) if self.is_maze else None

    def check_walls(self, rows: Sequence[str] | None) -> None:
        """
        Compare the maze that data were collected in with this one.

        :param rows: of the data's maze; None for data without one
        :raises ValueError: when they are other rows
        """
        if self.is_maze and rows is not None and tuple(rows) != self.maze.rows:
            raise ValueError(f"the dataset was collected in the maze {rows}, env has {list(self.maze.rows)}")

    def make(self, render_mode: str | None = None, **kwargs: Any) -> gym.Env:
        """
        Make the real environment.

        :raises ValueError: when there is no such environment, or a goal or maze for one that is not a PointMaze
        """
        if self.is_maze:
            return make_point_maze(self.env_id, self.maze_map, self.goal, render_mode, **kwargs)
        for name, value in (("goal", self.goal), ("maze_map", self.maze_map)):
            if value is not None:
                raise ValueError(f"{name} is for PointMaze environments, env is {self.env_id!r}")
        return make_by_id(self.env_id, render_mode, **kwargs)


def maze_normalizer(maze: MazeGeometry) -> Normalizer:
    """Normaliser of a maze's geometry: one scale for x and y, equal for every data set of the maze."""
    left, right, bottom, top = maze.extent
    reach = max(right - left, top - bottom) / 2
    high = np.array([reach, reach, MAX_SPEED, MAX_SPEED])
    return Normalizer.from_bounds((-high, high), (-np.ones(2), np.ones(2)))


def observations_for_plans(maze: MazeGeometry, n: int, seed: int = 0) -> Array:
    """Resting balls (n, 4) in random free cells, to draw plans from."""
    cells = maze.free_cells[np.random.default_rng(seed).integers(len(maze.free_cells), size=n)]
    return np.concatenate([maze.cell_to_xy(cells), np.zeros((n, 2))], axis=1).astype(np.float32)
