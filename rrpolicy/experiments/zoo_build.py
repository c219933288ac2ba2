"""Fills the zoo of a maze from a recipe: base, experts, rewards, each measured in the real environment.

Every unit is finished before its card is written, so a build that was stopped goes on with the first unit without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rrpolicy import experiments, zoo
from rrpolicy.common.files import write_text
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import Row, evaluate
from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.scores import plain_row
from rrpolicy.experiments.task import Task
from rrpolicy.experiments.zoo_entries import Entries, today

SCALES = (1.0, 2.0)  # of steering, both measured


@dataclass(frozen=True)
class ZooBuild:
    """
    :param task: environment; its goal does not matter
    :param goals: (row, column) of each expert
    :param recipe: every number
    :param seed: of data, training and episodes
    :param folder: the zoo
    :param date: of the cards, YYYY-MM-DD; default today
    :param n_episodes: for each measured number; default the recipe's
    :param progress_bar: show them
    :param log: told what happens
    """

    task: Task
    goals: Sequence[tuple[float, float]]
    recipe: Recipe
    seed: int = 0
    folder: Path = field(default_factory=zoo.folder)
    date: str = field(default_factory=today)
    n_episodes: int | None = None
    progress_bar: bool = False
    log: Callable[[str], None] = lambda text: None

    def run(self, force: bool = False) -> list[dict[str, Any]]:
        """
        Build what is missing, and the table.

        :param force: build everything anew
        :return: the cards
        :raises ValueError: for a goal that is not in a free cell, before anything is built
        """
        tasks = [self.task.with_goal(goal) for goal in self.goals]
        units: list[tuple[str, str, Callable[[], None]]] = [("base", "agent", self._build_base)]
        for task in tasks:
            goal = task.goal or ()
            units.append((zoo.goal_name("expert", goal), "agent", partial(self._build_expert, task)))
            units.append((zoo.goal_name("reward", goal), "reward", partial(self._build_reward, task)))
        for name, kind, make in units:
            if not force and self._entries.finished(name, kind):
                self.log(f"{self.task.env_id}/{name}: there already")
                continue
            self.log(f"{self.task.env_id}/{name}: building")
            self._entries.begin(name)
            make()
        self._measure_base(tasks)
        write_text(self.folder / "README.md", zoo.table(self.folder))
        return [self._entries.card(name) for name, _, _ in units]

    # ------------------------------------------------------------------ units

    def _build_base(self) -> None:
        data = experiments.collect_base(self.task, self.recipe, self.seed)
        agent = experiments.train_base(self.task, self.recipe, data, self.seed, self.progress_bar)
        self._entries.finish(agent, "base", self.task.with_goal(None), [])

    def _build_expert(self, task: Task) -> None:
        base, data = self._entries.agent("base"), experiments.collect_expert(task, self.recipe, self.seed)
        expert = experiments.train_expert(base, self.recipe, data, self.seed, self.progress_bar)
        name = zoo.goal_name("expert", task.goal or ())
        self._entries.ship(expert, name)
        rows = self._measure("agent", self._entries.agent(name), task)
        self._entries.finish(expert, name, task, rows)

    def _build_reward(self, task: Task) -> None:
        names = [zoo.goal_name(kind, task.goal or ()) for kind in ("expert", "reward")]
        base, expert = self._entries.agent("base"), self._entries.agent(names[0])
        data = [
            experiments.collect_base(task, self.recipe, self.seed),
            experiments.collect_expert(task, self.recipe, self.seed),
        ]
        train, held_out = experiments.split_data(data, self.seed)
        made = experiments.extract(base, expert, train, self.recipe, self.seed, self.progress_bar).reward
        self._entries.ship(made, names[1])
        reward = self._entries.reward(names[1])
        other = experiments.discriminate(base, expert, train, self.recipe, self.seed, self.progress_bar)
        error = experiments.map_reward(reward, task.maze, self.recipe).goal_error_cells(task.goal)
        rows = [plain_row("reward", "goal_error_cells", error)]
        for scale in SCALES:
            steered = experiments.steer(base, reward, self.recipe, scale=scale)
            rows += self._measure(f"steered-{scale:g}", steered, task)
        rows += self._measure("discriminator", experiments.steer(base, other, self.recipe), task)
        rows += experiments.explained_rows(reward, base, expert, held_out, self.recipe, self.seed)
        self._entries.finish(reward, names[1], task, rows)

    def _measure_base(self, tasks: Sequence[Task]) -> None:
        """The base's success at every goal that has an expert; goals measured before keep their numbers."""
        rows = list(self._entries.card("base")["results"])
        measured = {row["agent"] for row in rows}
        missing = [task for task in tasks if zoo.goal_name("base", task.goal or ()) not in measured]
        if not missing:
            return
        base = self._entries.agent("base")
        for task in missing:
            rows += self._measure(zoo.goal_name("base", task.goal or ()), base, task)
        self._entries.finish(base, "base", self.task.with_goal(None), rows)

    # ------------------------------------------------------------------ helpers

    @property
    def _entries(self) -> Entries:
        return Entries(self.task.env_id, self.recipe, self.seed, self.folder, self.date)

    def _measure(self, name: str, agent: Predictor, task: Task) -> list[Row]:
        settings = experiments.section(self.recipe, "evaluation")
        if self.n_episodes is not None:
            settings["n_eval_episodes"] = self.n_episodes
        rows = evaluate(agent, task.make, seed=self.seed, progress_bar=self.progress_bar, **settings).rows(name)
        self.log(f"  {name}: " + ", ".join(f"{row['metric']} {row['mean']:.3f}" for row in rows))
        return rows
