"""Demonstrations of a unit: a collected folder if there is one, otherwise roll-outs of agents as the recipe says.

The replay buffer of a SAC run cannot be made on the way; `rrpolicy collect --from-training` leaves such folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy.common.locks import file_lock
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.data.collect import MixtureComponent, collect_mixture
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.readers import load_dataset
from rrpolicy.experiments import Recipe, Task, section
from rrpolicy.experiments.locomotion.units import Unit
from rrpolicy.experiments.runs import write_dataset
from rrpolicy.rl.sb3_files import load_sb3_agent

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

    def path(self, unit: Unit, part: str) -> Path:
        """Where a data set lies."""
        return self.folder / f"{unit.robot}-{unit.case}-{part}"

    def load(self, unit: Unit, part: str, recipe: Recipe) -> TrajectoryDataset:
        """
        Data of a pair's ``"base"`` or ``"expert"``, the same for all seeds; collected and kept if there are none yet.

        :raises ValueError: when there are none and the recipe does not say how they are made
        """
        path = self.path(unit, part)
        with file_lock(path.with_suffix(".lock")):
            if not (path / "metadata.json").exists():
                write_dataset(self._collected(unit, part, recipe), path, unit.task)
        return load_dataset(path)

    def exist(self, unit: Unit, recipe: Recipe) -> bool:
        """Whether the unit's data are there or can be made."""
        can_be_made = unit.case in section(recipe, "data")
        return can_be_made or all((self.path(unit, part) / "metadata.json").exists() for part in PARTS)

    def demonstrator(self, unit: Unit, recipe: Recipe) -> Predictor | None:
        """Whom the expert imitates; None for data that came from elsewhere, or from several."""
        values = section(recipe, "data").get(unit.case, {}).get("expert", {})
        names = list(values.get("agents", {}))
        return self._agent(names[0], unit.task) if len(names) == 1 else None

    # ------------------------------------------------------------------ collecting

    def _collected(self, unit: Unit, part: str, recipe: Recipe) -> TrajectoryDataset:
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
        A pretrained agent of Stable-Baselines3.

        :param name: of a hub repository, ``sb3/tqc-Hopper-v3``
        """
        source: str | Path = name
        if self.agents is not None:
            algorithm, _, env_id = name.rpartition("/")[2].partition("-")
            source = self.agents / algorithm / f"{env_id}_1" / f"{env_id}.zip"
        env = task.make()
        env.close()
        return load_sb3_agent(source, task.env_id, env.observation_space, env.action_space)


def returns(dataset: TrajectoryDataset) -> Array:
    """Returns (n,) of the episodes that were finished while the data were collected."""
    agents = dataset.metadata.get("agents")
    parts = [dataset.metadata] if agents is None else agents
    return np.array([value for part in parts for value in part.get("returns", [])], dtype=np.float64)
