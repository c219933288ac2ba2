"""The image experiment as :class:`Reproduction` runs it: a unit's rows, and a sheet of samples beside the CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from rrpolicy.experiments import Recipe
from rrpolicy.experiments.images.artifacts import ArtifactStore
from rrpolicy.experiments.images.figures import draw_samples, sheet_path
from rrpolicy.experiments.images.measure import measure_unit, sample_sheet
from rrpolicy.experiments.images.spec import MAIN, Unit, Variant
from rrpolicy.experiments.results import Log, Recorder, Result
from rrpolicy.experiments.runner import Reproduction, Running
from rrpolicy.experiments.spec import Experiment
from rrpolicy.experiments.store import digest

N_SHOWN = 32  # samples of each generator on a sheet


class ImageExperiment(Experiment[Unit]):
    """
    The image experiment.

    :param recipe: every number
    :param out: the CSV; sheets of samples go into the folder of its name beside it
    :param work: folder of archives
    :param data: folder of images; None for Fashion-MNIST where Debian puts it
    :param variant: ablation
    """

    names = ("removed", "expert")

    def __init__(
        self, recipe: Recipe, out: Path, work: Path, data: Path | None = None, variant: Variant = MAIN
    ) -> None:
        recipe = variant.applied(recipe)
        super().__init__(variant.name)
        self._digest = digest([recipe, None if data is None else str(data.resolve())])
        self._out = out
        self._shop = ArtifactStore(work, recipe, data)

    def digest(self, unit: Unit) -> str:
        """The digest of the recipe and the images."""
        return self._digest

    def blocked(self, unit: Unit) -> bool:
        """Whether another process is making the unit's base."""
        return self._shop.base_is_being_made(unit.seed)

    def measure(self, unit: Unit, log: Log) -> Recorder:
        """All measurements of a unit."""
        recorder = measure_unit(self._shop, unit, log)
        if not self.variant:
            log("drawing samples")
            draw_samples(sample_sheet(self._shop, unit, N_SHOWN), sheet_path(self._out, unit))
        return recorder


def reproduction(
    units: Sequence[Unit],
    recipe: Recipe,
    out: Path,
    work: Path,
    data: Path | None = None,
    variant: Variant = MAIN,
    **running: Unpack[Running],
) -> Reproduction[Unit]:
    """
    A run of the image experiment.

    :param units: as :func:`select` gives them
    :param recipe: every number
    :param out: the CSV
    :param work: folder of archives and claims, needed to go on
    :param data: folder of images; None for Fashion-MNIST where Debian puts it
    :param variant: ablation
    :param running: ``progress_bar`` and ``log`` of :class:`Reproduction`
    """
    return Reproduction(units, ImageExperiment(recipe, out, work, data, variant), out, work, **running)


def read_results(path: Path) -> list[Result]:
    """What the CSV of the image experiment holds; raises as :func:`read_csv` does."""
    return ImageExperiment.read_results(path)
