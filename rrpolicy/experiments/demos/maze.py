"""The demo in a maze: the reward is extracted and drawn, then base, discriminator, steered base and expert run.

From the zoo only the rewards are made; from scratch everything is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rrpolicy import experiments, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.planning import Planner
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import Row, write_results
from rrpolicy.evaluation.plots import plot_hero, plot_reward_map
from rrpolicy.evaluation.video import VideoInfo, record_video
from rrpolicy.experiments import Recipe, Task, plain_row
from rrpolicy.experiments.demos.maze_page import write_graphs, write_page
from rrpolicy.experiments.demos.stage import HEAT_MAP, HERO, HTML, Stage
from rrpolicy.export.browser import runtime_scripts
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.relative_reward import RelativeReward

N_EPISODES = 48
HERO_EPISODES = 24
STEPS_PER_FRAME = 2
Data = Sequence[TrajectoryDataset]


def maze_demo(stage: Stage, from_scratch: bool = False, html: bool = False) -> list[Row]:
    """
    Run the demo in a maze.

    :param stage: whose task is a maze
    :param from_scratch: train the pair; a maze of one's own implies it
    :param html: leave a page in which the steered planner runs
    :return: the rows of ``results.json``
    :raises ValueError: when the zoo lacks the pair, naming the goals it has
    """
    scratch = from_scratch or stage.task.maze_map is not None
    task = with_default_goal(stage.task) if scratch else with_zoo_goal(stage.task)
    n_episodes = stage.n_episodes or N_EPISODES
    runtime = runtime_scripts() if html else None
    stage.clear()
    stage.log(f"{task.env_id}, goal {zoo.goal_name('cell', task.goal or ())}, seed {stage.seed}\n{task.maze}")
    collectors = experiments.collect_base, experiments.collect_expert
    data = [collect(task, stage.recipe, stage.seed) for collect in collectors]
    base, expert = _train(stage, task, data) if scratch else _load(stage, task)
    reward, other = _extract(stage, task, base, expert, data)
    reward_map = _map(stage, task, reward)
    steered, by_other = (experiments.steer(base, one, stage.recipe) for one in (reward, other))
    planners: dict[str, Planner] = {"base": base, "discriminator": by_other, "steered": steered, "expert": expert}
    agents = stage.prepared(planners)
    with stage.environments(task, n_episodes) as envs:
        results = stage.evaluate(agents, envs, n_episodes)
        rows = [row for name, result in results.items() for row in result.rows(name)]
        rows.append(plain_row("reward", "goal_error_cells", reward_map.goal_error_cells(task.goal)))
        write_results(rows, stage.out)
        shown = {name: agents[name] for name in ("base", "steered")}
        n_shown = min(n_episodes, HERO_EPISODES)
        plot_hero(reward_map, shown, envs, stage.out / HERO, task.goal, stage.seed, n_shown, stage.deterministic)

    if runtime is not None:
        with stage.timed("page"):
            write_graphs(stage.out / HTML, steered, task.to_card())
            write_page(stage.out / HTML, steered, reward_map, task.goal, runtime, task.to_card())

    def record(agent: Predictor, path: Path, caption: str) -> VideoInfo:
        return record_video(
            agent,
            task.make,
            path,
            seed=stage.seed,
            deterministic=stage.deterministic,
            steps_per_frame=STEPS_PER_FRAME,
            caption=caption,
        )

    stage.film(agents, record)
    stage.finish(rows)
    return rows


# ---------------------------------------------------------------------- the pair


def _load(stage: Stage, task: Task) -> tuple[DiffusionAgent, DiffusionAgent]:
    base, expert = (f"{task.env_id}/{name}" for name in ("base", zoo.goal_name("expert", task.goal or ())))
    stage.log(f"base and expert from the zoo: {base}, {expert}")
    return zoo.load_agent(base), zoo.load_agent(expert)


def _train(stage: Stage, task: Task, data: Data) -> tuple[DiffusionAgent, DiffusionAgent]:
    with stage.timed("training the base"):
        base = experiments.train_base(task, stage.recipe, data[0], stage.seed, stage.progress_bar)
    experiments.save_agent(base, stage.out / "base.zip", task.with_goal(None).to_card())
    with stage.timed("fine-tuning the expert"):
        expert = experiments.train_expert(base, stage.recipe, data[1], stage.seed, stage.progress_bar)
    experiments.save_agent(expert, stage.out / "expert.zip", task.to_card())
    return base, expert


# ---------------------------------------------------------------------- the reward


def _extract(
    stage: Stage, task: Task, base: DiffusionAgent, expert: DiffusionAgent, data: Data
) -> tuple[RelativeReward, RelativeReward]:
    """The relative reward and the discriminator's, from the same data, each in a process of its own where there are."""
    own_bar = stage.progress_bar and not stage.jobs.elsewhere
    discriminator = stage.jobs.begin(partial(_discriminate, base, expert, data, stage.recipe, own_bar), stage.seed)
    with stage.timed("extracting the reward"):
        reward = experiments.extract(base, expert, data, stage.recipe, stage.seed, stage.progress_bar).reward
    reward.save(stage.out / "reward.zip", card=task.to_card())
    other, seconds = discriminator()
    stage.log(f"training the discriminator: {seconds:.1f} CPU-seconds")
    other.save(stage.out / "discriminator.zip", card=task.to_card())
    return reward, other


