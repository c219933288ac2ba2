"""The log of a training as a CSV file that can be stopped at any moment: a row is there as a whole or not at all, and a
resumed training takes back the rows that came after its checkpoint."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from rrpolicy.common.files import naming, write_text

STEP_KEY = "time/total_timesteps"
LOSS_KEY = "train/loss"


class ProgressLog(KVWriter):
    """
    One of the output formats of SB3's ``Logger``, with columns in the order in which their names came up.

    :param path: the file, which is made with the first row
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        row = {key: str(value) for key, value in filter_excluded_keys(key_values, key_excluded, "csv").items()}
        header = self._header()
        if header and set(row) <= set(header):
            with naming(self.path, self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(_text([[row.get(key, "") for key in header]]))
        else:
            self._replace([*self.rows(), row])

    def close(self) -> None:
        """Nothing is open between two rows."""

    def rows(self) -> list[dict[str, str]]:
        """
        All rows, none when there is no file. An unfinished last line is left out: the process died in it.

        :raises ValueError: for a damaged file, naming it
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = lines if not lines or lines[-1].endswith("\n") else lines[:-1]
            rows = [dict(row) for row in csv.DictReader(io.StringIO("".join(whole), newline=""), strict=True)]
        except FileNotFoundError:
            return []
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise ValueError(f"{self.path} is damaged: line {number} has another number of columns than line 1")
            self._number(row, STEP_KEY, number)
        return rows

    def column(self, key: str) -> list[float]:
        """
        One column's numbers.

        :raises ValueError: for a damaged file, or without such a column, naming the file
        """
        return [self._number(row, key, number) for number, row in enumerate(self.rows(), start=2)]

    def keep(self, until: int) -> None:
        """Take back the rows after step ``until``."""
        if self.path.exists():
            self._replace([row for row in self.rows() if float(row[STEP_KEY]) <= until])

    def _number(self, row: Mapping[str, str], key: str, line: int) -> float:
        try:
            value = float(row[key])
        except (KeyError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{self.path} is damaged: {key} in line {line} is {row.get(key)!r:.40}, wanted a number")
        return value

    def _header(self) -> list[str]:
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                return next(csv.reader(file), [])
        except FileNotFoundError:
            return []

    def _replace(self, rows: Sequence[Mapping[str, str]]) -> None:
        header = list(dict.fromkeys(key for row in rows for key in row))
        write_text(self.path, _text([header, *([row.get(key, "") for key in header] for row in rows)] if rows else []))


def _text(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
