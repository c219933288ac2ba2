"""What a unit writes down while it is measured: rows, and the CPU-seconds of the step that made them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from rrpolicy.evaluation import Row
from rrpolicy.experiments import plain_row
from rrpolicy.experiments.results import UNIT_DONE

Log = Callable[[str], None]


@dataclass
class Recorder:
    """
    Rows with the CPU-seconds of the step that made them.

    :param log: told what is being done
    """

    log: Log = lambda text: None
    entries: list[tuple[Row, float]] = field(default_factory=list)
    total: float = 0.0
    _started: float = field(default_factory=time.process_time)

    def start(self, what: str) -> None:
        """From here on time belongs to this step."""
        self.log(what)
        self._started = time.process_time()

    def rows(self, rows: Iterable[Row], cpu_seconds: float | None = None) -> None:
        """
        Enter rows; those that hold no number (a correlation with a constant) are left out.

        :param cpu_seconds: default: since :meth:`start`
        """
        spent = time.process_time() - self._started
        self.entries += [
            (row, spent if cpu_seconds is None else cpu_seconds) for row in rows if np.isfinite(row["mean"])
        ]
        self.total += spent if cpu_seconds is None else cpu_seconds
        self._started = time.process_time()

    def times(self, **cpu_seconds: float) -> None:
        """Enter what making something took, which may have been in another process."""
        for agent, seconds in cpu_seconds.items():
            self.rows([plain_row(agent, "cpu_seconds", seconds)], seconds)

    def done(self) -> None:
        """Enter the row that says the unit is done."""
        self.entries.append((plain_row(*UNIT_DONE, self.total), self.total))
