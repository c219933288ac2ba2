"""In which order ways of reading a reward put places whose straight distance to the goal misleads, and what was tried.

    python examples/measure_detours.py > docs/results/detours.txt
    python examples/measure_detours.py --pillars-seeds 0

*Detour pairs* are cells of which the farther one in a straight line has the shorter path to the goal. Read are the
zoo's maze rewards (seed 0) and one that is extracted here, of a maze of pillars that no recipe was tuned on:

* ``level T``: the step head's ρ of resting balls at noise level T (maps are drawn at 5; 15 is the far level, beyond
  which the step head takes states with their noise);
* ``visited``: level 15, in the mean over places where the base has been in place of a grid;
* ``plans``: log-mean-exp of the window head's ρ over 64 plans of the base from each cell. A plan's first row is given,
  so ρ is the log ratio of conditional densities. Its exponential has the mean 1 over the base's plans from every cell,
  so this cannot order cells;
* ``counting``: the log ratio of visits in a million transitions each, and ``pairs``: how many there are.
"""

from __future__ import annotations

import argparse

import numpy as np

from rrpolicy import DiffusionAgent, RelativeReward, zoo
from rrpolicy.common.typing import Array
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.experiments import extract, train_base, train_expert
from rrpolicy.experiments.recipes import recipe_of
from rrpolicy.experiments.task import Task
from rrpolicy.rewards.maps import reward_map
from rrpolicy.rewards.maze_metrics import cell_rewards, occupancy_log_ratio, path_order

PILLARS = (
    "############",
    "#..........#",
    "#.#..#..#..#",
    "#.#..#..#..#",
    "#..........#",
    "#..........#",
    "#.#..#..#..#",
    "#.#..#..#..#",
    "#..........#",
    "############",
)
PILLARS_GOAL = (3, 6)
ZOO = {"medium": ((4, 4), (6, 6)), "large": ((5, 4), (7, 10))}
LEVELS = (2, 5, 10, 15, 20, 30)
N_TRANSITIONS, N_PLANS, N_VISITED = 100_000, 64, 20_000
N_COUNTED = 1_000_000  # as many as models and rewards learn from


def by_cell(maze: MazeGeometry, xy: Array, values: Array) -> Array:
    """Mean of ``values`` (n,) at places (n, 2) over each cell (rows, columns); NaN where there are none."""
    cells = np.clip(maze.xy_to_cell(xy), 0, np.array(maze.shape) - 1)
    found = np.full(maze.shape, np.nan)
    for row, column in maze.free_cells:
        here = (cells == (row, column)).all(axis=1)
        if here.any():
            found[row, column] = values[here].mean()
    return found


def summed_over_plans(reward: RelativeReward, base: DiffusionAgent, maze: MazeGeometry) -> Array:
    """Log-mean-exp of the window head's ρ over the base's plans from each cell (rows, columns)."""
    rng, found = np.random.default_rng(0), np.full(maze.shape, np.nan)
    for row, column in maze.free_cells:
        begin = np.zeros((N_PLANS, 4), dtype=np.float32)
        begin[:, :2] = maze.cell_to_xy(np.array([row, column]) + rng.uniform(-0.3, 0.3, (N_PLANS, 2)))
        plans = base.plan(begin, deterministic=False)
        windows = np.concatenate([plans, np.zeros_like(plans)], axis=2, dtype=np.float32)  # velocities are not planned
        found[row, column] = np.logaddexp.reduce(reward.predict(windows).astype(np.float64)) - np.log(N_PLANS)
    return found


def ways(reward: RelativeReward, base: DiffusionAgent, task: Task) -> dict[str, Array]:
    """Name of a way to read the reward -> values of cells (rows, columns)."""
    maze = task.maze
    base_xy, expert_xy = (
        collect_point_maze(maze, N_COUNTED, seed=100 + i, goal=goal).observations
        for i, goal in enumerate((None, task.goal))
    )
    states = collect_point_maze(maze, N_TRANSITIONS, seed=100).observations
    visited = states[np.random.default_rng(0).choice(len(states), N_VISITED, replace=False)]
    found = {f"level {t}": cell_rewards(reward_map(reward, maze, levels=[t])) for t in LEVELS}
    found["visited"] = by_cell(maze, visited[:, :2], reward.predict(visited, levels=[reward.far_level]))
    found["plans"] = summed_over_plans(reward, base, maze)
    found["counting"] = occupancy_log_ratio(maze, base_xy, expert_xy)
    return found


def show(name: str, reward: RelativeReward, base: DiffusionAgent, task: Task) -> None:
    """Print the share of detour pairs in order by each way, and how far the maximum is from the goal."""
    for way, cells in ways(reward, base, task).items():
        order = path_order(cells, task.maze, task.goal)
        print(f"{name}: detours {way}: {order.detours.mean():.3f}")
        print(f"{name}: rank correlation {way}: {order.spearman:.3f}", flush=True)
    print(f"{name}: pairs: {len(order.detours)}")
    for t in (reward.map_level, reward.far_level):
        error = reward_map(reward, task.maze, levels=[t]).goal_error_cells(task.goal)
        print(f"{name}: goal error level {t}: {error:.2f}")


def pillars(seed: int) -> tuple[RelativeReward, DiffusionAgent, Task]:
    """Base, expert and reward of the maze of pillars, by the recipe of every maze."""
    task, recipe = Task.create("PointMaze_Open-v3", PILLARS, PILLARS_GOAL), recipe_of("point_maze")
    data = [collect_point_maze(task.maze, 1_000_000, seed=seed, goal=goal) for goal in (None, task.goal)]
    base = train_base(task, recipe, data[0], seed)
    expert = train_expert(base, recipe, data[1], seed)
    return extract(base, expert, data, recipe, seed).reward, base, task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pillars-seeds", type=int, default=3, help="extractions in the maze of pillars")
    n_pillars = parser.parse_args().pillars_seeds
    for maze, goals in ZOO.items():
        for row, column in goals:
            env_id = f"PointMaze_{maze.title()}-v3"
            reward = zoo.load_reward(f"{env_id}/reward-{row}-{column}")
            show(f"{maze} {row}-{column}", reward, zoo.load(f"{env_id}/base"), Task.create(env_id, goal=(row, column)))
    for seed in range(n_pillars):
        show(f"pillars seed {seed}", *pillars(seed))


if __name__ == "__main__":
    main()
