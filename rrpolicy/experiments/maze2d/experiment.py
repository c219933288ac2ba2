"""The maze experiment as :class:`Reproduction` runs it: which unit is measured how, and where its pictures' data go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rrpolicy.experiments import Recipe
from rrpolicy.experiments.maze2d.kept_maps import map_path, write_map
from rrpolicy.experiments.maze2d.pairs import measure_base, measure_pair
from rrpolicy.experiments.maze2d.peers import measure_peers
from rrpolicy.experiments.maze2d.training import measure_training
from rrpolicy.experiments.maze2d.units import Unit
from rrpolicy.experiments.maze2d.variants import MAIN, Variant
from rrpolicy.experiments.maze2d.workshop import ArtifactStore
from rrpolicy.experiments.recorder import Log, Recorder
from rrpolicy.experiments.results import Result, read_csv
from rrpolicy.experiments.runner import Reproduction
from rrpolicy.experiments.store import digest

NAMES = ("maze", "goal")


class MazeExperiment:
    """
    :param recipe: every number
    :param out: the CSV; maps and curves go into the folder of its name beside it
    :param work: folder of archives
    :param variant: ablation or control
    """

    names = NAMES

    def __init__(self, recipe: Recipe, out: Path, work: Path, variant: Variant = MAIN) -> None:
        recipe = variant.applied(recipe)
        self.variant = variant.name
        self._digest = digest(recipe)
        self._part = variant.part
        self._out = out
        self._shop = ArtifactStore(work, recipe, variant)

    def digest(self, unit: Unit) -> str:
        """Of the one recipe."""
        return self._digest

    def blocked(self, unit: Unit) -> bool:
        """Whether another process is at the base that a pair needs."""
        return unit.goal is not None and self._shop.base_is_being_made(unit)

    def measure(self, unit: Unit, log: Log) -> Recorder:
        """Everything that is reported of a unit."""
        if unit.goal is None:
            return measure_base(self._shop, unit, log)
        if self._part == "training":
            return measure_training(self._shop, unit, self._out.with_suffix("") / "curves", log)
        if self._part == "peers":
            return measure_peers(self._shop, unit, log)
        recorder, drawn = measure_pair(self._shop, unit, log)
        write_map(map_path(self._out, unit, self.variant), drawn)
        return recorder


def reproduction(
    units: Sequence[Unit],
    recipe: Recipe,
    out: Path,
    work: Path,
    variant: Variant = MAIN,
    progress_bar: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> Reproduction[Unit]:
    """
    A run of the maze experiment.

    :param units: as :func:`select` gives them
    :param recipe: every number
    :param out: the CSV
    :param work: folder of archives and claims, needed to go on
    :param variant: ablation or control
    :param progress_bar: show one
    :param log: told what happens
    """
    return Reproduction(units, MazeExperiment(recipe, out, work, variant), out, work, progress_bar, log)


def read_results(path: Path) -> list[Result]:
    """What the CSV of the maze experiment holds; raises as :func:`read_csv` does."""
    return read_csv(path, NAMES)
