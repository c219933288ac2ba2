"""Fills the zoo from a recipe: base, experts, rewards, each measured in the real environment and shipped with a card.

Every unit is finished before its card is written, so a build that was stopped goes on with the first unit without one.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rrpolicy import pipeline, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.files import write_json, write_text
from rrpolicy.common.typing import Predictor
from rrpolicy.common.version import __version__
from rrpolicy.evaluation import Row, evaluate_policy
from rrpolicy.pipeline.recipes import Recipe
from rrpolicy.pipeline.scores import plain_row
from rrpolicy.pipeline.task import Task

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
    :param say: told what happens
    """

    task: Task
    goals: Sequence[tuple[float, float]]
    recipe: Recipe
    seed: int = 0
    folder: Path = field(default_factory=zoo.folder)
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    n_episodes: int | None = None
    progress_bar: bool = False
    say: Callable[[str], None] = lambda text: None

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
            if not force and self._finished(name, kind):
                self.say(f"{self.task.env_id}/{name}: there already")
                continue
            self.say(f"{self.task.env_id}/{name}: building")
            (self._entry(name) / zoo.CARD).unlink(missing_ok=True)
            make()
        self._measure_base(tasks)
        write_text(self.folder / "README.md", zoo.table(self.folder))
        return [json.loads((self._entry(name) / zoo.CARD).read_text(encoding="utf-8")) for name, _, _ in units]

    # ------------------------------------------------------------------ units

    def _build_base(self) -> None:
        data = pipeline.collect_base(self.task, self.recipe, self.seed)
        agent = pipeline.train_base(self.task, self.recipe, data, self.seed, self.progress_bar)
        self._save_agent(agent, "base", self.task.with_goal(None), [])

    def _build_expert(self, task: Task) -> None:
        base, data = self._agent("base"), pipeline.collect_expert(task, self.recipe, self.seed)
        expert = pipeline.train_expert(base, self.recipe, data, self.seed, self.progress_bar)
        name = zoo.goal_name("expert", task.goal or ())
        pipeline.save_agent(expert, self._entry(name) / "agent.zip", {}, half=True)
        rows = self._measure("agent", self._agent(name), task)  # what is measured is what is shipped
        self._save_agent(expert, name, task, rows)

    def _build_reward(self, task: Task) -> None:
        base, expert = self._agent("base"), self._agent(zoo.goal_name("expert", task.goal or ()))
        data = [pipeline.collect_base(task, self.recipe, self.seed),
                pipeline.collect_expert(task, self.recipe, self.seed)]
        train, held_out = pipeline.split_data(data, self.seed)
        reward = pipeline.extract(base, expert, train, self.recipe, self.seed, self.progress_bar).reward
        path = self._entry(zoo.goal_name("reward", task.goal or ())) / "reward.zip"
        reward.save(path, half=True)
        reward = zoo.load_reward(path)
        other = pipeline.discriminate(base, expert, train, self.recipe, self.seed, self.progress_bar)
        error = pipeline.map_reward(reward, task.maze, self.recipe).goal_error_cells(task.goal)
        rows = [plain_row("reward", "goal_error_cells", error)]
        for scale in SCALES:
            steered = pipeline.steer(base, reward, self.recipe, scale=scale)
            rows += self._measure(f"steered-{scale:g}", steered, task)
        rows += self._measure("discriminator", pipeline.steer(base, other, self.recipe), task)
        rows += pipeline.explained_rows(reward, base, expert, held_out, self.recipe, self.seed)
        card = self._card(path.parent.name, "reward", task, rows)
        reward.save(path, half=True, card=card)
        self._write_card(path, card)

    def _measure_base(self, tasks: Sequence[Task]) -> None:
        """The base's success at every goal that has an expert; goals measured before keep their numbers."""
        path = self._entry("base") / "agent.zip"
        card = json.loads((path.parent / zoo.CARD).read_text(encoding="utf-8"))
        measured = {row["agent"] for row in card["results"]}
        missing = [task for task in tasks if zoo.goal_name("base", task.goal or ()) not in measured]
        if not missing:
            return
        base = self._agent("base")
        rows = list(card["results"])
        for task in missing:
            rows += self._measure(zoo.goal_name("base", task.goal or ()), base, task)
        self._save_agent(base, "base", self.task.with_goal(None), rows)

    # ------------------------------------------------------------------ helpers

    def _measure(self, name: str, agent: Predictor, task: Task) -> list[Row]:
        settings = pipeline.section(self.recipe, "evaluation")
        if self.n_episodes is not None:
            settings["n_eval_episodes"] = self.n_episodes
        rows = evaluate_policy(agent, task.make, seed=self.seed, progress_bar=self.progress_bar, **settings).rows(name)
        self.say(f"  {name}: " + ", ".join(f"{row['metric']} {row['mean']:.3f}" for row in rows))
        return rows

    def _entry(self, name: str) -> Path:
        return self.folder / "agents" / self.task.env_id / name

    def _agent(self, name: str) -> DiffusionAgent:
        return zoo.load_agent(self._entry(name) / "agent.zip")

    def _save_agent(self, agent: DiffusionAgent, name: str, task: Task, rows: list[Row]) -> None:
        path = self._entry(name) / "agent.zip"
        card = self._card(name, "agent", task, rows)
        pipeline.save_agent(agent, path, card, half=True)
        self._write_card(path, card)

    def _card(self, name: str, kind: str, task: Task, rows: list[Row]) -> dict[str, Any]:
        return {
            "name": f"{task.env_id}/{name}",
            "kind": kind,
            **task.to_card(),
            "results": rows,
            "seed": self.seed,
            "date": self.date,
            "version": __version__,
            "recipe": self.recipe.get("name"),
            "recipe_sha256": recipe_digest(self.recipe),
        }

    def _write_card(self, path: Path, card: dict[str, Any]) -> None:
        write_json(path.parent / zoo.CARD, {**card, "bytes": path.stat().st_size})

    def _finished(self, name: str, kind: str) -> bool:
        """Whether the unit is there, made with this recipe and seed."""
        path = self._entry(name)
        try:
            card = json.loads((path / zoo.CARD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        same = card.get("recipe_sha256") == recipe_digest(self.recipe) and card.get("seed") == self.seed
        return same and (path / f"{kind}.zip").is_file()


def recipe_digest(recipe: Recipe) -> str:
    """16 hexadecimal digits of a recipe's content."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
