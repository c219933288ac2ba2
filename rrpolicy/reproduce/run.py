"""Goes through the units of an experiment: what the CSV has is skipped, what another process is at is left to it.

Any number of processes can work on one run, and each can be killed at any time: start it again and it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tqdm.auto import tqdm

from rrpolicy.common.version import __version__
from rrpolicy.pipeline import Recipe
from rrpolicy.reproduce.kept_maps import map_path, write_map
from rrpolicy.reproduce.locks import claimed
from rrpolicy.reproduce.maze2d import Ledger, measure_base, measure_pair
from rrpolicy.reproduce.peers import measure_peers
from rrpolicy.reproduce.results import Result, append_unit, finished_units, read_csv
from rrpolicy.reproduce.training import measure_training
from rrpolicy.reproduce.units import Unit
from rrpolicy.reproduce.variants import MAIN, Variant
from rrpolicy.reproduce.workshop import Workshop, digest

WAIT_SECONDS = 1.0  # between two looks at what others are doing


@dataclass
class Reproduction:
    """
    :param units: what is to be done, in this order
    :param recipe: every number
    :param out: the CSV; maps go into the folder of its name beside it
    :param work: folder of archives and claims, needed to go on
    :param variant: ablation or control
    :param progress_bar: show one
    :param say: told what happens
    """

    units: Sequence[Unit]
    recipe: Recipe
    out: Path
    work: Path
    variant: Variant = MAIN
    progress_bar: bool = False
    say: Callable[[str], None] = lambda text: None
    _bar: tqdm = field(init=False, repr=False)

    def run(self) -> list[Result]:
        """
        Do what is not done yet.

        :return: all results of the CSV
        :raises ValueError: when ``out`` is something else than a results file
        """
        finished = self._finished()
        mine = [unit for unit in self.units if unit.key not in finished]
        done = len(self.units) - len(mine)
        self.say(f"{len(self.units)} units, {done} done before")
        with tqdm(total=len(self.units), initial=done, unit="unit", disable=not self.progress_bar) as self._bar:
            while mine:
                begun = [unit for unit in mine if self._attempt(unit)]
                finished = self._finished()
                mine = [unit for unit in mine if unit.key not in finished]
                self._bar.update(len(self.units) - len(mine) - self._bar.n)
                if not begun:  # everything left is in other hands
                    if not any(self._shop.base_is_being_made(unit) for unit in mine):
                        break
                    time.sleep(WAIT_SECONDS)
        return read_csv(self.out)

    # ------------------------------------------------------------------ units

    @cached_property
    def _recipe(self) -> Recipe:
        return self.variant.applied(self.recipe)

    @cached_property
    def _digest(self) -> str:
        return digest(self._recipe)

    @cached_property
    def _shop(self) -> Workshop:
        return Workshop(self.work, self._recipe, self.variant)

    def _finished(self) -> set[tuple[str, str, int]]:
        return finished_units(read_csv(self.out), self.variant.name, self._digest)

    def _attempt(self, unit: Unit) -> bool:
        """Do a unit unless it is done or in other hands."""
        if unit.goal and self._shop.base_is_being_made(unit):
            return False
        claim = self.work / "claims" / f"{self.variant.name or 'main'}-{unit.name}-{self._digest}"
        with claimed(claim, wait=False) as free:
            if not free or unit.key in self._finished():
                return False
            self._do(unit)
        return True

    def _do(self, unit: Unit) -> None:
        say = self._show(unit)
        if unit.goal is None:
            ledger = measure_base(self._shop, unit, say)
        elif self.variant.part == "training":
            ledger = measure_training(self._shop, unit, self.out.with_suffix("") / "curves", say)
        elif self.variant.part == "peers":
            ledger = measure_peers(self._shop, unit, say)
        else:
            ledger, drawn = measure_pair(self._shop, unit, say)
            write_map(map_path(self.out, unit, self.variant.name), drawn)
        append_unit(self.out, self._results(unit, ledger))
        self._bar.update()

    def _show(self, unit: Unit) -> Callable[[str], None]:
        return lambda text: self._bar.set_postfix_str(f"{unit}: {text}")

    def _results(self, unit: Unit, ledger: Ledger) -> list[Result]:
        maze, goal, seed = unit.key
        return [
            Result(maze, goal, seed, self.variant.name, row["agent"], row["metric"], float(row["mean"]),
                   float(row["ci_low"]), float(row["ci_high"]), int(row["n"]), seconds, __version__, self._digest)
            for row, seconds in ledger.entries
        ]  # fmt: skip
