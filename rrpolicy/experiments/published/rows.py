"""Rows behind published numbers: files below ``docs/results`` and cards of the zoo, selected by what stands in columns.

A selection keeps rows that agree with every condition ``column=value``. ``variant``, ``reference``, ``level`` and
``step`` are empty unless a condition names them; of rows that differ in their numbers alone the last one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.schema import from_json, read_small
from rrpolicy.common.tables import read_table
from rrpolicy.experiments.tuning_log import Tuning

Line = dict[str, str]
NUMBERS = ("value", "mean", "ci_low", "ci_high", "n", "cpu_seconds")
PROVENANCE = ("version", "commit", "recipe", "date")
EMPTY = ("variant", "reference", "level", "step")
SEEDS, HEADLINE, SEEN, UNITS = "seeds", "headline", "seen", "units"
ZOO = "zoo:"
MAX_BYTES = 2**20
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Number:
    """
    A row's number.

    :param value: in the column that was asked for
    :param low: of its interval
    :param high: of its interval
    :param n: behind it
    :param seed: of training; 0 where rows have none
    :param unit: everything else that identifies the unit, to pair numbers
    """

    value: float
    low: float
    high: float
    n: int
    seed: int
    unit: tuple[str, ...]


@dataclass
class Rows:
    """
    Everything that published numbers may come from.

    :param results: folder of CSVs
    :param zoo: folder of the zoo's entries, each with a card
    :param log: the tuning log, for ``seeds=headline`` and ``seeds=seen``
    """

    results: Path
    zoo: Path
    log: Mapping[str, Tuning]
    _read: dict[str, list[Line]] = field(default_factory=dict)
    _of: dict[tuple[str, str], list[Line]] = field(default_factory=dict)

    def lines(self, name: str) -> list[Line]:
        """
        All rows of a CSV by its name without folder and ending, of a ``results.json`` or what a script printed
        (``demo.json``, ``diffuser_pair.txt``), or of a card (``zoo:Hopper-v5/reward``).

        :raises ValueError: when there is none, naming the file
        """
        if name not in self._read:
            self._read[name] = self._found(name)
        return self._read[name]

    def select(self, name: str, conditions: Mapping[str, str], column: str = "") -> list[Number]:
        """
        Numbers of the rows that agree with all conditions.

        :param name: as in :meth:`lines`
        :param conditions: column -> value, several values with commas, ``*`` for any; ``seeds``, which is ``headline``
            (the reporting seeds that have such rows, else those that were seen) or ``seen``; and ``units``, a variant
            whose units alone count
        :param column: that holds the number; default: value, or mean
        :raises ValueError: for a column that the rows do not have
        """
        lines = self.lines(name)
        wanted = {column: "" for column in EMPTY if lines and column in lines[0]} | dict(conditions)
        seeds, variant = wanted.pop(SEEDS, ""), wanted.pop(UNITS, "")
        if unknown := [one for one in (*wanted, column) if one and lines and one not in lines[0]]:
            raise ValueError(f"{name} has no column {unknown[0]!r}, it has {', '.join(lines[0])}")
        if "*" not in (metric := wanted.get("metric", "*")) and "," not in metric:
            lines = self._of_metric(name, metric)
        found = [line for line in lines if all(_agrees(line[one], value) for one, value in wanted.items())]
        if variant:
            units = {_unit(line) for line in self.lines(name) if line["variant"] == variant}
            found = [line for line in found if _unit(line) in units]
        last = {tuple(line[one] for one in line if one not in (*NUMBERS, *PROVENANCE)): line for line in found}
        numbers = [_number(line, column) for line in last.values()]
        return self._of_seeds(name, numbers, seeds) if seeds else numbers

    def cell(self, name: str, conditions: Mapping[str, str], column: str) -> str:
        """
        A cell of a summary's tables, which are themselves compared with their rows.

        :param name: such as ``images/summary.md``
        :param conditions: heading -> text of the cell below it
        :param column: heading of the cell
        :raises ValueError: unless one row agrees
        """
        path = self.results / name
        try:
            lines = read_small(path, MAX_BYTES).decode().splitlines()
        except OSError as error:
            raise FileFault(path, "is not there") from error
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        heads = [index - 1 for index, row in enumerate(rows) if set("".join(row)) <= {"-", " "}]
        found = []
        for index, row in enumerate(rows):
            cells = dict(zip(rows[max([head for head in heads if head <= index], default=0)], row, strict=False))
            if column in cells and all(cells.get(heading) == text for heading, text in conditions.items()):
                found.append(cells[column])
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} rows of {name} have {', '.join(map('='.join, conditions.items()))}, {column}"
            )
        return found[0]

    def _of_metric(self, name: str, metric: str) -> list[Line]:
        if (name, metric) not in self._of:
            self._of[name, metric] = [line for line in self.lines(name) if line["metric"] == metric]
        return self._of[name, metric]

    def _of_seeds(self, name: str, numbers: Sequence[Number], which: str) -> list[Number]:
        tuning = self.log.get(name)
        if tuning is None or which not in (HEADLINE, SEEN):
            raise ValueError(f"seeds must be {HEADLINE} or {SEEN} of an experiment with a tuning log, got {which!r}")
        reporting = [one for one in numbers if one.seed in tuning.headline]
        seen = [one for one in numbers if one.seed in tuning.seen]
        return (reporting or seen) if which == HEADLINE else seen

    def _found(self, name: str) -> list[Line]:
        if name.startswith(ZOO):
            return self._json(self.zoo / name.removeprefix(ZOO) / "card.json", "results")
        if name.endswith(".json"):
            return self._json(self.results / name)
        path = self.results / (name if name.endswith(".txt") else f"{name}.csv")
        try:
            if name.endswith(".txt"):
                return _printed(read_small(path, MAX_BYTES).decode())
            heading, *lines = read_table(path) or [[]]
        except FileNotFoundError as error:
            raise FileFault(path, "is not there") from error
        return [dict(zip(heading, line, strict=True)) for line in lines if len(line) == len(heading)]

    def _json(self, path: Path, entry: str = "") -> list[Line]:
        try:
            read = from_json(read_small(path, MAX_BYTES))
            return [{key: str(value) for key, value in row.items()} for row in (read[entry] if entry else read)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFault(path, f"holds no results: {error}") from error


def _printed(text: str) -> list[Line]:
    """Lines ``agent: metric: number`` or ``metric: number``, and ``number unit``, that a script printed."""
    found = []
    for line in text.splitlines():
        *names, value = line.split(": ") if ": " in line else reversed(line.split(" ", 1))
        if _NUMBER.fullmatch(value):
            found.append({"agent": names[0] if len(names) > 1 else "", "metric": names[-1], "value": value})
    return found


def _agrees(text: str, wanted: str) -> bool:
    return wanted in ("*", text) or text in wanted.split(",")


def _unit(line: Line) -> tuple[str, ...]:
    return (*(line[name] for name in tuple(line)[:2]), line.get("seed", ""))


def _number(line: Line, column: str) -> Number:
    value = float(line[column or ("value" if "value" in line else "mean")])
    own = not column
    low, high = (float(line.get(name) or value) if own else value for name in ("ci_low", "ci_high"))
    return Number(value, low, high, int(float(line.get("n") or 1)), int(line.get("seed") or 0), _unit(line))
