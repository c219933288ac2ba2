"""The runner of experiments: units in the CSV are skipped, others are done here, in other processes, or on a cluster.

A finished unit lies in the work folder until the rows of all units before it are in the CSV, which one process alone
writes. So the CSV does not depend on who was first, and a run that is stopped at any moment goes on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, TypedDict

from tqdm.auto import tqdm

from rrpolicy.common.files import write_json
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.locks import file_lock
from rrpolicy.common.schema import from_json, read_small
from rrpolicy.common.version import __version__
from rrpolicy.experiments.results import Log, Recorder, Result, append_unit, finished_units
from rrpolicy.experiments.spec import Experiment, OneUnit
from rrpolicy.experiments.store import code_commit, digest

MAX_UNIT_BYTES = 2**24


class Running(TypedDict, total=False):
    """How a run reports on itself and where it computes: the last arguments of :class:`Reproduction`."""

    progress_bar: bool
    log: Callable[[str], None]
    jobs: Jobs


@dataclass
class Reproduction(Generic[OneUnit]):
    """
    A resumable run of an experiment over its units.

    :param units: what is to be done, in this order
    :param experiment: measures a unit
    :param out: the CSV
    :param work: folder of archives and finished units, needed to go on; workers elsewhere see it under the same name
    :param progress_bar: show one
    :param log: called with a line of text at each step
    :param jobs: where units are done
    """

    units: Sequence[OneUnit]
    experiment: Experiment[OneUnit]
    out: Path
    work: Path
    progress_bar: bool = False
    log: Callable[[str], None] = lambda text: None
    jobs: Jobs = field(default_factory=Jobs)
    _bar: tqdm = field(init=False, repr=False)

    def run(self) -> list[Result]:
        """
        Run the units that are not done yet.

        :return: all results of the CSV
        :raises ValueError: when ``out`` is something else than a results file, or another run writes it
        :raises ChildProcessError: for a unit that ended two workers
        """
        with self._sole_writer():
            mine = self._unfinished()
            done = len(self.units) - len(mine)
            self.log(f"{done} of {len(self.units)} units done before")
            with tqdm(total=len(self.units), initial=done, unit="unit", disable=not self.progress_bar) as self._bar:
                todo = [unit for unit in mine if self._finished.rows(unit) is None]
                ready = [unit for unit in mine if unit not in todo]
                self._write(mine, ready)
                with closing(self._done(todo)) as done_units:
                    for unit in done_units:
                        ready.append(unit)
                        self._write(mine, ready)
        return self._results()

    # ------------------------------------------------------------------ units

    def _done(self, units: Sequence[OneUnit]) -> Generator[OneUnit, None, None]:
        """Do units, in this process or elsewhere; each is in the folder of finished ones when it is returned."""
        if not self.jobs.elsewhere:
            for unit in units:
                self._finished.add(unit, self.experiment.measure(unit, self._show(unit)))
                yield unit
            return
        work = _Work(self.experiment, self._finished, code_commit())
        with closing(self.jobs.run(work, shared_pieces(self.experiment, units))) as made:
            for piece, _ in made:
                self.log(f"{piece}: done")
        with closing(self.jobs.run(work, [Piece(unit) for unit in units])) as done:
            for piece, _ in done:
                if self._finished.rows(piece.unit) is None:
                    raise ValueError(
                        f"{piece} was done by a worker, and its rows are not in {self._finished.folder}: "
                        "workers must see the same work folder"
                    )
                self._show(piece.unit)("done")
                yield piece.unit

    def _write(self, waiting: list[OneUnit], ready: Sequence[OneUnit]) -> None:
        """Move the rows of units that are ready into the CSV, as far as no unit before them is still missing."""
        while waiting and waiting[0] in ready and (rows := self._finished.rows(waiting[0])) is not None:
            unit = waiting.pop(0)
            append_unit(self.out, rows, self.experiment.names)
            self._finished.remove(unit)
            self._bar.update()

    @property
    def _finished(self) -> FinishedUnits[OneUnit]:
        name = f"{self.out.stem}-{self.experiment.variant or 'main'}-{digest(str(self.out.absolute()))}"
        return FinishedUnits(self.work / "units" / name, self.experiment)

    @contextmanager
    def _sole_writer(self) -> Iterator[None]:
        """
        The one process that writes the CSV.

        :raises ValueError: when there is another one
        """
        folder = self._finished.folder
        with file_lock(folder / "run.lock", wait=False) as sole:
            if not sole:
                raise ValueError(
                    f"{self.out} is being written by another run of the same units; "
                    "one run shares them among processes: --jobs"
                )
            yield

    def _results(self) -> list[Result]:
        return self.experiment.read_results(self.out)

    def _unfinished(self) -> list[OneUnit]:
        finished = finished_units(self._results(), self.experiment.variant)
        return [unit for unit in self.units if (*unit.key, self.experiment.digest(unit)) not in finished]

    def _show(self, unit: OneUnit) -> Log:
        return lambda text: self._bar.set_postfix_str(f"{unit}: {text}")


# ---------------------------------------------------------------------- finished units


@dataclass(frozen=True)
class FinishedUnits(Generic[OneUnit]):
    """
    Rows of units that are done and not yet in the CSV, a file each.

    :param folder: of the files
    :param experiment: whose units they are
    """

    folder: Path
    experiment: Experiment[OneUnit]

    def add(self, unit: OneUnit, recorder: Recorder) -> None:
        """Keep what was measured of a unit."""
        write_json(self._path(unit), {"rows": [asdict(row) for row in rows_of(self.experiment, unit, recorder)]})

    def rows(self, unit: OneUnit) -> list[Result] | None:
        """The rows of a unit; None for one that is not there as a whole."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            return [Result(**row) for row in from_json(read_small(self._path(unit), MAX_UNIT_BYTES))["rows"]]
        return None

    def remove(self, unit: OneUnit) -> None:
        """Forget a unit whose rows are in the CSV."""
        self._path(unit).unlink(missing_ok=True)

    def _path(self, unit: OneUnit) -> Path:
        return self.folder / f"{unit.name}-{self.experiment.digest(unit)}.json"


