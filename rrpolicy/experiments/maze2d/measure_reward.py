"""Scores of a reward in a maze: where its map is highest, the order of the cells, and distances to the true one.

They are the same for ρ and for the rewards of other methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.simulator import PointMazeSimulator
from rrpolicy.evaluation import Row, result_row
from rrpolicy.experiments.maze2d.spec import MazeUnit
from rrpolicy.experiments.results import plain_row
from rrpolicy.experiments.scoring import Scoring
from rrpolicy.rewards.dard import dard_distance
from rrpolicy.rewards.epic import Coverage, epic_distance, state_reward
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.maze_metrics import (
    cell_rewards,
    dense_reward,
    euclidean_values,
    occupancy_log_ratio,
    path_order,
)
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.transforms import BoundedReward


def recovery_rows(agent: str, drawn: RewardMap, goal: Any) -> list[Row]:
    """Where the map is highest (the paper's first metric); a constant map has no maximum and counts as a miss."""
    error = drawn.goal_error_cells(goal) if np.ptp(drawn.values) > 0 else np.inf
    return [
        plain_row(agent, "goal_error_cells", error),
        plain_row(agent, "goal_own_cell", float(np.isfinite(error) and drawn.same_cell(goal))),
        plain_row(agent, "goal_within_one_cell", float(error <= 1.0)),
    ]


def order_rows(agent: str, cells: Array, maze: MazeGeometry, goal: Any) -> list[Row]:
    """Whether values of cells (rows, columns) are in the order of their paths to the goal."""
    order = path_order(cells, maze, goal)
    correlations = {"spearman_path": order.spearman, "pearson_path": order.pearson}
    rows = [{**plain_row(agent, name, value), "n": len(maze.free_cells)} for name, value in correlations.items()]
    for metric, pairs in (("topology_pairs_rate", order.pairs), ("detour_pairs_rate", order.detours)):
        if len(pairs):
            rows.append(result_row(agent, metric, pairs))
    return rows


def distance_rows(
    agent: str, rewards: Mapping[str, Callable[[Array], Array]], unit: MazeUnit, coverage: Coverage, scoring: Scoring
) -> list[Row]:
    """
    EPIC and DARD distances of rewards of states to PointMaze's dense reward; the dynamics are the simulator's.

    :param rewards: by what is added to the names of the metrics
    """
    maze = unit.task.maze
    true = state_reward(lambda states: dense_reward(maze, unit.goal, states))
    options = {"n_canonical": scoring.n_canonical, "seed": unit.seed}
    rows = []
    for end, function in rewards.items():
        if np.ptp(function(coverage.states)) > 0:  # a constant has no distance
            own = state_reward(function)
            distances = {
                "epic_distance": epic_distance(own, true, coverage, **options),
                "dard_distance": dard_distance(own, true, coverage, PointMazeSimulator(maze).step, **options),
            }
            rows += [{**plain_row(agent, name + end, one), "n": scoring.n_coverage} for name, one in distances.items()]
    return rows


def orders(
    drawn: RewardMap, far: RewardMap, goal: Any, base_data: TrajectoryDataset, expert_data: TrajectoryDataset
) -> list[Row]:
    """The order of cells by the reward, by the same read at its ``far_level``, by straight distance, by counting."""
    maze = drawn.maze
    values: Mapping[str, Array] = {
        "reward": cell_rewards(drawn),
        "reward-far": cell_rewards(far),
        "euclidean": euclidean_values(maze, goal),
        "occupancy": occupancy_log_ratio(maze, base_data.observations, expert_data.observations),
    }
    return [row for name, cells in values.items() for row in order_rows(name, cells, maze, goal)]


def distances(reward: RelativeReward, unit: MazeUnit, base_data: TrajectoryDataset, scoring: Scoring) -> list[Row]:
    """EPIC and DARD distances of ρ itself and of exp(min(ρ − max ρ, 0)), a ratio of densities."""
    coverage = Coverage.from_dataset(base_data, scoring.n_coverage, unit.seed)
    bounded = BoundedReward.fit(reward, coverage.states)
    rewards = {
        "": lambda states: np.asarray(reward.predict(states), dtype=np.float64),
        "_bounded": lambda states: bounded(np.asarray(reward.predict(states), dtype=np.float64)),
    }
    return distance_rows("reward", rewards, unit, coverage, scoring)
