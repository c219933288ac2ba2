"""Artifacts of the locomotion experiment: the data sets of a unit, and archives of what is trained.

Data sets are collected folders, or roll-outs of agents that the recipe lists. The replay buffer of a SAC run is
not made here; `rrpolicy collect --from-training` writes such folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.locks import file_lock
from rrpolicy.common.spaces import flattened_box
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.data.collect import MixtureComponent, collect_mixture
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.data.readers import load_dataset
from rrpolicy.experiments.locomotion.spec import RobotUnit
from rrpolicy.experiments.recipes import Recipe, section, total_timesteps
from rrpolicy.experiments.runs import write_dataset
from rrpolicy.experiments.store import ArtifactStore, load_or_create
from rrpolicy.experiments.task import Task
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rl.policies import load_policy
from rrpolicy.rl.sb3_files import is_sb3_agent, load_sb3_agent

N_ENVS = 8
PARTS = ("base", "expert")


@dataclass(frozen=True)
class Demonstrations:
    """
    Where the data of robots lie, and the agents that they are collected from.

    :param folder: of the data sets, each in ``ROBOT-CASE-PART``
    :param agents: folder with the agents' files as in the collection of pretrained SB3 agents
        (``tqc/Hopper-v3_1/Hopper-v3.zip``); None: they are downloaded from the hub
    """

    folder: Path
    agents: Path | None = None

    def path(self, unit: RobotUnit, part: str) -> Path:
        """Where a data set lies."""
        return self.folder / f"{unit.robot}-{unit.case}-{part}"

    def load(self, unit: RobotUnit, part: str, recipe: Recipe) -> TrajectoryDataset:
        """
        Data of a pair's ``"base"`` or ``"expert"``, the same for all seeds.

        A recipe's table ``[data.CASE.PART]`` names a ``dataset`` that is there, as `load_dataset` takes it, or how data
        are collected, which are then kept: ``agents`` with their shares, ``n_transitions``, and options of
        `collect_mixture`.

        :raises ValueError: when there are none and the recipe does not define how they are made
        """
        given = _table(recipe, unit.case, part)
        if "dataset" in given:
            return load_dataset(given["dataset"])
        path = self.path(unit, part)
        with file_lock(path.with_suffix(".lock")):
            if not (path / "metadata.json").exists():
                write_dataset(self._collected(unit, part, recipe), path, unit.task)
        return load_dataset(path)

    def exist(self, unit: RobotUnit, recipe: Recipe) -> bool:
        """Whether the unit's data are there or can be made."""
        can_be_made = unit.case in section(recipe, "data")
        return can_be_made or all((self.path(unit, part) / "metadata.json").exists() for part in PARTS)

    def demonstrator(self, unit: RobotUnit, recipe: Recipe) -> Predictor | None:
        """The agent that the expert imitates; None for data from elsewhere, or from several agents."""
        names = list(_table(recipe, unit.case, "expert").get("agents", {}))
        return self._agent(names[0], unit.task) if len(names) == 1 else None

    # ------------------------------------------------------------------ collecting

    def _collected(self, unit: RobotUnit, part: str, recipe: Recipe) -> TrajectoryDataset:
        try:
            values: dict[str, Any] = dict(section(recipe, "data")[unit.case][part])
            shares: Mapping[str, float] = values.pop("agents")
            n_transitions = int(values.pop("n_transitions"))
        except KeyError as error:
            raise ValueError(
                f"there are no data in {self.path(unit, part)}, and recipe {recipe.get('name')!r} does not say how to "
                f"make them: [data.{unit.case}.{part}] lacks {error}; rrpolicy collect --from-training makes a replay "
                f"buffer"
            ) from None
        drivers = [
            MixtureComponent(name, self._agent(name, unit.task), share, {"source": name})
            for name, share in shares.items()
        ]
        envs = DummyVecEnv([unit.task.make] * N_ENVS)
        try:
            return collect_mixture(drivers, envs, n_transitions, PARTS.index(part), unit.env_id, **values)
        finally:
            envs.close()

    def _agent(self, name: str, task: Task) -> Predictor:
        """
        An agent of Stable-Baselines3.

        :param name: file of an agent, as ``rrpolicy collect --from-training --policy-out`` writes it or as SB3 does, or
            a hub repository, ``sb3/tqc-Hopper-v3``
        """
        source: str | Path = name
        env = task.make()
        env.close()
        if Path(name).is_file():
            if not is_sb3_agent(name):
                policy = load_policy(name)
                spaces = (env.observation_space, "observation"), (env.action_space, "action")
                wanted = [flattened_box(space, what).shape for space, what in spaces]
                if [policy.observation_space.shape, policy.action_space.shape] != wanted:
                    raise ValueError(f"{name}: is a policy for another environment than {task.env_id}")
                return policy
        elif self.agents is not None:
            algorithm, _, env_id = name.rpartition("/")[2].partition("-")
            source = self.agents / algorithm / f"{env_id}_1" / f"{env_id}.zip"
        return load_sb3_agent(source, task.env_id, env.observation_space, env.action_space)


def _table(recipe: Recipe, case: str, part: str) -> Mapping[str, Any]:
    """``[data.CASE.PART]`` of a recipe, empty where there is none."""
    values = section(recipe, "data").get(case)
    found = values.get(part, {}) if isinstance(values, Mapping) else {}
    if not isinstance(found, Mapping):
        raise ValueError(f"recipe {recipe.get('name')!r}: [data.{case}.{part}] is {found!r:.80}, wanted a table")
    return found


