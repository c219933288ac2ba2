"""The measurements of one unit of the maze experiment: the reward's map against the maze, and the agents at work.

Everything random follows from the unit's seed; agents are loaded anew for every unit, so a resumed run gives the same
numbers as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.evaluation import Evaluation, Row, evaluate, paired_difference, result_row
from rrpolicy.experiments import plain_row
from rrpolicy.experiments.maze2d.episodes import PLANNERS_AT_ONCE, environments
from rrpolicy.experiments.maze2d.units import Unit
from rrpolicy.experiments.maze2d.workshop import ArtifactStore
from rrpolicy.experiments.recorder import Log, Recorder
from rrpolicy.rewards.epic import Coverage, epic_distance, state_reward
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.maze_metrics import (
    cell_rewards,
    crosses_walls,
    dense_reward,
    euclidean_values,
    occupancy_log_ratio,
    path_order,
)
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.transforms import BoundedReward

N_PLANS = 1000  # of the base, looked at for walls
N_COVERAGE = 1024  # transitions of the base's data over which rewards are compared
N_CANONICAL = 16  # rewards of states lose nothing in the canonical form, so few samples do
PAIRS = (("steered", "expert"), ("steered", "discriminator"), ("steered", "base"))  # that are compared


def measure_base(store: ArtifactStore, unit: Unit, log: Log = lambda text: None) -> Recorder:
    """The base alone: what it took, and how many of its plans lead through walls, in other ways to plan if asked."""
    recorder = Recorder(log)
    recorder.start("training the base")
    base, seconds = store.base(unit)
    recorder.times(base_data=store.data(unit)[1], base=seconds)
    ways = {"base": {}, **(_other_ways(base) if store.variant.part == "plans" else {})}
    for name, options in ways.items():
        recorder.start(f"plans of {name}")
        recorder.rows(_plan_rows(name, base.with_planning(**options), unit))
    recorder.done()
    return recorder


def _other_ways(base: DiffusionAgent) -> dict[str, dict[str, Any]]:
    """To plan with the same base: options by name."""
    return {
        "base-steps-10": {"n_sampling_steps": 10},
        "base-ancestral": {"n_sampling_steps": base.process.n_diffusion_steps, "sampler": "ddpm"},
        "base-best-of-4": {"n_candidates": 4},
        "base-steps-10-best-of-4": {"n_sampling_steps": 10, "n_candidates": 4},
    }


def _plan_rows(name: str, base: DiffusionAgent, unit: Unit) -> list[Row]:
    maze = unit.task.maze
    observations = experiments.observations_for_plans(maze, N_PLANS, unit.seed)
    plans = np.asarray(base.plan(observations, deterministic=False)[..., :2], dtype=np.float64)
    return [
        result_row(name, "plans_through_walls_rate", crosses_walls(maze, plans)),
        result_row(name, "planned_positions_in_walls", maze.is_wall(plans).mean(axis=1)),
    ]


def measure_pair(store: ArtifactStore, unit: Unit, log: Log = lambda text: None) -> tuple[Recorder, RewardMap]:
    """A base, an expert and their reward: everything that the experiment reports of them."""
    recorder = Recorder(log)
    recorder.start("data")
    store.data(unit)
    base, _ = store.base(unit)
    recorder.start("training the expert")
    expert, expert_seconds = store.expert(unit)
    recorder.start("extracting the reward")
    reward, reward_seconds = store.reward(unit)
    recorder.times(expert_data=store.data(unit)[1], expert=expert_seconds, reward=reward_seconds)
    recorder.start("drawing the map")
    data = store.data(Unit(unit.maze, unit.seed))[0], store.data(unit)[0]
    drawn = experiments.map_reward(reward, unit.task.maze, store.recipe, data[0])
    recorder.rows(recovery_rows("reward", drawn, unit.goal))
    recorder.rows(_orders(drawn, unit.goal, *data))
    recorder.start("EPIC")
    recorder.rows(_epic(reward, unit, data[0]))
    recorder.start("R²")
    held_out = store.sources(unit)[1]
    recorder.rows(experiments.explained_rows(reward, base, expert, held_out, store.recipe, unit.seed))
    _measure_agents(store, unit, recorder, reward, base, expert)
    recorder.done()
    return recorder, drawn


# ---------------------------------------------------------------------- the reward


def recovery_rows(agent: str, drawn: RewardMap, goal: Any) -> list[Row]:
    """Where the map is highest (the paper's first metric); a constant is highest nowhere and has found nothing."""
    error = drawn.goal_error_cells(goal) if np.ptp(drawn.values) > 0 else np.inf
    return [
        plain_row(agent, "goal_error_cells", error),
        plain_row(agent, "goal_own_cell", float(np.isfinite(error) and drawn.same_cell(goal))),
        plain_row(agent, "goal_within_one_cell", float(error <= 1.0)),
    ]


def order_rows(agent: str, cells: Array, maze: MazeGeometry, goal: Any) -> list[Row]:
    """Whether values of cells (rows, columns) are in the order of their paths to the goal."""
    order = path_order(cells, maze, goal)
    rows = [{**plain_row(agent, "spearman_path", order.spearman), "n": len(maze.free_cells)}]
    for metric, pairs in (("topology_pairs_rate", order.pairs), ("detour_pairs_rate", order.detours)):
        if len(pairs):
            rows.append(result_row(agent, metric, pairs))
    return rows


def epic_rows(agent: str, rewards: Mapping[str, Callable[[Array], Array]], unit: Unit, coverage: Coverage) -> list[Row]:
    """EPIC distance of rewards of states to PointMaze's dense reward; the keys are the names of the metrics."""
    maze = unit.task.maze
    true = state_reward(lambda states: dense_reward(maze, unit.goal, states))
    rows = []
    for metric, function in rewards.items():
        if np.ptp(function(coverage.states)) > 0:  # a constant has no distance
            distance = epic_distance(state_reward(function), true, coverage, n_canonical=N_CANONICAL, seed=unit.seed)
            rows.append({**plain_row(agent, metric, distance), "n": N_COVERAGE})
    return rows


def _orders(drawn: RewardMap, goal: Any, base_data: TrajectoryDataset, expert_data: TrajectoryDataset) -> list[Row]:
    """The order of cells by the reward, by straight distance, and by counting."""
    maze = drawn.maze
    values: Mapping[str, Array] = {
        "reward": cell_rewards(drawn),
        "euclidean": euclidean_values(maze, goal),
        "occupancy": occupancy_log_ratio(maze, base_data.observations, expert_data.observations),
    }
    return [row for name, cells in values.items() for row in order_rows(name, cells, maze, goal)]


def _epic(reward: RelativeReward, unit: Unit, base_data: TrajectoryDataset) -> list[Row]:
    """EPIC distance of ρ itself and of exp(min(ρ − max ρ, 0)), a ratio of densities."""
    coverage = Coverage.from_dataset(base_data, N_COVERAGE, unit.seed)
    bounded = BoundedReward.fit(reward, coverage.states)
    rewards = {
        "epic_distance": lambda states: np.asarray(reward.predict(states), dtype=np.float64),
        "epic_distance_bounded": lambda states: bounded(np.asarray(reward.predict(states), dtype=np.float64)),
    }
    return epic_rows("reward", rewards, unit, coverage)


# ---------------------------------------------------------------------- the agents


def _measure_agents(
    store: ArtifactStore,
    unit: Unit,
    recorder: Recorder,
    reward: RelativeReward,
    base: DiffusionAgent,
    expert: DiffusionAgent,
) -> None:
    """Success and return of everybody who runs in this variant, and their differences episode by episode."""
    wanted = store.variant.agents
    actor = store.second_base(unit)[0] if store.variant.unseen_base else base
    agents: dict[str, Predictor] = {"base": actor}
    if "discriminator" in wanted:
        recorder.start("training the discriminator")
        other, seconds = store.discriminator(unit)
        recorder.times(discriminator=seconds)
        agents["discriminator"] = experiments.steer(actor, other, store.recipe)
    agents |= {"steered": experiments.steer(actor, reward, store.recipe), "expert": expert}
    settings = experiments.section(store.recipe, "evaluation")
    results: dict[str, Evaluation] = {}
    with environments(unit, store.recipe, PLANNERS_AT_ONCE) as envs:
        for name in wanted:
            recorder.start(f"episodes of {name}")
            results[name] = evaluate(agents[name], envs, seed=unit.seed * 1000, **settings)
            recorder.rows(results[name].rows(name))
    for one, two in PAIRS:
        if one in results and two in results:
            recorder.rows([_difference(results, one, two, metric) for metric in ("success_rate", "return")])


def _difference(results: Mapping[str, Evaluation], one: str, two: str, metric: str) -> Row:
    return {"agent": f"{one}-{two}", "metric": metric, **paired_difference(results[one], results[two], metric)}
