"""Goes through the units of an experiment: what the CSV has is skipped, what another process is at is left to it.

Any number of processes can work on one run, and each can be killed at any time: start it again and it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tqdm.auto import tqdm

from rrpolicy.common.locks import file_lock
from rrpolicy.common.version import __version__
from rrpolicy.experiments.recorder import Log, Recorder
from rrpolicy.experiments.results import Result, append_unit, finished_units, read_csv

WAIT_SECONDS = 1.0  # between two looks at what others are doing


class Work(Protocol):
    """The smallest piece that is kept when a run is stopped."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, case and seed as they stand in the CSV."""
        ...

    @property
    def name(self) -> str:
        """Fit for a file."""
        ...


Unit = TypeVar("Unit", bound=Work)
Measured = TypeVar("Measured", bound=Work, contravariant=True)


class Experiment(Protocol[Measured]):
    """What is measured of a unit."""

    @property
    def names(self) -> tuple[str, str]:
        """What task and case are called in the CSV."""
        ...

    @property
    def variant(self) -> str:
        """Ablation or control; empty for the experiment itself."""
        ...

    def digest(self, unit: Measured) -> str:
        """Of the recipe that the unit is made with."""
        ...

    def blocked(self, unit: Measured) -> bool:
        """Whether something that the unit needs is being made by another process."""
        ...

    def measure(self, unit: Measured, log: Log) -> Recorder:
        """The unit's rows, closed."""
        ...


@dataclass
class Reproduction(Generic[Unit]):
    """
    A resumable run of an experiment over its units.

    :param units: what is to be done, in this order
    :param experiment: does it
    :param out: the CSV
    :param work: folder of claims, needed to go on
    :param progress_bar: show one
    :param log: told what happens
    """

    units: Sequence[Unit]
    experiment: Experiment[Unit]
    out: Path
    work: Path
    progress_bar: bool = False
    log: Callable[[str], None] = lambda text: None
    _bar: tqdm = field(init=False, repr=False)

    def run(self) -> list[Result]:
        """
        Do what is not done yet.

        :return: all results of the CSV
        :raises ValueError: when ``out`` is something else than a results file
        """
        mine = self._unfinished(self.units)
        done = len(self.units) - len(mine)
        self.log(f"{done} of {len(self.units)} units done before")
        with tqdm(total=len(self.units), initial=done, unit="unit", disable=not self.progress_bar) as self._bar:
            while mine:
                begun = [unit for unit in mine if self._attempt(unit)]
                mine = self._unfinished(mine)
                self._bar.update(len(self.units) - len(mine) - self._bar.n)
                if not begun:  # everything left is in other hands
                    if not any(self.experiment.blocked(unit) for unit in mine):
                        break
                    time.sleep(WAIT_SECONDS)
        return self._results()

    # ------------------------------------------------------------------ units

    def _results(self) -> list[Result]:
        return read_csv(self.out, self.experiment.names)

    def _unfinished(self, units: Sequence[Unit]) -> list[Unit]:
        finished = finished_units(self._results(), self.experiment.variant)
        return [unit for unit in units if (*unit.key, self.experiment.digest(unit)) not in finished]

    def _attempt(self, unit: Unit) -> bool:
        """Do a unit unless it is done or in other hands."""
        if self.experiment.blocked(unit):
            return False
        claim = f"{self.experiment.variant or 'main'}-{unit.name}-{self.experiment.digest(unit)}"
        with file_lock(self.work / "claims" / claim, wait=False) as free:
            if not free or not self._unfinished([unit]):
                return False
            recorder = self.experiment.measure(unit, self._show(unit))
            append_unit(self.out, self._rows(unit, recorder), self.experiment.names)
            self._bar.update()
        return True

    def _show(self, unit: Unit) -> Log:
        return lambda text: self._bar.set_postfix_str(f"{unit}: {text}")

    def _rows(self, unit: Unit, recorder: Recorder) -> list[Result]:
        task, case, seed = unit.key
        variant, recipe = self.experiment.variant, self.experiment.digest(unit)
        return [
            Result(
                task,
                case,
                seed,
                variant,
                row["agent"],
                row["metric"],
                float(row["mean"]),
                float(row["ci_low"]),
                float(row["ci_high"]),
                int(row["n"]),
                seconds,
                __version__,
                recipe,
            )
            for row, seconds in recorder.entries
        ]
