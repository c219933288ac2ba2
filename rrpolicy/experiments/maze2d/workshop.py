"""Everything that a unit trains, made once and kept as archives: base, expert, reward and discriminator."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.experiments import Recipe, section, total_timesteps
from rrpolicy.experiments.maze2d.units import Unit
from rrpolicy.experiments.maze2d.variants import Variant
from rrpolicy.experiments.recipes import build, without_steps
from rrpolicy.experiments.store import being_made, digest, load_or_create
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.targets import Targets

MAX_DATASETS = 3  # kept in memory: base, second base, expert


@dataclass
class ArtifactStore:
    """
    :param folder: of the archives
    :param recipe: every number, the variant's changes included
    :param variant: what is made differently
    """

    folder: Path
    recipe: Recipe
    variant: Variant
    _datasets: dict[Unit, tuple[TrajectoryDataset, float]] = field(default_factory=dict)

    # ------------------------------------------------------------------ data

    def data(self, unit: Unit) -> tuple[TrajectoryDataset, float]:
        """Demonstrations to the unit's goal, or between random goals, and the CPU-seconds they took."""
        if unit not in self._datasets:
            started = time.process_time()
            collect = experiments.collect_base if unit.goal is None else experiments.collect_expert
            dataset = collect(unit.task, self.recipe, unit.seed)
            while len(self._datasets) >= MAX_DATASETS:
                del self._datasets[next((key for key in self._datasets if key.goal), next(iter(self._datasets)))]
            self._datasets[unit] = dataset, time.process_time() - started
        return self._datasets[unit]

    def sources(self, unit: Unit) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
        """What the pair learned from, base and expert, in disjoint episodes: to extract from and to score on."""
        units = {"tuned": unit, "scratch": unit, "second-base": self._next(unit), "base": self._base_of(unit)}
        pair = [self.data(self._base_of(unit))[0], self.data(units[self.variant.expert])[0]]
        return experiments.split_data(pair, unit.seed)

    # ------------------------------------------------------------------ agents

    def base(self, unit: Unit) -> tuple[DiffusionAgent, float]:
        """The base of the unit's maze and seed, and its CPU-seconds."""
        unit = self._base_of(unit)

        def make() -> DiffusionAgent:
            return experiments.train_base(unit.task, self.recipe, self.data(unit)[0], unit.seed)

        path = self.base_path(unit)
        if not path.exists():
            self.data(unit)  # now, so that its time is not the training's
        return load_or_create(path, make, DiffusionAgent.load)

    def second_base(self, unit: Unit) -> tuple[DiffusionAgent, float]:
        """The base of the next seed."""
        return self.base(self._next(unit))

    def expert(self, unit: Unit) -> tuple[DiffusionAgent, float]:
        """The expert of the unit's goal as the variant wants it, and its CPU-seconds."""
        if self.variant.expert == "second-base":
            return self.second_base(unit)
        if self.variant.expert == "base":
            return self.base(unit)
        scratch = self.variant.expert == "scratch"
        start = self.base(unit)[0]
        self.data(unit)

        def make() -> DiffusionAgent:
            data, seed = self.data(unit)[0], unit.seed
            if not scratch:
                return experiments.train_expert(start, self.recipe, data, seed)
            agent = experiments.new_agent(unit.task, self.recipe, seed + 1)  # not even the base's first weights
            return agent.learn(data, total_timesteps(self.recipe, "base"), log_interval=0)

        name = "expert-from-scratch" if scratch else "expert"
        return load_or_create(self._path(unit, name, "data", "agent", "base", "expert"), make, DiffusionAgent.load)

    # ------------------------------------------------------------------ rewards

    def reward(self, unit: Unit) -> tuple[RelativeReward, float]:
        """The extracted reward and its CPU-seconds; the same for all goals where the expert is."""
        unit = unit if self.variant.has_goal else self._base_of(unit)
        names = self.variant.sources
        train, _ = self.sources(unit)
        chosen = [data for name, data in zip(("base", "expert"), train, strict=True) if name in names]
        pair = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            if not self.variant.shuffled:
                n_rounds = self.variant.n_rounds
                return experiments.extract_on_policy(*pair, chosen, self.recipe, unit.seed, n_rounds).reward
            arguments = {**without_steps(section(self.recipe, "extraction")), "seed": unit.seed}
            extractor = build(ShuffledExtractor, "extraction", base=pair[0], expert=pair[1], **arguments)
            return extractor.learn(chosen, total_timesteps(self.recipe, "extraction"), log_interval=0).reward

        changes = [self.variant.expert, names, self.variant.shuffled, self.variant.n_rounds]
        path = self._path(unit, "reward", "data", "agent", "base", "expert", "extraction", extra=changes)
        return load_or_create(path, make, RelativeReward.load)

    def discriminator(self, unit: Unit) -> tuple[RelativeReward, float]:
        """The baseline's reward and its CPU-seconds."""
        train, _ = self.sources(unit)
        pair = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            return experiments.discriminate(*pair, train, self.recipe, unit.seed)

        parts = ("data", "agent", "base", "expert", "discriminator")
        return load_or_create(self._path(unit, "discriminator", *parts), make, RelativeReward.load)

    # ------------------------------------------------------------------ archives

    def base_path(self, unit: Unit) -> Path:
        return self._path(self._base_of(unit), "base", "data", "agent", "base")

    def base_is_being_made(self, unit: Unit) -> bool:
        """Whether another process is at the base that this unit needs."""
        return being_made(self.base_path(unit))

    def _path(self, unit: Unit, name: str, *sections: str, extra: Any = None) -> Path:
        made_with = [{part: self.recipe.get(part) for part in sections}, extra]
        return self.folder / unit.name / f"{name}-{digest(made_with)}.zip"

    # ------------------------------------------------------------------ units

    @staticmethod
    def _base_of(unit: Unit) -> Unit:
        return Unit(unit.maze, unit.seed)

    @staticmethod
    def _next(unit: Unit) -> Unit:
        return Unit(unit.maze, unit.seed + 1)


class ShuffledExtractor(RewardExtractor):
    """A control: every event gets the target of another one at its noise level, so only their mean can be learned."""

    def _draw_targets(self) -> Targets:
        targets = super()._draw_targets()
        mixed = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.seed or 0))
        order = torch.empty_like(mixed)
        order[targets.t.argsort(stable=True)] = mixed[targets.t[mixed].argsort(stable=True)]
        value = None if targets.value is None else targets.value[order]
        return replace(targets, eps_difference=targets.eps_difference[order], value=value)
