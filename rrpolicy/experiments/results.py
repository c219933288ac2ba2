"""The CSV of an experiment: rows are only ever appended, a unit at a time, and a unit counts if its last row is there.

So a run that was killed in the middle of a line loses that unit and nothing else; of two equal keys the later counts.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrpolicy.common.faults import FileFault
from rrpolicy.common.locks import lock
from rrpolicy.common.messages import printable
from rrpolicy.common.stats import Measure
from rrpolicy.common.tables import read_table
from rrpolicy.evaluation import ROW_KEYS, Row

UNIT_DONE = ("unit", "cpu_seconds")  # agent and metric of a unit's last row
Log = Callable[[str], None]


# ---------------------------------------------------------------------- rows of a unit


def plain_row(agent: str, metric: str, value: float) -> Row:
    """A row for a number that has no spread."""
    return {"agent": agent, "metric": metric, "mean": value, "ci_low": value, "ci_high": value, "n": 1}


def estimate_row(agent: str, metric: str, estimate: Measure) -> Row:
    """A row for a number that brings its own interval."""
    return dict(zip(ROW_KEYS, (agent, metric, *estimate), strict=True))


def flat_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows as ``results.json`` and cards have them: reference and level, which only a CSV has columns for, in names."""
    return [
        {
            **{name: row[name] for name in ROW_KEYS},
            "agent": "-".join([row["agent"], *([row["reference"]] if row.get("reference") else [])]),
            "metric": row["metric"] + ("" if row.get("level") is None else f"_t{row['level']}"),
        }
        for row in rows
    ]


@dataclass
class Recorder:
    """
    Rows of a unit with the CPU-seconds of the step that made them.

    Beside the keys of ``results.json`` a row may have ``reference``, ``level`` and ``step``, see :class:`Result`.

    :param log: called with what is being done
    """

    log: Log = lambda text: None
    entries: list[tuple[Row, float]] = field(default_factory=list)
    total: float = 0.0
    _started: float = field(default_factory=time.process_time)

    def start(self, what: str) -> None:
        """Begin a step, to which time is counted from now on."""
        self.log(what)
        self._started = time.process_time()

    def rows(self, rows: Iterable[Row], cpu_seconds: float | None = None) -> None:
        """
        Enter rows; those that hold no number (a correlation with a constant) are left out.

        :param cpu_seconds: default: since :meth:`start`
        """
        spent = time.process_time() - self._started
        seconds = spent if cpu_seconds is None else cpu_seconds
        self.entries += [(row, seconds) for row in rows if math.isfinite(row["mean"])]
        self.total += seconds
        self._started = time.process_time()

    def times(self, **cpu_seconds: float) -> None:
        """Enter the CPU-seconds of making something, which may have been in another process."""
        for agent, seconds in cpu_seconds.items():
            self.rows([plain_row(agent, "cpu_seconds", seconds)], seconds)

    def done(self) -> None:
        """Enter the row that marks the unit as done."""
        self.entries.append((plain_row(*UNIT_DONE, self.total), self.total))


# ---------------------------------------------------------------------- the CSV


@dataclass(frozen=True)
class Result:
    """
    One number of one unit.

    :param task: where: a maze, a robot
    :param case: which pair there: a goal as ``row-column``, a kind of data; empty for a base
    :param seed: of the unit
    :param variant: ablation or control; empty for the experiment itself
    :param agent: what was measured: an agent, the reward, or something that needs no reward
    :param metric: what of it
    :param value: the number
    :param ci_low: of its 95 % interval, equal to the value where there is none
    :param ci_high: the same
    :param n: episodes, pairs or groups behind it
    :param cpu_seconds: spent in the step that made it
    :param version: of the library
    :param recipe: digest of the recipe
    :param reference: what the number is relative to: the other agent of a paired difference or ratio, or classes that
        it is about; empty for none
    :param level: noise level; None for none
    :param step: environment steps of training after which it was measured; None for none
    :param commit: of the code, see `store.code_commit`; empty when unknown
    """

    task: str
    case: str
    seed: int
    variant: str
    agent: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    cpu_seconds: float
    version: str
    recipe: str
    reference: str = ""
    level: int | None = None
    step: int | None = None
    commit: str = ""

    @property
    def measured(self) -> tuple[str, str, str, int | None, int | None]:
        """Agent, metric, reference, level and step: what the number is about."""
        return self.agent, self.metric, self.reference, self.level, self.step

    @property
    def unit(self) -> tuple[str, str, int]:
        return self.task, self.case, self.seed


