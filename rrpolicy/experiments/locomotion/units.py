"""What the locomotion experiment consists of: three robots, kinds of data for each, three seeds (Nuti et al. 2023,
section 5.2). A unit is a pair of agents with everything that is measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rrpolicy.experiments import Recipe, Task, section
from rrpolicy.experiments.names import check_names

ROBOTS: Mapping[str, str] = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
CASES: Mapping[str, str] = {
    "noisy": "base: the demonstrator with noise on its actions; the same gait",
    "replay": "base: the replay buffer of a SAC run, expert: its last policy",
    "mixture": "base: other agents; another gait",
}
SEEDS = (1, 2, 3)  # recipes were found with seed 0


@dataclass(frozen=True)
class Unit:
    """
    :param robot: a name of :data:`ROBOTS`
    :param case: a name of :data:`CASES`: where the data come from
    :param seed: of training and episodes
    """

    robot: str
    case: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Robot, case and seed as they stand in the CSV."""
        return self.robot, self.case, self.seed

    @property
    def env_id(self) -> str:
        return ROBOTS[self.robot]

    @property
    def task(self) -> Task:
        return Task(self.env_id)

    @property
    def name(self) -> str:
        """Fit for a file."""
        return f"{self.robot}_{self.case}_seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.robot} {self.case} seed {self.seed}"


def of_case(recipe: Recipe, case: str) -> Recipe:
    """
    A robot's recipe for one kind of data: what ``[case.NAME.SECTION]`` holds counts more than ``[SECTION]``.

    :param recipe: of a robot
    :param case: a name of :data:`CASES`
    :raises ValueError: when the recipe has a case that is not known
    """
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = recipe.get("case", {})
    check_names("recipe section [case]", list(changes), CASES)
    common = {name: values for name, values in recipe.items() if name != "case"}
    own = {name: {**section(common, name), **values} for name, values in changes.get(case, {}).items()}
    return {**common, **own}


def select(
    robots: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
) -> list[Unit]:
    """
    The units to be done, all robots of a seed before the next seed.

    :param robots: only these; None for all
    :param cases: only these; None for all, or the first for a quick run
    :param seeds: only these; None for :data:`SEEDS`, or the first for a quick run
    :param quick: one seed, one kind of data, for what is not given
    :raises ValueError: for a name that is not known
    """
    check_names("robot", robots, ROBOTS)
    check_names("case", cases, CASES)
    few = 1 if quick else None
    cases = cases or list(CASES)[:few]
    seeds = seeds or SEEDS[:few]
    units = (Unit(robot, case, seed) for seed in seeds for robot in robots or ROBOTS for case in cases)
    return list(dict.fromkeys(units))
