"""Feedback control of PointMaze's ball: a proportional-derivative law, and breadth-first waypoints for many balls.
The law turns planned positions into actions, the waypoints make demonstrations (D4RL's Maze2D, Fu et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from rrpolicy.envs.maze import CELL_SIZE, MazeGeometry

_STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


class Controller(Protocol):
    """Anything that turns planned observations into actions."""

    def action(self, observations: Any, targets: Any) -> np.ndarray:
        """
        Actions that lead to what is planned next.

        :param observations: ``(..., obs_dim)`` in environment units
        :param targets: what is planned next ``(..., n_columns)`` in environment units
        :return: actions ``(..., act_dim)`` in environment units
        """
        ...


@dataclass(frozen=True)
class PDController:
    """
    a = clip(kp (target - position) - kd velocity, -1, 1).

    :param position_columns: the observation's columns that hold the position
    :param velocity_columns: the columns that hold its derivative, in the same order
    :param kp: action per unit of distance
    :param kd: action per unit of velocity
    :raises ValueError: if the columns do not pair up or a gain is not finite
    """

    position_columns: tuple[int, ...] = (0, 1)
    velocity_columns: tuple[int, ...] = (2, 3)
    kp: float = 10.0
    kd: float = 1.0

    def __post_init__(self) -> None:
        for name in ("position_columns", "velocity_columns"):
            object.__setattr__(self, name, tuple(int(column) for column in getattr(self, name)))
        if len(self.position_columns) != len(self.velocity_columns) or not self.position_columns:
            raise ValueError(
                f"velocity_columns must pair with position_columns {self.position_columns}, got {self.velocity_columns}"
            )
        for name in ("kp", "kd"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)!r}")

    def action(self, observations: Any, targets: Any) -> np.ndarray:
        """
        Proportional-derivative control, clipped to [-1, 1].

        :param observations: ``(..., obs_dim)`` in environment units
        :param targets: wanted positions ``(..., n_positions)`` in environment units
        :return: actions ``(..., n_positions)`` in [-1, 1]
        """
        observations = np.asarray(observations)
        positions = observations[..., self.position_columns]
        velocities = observations[..., self.velocity_columns]
        return np.clip(self.kp * (np.asarray(targets) - positions) - self.kd * velocities, -1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for an archive's configuration."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PDController:
        """
        The controller that a dictionary describes.

        :param values: what :meth:`to_dict` gave
        :return: an equal controller
        :raises ValueError: if a key is unknown
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"values must hold only {sorted(cls.__dataclass_fields__)}, got also {sorted(unknown)}")
        return cls(**values)


class WaypointController:
    """
    Leads n balls to n goals over jittered cell centres of shortest paths, breaking ties between paths at random.

    It holds no memory: the caller keeps the waypoints and hands them back.

    :param maze: the maze
    :param law: turns a waypoint into an action; None: the default gains
    :param jitter: waypoints lie up to this far from the cell's centre, per axis, in cells
    :param advance_distance: a waypoint nearer than this (environment units) is reached
    :raises ValueError: if jitter is not in [0, 0.5) or advance_distance is not positive
    """

    def __init__(
        self,
        maze: MazeGeometry,
        law: PDController | None = None,
        jitter: float = 0.2,
        advance_distance: float = 0.25,
    ) -> None:
        if not 0.0 <= jitter < 0.5:
            raise ValueError(f"jitter must be in [0, 0.5) cells, got {jitter!r}")
        if not advance_distance > 0.0:
            raise ValueError(f"advance_distance must be positive, got {advance_distance!r}")
        self.maze = maze
        self.law = law or PDController()
        self.jitter = jitter
        self.advance_distance = advance_distance
        self._distances = np.stack([maze.path_distances(cell) for cell in maze.free_cells])  # (goal, row, column)
        self._index = np.full(maze.shape, -1)  # first axis of the distances, for each cell
        self._index[tuple(maze.free_cells.T)] = np.arange(len(maze.free_cells))

    def distances(self, positions: Any, goals: Any) -> np.ndarray:
        """
        Path lengths from positions to goals.

        :param positions: ``(n, 2)`` in environment units
        :param goals: ``(n, 2)`` in environment units, in free cells
        :return: path lengths ``(n,)`` in cells, infinite where no path leads
        """
        start, goal = self._cells(positions), self._cells(goals)
        return self._distances[self._goal_index(goal), start[:, 0], start[:, 1]]

    def advance(self, positions: Any, waypoints: Any, goals: Any, rng: np.random.Generator) -> np.ndarray:
        """
        The waypoints to head for now: those reached, or left far behind, are replaced by the next of the path.

        :param positions: ``(n, 2)`` in environment units
        :param waypoints: ``(n, 2)`` of the last call; the positions themselves to begin with
        :param goals: ``(n, 2)`` in environment units
        :param rng: source of jitter and tie-breaks
        :return: waypoints ``(n, 2)``; the goal once it is in the own or the next cell
        """
        positions, waypoints, goals = (np.asarray(array, dtype=np.float64) for array in (positions, waypoints, goals))
        reached = ((positions - waypoints) ** 2).sum(1) < self.advance_distance**2
        strayed = np.abs(positions - waypoints).max(1) > (1.0 + 2 * self.jitter) * CELL_SIZE
        due = np.flatnonzero((reached | strayed) & (waypoints != goals).any(1))
        if not due.size:
            return waypoints
        waypoints = waypoints.copy()
        origins = np.where(reached[due, None], waypoints[due], positions[due])
        waypoints[due] = self._next_waypoints(origins, goals[due], rng)
        return waypoints

    def action(self, observations: Any, waypoints: Any) -> np.ndarray:
        """
        Actions towards the waypoints.

        :param observations: ``(n, 4)`` in environment units
        :param waypoints: ``(n, 2)`` from :meth:`advance`
        :return: actions ``(n, 2)`` in [-1, 1]
        """
        return self.law.action(observations, waypoints)

    def _next_waypoints(self, origins: np.ndarray, goals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Jittered centre of a random best neighbour of each origin's cell, or the goal when it is that near."""
        cells, goal_cells = self._cells(origins), self._cells(goals)
        neighbours = cells[:, None] + _STEPS
        index = self._goal_index(goal_cells)
        distances = self._distances[index[:, None], neighbours[..., 0], neighbours[..., 1]]
        best = (distances + 0.5 * rng.random(distances.shape)).argmin(1)  # whole numbers plus less than one: ties only
        here = self._distances[index, cells[:, 0], cells[:, 1]]
        chosen = neighbours[np.arange(len(cells)), best]
        jitter = rng.uniform(-self.jitter, self.jitter, size=(len(cells), 2))
        return np.where((here <= 1.0)[:, None], goals, self.maze.cell_to_xy(chosen + jitter))

    def _goal_index(self, goal_cells: np.ndarray) -> np.ndarray:
        """Rows of the distance table."""
        index = self._index[goal_cells[:, 0], goal_cells[:, 1]]
        if (index < 0).any():
            cell = tuple(goal_cells[np.flatnonzero(index < 0)[0]].tolist())
            raise ValueError(f"goals must lie in free cells, got one in cell {cell} of the maze:\n{self.maze}")
        return index

    def _cells(self, positions: Any) -> np.ndarray:
        """Cells of positions, kept inside the border."""
        return np.clip(self.maze.xy_to_cell(positions), 1, np.array(self.maze.shape) - 2)
