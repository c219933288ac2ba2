"""The locomotion experiment as :class:`Reproduction` runs it: each robot with its own recipe, data from one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rrpolicy.experiments import Recipe
from rrpolicy.experiments.locomotion.data import Demonstrations
from rrpolicy.experiments.locomotion.finetuning import measure_finetuning, measure_offline
from rrpolicy.experiments.locomotion.pairs import measure_pair, measure_sweep, measure_transfer
from rrpolicy.experiments.locomotion.units import CASES, Unit, of_case
from rrpolicy.experiments.locomotion.use import reward_correlation
from rrpolicy.experiments.locomotion.variants import MAIN, Part, Variant
from rrpolicy.experiments.locomotion.workshop import ArtifactStore
from rrpolicy.experiments.recorder import Log, Recorder
from rrpolicy.experiments.results import Result, read_csv
from rrpolicy.experiments.runner import Reproduction
from rrpolicy.experiments.store import digest

NAMES = ("robot", "data")
_OTHER_PARTS: Mapping[Part, Callable[[ArtifactStore, Unit, Log], Recorder]] = {  # than the pair itself
    "sweep": measure_sweep,
    "transfer": measure_transfer,
    "use": reward_correlation,
    "finetuning": measure_finetuning,
    "offline": measure_offline,
}


class LocomotionExperiment:
    """
    :param recipes: of each robot
    :param work: folder of archives
    :param demonstrations: where data come from
    :param variant: ablation, sweep or use
    """

    names = NAMES

    def __init__(
        self, recipes: Mapping[str, Recipe], work: Path, demonstrations: Demonstrations, variant: Variant = MAIN
    ) -> None:
        applied = {
            (robot, case): variant.applied(of_case(recipe, case)) for robot, recipe in recipes.items() for case in CASES
        }
        self.variant = variant.name
        self._variant = variant
        self._digests = {key: digest(recipe) for key, recipe in applied.items()}
        self._shops = {key: ArtifactStore(work, demonstrations, recipe) for key, recipe in applied.items()}

    def digest(self, unit: Unit) -> str:
        """Of the robot's recipe for the unit's kind of data."""
        return self._digests[unit.robot, unit.case]

    def blocked(self, unit: Unit) -> bool:
        """Nothing is shared by two units but data, for which they wait."""
        return False

    def measure(self, unit: Unit, log: Log) -> Recorder:
        """Everything that is reported of a unit."""
        store = self._shops[unit.robot, unit.case]
        if self._variant.part in _OTHER_PARTS:
            return _OTHER_PARTS[self._variant.part](store, unit, log)
        return measure_pair(store, unit, self._variant.agents, log)


def reproduction(
    units: Sequence[Unit],
    recipes: Mapping[str, Recipe],
    out: Path,
    work: Path,
    demonstrations: Demonstrations,
    variant: Variant = MAIN,
    progress_bar: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> Reproduction[Unit]:
    """
    A run of the locomotion experiment, over the units that have data.

    :param units: as :func:`select` gives them
    :param recipes: of each robot
    :param out: the CSV
    :param work: folder of archives and claims, needed to go on
    :param demonstrations: where data come from
    :param variant: ablation, sweep or use
    :param progress_bar: show one
    :param log: told what happens
    """
    there = [unit for unit in units if demonstrations.exist(unit, recipes[unit.robot])]
    for unit in units:
        if unit not in there:
            log(f"{unit}: no data in {demonstrations.folder}, left out")
    experiment = LocomotionExperiment(recipes, work, demonstrations, variant)
    return Reproduction(there, experiment, out, work, progress_bar, log)


def read_results(path: Path) -> list[Result]:
    """What the CSV of the locomotion experiment holds; raises as :func:`read_csv` does."""
    return read_csv(path, NAMES)