def _discriminate(
    base: DiffusionAgent, expert: DiffusionAgent, data: Data, recipe: Recipe, progress_bar: bool, seed: int
) -> tuple[RelativeReward, float]:
    """The discriminator's reward, and its CPU-seconds."""
    started = time.process_time()
    return experiments.discriminate(base, expert, data, recipe, seed, progress_bar), time.process_time() - started


def _map(stage: Stage, task: Task, reward: RelativeReward) -> RewardMap:
    reward_map = experiments.map_reward(reward, task.maze, stage.recipe)
    plot_reward_map(reward_map, task.goal, stage.out / HEAT_MAP, title=f"Extracted reward, {task.env_id}")
    row, column = task.maze.xy_to_rowcol(reward_map.maximum)
    place = "in" if reward_map.same_cell(task.goal) else "not in"
    stage.log(f"the reward is highest at cell ({row:.2f}, {column:.2f}), {place} the goal's own cell")
    return reward_map


# ---------------------------------------------------------------------- the goal


def with_zoo_goal(task: Task) -> Task:
    """
    The task with a goal for which the zoo has an expert: its own, or the first there is.

    :raises ValueError: when there is none, naming the goals
    """
    goals = [
        tuple(entry["goal"])
        for entry in zoo.entries()
        if entry["environment"] == task.env_id and entry["name"].partition("/")[2].startswith("expert-")
    ]
    advice = "pass --from-scratch to train a pair"
    if not goals:
        raise ValueError(f"the zoo has no expert for {task.env_id}; {advice}")
    if task.goal is None:
        return task.with_goal(goals[0])
    if task.goal not in goals:
        known = "; ".join(",".join(f"{value:g}" for value in goal) for goal in goals)
        wanted = ",".join(f"{value:g}" for value in task.goal)
        raise ValueError(f"the zoo has no expert for {task.env_id} with the goal {wanted}, it has {known}; {advice}")
    return task


def with_default_goal(task: Task) -> Task:
    """The task with a goal: its own, the cell that the maze marks with ``g`` or ``c``, or the last free cell."""
    if task.goal is not None:
        return task
    marked = [(r, c) for r, row in enumerate(task.maze.rows) for c, cell in enumerate(row) if cell in "gc"]
    return task.with_goal((marked or [tuple(cell) for cell in task.maze.free_cells[-1:].tolist()])[0])
