"""Everything that a unit trains, made once and kept as archives: base, expert, rewards, discriminator, other bases."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.experiments import Recipe, section, total_timesteps
from rrpolicy.experiments.locomotion.data import PARTS, Demonstrations
from rrpolicy.experiments.locomotion.units import Unit
from rrpolicy.experiments.store import digest, load_or_create
from rrpolicy.rewards.relative_reward import RelativeReward

EARLY = 4  # part of the training after which an early base is taken


@dataclass
class ArtifactStore:
    """
    :param folder: of the archives
    :param demonstrations: where data come from
    :param recipe: of one robot, the variant's changes included
    """

    folder: Path
    demonstrations: Demonstrations
    recipe: Recipe
    _data: dict[tuple[str, str], list[TrajectoryDataset]] = field(default_factory=dict)

    # ------------------------------------------------------------------ data

    def data(self, unit: Unit) -> list[TrajectoryDataset]:
        """What the pair learns from, [base, expert]."""
        key = unit.robot, unit.case
        if key not in self._data:
            self._data = {key: [self.demonstrations.load(unit, part, self.recipe) for part in PARTS]}
        return self._data[key]

    def sources(self, unit: Unit) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
        """The same in disjoint episodes: to extract from and to score on."""
        return experiments.split_data(self.data(unit), unit.seed)

    def normalizer(self, unit: Unit) -> Normalizer:
        """The one normaliser of a pair, fitted on the data of both."""
        mode = section(self.recipe, "agent").get("normalizer_mode", "gaussian")
        return Normalizer.fit(TrajectoryDataset.concatenate(self.data(unit)), mode=mode)

    # ------------------------------------------------------------------ agents

    def base(self, unit: Unit) -> tuple[DiffusionAgent, float]:
        """The base, and its CPU-seconds."""
        return self._base(unit, "base", self.data(unit)[0], unit.seed)

    def expert(self, unit: Unit) -> tuple[DiffusionAgent, float]:
        """The expert, fine-tuned from the base, and its CPU-seconds."""
        start = self.base(unit)[0]

        def make() -> DiffusionAgent:
            return experiments.train_expert(start, self.recipe, self.data(unit)[1], unit.seed)

        return load_or_create(self._path(unit, "expert", "agent", "base", "expert"), make, DiffusionAgent.load)

    def other_bases(self, unit: Unit) -> dict[str, DiffusionAgent]:
        """Bases of which the pair's ρ knows nothing, in the pair's units: another seed, an early one, other data."""
        base_data = self.data(unit)[0]
        early = total_timesteps(self.recipe, "base") // EARLY
        bases = {
            "seed-base": self._base(unit, "seed-base", base_data, unit.seed + 100)[0],
            "early-base": self._base(unit, "early-base", base_data, unit.seed + 200, early)[0],
        }
        others = [case for case in section(self.recipe, "data") if case != unit.case]
        if others:
            data = self.demonstrations.load(Unit(unit.robot, others[0], unit.seed), "base", self.recipe)
            bases["data-base"] = self._base(unit, f"{others[0]}-base", data, unit.seed)[0]
        return bases

    def _base(
        self, unit: Unit, name: str, data: TrajectoryDataset, seed: int, steps: int | None = None
    ) -> tuple[DiffusionAgent, float]:
        def make() -> DiffusionAgent:
            agent = experiments.new_agent(unit.task, self.recipe, seed, normalizer=self.normalizer(unit))
            total = total_timesteps(self.recipe, "base") if steps is None else steps
            return agent.learn(data, total, log_interval=0)

        return load_or_create(self._path(unit, name, "agent", "base"), make, DiffusionAgent.load)

    # ------------------------------------------------------------------ rewards

    def reward(self, unit: Unit, n_rounds: int | None = None) -> tuple[RelativeReward, float]:
        """
        The extracted reward and its CPU-seconds.

        :param n_rounds: in closed loop; None: as the recipe says
        """
        count = int(section(self.recipe, "rounds").get("n_rounds", 0)) if n_rounds is None else n_rounds
        base, expert = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            data, _ = self.sources(unit)
            made = experiments.extract_on_policy(base, expert, data, self.recipe, unit.seed, count, unit.task.make)
            return made.reward

        parts = ("agent", "base", "expert", "extraction", *(("rounds", "steering") if count else ()))
        return load_or_create(self._path(unit, "reward", *parts, extra=count), make, RelativeReward.load)

    def discriminator(self, unit: Unit) -> tuple[RelativeReward, float]:
        """The baseline's reward and its CPU-seconds."""
        pair = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            return experiments.discriminate(*pair, self.sources(unit)[0], self.recipe, unit.seed)

        parts = ("agent", "base", "expert", "discriminator")
        return load_or_create(self._path(unit, "discriminator", *parts), make, RelativeReward.load)

    # ------------------------------------------------------------------ archives

    def _path(self, unit: Unit, name: str, *sections: str, extra: Any = None) -> Path:
        """By what it was made with, the collection of its data included where the recipe tells it."""
        data = section(self.recipe, "data").get(unit.case)
        made_with = [{part: self.recipe.get(part) for part in sections}, data, extra]
        return self.folder / unit.name / f"{name}-{digest(made_with)}.zip"
