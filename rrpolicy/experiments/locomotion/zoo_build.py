"""Fills the zoo with a robot's base, expert and reward as the locomotion experiment makes them: measured and filmed.

Training is kept in the experiment's own folder, so what a stopped build or the experiment has made is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy import experiments, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.files import write_text
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import Evaluation, Row
from rrpolicy.experiments import DEFAULT_RECIPE, Recipe, section
from rrpolicy.experiments.locomotion.data import PARTS, Demonstrations, returns
from rrpolicy.experiments.locomotion.film import film
from rrpolicy.experiments.locomotion.pairs import comparisons, data_rows, run
from rrpolicy.experiments.locomotion.units import CASES, ROBOTS, Unit
from rrpolicy.experiments.locomotion.workshop import ArtifactStore
from rrpolicy.experiments.names import check_names
from rrpolicy.experiments.recorder import Recorder
from rrpolicy.experiments.zoo_build import SCALES
from rrpolicy.experiments.zoo_entries import Entries, today
from rrpolicy.rewards.relative_reward import RelativeReward

SEED = 0
VIDEO = "video.mp4"
KINDS = {"base": "agent", "expert": "agent", "reward": "reward"}


def unit_of(env_id: str, case: str, seed: int = SEED) -> Unit:
    """
    The pair of an environment.

    :param case: a name of ``CASES``
    :raises ValueError: for an environment or kind of data that the experiment does not have
    """
    robots = {value: name for name, value in ROBOTS.items()}
    check_names("env", [env_id], robots)
    check_names("case", [case], CASES)
    return Unit(robots[env_id], case, seed)


@dataclass(frozen=True)
class RobotZooBuild:
    """
    :param unit: robot, kind of data and seed
    :param recipe: every number
    :param work: folder of the experiment's archives
    :param demonstrations: where data come from
    :param folder: the zoo
    :param date: of the cards, YYYY-MM-DD; default today
    :param n_episodes: for each measured number; default the recipe's
    :param log: told what happens
    """

    unit: Unit
    recipe: Recipe
    work: Path
    demonstrations: Demonstrations
    folder: Path = field(default_factory=zoo.folder)
    date: str = field(default_factory=today)
    n_episodes: int | None = None
    log: Callable[[str], None] = lambda text: None

    def run(self, force: bool = False) -> list[dict[str, Any]]:
        """
        Build the three entries unless they are there, and the table.

        :param force: measure and film anew; what was trained is kept in ``work``
        :return: the cards
        """
        entries, env_id = self._entries, self.unit.env_id
        if not force and all(entries.finished(name, kind) for name, kind in KINDS.items()):
            self.log(f"{env_id}: there already")
        else:
            self.log(f"{env_id}: building")
            self._build(entries, ArtifactStore(self.work, self.demonstrations, self._with_episodes()))
        write_text(self.folder / "README.md", zoo.table(self.folder))
        return [entries.card(name) for name in KINDS]

    def _build(self, entries: Entries, store: ArtifactStore) -> None:
        makers: Mapping[str, Callable[[Unit], tuple[DiffusionAgent | RelativeReward, float]]]
        makers = {"base": store.base, "expert": store.expert, "reward": store.reward}
        for name, make in makers.items():
            self.log(f"  {name}")
            entries.begin(name)
            entries.ship(make(self.unit)[0], name)
        base, expert, reward = entries.agent("base"), entries.agent("expert"), entries.reward("reward")
        steered = experiments.steer(base, reward, self.recipe)
        agents: dict[str, Predictor] = {"base": base, "expert": expert, "steered": steered}
        for scale in SCALES:
            if scale != steered.scale:
                agents[f"steered-{scale:g}"] = experiments.steer(base, reward, self.recipe, scale=scale)
        agents["discriminator"] = experiments.steer(base, store.discriminator(self.unit)[0], self.recipe)
        results = run(store, self.unit, {"all": lambda: agents}, Recorder(lambda text: self.log(f"  {text}")))
        results |= {f"steered-{scale:g}": results["steered"] for scale in SCALES if scale == steered.scale}
        for name, actor in {"base": base, "expert": expert, "reward": steered}.items():
            film(actor, self.unit.task, entries.place(name) / VIDEO, seed=self.unit.seed)
        for name, agent, data in zip(PARTS, (base, expert), store.data(self.unit), strict=True):
            rows = results[name].rows("agent") + data_rows("data", self.unit, returns(data))
            entries.finish(agent, name, self.unit.task, rows, data=facts_of(data), video=VIDEO)
        rows = self._reward_rows(results)
        held_out = store.sources(self.unit)[1]
        rows += experiments.explained_rows(reward, base, expert, held_out, self.recipe, self.unit.seed)
        steering = section(self.recipe, "steering")
        entries.finish(reward, "reward", self.unit.task, rows, steering=steering, video=VIDEO)

    def _reward_rows(self, results: Mapping[str, Evaluation]) -> list[Row]:
        """Everybody who is steered, against the base and in parts of the way to the expert."""
        rows = [row for name, result in results.items() if name not in PARTS for row in result.rows(name)]
        return rows + [row for row in comparisons(results, *PARTS) if np.isfinite(row["mean"])]

    @property
    def _entries(self) -> Entries:
        unit = self.unit
        return Entries(unit.env_id, self.recipe, unit.seed, self.folder, self.date, {"case": unit.case})

    def _with_episodes(self) -> Recipe:
        """The recipe, with another number of episodes where one is given."""
        if self.n_episodes is None:
            return self.recipe
        values = section({**DEFAULT_RECIPE, **self.recipe}, "evaluation")
        return {**self.recipe, "evaluation": {**values, "n_eval_episodes": self.n_episodes}}


def facts_of(data: TrajectoryDataset) -> dict[str, Any]:
    """How data were collected, and how much; what every single episode returned is left out."""
    agents: Sequence[Mapping[str, Any]] = data.metadata.get("agents", [])
    told = {key: value for key, value in data.metadata.items() if key not in ("returns", "agents")}
    if agents:
        told["agents"] = [{key: value for key, value in one.items() if key != "returns"} for one in agents]
    return {"n_transitions": data.n_transitions, "n_episodes": data.n_episodes, **told}