OLD_COLUMNS = (  # of files before 2026-11-29, which `migrate` rewrites
    *("seed", "variant", "agent", "metric", "value", "ci_low", "ci_high", "n", "cpu_seconds", "version", "recipe"),
)
_COLUMNS = (
    *("task", "case", "seed", "variant", "agent", "reference", "metric", "level", "step"),
    *("value", "ci_low", "ci_high", "n", "cpu_seconds", "version", "commit", "recipe"),
)
_FLOATS, _WHOLE, _MAYBE = ("value", "ci_low", "ci_high", "cpu_seconds"), ("seed", "n"), ("level", "step")


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """
    The heading of an experiment's CSV.

    :param names: what its task and case are called, e.g. ``maze`` and ``goal``
    """
    return (*names, *_COLUMNS[len(names) :])


def append_unit(path: Path, results: Sequence[Result], names: Sequence[str]) -> None:
    """
    Append the rows of a finished unit in one write.

    :param results: the last is the :data:`UNIT_DONE` row
    :param names: as in :func:`columns`
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        lock(file.fileno())
        size = file.seek(0, os.SEEK_END)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if size == 0:
            writer.writerow(columns(names))
        else:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # somebody was killed in the middle of a line
                text.write("\n")
        writer.writerows(_texts(result) for result in results)
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def read_csv(path: Path, names: Sequence[str]) -> list[Result]:
    """
    The rows of finished units, of equal ones the last; none when there is no file.

    :param names: as in :func:`columns`
    :raises ValueError: when the file is something else
    """
    if not path.exists():
        return []
    lines = read_table(path)
    if lines and tuple(lines[0]) == (*names, *OLD_COLUMNS):
        raise FileFault(path, f"has the columns of an earlier version: python -m rrpolicy.experiments.migrate {path}")
    if lines and tuple(lines[0]) != columns(names):
        wanted = ", ".join(columns(names))
        raise FileFault(path, f"is no results file: its columns are {printable(lines[0])}, wanted {wanted}")
    parsed = [result for line in lines[1:] if (result := _parsed(line)) is not None]
    for result in parsed:
        if not all(map(math.isfinite, (result.value, result.ci_low, result.ci_high, result.cpu_seconds))):
            raise FileFault(path, f"holds a number that is not finite: {printable(_texts(result))}")
    finished: dict[tuple[object, ...], list[Result]] = {}
    open_units: dict[tuple[object, ...], list[Result]] = {}
    for result in parsed:
        key = (*result.unit, result.variant)
        open_units.setdefault(key, []).append(result)
        if (result.agent, result.metric) == UNIT_DONE:
            finished[key] = _last_of_each(open_units.pop(key))
    return [result for results in finished.values() for result in results]


def finished_units(results: Iterable[Result], variant: str) -> set[tuple[str, str, int, str]]:
    """Units of a variant that were finished, each with the recipe that it was made with."""
    return {
        (*one.unit, one.recipe) for one in results if (one.agent, one.metric) == UNIT_DONE and one.variant == variant
    }


def _texts(result: Result) -> list[str]:
    return [_text(getattr(result, name)) for name in _COLUMNS]


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _parsed(line: list[str]) -> Result | None:
    """The result in a line; None for an incomplete line."""
    if len(line) != len(_COLUMNS):
        return None
    texts = dict(zip(_COLUMNS, line, strict=True))
    try:
        numbers: dict[str, Any] = {name: float(texts[name]) for name in _FLOATS}
        numbers |= {name: int(texts[name]) for name in _WHOLE}
        numbers |= {name: int(texts[name]) if texts[name] else None for name in _MAYBE}
    except ValueError:
        return None
    return Result(**{**texts, **numbers})


def _last_of_each(results: Iterable[Result]) -> list[Result]:
    return list({one.measured: one for one in results}.values())
