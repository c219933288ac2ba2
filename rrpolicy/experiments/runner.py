"""The runner of experiments: units in the CSV are skipped, and units that another process works on are left to it.

Any number of processes can work on one run, and each can be killed at any time: start it again and it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypedDict

from tqdm.auto import tqdm

from rrpolicy.common.locks import file_lock
from rrpolicy.common.version import __version__
from rrpolicy.experiments.results import Log, Recorder, Result, append_unit, finished_units
from rrpolicy.experiments.spec import Experiment, OneUnit
from rrpolicy.experiments.store import code_commit

WAIT_SECONDS = 1.0  # between two looks at what others are doing


class Running(TypedDict, total=False):
    """How a run reports on itself: the last two arguments of :class:`Reproduction`."""

    progress_bar: bool
    log: Callable[[str], None]


@dataclass
class Reproduction(Generic[OneUnit]):
    """
    A resumable run of an experiment over its units.

    :param units: what is to be done, in this order
    :param experiment: measures a unit
    :param out: the CSV
    :param work: folder of claims, needed to go on
    :param progress_bar: show one
    :param log: called with a line of text at each step
    """

    units: Sequence[OneUnit]
    experiment: Experiment[OneUnit]
    out: Path
    work: Path
    progress_bar: bool = False
    log: Callable[[str], None] = lambda text: None
    _bar: tqdm = field(init=False, repr=False)

    def run(self) -> list[Result]:
        """
        Run the units that are not done yet.

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
                if not begun:  # other processes work on everything left
                    if not any(self.experiment.blocked(unit) for unit in mine):
                        break
                    time.sleep(WAIT_SECONDS)
        return self._results()

    # ------------------------------------------------------------------ units

    def _results(self) -> list[Result]:
        return self.experiment.read_results(self.out)

    def _unfinished(self, units: Sequence[OneUnit]) -> list[OneUnit]:
        finished = finished_units(self._results(), self.experiment.variant)
        return [unit for unit in units if (*unit.key, self.experiment.digest(unit)) not in finished]

    def _attempt(self, unit: OneUnit) -> bool:
        """Do a unit unless it is done or another process works on it."""
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

    def _show(self, unit: OneUnit) -> Log:
        return lambda text: self._bar.set_postfix_str(f"{unit}: {text}")

    def _rows(self, unit: OneUnit, recorder: Recorder) -> list[Result]:
        task, case, seed = unit.key
        variant, recipe = self.experiment.variant, self.experiment.digest(unit)
        return [
            Result(
                task=task,
                case=case,
                seed=seed,
                variant=variant,
                agent=row["agent"],
                metric=row["metric"],
                value=float(row["mean"]),
                ci_low=float(row["ci_low"]),
                ci_high=float(row["ci_high"]),
                n=int(row["n"]),
                cpu_seconds=seconds,
                version=__version__,
                recipe=recipe,
                reference=row.get("reference", ""),
                level=row.get("level"),
                step=row.get("step"),
                commit=code_commit(),
            )
            for row, seconds in recorder.entries
        ]
