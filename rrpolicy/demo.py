"""The main job, seen happening: two agents in, a reward out, the weak agent steered with it acts like the strong one.

From the zoo only the reward is made; from scratch everything is. Every result is written as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from rrpolicy import pipeline, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import RESULTS_FILE, Row, evaluate_policy, table, write_results
from rrpolicy.pipeline import Recipe, Task, plain_row
from rrpolicy.pipeline.runs import clear
from rrpolicy.plotting import plot_hero, plot_reward_map
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.video import record_video

AGENTS = ("base", "discriminator", "steered", "expert")
HEAT_MAP, HERO = "heat_map.png", "hero.png"
ARCHIVES = ("base.zip", "expert.zip", "reward.zip", "discriminator.zip")
PRODUCTS = (RESULTS_FILE, HEAT_MAP, HERO, *ARCHIVES, *(f"{name}.mp4" for name in AGENTS))
STEPS_PER_FRAME = 2
HERO_EPISODES = 24
MAX_ENVS = 64


@dataclass(frozen=True)
class Demo:
    """
    :param task: maze and goal; a goal of None chooses one
    :param out: folder, made if missing; what an earlier demo left there is replaced
    :param recipe: every number
    :param seed: of data, training and episodes
    :param from_scratch: train both agents instead of taking them from the zoo; a maze of one's own implies it
    :param n_episodes: for each agent, seed-matched
    :param progress_bar: show them
    :param say: told what happens
    """

    task: Task
    out: Path
    recipe: Recipe
    seed: int = 0
    from_scratch: bool = False
    n_episodes: int = 48
    progress_bar: bool = False
    say: Callable[[str], None] = lambda text: None

    def run(self) -> list[Row]:
        """
        Do it all.

        :return: the rows of ``results.json``
        :raises ValueError: when the environment is no PointMaze, or the zoo lacks the pair, naming the goals it has
        """
        if not self.task.is_maze:
            raise ValueError(f"the demo needs a PointMaze, env is {self.task.env_id!r}")
        if self.n_episodes < 1:
            raise ValueError(f"n_episodes is {self.n_episodes}, it must be at least 1")
        scratch = self.from_scratch or self.task.maze_map is not None
        task = with_default_goal(self.task) if scratch else with_zoo_goal(self.task)
        self.out.mkdir(parents=True, exist_ok=True)
        clear(self.out, PRODUCTS)
        self.say(f"{task.env_id}, goal {zoo.goal_name('cell', task.goal or ())}, seed {self.seed}\n{task.maze}")
        data = [pipeline.collect_base(task, self.recipe, self.seed),
                pipeline.collect_expert(task, self.recipe, self.seed)]
        base, expert = self._train(task, data) if scratch else self._load(task)
        reward, other = self._extract(task, base, expert, data)
        reward_map = self._map(task, reward)
        agents: dict[str, Predictor] = {
            "base": base,
            "discriminator": pipeline.steer(base, other, self.recipe),
            "steered": pipeline.steer(base, reward, self.recipe),
            "expert": expert,
        }
        rows = [plain_row("reward", "goal_error_cells", reward_map.goal_error_cells(task.goal))]
        with ExitStack() as stack:
            envs = [stack.enter_context(closing(task.make())) for _ in range(min(self.n_episodes, MAX_ENVS))]
            rows = self._evaluate(agents, envs) + rows
            write_results(rows, self.out)
            shown = {name: agents[name] for name in ("base", "steered")}
            n_shown = min(self.n_episodes, HERO_EPISODES)
            plot_hero(reward_map, shown, envs, self.out / HERO, task.goal, self.seed, n_shown, self._deterministic)
        self._film(task, agents)
        self.say(f"\n{table(rows)}\n\nEverything is in {self.out}: {', '.join(sorted(self._written()))}")
        return rows

    # ------------------------------------------------------------------ the pair

    def _load(self, task: Task) -> tuple[DiffusionAgent, DiffusionAgent]:
        base, expert = (f"{task.env_id}/{name}" for name in ("base", zoo.goal_name("expert", task.goal or ())))
        self.say(f"base and expert from the zoo: {base}, {expert}")
        return zoo.load_agent(base), zoo.load_agent(expert)

    def _train(self, task: Task, data: Sequence[TrajectoryDataset]) -> tuple[DiffusionAgent, DiffusionAgent]:
        with self._timed("training the base"):
            base = pipeline.train_base(task, self.recipe, data[0], self.seed, self.progress_bar)
        pipeline.save_agent(base, self.out / "base.zip", task.with_goal(None).to_card())
        with self._timed("fine-tuning the expert"):
            expert = pipeline.train_expert(base, self.recipe, data[1], self.seed, self.progress_bar)
        pipeline.save_agent(expert, self.out / "expert.zip", task.to_card())
        return base, expert

    # ------------------------------------------------------------------ the reward

    def _extract(
        self, task: Task, base: DiffusionAgent, expert: DiffusionAgent, data: Sequence[TrajectoryDataset]
    ) -> tuple[RelativeReward, RelativeReward]:
        """The relative reward and the discriminator's, from the same data."""
        with self._timed("extracting the reward"):
            extractor = pipeline.extract(base, expert, data, self.recipe, self.seed, self.progress_bar)
        extractor.reward.save(self.out / "reward.zip", card=task.to_card())
        with self._timed("training the discriminator"):
            other = pipeline.discriminate(base, expert, data, self.recipe, self.seed, self.progress_bar)
        other.save(self.out / "discriminator.zip", card=task.to_card())
        return extractor.reward, other

    def _map(self, task: Task, reward: RelativeReward) -> RewardMap:
        reward_map = pipeline.map_reward(reward, task.maze, self.recipe)
        plot_reward_map(reward_map, task.goal, self.out / HEAT_MAP, title=f"Extracted reward, {task.env_id}")
        row, column = task.maze.xy_to_rowcol(reward_map.maximum)
        place = "in" if reward_map.same_cell(task.goal) else "not in"
        self.say(f"the reward is highest at cell ({row:.2f}, {column:.2f}), {place} the goal's own cell")
        return reward_map

    # ------------------------------------------------------------------ the agents at work

    def _evaluate(self, agents: dict[str, Predictor], envs: Sequence[gym.Env]) -> list[Row]:
        settings = {**pipeline.section(self.recipe, "evaluation"), "n_eval_episodes": self.n_episodes}
        rows: list[Row] = []
        for name, agent in agents.items():
            with self._timed(f"{self.n_episodes} episodes of {name}"):
                result = evaluate_policy(agent, envs, seed=self.seed, progress_bar=self.progress_bar, **settings)
            rows += result.rows(name)
            write_results(rows, self.out)
        return rows

    def _film(self, task: Task, agents: dict[str, Predictor]) -> None:
        renderers = set()
        with self._timed("videos"):
            for name, agent in agents.items():
                path = self.out / f"{name}.mp4"
                settings: dict[str, Any] = {"seed": self.seed, "deterministic": self._deterministic, "caption": name}
                info = record_video(agent, task.make, path, steps_per_frame=STEPS_PER_FRAME, **settings)
                renderers.add(info.renderer)
        self.say(f"drawn by: {', '.join(sorted(renderers))} (needs no OpenGL)")

    @property
    def _deterministic(self) -> bool:
        return bool(pipeline.section(self.recipe, "evaluation").get("deterministic", True))

    # ------------------------------------------------------------------ talking

    def _timed(self, what: str) -> _Timed:
        return _Timed(what, self.say)

    def _written(self) -> list[str]:
        return [name for name in PRODUCTS if (self.out / name).exists()]


class _Timed:
    """Says how long a step took."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say = what, say

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            seconds, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
            self._say(f"{self._what}: {seconds:.1f} s ({cpu:.1f} CPU-seconds)")


def with_zoo_goal(task: Task) -> Task:
    """
    The task with a goal for which the zoo has an expert: its own, or the first there is.

    :raises ValueError: when there is none, naming the goals
    """
    goals = [tuple(entry["goal"]) for entry in zoo.entries()
             if entry["environment"] == task.env_id and entry["name"].partition("/")[2].startswith("expert-")]
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
