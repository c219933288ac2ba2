"""Streams of waypoint demonstrations: many balls at once in the vectorised maze simulator, and how long their episodes
are. Base streams wander between random goals, expert ones go to one and stay."""

from __future__ import annotations

from typing import Any

import numpy as np

from rrpolicy.envs.controller import WaypointController
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.simulator import PointMazeSimulator

START_OFFSET = 0.4  # cells, as near to a wall as a ball can be; PointMaze itself starts within 0.25 of a centre
STEPS_PER_CELL = 25  # what the controller needs to cross one cell, turns included
WINDOW_STEPS = 140  # room for a window of 16 steps, one every 8, at the end of an expert's path
MIN_STREAM = 1000  # base streams are at least this long, so that few windows are lost to their ends
MAX_STREAMS = 256


class Streams:
    """Parallel balls under waypoint control, each moving to a goal or staying there."""

    def __init__(self, controller: WaypointController, rng: np.random.Generator, action_noise: float) -> None:
        self._controller = controller
        self._rng = rng
        self._noise = action_noise
        self._dwell: tuple[int, int] | None = None
        self._offset = 0.0

    def wander(self, count: int, dwell: tuple[int, int], offset: float) -> None:
        """Balls anywhere, each of which gets another random goal when it has stayed long enough."""
        self._dwell, self._offset = dwell, offset
        self._begin(self._controller.maze.free_cells, count)
        self._renew(np.arange(count))

    def go_to(self, count: int, goal: Any) -> None:
        """Balls in any cell from which a path leads to the goal."""
        maze = self._controller.maze
        self._begin(np.argwhere(np.isfinite(maze.path_distances(goal))), count)
        self.goals[:] = maze.cell_to_xy(goal)

    def _begin(self, cells: np.ndarray, count: int) -> None:
        """Balls at rest off the centres of cells, none of which is taken again before all were."""
        order = np.concatenate([self._rng.permutation(len(cells)) for _ in range(-(-count // len(cells)))])[:count]
        offsets = self._rng.uniform(-START_OFFSET, START_OFFSET, size=(count, 2))
        self._waypoints = self._controller.maze.cell_to_xy(cells[order] + offsets)
        self._states = np.hstack([self._waypoints, np.zeros((count, 2))])
        self.goals = self._waypoints.copy()
        self._patience = np.zeros(count, dtype=np.int64)

    def record(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Run; returns observations ``(n, length, 4)`` and the actions that followed ``(n, length, 2)``, float32."""
        simulator = PointMazeSimulator(self._controller.maze)
        observations = np.empty((len(self._states), length, 4), dtype=np.float32)
        actions = np.empty((len(self._states), length, 2), dtype=np.float32)
        for step in range(length):
            positions = self._states[:, :2]
            if self._dwell is not None:
                arrived = ((positions - self.goals) ** 2).sum(1) < self._controller.advance_distance**2
                self._patience -= arrived
                self._renew(np.flatnonzero(arrived & (self._patience < 0)))
            self._waypoints = self._controller.advance(positions, self._waypoints, self.goals, self._rng)
            action = self._controller.action(self._states, self._waypoints)
            action += self._noise * self._rng.standard_normal(action.shape)
            observations[:, step] = self._states
            actions[:, step] = np.clip(action, -1.0, 1.0)
            self._states = simulator.step(self._states, actions[:, step])
        return observations, actions

    def _renew(self, who: np.ndarray) -> None:
        """New goals, to which a path leads, and new patience."""
        positions, maze = self._states[who, :2], self._controller.maze
        if not who.size or self._dwell is None:
            return
        goals = _random_places(maze, len(who), self._offset, self._rng)
        while (lost := np.isinf(self._controller.distances(positions, goals))).any():  # in another room
            goals[lost] = _random_places(maze, int(lost.sum()), self._offset, self._rng)
        self.goals[who] = goals
        self._waypoints = self._waypoints.copy()
        self._waypoints[who] = positions
        self._patience[who] = self._rng.integers(self._dwell[0], self._dwell[1] + 1, len(who))


def base_lengths(n_transitions: int, episode_length: int | None) -> np.ndarray:
    """Few long streams of nearly equal length."""
    if episode_length:
        count = -(-n_transitions // episode_length)
    else:
        count = min(max(2, n_transitions // MIN_STREAM), MAX_STREAMS, n_transitions)
    return n_transitions // count + (np.arange(count) < n_transitions % count)


def expert_lengths(n_transitions: int, length: int) -> np.ndarray:
    """Equal episodes, but for the last."""
    lengths = np.full(-(-n_transitions // length), length)
    lengths[-1] -= lengths.sum() - n_transitions
    return lengths


def _random_places(maze: MazeGeometry, count: int, offset: float, rng: np.random.Generator) -> np.ndarray:
    """Positions ``(count, 2)`` near the centres of random free cells."""
    chosen = maze.free_cells[rng.integers(len(maze.free_cells), size=count)]
    return maze.cell_to_xy(chosen + rng.uniform(-offset, offset, size=(count, 2)))


def expert_length(maze: MazeGeometry, goal: Any) -> int:
    """Steps for the longest path, a window behind it, and as many window starts at the goal as before it."""
    distances = maze.path_distances(goal)
    distances = distances[np.isfinite(distances)] * STEPS_PER_CELL
    return int(WINDOW_STEPS + max(distances.max(), 2 * distances.mean()))