def rows_of(experiment: Experiment[OneUnit], unit: OneUnit, recorder: Recorder) -> list[Result]:
    """What was measured of a unit, as rows of the CSV."""
    task, case, seed = unit.key
    variant, recipe = experiment.variant, experiment.digest(unit)
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
            level=None if (level := row.get("level")) is None else int(level),
            step=None if (step := row.get("step")) is None else int(step),
            commit=code_commit(),
        )
        for row, seconds in recorder.entries
    ]


# ---------------------------------------------------------------------- in workers


@dataclass(frozen=True)
class Piece(Generic[OneUnit]):
    """
    What a worker does at once: a unit, or something that several units share.

    :param unit: the unit, or one of those that share it
    :param shared: name of what they share; empty for the unit itself
    """

    unit: OneUnit
    shared: str = ""

    def __str__(self) -> str:
        return self.shared or str(self.unit)


def shared_pieces(experiment: Experiment[OneUnit], units: Sequence[OneUnit]) -> list[Piece[OneUnit]]:
    """What is made before the units, since more than one of them needs it."""
    needed = [(name, unit) for unit in units for name in experiment.shared(unit)]
    counts = Counter(name for name, _ in needed)
    first = {name: unit for name, unit in reversed(needed)}
    return [Piece(first[name], name) for name, count in counts.items() if count > 1]


@dataclass(frozen=True)
class _Work(Generic[OneUnit]):
    """
    How a worker does a piece.

    :param experiment: measures a unit
    :param finished: where its rows go
    :param commit: of the code of the process that writes the CSV
    """

    experiment: Experiment[OneUnit]
    finished: FinishedUnits[OneUnit]
    commit: str

    def __call__(self, piece: Piece[OneUnit]) -> None:
        """
        Do a piece.

        :raises ValueError: when the worker has other code
        """
        if (mine := code_commit()) != self.commit:
            raise ValueError(f"{piece}: the worker has code {mine}, the run {self.commit}; install the same on both")
        if piece.shared:
            self.experiment.shared(piece.unit)[piece.shared]()
        elif self.finished.rows(piece.unit) is None:  # which another worker had written when it died
            self.finished.add(piece.unit, self.experiment.measure(piece.unit, lambda text: None))
