"""Students in the zoo: what the steered base of an environment is distilled into, measured beside it.

Bases and rewards are taken as they are shipped, so their entries stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rrpolicy import experiments, zoo
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.evaluation import compare
from rrpolicy.experiments.locomotion.measure_distilled import DistillationSettings
from rrpolicy.experiments.recipes import Recipe, section
from rrpolicy.experiments.report import paired_ratio
from rrpolicy.experiments.scoring import n_episodes, with_episodes
from rrpolicy.experiments.task import Task
from rrpolicy.experiments.zoo_build import Group, ZooBuild
from rrpolicy.experiments.zoo_entries import Entries
from rrpolicy.rl.distill import Distillation
from rrpolicy.rl.policies import POLICY_KIND, Sb3Agent


@dataclass(frozen=True, kw_only=True)
class StudentZooBuild(ZooBuild):
    """
    Students of an environment's steered bases, measured in the real environment; see :class:`ZooBuild`, beside that:

    :param tasks: the environment, or a maze with each goal; the zoo must hold a base and a reward for each
    :param recipe: how the base is steered and evaluated
    :param seed: of distillations and episodes
    :param n_episodes: for each measured number; default the recipe's
    :param settings: of the distillations
    :raises FileNotFoundError: in ``run``, for a base or a reward that the zoo does not have
    """

    tasks: Sequence[Task]
    recipe: Recipe
    seed: int
    n_episodes: int | None = None
    settings: DistillationSettings = field(default_factory=DistillationSettings)

    @property
    def entries(self) -> Entries:
        facts = {"total_timesteps": self.settings.total_timesteps, "n_rounds": self.settings.n_rounds}
        return Entries(self.tasks[0].env_id, self.recipe, self.seed, self.folder, self.date, facts)

    def groups(self) -> list[Group]:
        return [self._group(task) for task in self.tasks]

    def _group(self, task: Task) -> Group:
        name = _named("student", task)
        return Group(
            f"{task.env_id}/{name}",
            {name: (POLICY_KIND, partial(self._make, task))},
            partial(self._measure, task),
        )

    def _teacher(self, task: Task) -> GuidedPlanner:
        base, reward = self.entries.agent("base"), self.entries.reward(_named("reward", task))
        return experiments.steer(base, reward, self.recipe)

    def _make(self, task: Task) -> Sb3Agent:
        teacher = self._teacher(task)
        learner = Distillation(teacher.compile() if self.settings.fast else teacher, seed=self.seed)
        student: Sb3Agent = self.settings.learned(learner, task.make, self.settings.n_rounds)
        return student

    def _measure(self, task: Task) -> None:
        """Teacher and student in the same episodes; a maze's teacher is named by its scale, as in reward cards."""
        entries, name = self.entries, _named("student", task)
        student: Any = entries.policy(name)
        recipe = with_episodes(self.recipe, self.n_episodes)
        settings: dict[str, Any] = section(recipe, "evaluation")
        settings.pop("n_eval_episodes", None)
        settings["n_episodes"] = n_episodes(recipe)
        settings["deterministic"] = {"teacher": bool(settings.get("deterministic", True)), "agent": True}
        teacher = self._teacher(task)
        results = compare({"teacher": teacher, "agent": student}, task.make, seed=self.seed, **settings)
        called = f"steered-{teacher.scale:g}" if task.is_maze else "steered"
        rows = [*results["agent"].rows("agent"), *results["teacher"].rows(called)]
        if results["agent"].normalized_scores is not None:
            ratio = paired_ratio(*(results[one].values(zoo.SCORE) for one in ("agent", "teacher")))
            rows.append({"agent": "agent", "metric": "share_of_the_planner", **ratio})
        self.log("  " + ", ".join(f"{row['agent']} {row['metric']} {row['mean']:.3f}" for row in rows))
        env_id = task.env_id
        reward = _named("reward", task)
        told = {"teacher": f"{env_id}/base steered by {env_id}/{reward} at scale {teacher.scale:g}"}
        case = entries.card(reward).get("case")
        entries.finish(student, name, task, rows, **told, **({} if case is None else {"case": case}))


def _named(kind: str, task: Task) -> str:
    """The name of an entry: a maze's holds its goal."""
    return zoo.goal_name(kind, task.goal or ())
