"""The locomotion experiment as :class:`Reproduction` runs it: which measurements each unit has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from rrpolicy.experiments.locomotion.artifacts import Demonstrations, RobotStore
from rrpolicy.experiments.locomotion.measure_distilled import measure_distilled
from rrpolicy.experiments.locomotion.measure_learning import measure_finetuning, measure_offline
from rrpolicy.experiments.locomotion.measure_pair import (
    measure_clean_gradients,
    measure_discriminators,
    measure_pair,
    measure_sweep,
    measure_transfer,
)
from rrpolicy.experiments.locomotion.measure_reward import reward_correlation
from rrpolicy.experiments.locomotion.spec import MAIN, Part, RobotUnit, RobotVariant, known_cases, of_case
from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.results import Log, Recorder
from rrpolicy.experiments.runner import Reproduction, Running
from rrpolicy.experiments.spec import Experiment
from rrpolicy.experiments.store import digest

_OTHER_PARTS: Mapping[Part, Callable[[RobotStore, RobotUnit, Log], Recorder]] = {  # than the pair itself
    "sweep": measure_sweep,
    "clean": measure_clean_gradients,
    "transfer": measure_transfer,
    "discriminators": measure_discriminators,
    "distilled": measure_distilled,
    "use": reward_correlation,
    "finetuning": measure_finetuning,
    "offline": measure_offline,
}


class LocomotionExperiment(Experiment[RobotUnit]):
    """
    The locomotion experiment.

    :param recipes: of each robot
    :param work: folder of archives
    :param demonstrations: where data come from
    :param variant: ablation, sweep or use
    """

    names = ("robot", "data")

    def __init__(
        self, recipes: Mapping[str, Recipe], work: Path, demonstrations: Demonstrations, variant: RobotVariant = MAIN
    ) -> None:
        applied = {
            (robot, case): variant.applied(of_case(recipe, case))
            for robot, recipe in recipes.items()
            for case in known_cases(recipe)
        }
        super().__init__(variant.name)
        self._variant = variant
        self._digests = {key: digest(recipe) for key, recipe in applied.items()}
        self._stores = {key: RobotStore(work, recipe, demonstrations) for key, recipe in applied.items()}

    def digest(self, unit: RobotUnit) -> str:
        """The digest of the robot's recipe for the unit's kind of data."""
        return self._digests[unit.robot, unit.case]

    def shared(self, unit: RobotUnit) -> dict[str, Callable[[], object]]:
        """The data of a robot and case, which are the same for all seeds."""
        store = self._stores[unit.robot, unit.case]
        return {f"data of {unit.robot} {unit.case}": partial(store.data, unit)}

    def measure(self, unit: RobotUnit, log: Log) -> Recorder:
        """All measurements of a unit."""
        store = self._stores[unit.robot, unit.case]
        if self._variant.part in _OTHER_PARTS:
            return _OTHER_PARTS[self._variant.part](store, unit, log)
        return measure_pair(store, unit, self._variant.agents, log)


def reproduction(
    units: Sequence[RobotUnit],
    recipes: Mapping[str, Recipe],
    out: Path,
    work: Path,
    demonstrations: Demonstrations,
    variant: RobotVariant = MAIN,
    **running: Unpack[Running],
) -> Reproduction[RobotUnit]:
    """
    A run of the locomotion experiment, over the units that have data.

    :param units: as :func:`select` gives them
    :param recipes: of each robot
    :param out: the CSV
    :param work: folder of archives and finished units, needed to go on
    :param demonstrations: where data come from
    :param variant: ablation, sweep or use
    :param running: ``progress_bar``, ``log`` and ``jobs`` of :class:`Reproduction`
    """
    there = [unit for unit in units if demonstrations.exist(unit, recipes[unit.robot])]
    experiment = LocomotionExperiment(recipes, work, demonstrations, variant)
    run = Reproduction(there, experiment, out, work, **running)
    for unit in units:
        if unit not in there:
            run.log(f"{unit}: no data in {demonstrations.folder}, left out")
    return run
