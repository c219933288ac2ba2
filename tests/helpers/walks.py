"""A toy experiment of tiny units, which tells when they begin and end, and can end the process that does them."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rrpolicy.common.jobs import Jobs
from rrpolicy.evaluation import result_row
from rrpolicy.experiments.results import Log, Recorder, Result
from rrpolicy.experiments.runner import Reproduction
from rrpolicy.experiments.spec import Experiment, Unit
from rrpolicy.experiments.store import create_once, digest


@dataclass(frozen=True)
class Walk(Unit):
    """How far a random walk comes."""

    n_steps: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        return "walk", str(self.n_steps), self.seed


WALKS = [Walk(n_steps, seed) for seed in (1, 2) for n_steps in (10, 20, 30)]


@dataclass
class Walks(Experiment[Walk]):
    """
    Random walks.

    :param folder: gets `begun` and `ended`, a line for each unit, and what all units share
    :param deadly: number of processes that each of these units ends before it is measured
    :param faulty: units that raise
    """

    folder: Path
    deadly: dict[Walk, int] = field(default_factory=dict)
    faulty: tuple[Walk, ...] = ()
    names = ("task", "steps")
    variant: str = ""

    def digest(self, unit: Walk) -> str:
        return digest("walks")

    def shared(self, unit: Walk) -> dict[str, Callable[[], object]]:
        return {"directions": self._directions}

    def measure(self, unit: Walk, log: Log) -> Recorder:
        note(self.folder / "begun", f"{unit} {os.getpid()}")
        if lines(self.folder / "begun", f"{unit} ") <= self.deadly.get(unit, 0):
            time.sleep(0.3)  # as a unit that needs too much memory does not die at once
            os.kill(os.getpid(), signal.SIGKILL)
        if unit in self.faulty:
            raise ValueError(f"{unit} is faulty")
        recorder = Recorder(log)
        directions = float(self._directions().read_text())
        steps = np.random.default_rng(unit.seed).normal(size=(50, unit.n_steps)) * directions
        recorder.rows([result_row("walker", "distance", np.abs(steps.sum(axis=1)))], cpu_seconds=0.5)
        recorder.done()
        note(self.folder / "ended", f"{unit} {os.getpid()}")
        return recorder

    def _directions(self) -> Path:
        def make(path: Path) -> None:
            note(self.folder / "made", "directions")
            path.write_text("2")

        return create_once(self.folder / "directions.txt", make)


def note(path: Path, text: str) -> None:
    """Append a line, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def lines(path: Path, start: str = "") -> int:
    """How many lines begin with a text."""
    found = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return sum(line.startswith(start) for line in found)


def walk(folder: Path, jobs: Jobs | None = None, units: list[Walk] = WALKS, **arguments: object) -> list[Result]:
    """Run the experiment in a folder, whose CSV is `walks.csv`."""
    experiment = Walks(folder / "work", **arguments)  # type: ignore[arg-type]
    return Reproduction(units, experiment, folder / "walks.csv", folder / "work", jobs=jobs or Jobs()).run()


def check_once(folder: Path, but: tuple[Walk, ...] = ()) -> None:
    """
    Every unit was begun and ended once, what they share was made once, and nothing is left.

    :param but: units that a worker may have left at any moment, be it between the end and keeping the rows
    """
    assert lines(folder / "work" / "made") == 1
    for unit in WALKS:
        counts = [lines(folder / "work" / name, f"{unit} ") for name in ("begun", "ended")]
        assert counts == [1, 1] or (unit in but and min(counts) >= 1)
    assert list(folder.glob("work/units/*/*.json")) == []
