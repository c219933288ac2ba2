"""How a reward orders a maze's cells, against that of shortest paths, beside what needs no reward.

Straight distance and path agree for most cells, so correlation alone proves little. *Topology pairs* are cells with a
wall between them; *detour pairs* are those that the straight distance puts in the wrong order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rrpolicy.common.stats import pearson, spearman
from rrpolicy.common.typing import Array
from rrpolicy.envs.maze import CELL_SIZE, MazeGeometry
from rrpolicy.rewards.maps import RewardMap

NEAR = 2.0  # cells: as far apart as the two sides of one wall
FAR = 4.0  # cells of path: at least one cell has to be walked around
PIECES = 8  # of each leg of a plan, looked up in the walls
PSEUDO_COUNT = 1.0


@dataclass(frozen=True)
class Order:
    """
    How values of cells agree with shortest paths to a goal.

    :param spearman: rank correlation with minus the path distance; NaN when all values are equal
    :param pearson: Pearson's correlation with it, which asks for a straight line; NaN when all values are equal
    :param pairs: bool (n,) for each topology pair whether it is in the right order; empty where the maze has none
    :param detours: bool (m,) the same for each detour pair
    """

    spearman: float
    pearson: float
    pairs: Array
    detours: Array


def path_order(values: Array, maze: MazeGeometry, goal: Any) -> Order:
    """
    Compare values of cells with their path distance to a goal.

    :param values: (rows, columns), higher is better; NaN for cells that are not compared
    :param maze: the maze
    :param goal: (row, column) in cells, fractions allowed
    :raises ValueError: for values of another shape, or a goal that is not in a free cell
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != maze.shape:
        raise ValueError(f"values has shape {values.shape}, the maze has {maze.shape} cells")
    distances = maze.path_distances(goal)
    known = np.isfinite(distances) & np.isfinite(values)
    ordered = (_ordered(values, pairs) for pairs in (topology_pairs(maze, goal), detour_pairs(maze, goal)))
    nearness = -distances[known]
    return Order(spearman(values[known], nearness), pearson(values[known], nearness), *ordered)


def _ordered(values: Array, pairs: Array) -> Array:
    """Of pairs (n, 2, 2) whose values are known, whether the first is the higher one."""
    first, second = (values[pairs[:, side, 0], pairs[:, side, 1]] for side in (0, 1))
    return np.asarray((first > second)[np.isfinite(first) & np.isfinite(second)])


def topology_pairs(maze: MazeGeometry, goal: Any, near: float = NEAR, far: float = FAR) -> Array:
    """
    Pairs of cells that are near in space and far by path, and not equally far from the goal.

    :param near: largest straight distance of the two, in cells
    :param far: least path between them, in cells
    :return: (n, 2, 2) int64: of each pair the cell (row, column) with the shorter path to the goal, then the other
    """
    distances = maze.path_distances(goal)
    cells = np.array([cell for cell in maze.free_cells if np.isfinite(distances[tuple(cell)])])
    pairs = []
    for i, cell in enumerate(cells):
        between = maze.path_distances(cell)
        for other in cells[i + 1 :]:
            apart = float(np.hypot(*(cell - other)))
            if apart <= near and between[tuple(other)] >= far and distances[tuple(cell)] != distances[tuple(other)]:
                pairs.append(sorted((cell.tolist(), other.tolist()), key=lambda one: distances[tuple(one)]))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2, 2)


def detour_pairs(maze: MazeGeometry, goal: Any) -> Array:
    """
    Pairs of cells of which the one that is farther from the goal in a straight line has the shorter path to it.

    :return: (n, 2, 2) int64: of each pair the cell (row, column) with the shorter path, then the other
    """
    path, straight = maze.path_distances(goal), -euclidean_values(maze, goal)
    cells = np.array([cell for cell in maze.free_cells if np.isfinite(path[tuple(cell)])])
    paths, lines = (distances[cells[:, 0], cells[:, 1]] for distances in (path, straight))
    first, second = np.nonzero((paths[:, None] < paths) & (lines[:, None] > lines + 1e-9))
    return np.stack([cells[first], cells[second]], axis=1)


# ---------------------------------------------------------------------- values of cells


def cell_rewards(reward_map: RewardMap) -> Array:
    """Mean of a map over each cell (rows, columns), NaN in walls."""
    rows, columns = reward_map.maze.shape
    k = reward_map.grid.shape[0] // rows
    blocks = reward_map.grid.reshape(rows, k, columns, k).swapaxes(1, 2).reshape(rows, columns, k * k)
    values = np.full((rows, columns), np.nan)
    free = ~reward_map.maze.walls
    values[free] = np.nanmean(blocks[free], axis=1)
    return values


def euclidean_values(maze: MazeGeometry, goal: Any) -> Array:
    """Minus the straight distance of each cell to the goal in cells (rows, columns): what needs no reward at all."""
    maze.free_cell(goal, "goal")
    rows, columns = np.indices(maze.shape)
    return np.where(maze.walls, np.nan, -np.hypot(rows - goal[0], columns - goal[1]))


def occupancy_log_ratio(maze: MazeGeometry, base_xy: Array, expert_xy: Array) -> Array:
    """
    log of how much more often the expert is in a cell than the base: the best that counting can do.

    :param base_xy: positions (n, 2) of the base's data, environment units
    :param expert_xy: the same of the expert's (m, 2)
    :return: (rows, columns) in nats, NaN in walls; one visit is added to every free cell
    """
    logs = []
    for xy in (base_xy, expert_xy):
        cells = np.clip(maze.xy_to_cell(xy[:, :2]), 0, np.array(maze.shape) - 1)
        counts = np.bincount(cells[:, 0] * maze.shape[1] + cells[:, 1], minlength=maze.walls.size)
        counts = np.where(maze.walls, 0.0, counts.reshape(maze.shape) + PSEUDO_COUNT)
        logs.append(np.log(np.where(maze.walls, np.nan, counts / counts.sum())))
    return logs[1] - logs[0]


# ---------------------------------------------------------------------- rewards and plans


def dense_reward(maze: MazeGeometry, goal: Any, states: Array) -> Array:
    """PointMaze's own dense reward exp(-distance to the goal) of states (n, d) that begin with x, y -> (n,)."""
    maze.free_cell(goal, "goal")
    return np.exp(-np.linalg.norm(states[:, :2] - maze.cell_to_xy(goal), axis=1))


def crosses_walls(maze: MazeGeometry, plans: Array, tolerance: float = 0.05) -> Array:
    """
    Whether plans lead through walls, their legs taken as straight.

    :param plans: positions (n, H, 2) in environment units
    :param tolerance: how deep a leg may cut into a corner, environment units
    :return: bool (n,)
    """
    weights = (np.arange(PIECES) / PIECES)[:, None]
    places = plans[:, :-1, None] * (1 - weights) + plans[:, 1:, None] * weights
    places = np.concatenate([places.reshape(len(plans), -1, 2), plans[:, -1:]], axis=1)
    inside = maze.is_wall(places) & (_depth(maze, places) > tolerance)
    return np.asarray(inside.any(axis=1))


def _depth(maze: MazeGeometry, xy: Array) -> Array:
    """Distance (...) to the nearest free cell."""
    flat = xy.reshape(-1, 2)
    nearest = np.full(len(flat), np.inf)
    for centre in maze.cell_to_xy(maze.free_cells):
        outside = np.maximum(np.abs(flat - centre) - CELL_SIZE / 2, 0.0)
        np.minimum(nearest, np.hypot(outside[:, 0], outside[:, 1]), out=nearest)
    return nearest.reshape(xy.shape[:-1])
