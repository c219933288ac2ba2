"""The CSV of an experiment: rows are only ever appended, a unit at a time, and a unit counts if its last row is there.

So a run that was killed in the middle of a line loses that unit and nothing else; of two equal keys the later counts.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.locks import lock
from rrpolicy.common.messages import printable
from rrpolicy.common.tables import read_table
from rrpolicy.evaluation import Row

UNIT_DONE = ("unit", "cpu_seconds")  # agent and metric of a unit's last row


@dataclass(frozen=True)
class Result:
    """
    One number of one unit.

    :param task: where: a maze, a robot
    :param case: which pair there: a goal as ``row-column``, a kind of data; empty for a base
    :param seed: of the unit
    :param variant: ablation or control; empty for the experiment itself
    :param agent: what was measured: an agent, the reward, a reference, or ``a-b`` for a paired difference
    :param metric: what of it
    :param value: the number
    :param ci_low: of its 95 % interval, equal to the value where there is none
    :param ci_high: the same
    :param n: episodes, pairs or groups behind it
    :param cpu_seconds: spent in the step that made it
    :param version: of the library
    :param recipe: digest of the recipe
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

    @property
    def unit(self) -> tuple[str, str, int]:
        return self.task, self.case, self.seed

    def row(self) -> Row:
        """As in ``results.json``."""
        return {
            "agent": self.agent,
            "metric": self.metric,
            "mean": self.value,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "n": self.n,
        }


_FIELDS = tuple(field.name for field in fields(Result))
_NUMBERS = {"seed": int, "n": int, "value": float, "ci_low": float, "ci_high": float, "cpu_seconds": float}


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """
    The heading of an experiment's CSV.

    :param names: what its task and case are called, e.g. ``maze`` and ``goal``
    """
    return (*names, *_FIELDS[len(names) :])


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
    return [f"{value:.6g}" if isinstance(value, float) else str(value) for value in astuple(result)]


def _parsed(line: list[str]) -> Result | None:
    """None for what is left of a line."""
    if len(line) != len(_FIELDS):
        return None
    try:
        return Result(**{name: _NUMBERS.get(name, str)(text) for name, text in zip(_FIELDS, line, strict=True)})
    except ValueError:
        return None


def _last_of_each(results: Iterable[Result]) -> list[Result]:
    return list({(one.agent, one.metric): one for one in results}.values())
