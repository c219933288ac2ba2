"""The steps that all demos share: evaluate agents in the same episodes, film them, and write the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym

from rrpolicy import experiments
from rrpolicy.agents.planning import Planner
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import RESULTS_FILE, Evaluation, Row, evaluate, table, write_results
from rrpolicy.experiments import Recipe, Task
from rrpolicy.experiments.demos.maze_page import PAGE, PAGE_FILES
from rrpolicy.experiments.runs import clear

AGENTS = ("base", "discriminator", "steered", "expert")
HEAT_MAP, HERO = "heat_map.png", "hero.png"
ARCHIVES = ("base.zip", "expert.zip", "reward.zip", "discriminator.zip")
HTML = "page"  # folder of the page in which a maze's planner runs
PRODUCTS = (RESULTS_FILE, HEAT_MAP, HERO, *ARCHIVES, *(f"{name}.mp4" for name in AGENTS), f"{HTML}/{PAGE}")
MAX_ENVS = 64


@dataclass(frozen=True)
class Stage:
    """
    Settings of a demo, and the steps that all demos share: evaluating, filming and writing results.

    :param task: maze and goal (a goal of None chooses one), or robot
    :param out: folder, made if missing; what an earlier demo left there is replaced
    :param recipe: every number
    :param seed: of data, training and episodes
    :param n_episodes: for each agent, seed-matched; None: as many as suit the environment
    :param progress_bar: show them
    :param log: called with a line of text at each step
    :param prepare: makes of each planner what acts in its place, such as a compiled one; None: itself
    :param jobs: where steps that do not need each other may run beside each other; the results are the same
    """

    task: Task
    out: Path
    recipe: Recipe
    seed: int = 0
    n_episodes: int | None = None
    progress_bar: bool = False
    log: Callable[[str], None] = lambda text: None
    prepare: Callable[[Planner], Predictor] | None = None
    jobs: Jobs = field(default_factory=Jobs)

    def prepared(self, planners: Mapping[str, Planner]) -> dict[str, Predictor]:
        """The agents that act."""
        return {name: planner if self.prepare is None else self.prepare(planner) for name, planner in planners.items()}

    @property
    def deterministic(self) -> bool:
        """Whether agents act by their mode: the recipe's choice, else True in mazes and False for robots."""
        return bool(
            experiments.section(self.recipe, "evaluation").get("deterministic", self.task.acts_deterministically)
        )

    def clear(self) -> None:
        """Make the folder, without what an earlier demo left there."""
        self.out.mkdir(parents=True, exist_ok=True)
        clear(self.out, (*PRODUCTS, *(f"{HTML}/{name}" for name in PAGE_FILES)))

    @contextmanager
    def environments(self, task: Task, n_episodes: int) -> Iterator[list[gym.Env]]:
        """Copies of the real environment, closed in the end."""
        with experiments.environments(task, min(n_episodes, MAX_ENVS)) as envs:
            yield envs

    def evaluate(
        self, agents: Mapping[str, Predictor], envs: Sequence[gym.Env], n_episodes: int
    ) -> dict[str, Evaluation]:
        """Evaluate all agents in the same episodes; what is done is in ``results.json``."""
        settings = {**experiments.section(self.recipe, "evaluation"), "n_eval_episodes": n_episodes}
        settings["deterministic"] = self.deterministic
        results: dict[str, Evaluation] = {}
        for name, agent in agents.items():
            with self.timed(f"{n_episodes} episodes of {name}"):
                results[name] = evaluate(agent, envs, seed=self.seed, progress_bar=self.progress_bar, **settings)
            write_results(results[name].rows(name), self.out)
        return results

    def film(self, agents: Mapping[str, Predictor], record: Callable[[Predictor, Path, str], Any]) -> None:
        """
        Write a video of each agent.

        :param record: writes the video of an agent to a path, with a caption, and returns what drew it
        """
        with self.timed("videos"):
            infos = [record(agent, self.out / f"{name}.mp4", name) for name, agent in agents.items()]
        self.log(f"drawn by: {', '.join(sorted({info.renderer for info in infos}))} (needs no OpenGL)")

    def finish(self, rows: Sequence[Row]) -> None:
        """Log the results and where they are."""
        written = sorted(name for name in PRODUCTS if (self.out / name).exists())
        self.log(f"\n{table(rows)}\n\nEverything is in {self.out}: {', '.join(written)}")

    def timed(self, what: str) -> AbstractContextManager[None]:
        """Log how long a step took, if it came to its end."""
        return timed(what, self.log)


@contextmanager
def timed(what: str, log: Callable[[str], None]) -> Iterator[None]:
    """Log how long a step took, if it came to its end."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    log(f"{what}: {time.perf_counter() - wall:.1f} s ({time.process_time() - cpu:.1f} CPU-seconds)")
