"""Rows behind published numbers: CSVs below ``docs/results`` and cards of the zoo, selected by what stands in columns.

A selection keeps rows that agree with every condition ``column=value``. ``variant``, ``reference``, ``level`` and
``step`` are empty unless a condition names them; of rows that differ in their numbers alone the last one counts.
"""

from __future__ import annotations

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
SEEDS, HEADLINE, SEEN = "seeds", "headline", "seen"
ZOO = "zoo:"
MAX_CARD_BYTES = 2**20


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
        All rows of a CSV, by its name without folder and ending, or of a card (``zoo:Hopper-v5/reward``).

        :raises ValueError: when there is none, naming the file
        """
        if name not in self._read:
            self._read[name] = self._card(name.removeprefix(ZOO)) if name.startswith(ZOO) else self._csv(name)
        return self._read[name]

    def select(self, name: str, conditions: Mapping[str, str], column: str = "") -> list[Number]:
        """
        Numbers of the rows that agree with all conditions.

        :param name: as in :meth:`lines`
        :param conditions: column -> value, several values with commas, ``*`` for any; and ``seeds``, which is
            ``headline`` (the reporting seeds that have such rows, else those that were seen) or ``seen``
        :param column: that holds the number; default: value, or mean
        :raises ValueError: for a column that the rows do not have
        """
        lines = self.lines(name)
        wanted = {column: "" for column in EMPTY if lines and column in lines[0]} | dict(conditions)
        seeds = wanted.pop(SEEDS, "")
        if unknown := [one for one in (*wanted, column) if one and lines and one not in lines[0]]:
            raise ValueError(f"{name} has no column {unknown[0]!r}, it has {', '.join(lines[0])}")
        if "*" not in (metric := wanted.get("metric", "*")) and "," not in metric:
            lines = self._of_metric(name, metric)
        found = [line for line in lines if all(_agrees(line[one], value) for one, value in wanted.items())]
        last = {tuple(line[one] for one in line if one not in (*NUMBERS, *PROVENANCE)): line for line in found}
        numbers = [_number(line, column) for line in last.values()]
        return self._of_seeds(name, numbers, seeds) if seeds else numbers

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

    def _csv(self, name: str) -> list[Line]:
        path = self.results / f"{name}.csv"
        try:
            heading, *lines = read_table(path) or [[]]
        except FileNotFoundError as error:
            raise FileFault(path, "is not there") from error
        return [dict(zip(heading, line, strict=True)) for line in lines if len(line) == len(heading)]

    def _card(self, entry: str) -> list[Line]:
        path = self.zoo / entry / "card.json"
        try:
            rows = from_json(read_small(path, MAX_CARD_BYTES))["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileFault(path, f"is no card with results: {error}") from error
        return [{key: str(value) for key, value in row.items()} for row in rows]


def _agrees(text: str, wanted: str) -> bool:
    return wanted == "*" or text in wanted.split(",")


def _number(line: Line, column: str) -> Number:
    value = float(line[column or ("value" if "value" in line else "mean")])
    own = not column
    low, high = (float(line.get(name) or value) if own else value for name in ("ci_low", "ci_high"))
    unit = tuple(line[name] for name in tuple(line)[:2])
    return Number(value, low, high, int(float(line.get("n") or 1)), int(line.get("seed") or 0), unit)