def returns(dataset: TrajectoryDataset) -> Array:
    """Returns (n,) of the episodes that were finished while the data were collected."""
    agents = dataset.metadata.get("agents")
    parts = [dataset.metadata] if agents is None else agents
    return np.array([value for part in parts for value in part.get("returns", [])], dtype=np.float64)


# ---------------------------------------------------------------------- archives

EARLY = 4  # part of the training after which an early base is taken


@dataclass
class RobotStore(ArtifactStore):
    """
    The archives of one robot and kind of data; see `store.ArtifactStore`, beside that:

    :param demonstrations: where data come from
    """

    demonstrations: Demonstrations
    _data: dict[tuple[str, str], list[TrajectoryDataset]] = field(default_factory=dict)

    # ------------------------------------------------------------------ data

    def data(self, unit: RobotUnit) -> list[TrajectoryDataset]:
        """Training data of the pair, [base, expert]."""
        key = unit.robot, unit.case
        if key not in self._data:
            self._data = {key: [self.demonstrations.load(unit, part, self.recipe) for part in PARTS]}
        return self._data[key]

    def sources(self, unit: RobotUnit) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
        """The same in disjoint episodes: to extract from and to score on."""
        return experiments.split_data(self.data(unit), unit.seed, self.recipe)

    def normalizer(self, unit: RobotUnit) -> Normalizer:
        """The one normaliser of a pair, fitted on the data of both."""
        mode = section(self.recipe, "agent").get("normalizer_mode", "gaussian")
        return Normalizer.fit(TrajectoryDataset.concatenate(self.data(unit)), mode=mode)

    # ------------------------------------------------------------------ agents

    def base(self, unit: RobotUnit) -> tuple[DiffusionAgent, float]:
        """The base, and its CPU-seconds."""
        return self._base(unit, "base", self.data(unit)[0], unit.seed)

    def expert(self, unit: RobotUnit) -> tuple[DiffusionAgent, float]:
        """The expert, fine-tuned from the base, and its CPU-seconds."""
        start = self.base(unit)[0]

        def make() -> DiffusionAgent:
            return experiments.train_expert(start, self.recipe, self.data(unit)[1], unit.seed)

        return load_or_create(self._path(unit, "expert", "agent", "base", "expert"), make, DiffusionAgent.load)

    def other_bases(self, unit: RobotUnit) -> dict[str, DiffusionAgent]:
        """Bases that ρ was not extracted from, with the pair's normaliser: another seed, fewer steps, other data."""
        base_data = self.data(unit)[0]
        early = total_timesteps(self.recipe, "base") // EARLY
        bases = {
            "seed-base": self._base(unit, "seed-base", base_data, unit.seed + 100)[0],
            "early-base": self._base(unit, "early-base", base_data, unit.seed + 200, early)[0],
        }
        others = [case for case in section(self.recipe, "data") if case != unit.case]
        if others:
            data = self.demonstrations.load(RobotUnit(unit.robot, others[0], unit.seed), "base", self.recipe)
            bases["data-base"] = self._base(unit, f"{others[0]}-base", data, unit.seed)[0]
        return bases

    def _base(
        self, unit: RobotUnit, name: str, data: TrajectoryDataset, seed: int, steps: int | None = None
    ) -> tuple[DiffusionAgent, float]:
        def make() -> DiffusionAgent:
            agent = experiments.new_agent(unit.task, self.recipe, seed, normalizer=self.normalizer(unit))
            total = total_timesteps(self.recipe, "base") if steps is None else steps
            return agent.learn(data, total, log_interval=0)

        return load_or_create(self._path(unit, name, "agent", "base"), make, DiffusionAgent.load)

    # ------------------------------------------------------------------ rewards

    def reward(self, unit: RobotUnit, n_rounds: int | None = None) -> tuple[RelativeReward, float]:
        """
        The extracted reward and its CPU-seconds.

        :param n_rounds: in closed loop; None: the recipe's number
        """
        count = int(section(self.recipe, "rounds").get("n_rounds", 0)) if n_rounds is None else n_rounds
        base, expert = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            data, _ = self.sources(unit)
            made = experiments.extract_on_policy(base, expert, data, self.recipe, unit.seed, count, unit.task.make)
            return made.reward

        parts = ("agent", "base", "expert", "extraction", *(("rounds", "steering") if count else ()))
        return load_or_create(self._path(unit, "reward", *parts, extra=count), make, RelativeReward.load)

    def discriminator(self, unit: RobotUnit) -> tuple[RelativeReward, float]:
        """The baseline's reward and its CPU-seconds."""
        pair = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            return experiments.discriminate(*pair, self.sources(unit)[0], self.recipe, unit.seed)

        parts = ("agent", "base", "expert", "discriminator")
        return load_or_create(self._path(unit, "discriminator", *parts), make, RelativeReward.load)

    # ------------------------------------------------------------------ archives

    def _path(self, unit: RobotUnit, name: str, *sections: str, extra: Any = None) -> Path:
        """The path of an archive by what it was made with, with the collection of its data if the recipe names it."""
        return self.path(unit.name, name, sections, section(self.recipe, "data").get(unit.case), extra)
